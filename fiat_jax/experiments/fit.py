"""One trained paradigm: the search over learning rates, the best of it, and its predictions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Examples
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import check_metrics
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Run
from fiat_jax.models.model import Model, load_model
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import axis_size
from fiat_jax.tasks.splits import holdout
from fiat_jax.tasks.task import Row, Task
from fiat_jax.training.log import Listener
from fiat_jax.training.loop import Evaluation, Trained, train


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained paradigm: the model with the chosen parameters in place, and how it was chosen."""

    model: Model
    scorer: Scorer
    learning_rate: float
    best: Evaluation
    evaluations: tuple[Evaluation, ...]
    num_train: int
    num_selection: int
    truncations: dict[str, Any]
    tokens: int
    seconds: float

    def predict(self, rows: Sequence[Row], reasons: Reasons, max_new_tokens: int) -> list[Prediction]:
        """Return the chosen model's predictions."""
        return self.scorer.prepare(rows, reasons).predict(self.model.trainable, max_new_tokens)


def select_split(task: Task, run: Run, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and those that selection reads, stratified by language and label."""
    stratify = tuple(name for name in (task.language_field,) if name)
    stratify += (task.answer_field,) if task.kind == "label" else ()
    kept, held = holdout(rows, run.data.selection, run.train.seed, stratify=stratify, group_field=run.data.group_field)
    check_metrics(task, held)
    return kept, held


def check_tokenizer(tokenizer: Tokenizer, model: Model) -> None:
    """Refuse a tokenizer whose ids the model's embedding lacks."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model in {model.directory} embeds "
            f"{model.config.vocab_size} tokens: they are not of one checkpoint"
        )


def scoring_rows(run: Run, model: Model) -> int:
    """Return the rows of a scoring batch: twice those of a training batch, and divided by mesh and hosts."""
    ways = math.lcm(axis_size(model.mesh, model.build.rules.batch), jax.process_count())
    return -(-2 * run.train.batch_rows // ways) * ways


def fit(
    run: Run,
    feed: Feed,
    examples: Examples,
    selection: tuple[Sequence[Row], Reasons],
    learning_rates: Sequence[float],
    workdir: Path,
    facts: dict[str, Any],
    listeners: Callable[[Path], Sequence[Listener]],
) -> Fit:
    """Train once for each learning rate, and keep the parameters that the selection rows like best.

    `workdir/lr-RATE` holds each run; a killed search goes on where it was.
    """
    mesh = run.mesh.build()
    with jax.set_mesh(mesh):
        lora = run.lora if feed.paradigm.lora else None
        model = load_model(run.model, mesh, lora=lora, seed=run.train.seed)
        check_tokenizer(feed.tokenizer, model)
        scorer = Scorer(model, feed, run.train.row_length, scoring_rows(run, model), run.data.length_normalise)
        rows, reasons = selection
        prepared = scorer.prepare(rows, reasons)
        metric = feed.task.metrics[0]
        found: list[tuple[float, Trained]] = []
        for rate in learning_rates:
            optimizer = dataclasses.replace(run.train.optimizer, learning_rate=rate)
            config = dataclasses.replace(run.train, optimizer=optimizer)
            batches = TrainBatches(examples, config.row_length, config.batch_rows, config.seed)
            where = workdir / f"lr-{rate:g}"
            trained = train(
                model,
                batches,
                config,
                where,
                evaluate=lambda trainable: prepared.measure(trainable, run.prompts.max_new_tokens),
                select=metric,
                facts={**facts, "train": repr(config)},
                listeners=listeners(where),
            )
            found.append((rate, trained))
        rate, trained = max(found, key=lambda pair: pair[1].history.best.metrics[metric])
    chosen = dataclasses.replace(model, trainable=trained.trainable)
    return Fit(
        model=chosen,
        scorer=scorer,
        learning_rate=rate,
        best=trained.history.best,
        evaluations=trained.history.evaluations,
        num_train=len(examples),
        num_selection=len(rows),
        truncations=examples.truncations(),
        tokens=sum(t.tokens for _, t in found),
        seconds=sum(t.seconds for _, t in found),
    )
