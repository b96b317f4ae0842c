"""One step of training: forward, loss, gradient, update, metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

SEGMENTS = ("segments", "decoder_segments")  # of what is read, 0 for padding; of an encoder-decoder both
Batch = Mapping[str, jax.Array]
# (trainable, frozen, batch, dropout key) → the sum of the loss over the batch's target tokens
LossFn = Callable[[Any, Any, Batch, jax.Array | None], jax.Array]


@struct.dataclass
class TrainState:
    """What a step changes: the step's number, the trained parameters, and the optimizer's state."""

    step: jax.Array
    trainable: Any
    opt_state: Any


def loss_and_grads(loss_fn: LossFn, trainable, frozen, batch: Batch, dropout_key, parts: int):
    """Return the summed loss and its gradient, over `parts` equal parts of the batch's rows in turn."""
    grad_fn = jax.value_and_grad(loss_fn)
    if parts == 1:
        return grad_fn(trainable, frozen, batch, dropout_key)
    # row i goes to part i mod parts: so every device keeps its own rows
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

    def add(total, inputs):
        part, index = inputs
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return jax.tree.map(jnp.add, total, grad_fn(trainable, frozen, part, key)), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
    return jax.lax.scan(add, zero, (split, jnp.arange(parts)))[0]


def train_step(
    state: TrainState,
    frozen: Any,
    batch: Batch,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    parts: int,
    dropout_key: jax.Array | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Advance the trained parameters by one step; jit it with `state` donated.

    The gradient is that of the sum of losses over the sum of target tokens, whatever the parts (maxtext#3040).
    """
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)
    loss, grads = loss_and_grads(loss_fn, state.trainable, frozen, batch, key, parts)
    targets = jnp.sum(batch["weights"])
    grads = jax.tree.map(lambda g: g / targets, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    tokens = sum(jnp.count_nonzero(batch[name]) for name in SEGMENTS if name in batch)
    metrics = {"loss": loss / targets, "grad_norm": optax.tree.norm(grads), "tokens": tokens}
    return TrainState(state.step + 1, trainable, opt_state), metrics
