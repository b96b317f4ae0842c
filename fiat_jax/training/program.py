"""The step as the loop compiles it, and the state it begins with as shapes: for whoever asks what it would take."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.models.model import Model
from fiat_jax.sharding import batch_sharding
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.step import TrainState, train_step


def jit_step(model: Model, config: TrainConfig, optimizer: optax.GradientTransformation) -> Any:
    """Return the jitted step(state, frozen, batch) of a run; it overwrites its state.

    Runs that differ in nothing that it is compiled from have one, such as an experiment's seeds without dropout.
    """
    dropout = any(slot.dropout for _, slot in model.build.slots)
    return _jitted(model.shared(), optimizer, config.accumulate, config.seed if dropout else None)


@functools.lru_cache(maxsize=4)  # as many rates and sizes may take turns in a cell
def _jitted(model: Model, optimizer: optax.GradientTransformation, parts: int, seed: int | None) -> Any:
    step = functools.partial(
        train_step,
        loss_fn=model.loss,
        optimizer=optimizer,
        parts=parts,
        dropout_key=None if seed is None else jax.random.fold_in(jax.random.key(seed), 1),
    )
    return jax.jit(step, donate_argnums=0)


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state that the loop begins with as shapes with shardings, of a model that may be shapes itself.

    What an optimizer keeps of a parameter lies as the parameter does, all else whole on every device.
    """
    whole = NamedSharding(model.mesh, PartitionSpec())
    parameters = {path: x.sharding for path, x in jax.tree_util.tree_flatten_with_path(model.trainable)[0] if x.ndim}

    def placed(path, x):
        ends = (parameters.get(path[start:]) for start in range(len(path)))
        sharding = next((found for found in ends if found is not None), whole)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if x.ndim else whole)

    shapes = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    opt_state = jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, model.trainable))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step, jax.tree.map(shapes, model.trainable), opt_state)  # pyright: ignore  # shapes for arrays


def abstract_batch(model: Model, batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a global batch, laid out as the loop does it."""
    sharding = batch_sharding(model.mesh, model.build.rules)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in batch.items()}
