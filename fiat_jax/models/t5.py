"""T5, T5 1.1, Flan-T5, mT5 and mT0: config.json to settings of the one encoder-decoder, and their table of tensors."""

from collections.abc import Mapping
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.models.config import EncoderDecoderConfig
from fiat_jax.models.hf_config import ACTIVATION_NAMES, Entries
from fiat_jax.models.tensors import Family, Tensor

ACTIVATIONS = {**ACTIVATION_NAMES, "relu": "relu"}


def _read(hf: Mapping[str, Any], where: str, *, multilingual: bool) -> EncoderDecoderConfig:
    read = Entries(hf, where)
    read.require("quantization_config", (None,))
    read.require("is_encoder_decoder", (True,))
    gated, activation = _feed_forward(read, "gated-gelu" if multilingual else "relu")
    width, tied = read["d_model"], read.get("tie_word_embeddings", True)
    # the first T5 scales what its tied head reads; later files say so apart, or by not tying it
    scaled = False if multilingual else read.get("scale_decoder_outputs", tied)
    return EncoderDecoderConfig(
        vocab_size=read["vocab_size"],
        width=width,
        num_layers=read["num_layers"],
        num_decoder_layers=read.get("num_decoder_layers", read["num_layers"]),
        num_heads=read["num_heads"],
        head_dim=read["d_kv"],
        mlp_width=read["d_ff"],
        num_buckets=read.get("relative_attention_num_buckets", 32),
        max_distance=read.get("relative_attention_max_distance", 128),
        norm_eps=read.get("layer_norm_epsilon", 1e-6),
        activation=activation,
        gated=gated,
        tied_head=tied,
        head_scale=width**-0.5 if scaled else 1.0,
        start_id=read.get("decoder_start_token_id", read.get("pad_token_id", 0)),
    )


def _feed_forward(read: Entries, default: str) -> tuple[bool, str]:
    """Return whether the MLP is gated, and its activation."""
    named = read.get("feed_forward_proj", default)
    gate, _, activation = named.rpartition("-")
    if gate not in ("", "gated") or activation not in ACTIVATIONS:
        known = ", ".join(f"[gated-]{name}" for name in ACTIVATIONS)
        raise UserError(f"{read.where} has feed_forward_proj {named!r}; we read {known}")
    # "gated-gelu" has always meant the approximation
    return bool(gate), "gelu_tanh" if named == "gated-gelu" else ACTIVATIONS[activation]


def _layers(stack: str) -> tuple[Tensor, ...]:
    """Return the tensors of the encoder or of the decoder, whose third sublayer is the MLP."""
    layer = f"{stack}.block.{{layer}}.layer"
    attentions = [("", f"{layer}.0.SelfAttention")]
    norms = [("norm_attention", f"{layer}.0.layer_norm")]
    if stack == "decoder":
        attentions.append(("cross_", f"{layer}.1.EncDecAttention"))
        norms.append(("norm_cross", f"{layer}.1.layer_norm"))
    mlp, gated, plain = f"{layer}.{len(norms)}", lambda c: c.gated, lambda c: not c.gated
    norms.append(("norm_mlp", f"{mlp}.layer_norm"))
    inputs = [
        Tensor(f"{stack}.{prefix}{head}.w", f"{theirs}.{head}.weight", "(H K) D", "D H K")
        for prefix, theirs in attentions
        for head in "qkv"
    ]
    outputs = [
        Tensor(f"{stack}.{prefix}o.w", f"{theirs}.o.weight", "D (H K)", "H K D") for prefix, theirs in attentions
    ]
    return (
        *inputs,
        *outputs,
        Tensor(f"{stack}.gate.w", f"{mlp}.DenseReluDense.wi_0.weight", "F D", "D F", gated),
        Tensor(f"{stack}.up.w", f"{mlp}.DenseReluDense.wi_1.weight", "F D", "D F", gated),
        Tensor(f"{stack}.up.w", f"{mlp}.DenseReluDense.wi.weight", "F D", "D F", plain),
        Tensor(f"{stack}.down.w", f"{mlp}.DenseReluDense.wo.weight", "D F", "F D"),
        *(Tensor(f"{stack}.{norm}.gain", f"{theirs}.weight", "D", "D") for norm, theirs in norms),
        Tensor(f"{stack}_bias", f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "N H", "N H"),
        Tensor(f"{stack}_norm.gain", f"{stack}.final_layer_norm.weight", "D", "D"),
    )


_TENSORS = (
    Tensor("table", "shared.weight", "V D", "V D"),
    *_layers("encoder"),
    *_layers("decoder"),
    Tensor("head", "lm_head.weight", "V D", "V D", lambda c: not c.tied_head),
)
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _family(name: str, *, multilingual: bool) -> Family:
    return Family(
        name,
        lambda hf, where: _read(hf, where, multilingual=multilingual),
        _TENSORS,
        table="shared.weight",
        copies=_COPIES,
        head_by_files=True,  # transformers 5 writes that all are tied
        task_type="SEQ_2_SEQ_LM",
    )


ENCODER_DECODERS = {
    "T5ForConditionalGeneration": _family("t5", multilingual=False),
    "MT5ForConditionalGeneration": _family("mt5", multilingual=True),
}
