"""Random models drawn on one device and then laid out: on each mesh anew, the program that draws takes seconds."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from fiat_jax.models.config import Config
from fiat_jax.models.model import Model, abstract_model, random_model
from fiat_jax.sharding import MeshConfig


def drawn(
    config: Config, mesh: Mesh, changed: Callable[[Model], Model] = lambda model: model, *, seed: int = 0, **options
) -> Model:
    """Return what `random_model` does, `changed` on one device before it is laid out."""
    alone = MeshConfig(1, 1, 1).build(jax.local_devices()[:1])
    with jax.set_mesh(alone):
        one = changed(random_model(config, alone, seed=seed, **options))
    shapes = abstract_model(config, mesh, **options)

    def laid(shape, array):
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, shape.sharding, lambda index: whole[index])

    trainable, frozen = (
        jax.tree.map(laid, *both) for both in ((shapes.trainable, one.trainable), (shapes.frozen, one.frozen))
    )
    return dataclasses.replace(shapes, trainable=trainable, frozen=frozen)
