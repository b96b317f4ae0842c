"""`fiat export`: a trained bundle for other programs."""

from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.experiments.bundle import Bundle, copy_bundle, load_bundle_model
from fiat_jax.models import peft
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.model import Model, largest_logit_difference, merge, their_tensors, with_weights
from fiat_jax.sharding import MeshConfig

FORMATS = ("peft", "merged", "bundle")
PROBE_TOKENS = (4, 64)


def export(bundle: Bundle, form: str, output: Path, mesh: MeshConfig, console: Console) -> None:
    """Write the adapter in peft's layout, the merged model in transformers' (and what merging changed), or a bundle."""
    if form not in FORMATS:
        raise UserError(f"unknown export format {form!r}; known are {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}")
    if form == "peft" and not bundle.adapter:
        raise UserError(f"{bundle.directory} was tuned in all weights and has no adapter; use --format=merged")
    if form == "bundle":
        copy_bundle(bundle, output)
        console.print(f"bundle: {output}")
        return
    model = load_bundle_model(bundle, mesh)
    if form == "peft":
        peft.save_adapter(model, output)
        console.print(f"adapter: {output}")
        return
    if bundle.adapter:
        model = _merged(model, console)
    dtype = bundle.model.dtype
    hf_config = {**model.hf_config, "torch_dtype": dtype, "dtype": dtype}
    write_model(output, their_tensors(model, model.weights(), dtype), hf_config, bundle.theta_tau_path)
    console.print(f"merged model: {output}")


def _merged(model: Model, console: Console) -> Model:
    with jax.set_mesh(model.mesh):
        merged = with_weights(model, merge(model))
        tokens_BT = np.random.default_rng(0).integers(0, model.config.vocab_size, PROBE_TOKENS).astype(np.int32)
        difference = largest_logit_difference(model, merged, tokens_BT)
    console.print(f"largest logit difference between adapter and merged model on random tokens: {difference:.2e}")
    return merged
