"""One trained paradigm: the search over learning rates, and the best of it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Examples
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Run
from fiat_jax.models.model import Model, load_model
from fiat_jax.sharding import axis_size
from fiat_jax.tasks.task import Row
from fiat_jax.training.log import Listener
from fiat_jax.training.loop import Evaluation, Trained, train

MEAN = "mean"  # over the parts of a mixture, of each one's first metric


@dataclasses.dataclass(frozen=True)
class Selection:
    """Rows that selection reads, how they are rendered, and the settings (`run`) of the task they are of."""

    run: Run
    feed: Feed
    rows: Sequence[Row]
    reasons: Reasons


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained: on which examples, selected by which rows; `facts` are what checkpoints must agree on.

    `selections` has one entry, or one for each part of a mixture by its name.
    """

    run: Run
    examples: Examples
    selections: Mapping[str, Selection]
    facts: Mapping[str, str]

    @property
    def feed(self) -> Feed:
        """How the rows of the first part are rendered; of all parts alike but for their task and instructions."""
        return next(iter(self.selections.values())).feed

    @property
    def metric(self) -> str:
        """What selection goes by."""
        return self.feed.task.metrics[0] if len(self.selections) == 1 else MEAN


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained paradigm: the model with the chosen parameters in place, how it was chosen, a scorer for each part."""

    model: Model
    scorers: Mapping[str, Scorer]
    learning_rate: float
    best: Evaluation
    evaluations: tuple[Evaluation, ...]
    num_train: int
    num_selection: int
    truncations: dict[str, Any]
    tokens: int
    seconds: float
    goodput: Mapping[str, Any]


def scoring_rows(batch_rows: int, model: Model) -> int:
    """Return the rows of a scoring batch: twice those of a training batch, and divided by mesh and hosts."""
    ways = math.lcm(axis_size(model.mesh, model.build.rules.batch), jax.process_count())
    return -(-2 * batch_rows // ways) * ways


def fit(
    job: Job, learning_rates: Sequence[float], workdir: Path, listeners: Callable[[Path], Sequence[Listener]]
) -> Fit:
    """Train once for each learning rate, and keep the parameters that the selection rows like best.

    `workdir/lr-RATE` holds each run; a killed search goes on where it was.
    """
    run, feed = job.run, job.feed
    mesh = run.mesh.build()
    with jax.set_mesh(mesh):
        model = load_model(run.model, mesh, lora=run.lora if feed.paradigm.lora else None, seed=run.train.seed)
        rows = scoring_rows(run.train.batch_rows, model)
        scorers = {
            part: Scorer(model, one.feed, run.train.row_length, rows, one.run.data.length_normalise)
            for part, one in job.selections.items()
        }
        prepared = {part: scorers[part].prepare(one.rows, one.reasons) for part, one in job.selections.items()}

        def measure(trainable: Any) -> dict[str, float]:
            found = {
                part: prepared[part].measure(trainable, one.run.prompts.max_new_tokens)
                for part, one in job.selections.items()
            }
            if len(found) == 1:
                return next(iter(found.values()))
            apart = {f"{part}/{metric}": value for part, values in found.items() for metric, value in values.items()}
            firsts = [found[part][one.feed.task.metrics[0]] for part, one in job.selections.items()]
            return {**apart, MEAN: sum(firsts) / len(firsts)}

        def run_one(rate: float) -> Trained:
            optimizer = dataclasses.replace(run.train.optimizer, learning_rate=rate)
            config = dataclasses.replace(run.train, optimizer=optimizer)
            where = workdir / f"lr-{rate:g}"
            return train(
                model,
                TrainBatches(job.examples, config.row_length, config.batch_rows, config.seed, feed.layout),
                config,
                where,
                evaluate=measure,
                select=job.metric,
                facts=job.facts,
                listeners=listeners(where),
            )

        found = [(rate, run_one(rate)) for rate in learning_rates]
    rate, trained = max(found, key=lambda pair: pair[1].history.best.metrics[job.metric])
    return Fit(
        model=dataclasses.replace(model, trainable=trained.trainable),
        scorers=scorers,
        learning_rate=rate,
        best=trained.history.best,
        evaluations=trained.history.evaluations,
        num_train=len(job.examples),
        num_selection=sum(len(one.rows) for one in job.selections.values()),
        truncations=job.examples.truncations(),
        tokens=sum(one.tokens for _, one in found),
        seconds=sum(one.seconds for _, one in found),
        goodput=trained.goodput,
    )
