"""Random models whose every path matters: fresh weights are so small that a tiny model hardly listens to its input."""

import dataclasses

import jax

from fiat_jax.models.model import Model


def louder(model: Model, times: float) -> Model:
    """Return the model with its matrices so many times larger."""
    scaled = lambda x: x * times if x.ndim > 2 else x  # noqa: E731
    trainable, frozen = (jax.tree.map(scaled, tree) for tree in (model.trainable, model.frozen))
    return dataclasses.replace(model, trainable=trainable, frozen=frozen)
