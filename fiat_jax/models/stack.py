"""What both kinds of model have in common: norms, activations, the scan over layers, what backward recomputes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fiat_jax.models.head import logits_of

REMAT_POLICIES = {
    # every matrix product once, what is cheap again: less memory traffic than saving all, and as fast or faster
    "products": jax.checkpoint_policies.save_only_these_names(
        "q", "k", "v", "unnormed", "attended", "projected", "mid", "gate", "up", "down", "low_rank"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": jax.nn.gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


class RMSNorm(nnx.Module):
    """x / rms(x) · (offset + gain), in float32; a stack of gains where num_layers is given."""

    def __init__(self, width: int, *, eps: float, dtype, num_layers: int | None = None, offset: float = 0.0):
        shape, axes = ((width,), ("norm",)) if num_layers is None else ((num_layers, width), ("layers", "norm"))
        self.gain = nnx.Param(jnp.full(shape, 1 - offset, dtype), axes=axes)
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)  # bf16 squares lose the small channels
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + self.eps)
        gain = jnp.expand_dims(self.gain[...], range(x.ndim - 1))
        if self.offset:
            return (normed * (self.offset + gain.astype(jnp.float32))).astype(x.dtype)
        return normed.astype(x.dtype) * gain


def scan_layers(run: Callable, carry: Any, blocks: nnx.Module, num_layers: int, remat: str, dropout_key) -> Any:
    """Return the carry after run(carry, block, layer, key) of every layer of a stack, each with a key of its own."""
    graphdef, stacked = nnx.split(blocks)

    def one(carry, inputs):
        layer, block = inputs
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
        return run(carry, nnx.merge(graphdef, block), layer, key), None

    one = jax.checkpoint(one, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(one, carry, (jnp.arange(num_layers), stacked))[0]


def next_logits(module: Any, x_BD: jax.Array) -> jax.Array:
    """Return a model's float32 logits (B, V) of one hidden state a row."""
    return logits_of(x_BD[:, None], module.head_VD, module.config.logit_cap)[:, 0]
