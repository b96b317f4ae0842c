"""A model's predictions of rows of a task: labels ranked by likelihood, or answers generated."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.data.batches import ScoringBatches
from fiat_jax.evaluation.predict import generate_greedily, label_predictions, rank_classification, text_predictions
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import ALL, score_predictions
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.inference.generate import Generator
from fiat_jax.models.model import Model
from fiat_jax.tasks.task import Row, Task

GENERATED_AT_ONCE = 64


class Scorer:
    """Compiles once, then predicts any rows with any trained parameters of one model."""

    def __init__(self, model: Model, feed: Feed, row_length: int, batch_rows: int, length_normalise: bool = False):
        self.model, self.feed = model, feed
        self._row_length, self._batch_rows, self._length_normalise = row_length, batch_rows, length_normalise
        self._log_probs = jax.jit(model.log_probs, out_shardings=NamedSharding(model.mesh, PartitionSpec()))
        self._rows_sharding = NamedSharding(model.mesh, PartitionSpec(model.build.rules.batch))
        self._generator = Generator(model, feed.renderer.end_id)

    def prepare(self, rows: Sequence[Row], reasons: Reasons) -> "Prepared":
        """Render and pack rows once, for predicting them many times."""
        return Prepared(self, rows, reasons)

    def log_probs(self, trainable: Any, batch) -> jax.Array:
        """Return log P of the targets of one batch, the same on every host."""
        process, count = jax.process_index(), jax.process_count()
        share = self._batch_rows // count
        local = {name: rows[process * share : (process + 1) * share] for name, rows in batch.items()}
        placed = {n: jax.make_array_from_process_local_data(self._rows_sharding, r) for n, r in local.items()}
        return self._log_probs(trainable, self.model.frozen, placed)

    def generate(self, trainable: Any, inputs: list[np.ndarray], max_new_tokens: int) -> list[list[int]]:
        """Return greedy continuations."""
        return self._generator(inputs, max_new_tokens, trainable=trainable)


class Prepared:
    """Rows of a task, ready to be predicted."""

    def __init__(self, scorer: Scorer, rows: Sequence[Row], reasons: Reasons):
        self.rows, self._scorer = list(rows), scorer
        feed = scorer.feed
        self._examples = feed.inputs(rows, reasons)
        self._candidates = [feed.candidates(row) for row in rows]
        self._batches = (
            ScoringBatches(self._examples, self._candidates, scorer._row_length, scorer._batch_rows, feed.layout)
            if any(self._candidates)
            else None
        )

    def predict(self, trainable: Any, max_new_tokens: int) -> list[Prediction]:
        """Return the predictions of all rows under these trained parameters, in order."""
        scorer, task = self._scorer, self._scorer.feed.task
        if self._batches is not None:
            scores = rank_classification(
                lambda batch: scorer.log_probs(trainable, batch),  # pyright: ignore  # a device array being computed
                self._examples,
                self._candidates,
                self._batches,
                length_normalise=scorer._length_normalise,
            )
            return label_predictions(task, self.rows, scores)
        tokenizer = scorer.feed.tokenizer
        texts = generate_greedily(
            lambda inputs, count: scorer.generate(trainable, inputs, count),
            [self._examples.inputs[index] for index in range(len(self.rows))],
            tokenizer.decode,
            eos_id=scorer.feed.renderer.end_id,
            max_new_tokens=max_new_tokens,
            batch_size=GENERATED_AT_ONCE,
        )
        return text_predictions(task, self.rows, texts, verbalise=scorer.feed.renderer.instructions.verbalise)

    def measure(self, trainable: Any, max_new_tokens: int) -> dict[str, float]:
        """Return metric → per cent, macro mean over languages: what the loop reads."""
        return point_values(self._scorer.feed.task, self.rows, self.predict(trainable, max_new_tokens))


def point_values(task: Task, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return metric → value in per cent, macro mean over languages, without intervals."""
    scored: list[dict[str, Any]] = score_predictions(task, rows, predictions, resamples=1)
    return {row["metric"]: row["value"] for row in scored if row["language"] == ALL}
