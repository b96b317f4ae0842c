"""Kinds of models that layouts are tried with: a decoder, a mixture of experts, an encoder-decoder."""

import dataclasses
import functools
from typing import Any, NamedTuple

from support.tiny_run import TINY

from fiat_jax.data.layout import DecoderLayout, EncoderDecoderLayout
from fiat_jax.models.config import EncoderDecoderConfig

DECODER = dataclasses.replace(TINY, tied_head=False)


class Kind(NamedTuple):
    """A kind of model: its configuration, its architecture's name, and how its batches are laid out.

    `loud` is how much larger than fresh ones its weights are: much more, and rounding errors grow beyond the tolerance.
    """

    config: Any
    architecture: str
    layout: Any
    loud: float = 3.0


KINDS = {
    "decoder": Kind(DECODER, "LlamaForCausalLM", DecoderLayout),
    "experts": Kind(
        dataclasses.replace(DECODER, num_experts=4, experts_per_token=2), "MixtralForCausalLM", DecoderLayout
    ),
    "encoder-decoder": Kind(
        EncoderDecoderConfig(
            vocab_size=48, width=16, num_layers=2, num_decoder_layers=2, num_heads=4, head_dim=8, mlp_width=32
        ),
        "T5ForConditionalGeneration",
        functools.partial(EncoderDecoderLayout, start_id=0),
        loud=2.0,
    ),
}
