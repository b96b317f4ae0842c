"""Log-probabilities of given targets, teacher-forced: how labels are ranked."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.models.attention import Prefix
from fiat_jax.models.model import Model
from fiat_jax.sharding import divided


@functools.lru_cache(maxsize=4)  # the cells of an experiment score with few programs in turn
def _program(model: Model) -> Any:
    return jax.jit(model.log_probs, out_shardings=NamedSharding(model.mesh, PartitionSpec()))


class TargetScorer:
    """Scores packed rows with one model, on the mesh that holds it; one program for each shape of batch.

    Rows hold texts with the answers that may follow them, as `data.layout` packs them: a text is read once for all its
    answers, and a prefix that all texts begin with once for all rows.
    """

    def __init__(self, model: Model):
        self.model = model
        self._run = _program(model.shared())

    def __call__(
        self, batch: Mapping[str, np.ndarray], prefix: Prefix | None = None, trainable: nnx.State | None = None
    ) -> jax.Array:
        """Return log P of the targets of a batch, float32 [rows, M], the same on every host and not waited for.

        `batch` is the whole one on every host; positions count from the end of the prefix (of a decoder) on.
        `trainable` stands in for the model's own, say in the middle of training; the compiled programs stay.
        """
        placed = divided(self.model.mesh, self.model.build.rules, batch)
        trainable = self.model.trainable if trainable is None else trainable
        return self._run(trainable, self.model.frozen, placed, prefix)
