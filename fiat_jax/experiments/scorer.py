"""A model's predictions of rows of a task: labels ranked by likelihood, or answers generated."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiat_jax.data.batches import ScoringBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.evaluation.metrics import find_metrics
from fiat_jax.evaluation.predict import label_predictions, rank_classification, text_predictions
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import ALL, score_predictions
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.inference.engine import Engine, EngineConfig
from fiat_jax.inference.prefixes import Prefixes
from fiat_jax.inference.requests import Request
from fiat_jax.inference.scoring import TargetScorer
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model
from fiat_jax.sharding import axis_size
from fiat_jax.tasks.task import Row, Task

SLOTS = 64
SHORTEST_PREFIX = 64  # tokens: fewer are read again with every row sooner than they pay for a program


class Scorer:
    """Compiles once, then predicts any rows with any trained parameters of one model."""

    def __init__(self, model: Model, feed: Feed, row_length: int, batch_rows: int, length_normalise: bool = False):
        self.model, self.feed = model, feed
        self.row_length, self.batch_rows, self.length_normalise = row_length, batch_rows, length_normalise
        self.log_probs = TargetScorer(model)
        self._engine: Engine | None = None

    def prepare(self, rows: Sequence[Row], reasons: Reasons) -> "Prepared":
        """Render and pack rows once, for predicting them many times."""
        return Prepared(self, rows, reasons)

    def engine(self, prefix: int, longest: int, new: int) -> Engine:
        """Return an engine for prompts and new tokens of these lengths, the last one if it has the room."""
        limit, ways = self.model.config.max_length, axis_size(self.model.mesh, self.model.build.rules.batch)
        room = _power_of_two(longest) + _power_of_two(new)
        room = room if limit is None else max(min(room, limit - prefix), longest + new)
        found = self._engine
        if found is None or found.config.slot_length < room or found.config.prefix_length < prefix:
            config = EngineConfig(
                slots=SLOTS,
                slot_length=room,
                prefix_length=prefix,
                shortest_bucket=min(room, max(32, _power_of_two(longest) // 4)),
            ).divided(ways)
            self._engine = found = Engine(self.model, self.feed.renderer.end_id, config)
        return found


class Prepared:
    """Rows of a task, ready to be predicted.

    Tokens that all rows begin with, most often the instructions, are read once for all of them.
    """

    def __init__(self, scorer: Scorer, rows: Sequence[Row], reasons: Reasons):
        self.rows, self._scorer = list(rows), scorer
        feed = scorer.feed
        self._prefix, self._examples = _shared(scorer.model, feed.inputs(rows, reasons))
        self._candidates = [feed.candidates(row) for row in rows] if feed.ranks else []
        self._batches, self._prefixes = None, None
        if any(self._candidates):
            self._batches = ScoringBatches(
                self._examples, self._candidates, scorer.row_length, scorer.batch_rows, feed.layout
            )
            self._prefixes = Prefixes.of(scorer.model, len(self._prefix)) if len(self._prefix) else None

    def predict(self, trainable: Any) -> list[Prediction]:
        """Return the predictions of all rows under these trained parameters, in order."""
        scorer, task = self._scorer, self._scorer.feed.task
        if self._batches is not None:
            prefix = None
            if self._prefixes is not None:
                self._prefixes.use(trainable)
                prefix = self._prefixes.get(self._prefixes.add(self._prefix.tolist()))
            scores = rank_classification(
                lambda batch: scorer.log_probs(batch, prefix, trainable),  # pyright: ignore  # a device array, computing
                self._examples,
                self._candidates,
                self._batches,
                length_normalise=scorer.length_normalise,
            )
            return label_predictions(task, self.rows, scores)
        feed, verbalise = scorer.feed, scorer.feed.renderer.instructions.verbalise
        texts = [feed.tokenizer.decode(ids) for ids in self._generate(trainable, feed.new_tokens)]
        return text_predictions(task, self.rows, texts, verbalise=verbalise, answer_in=feed.answer_in)

    def _generate(self, trainable: Any, max_new_tokens: int) -> list[tuple[int, ...]]:
        """Return the greedy continuation of every row."""
        inputs = [tuple(example.inputs.tolist()) for example in self._examples]
        engine = self._scorer.engine(len(self._prefix), max(map(len, inputs), default=1), max_new_tokens)
        engine.use(trainable)
        key = engine.add_prefix(self._prefix.tolist()) if len(self._prefix) else ""
        answers = engine.generate([Request(ids, max_new_tokens, prefix=key) for ids in inputs])
        return [found.tokens for (found,) in answers]

    def measure(self, trainable: Any) -> dict[str, float]:
        """Return metric → per cent, macro mean over languages: what the loop reads."""
        return point_values(self._scorer.feed.task, self.rows, self.predict(trainable))


def _shared(model: Model, examples: Examples) -> tuple[np.ndarray, Examples]:
    """Return the tokens that all inputs begin with, none where that would not pay, and the examples without them."""
    nothing = np.zeros(0, np.int32)
    if len(examples) < 2 or not isinstance(model.config, DecoderConfig):
        return nothing, examples
    if any(reach.rope.kind in ("dynamic", "longrope") for reach in model.config.reaches):
        return nothing, examples  # the angles of a shared text would depend on the whole one's length
    first, count = examples.inputs[0], int(examples.inputs.lengths.min()) - 1  # each keeps a token of its own
    for index in range(1, len(examples)):
        differ = np.flatnonzero(examples.inputs[index][:count] != first[:count])
        count = int(differ[0]) if len(differ) else count
    if count < SHORTEST_PREFIX:
        return nothing, examples
    own = (Example(one.row_id, one.language, one.inputs[count:], one.target, one.dropped) for one in examples)
    return first[:count], Examples.of(own)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def point_values(task: Task, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return metric → value in per cent, macro mean over languages, without intervals.

    Of a few rows, a ranking is left out where some language has none of the positive label; the first metric never is.
    """
    kept = tuple(name for n, name in enumerate(task.metrics) if n == 0 or _is_defined(task, name, rows))
    task = dataclasses.replace(task, metrics=kept)
    scored: list[dict[str, Any]] = score_predictions(task, rows, predictions, resamples=1)
    return {row["metric"]: row["value"] for row in scored if row["language"] == ALL}


def _is_defined(task: Task, name: str, rows: Sequence[Row]) -> bool:
    (metric,) = find_metrics([name])
    positive = {task.language(row) for row in rows if row[task.answer_field] == task.positive_label}
    return metric.per_row is not None or {task.language(row) for row in rows} == positive
