"""One trained paradigm: the search over learning rates, ranks and epochs, and the best of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.examples import Examples
from fiat_jax.experiments.feed import Feed, Reasons
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.experiments.spec import Point, Run
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
    bare: Examples | None  # the same without their ŷ_β, where a share of them is read so
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
    point: Point
    searched: tuple[tuple[Point, Evaluation], ...]
    best: Evaluation
    evaluations: tuple[Evaluation, ...]
    num_train: int
    num_selection: int
    truncations: dict[str, Any]
    tokens: int
    seconds: float
    goodput: Mapping[str, Any]


def scoring_rows(batch_rows: int, model: Model) -> int:
    """Return the rows of a scoring batch: twice those of a training batch, and divided by the mesh."""
    ways = axis_size(model.mesh, model.build.rules.batch)
    return -(-2 * batch_rows // ways) * ways


def fit(job: Job, search: Sequence[Point], workdir: Path, listeners: Callable[[Path], Sequence[Listener]]) -> Fit:
    """Train once for each point of a search, and keep the parameters that the selection rows like best.

    A directory of `workdir` holds each run; a killed search goes on where it was. Points of one rank share a model, so
    all of them begin with the same adapter.
    """
    mesh = job.run.mesh.build()
    found: list[tuple[Point, Trained]] = []
    bed: _Bed | None = None
    with jax.set_mesh(mesh):
        for point in sorted(search, key=lambda one: one.rank):  # stable: the rates of a rank keep their order
            if bed is None or bed.rank != point.rank:
                bed = None  # before there is another: one base at a time
                bed = _Bed(job, point, mesh)
            found.append((point, bed.train(point, workdir / point.name(job.run), listeners)))
        point, best = max(found, key=lambda pair: pair[1].history.best.metrics[job.metric])
        if bed is None or bed.rank != point.rank:
            bed = None
            bed = _Bed(job, point, mesh)
    return Fit(
        model=dataclasses.replace(bed.model, trainable=best.trainable),
        scorers=bed.scorers,
        point=point,
        searched=tuple((point, trained.history.best) for point, trained in found),
        best=best.history.best,
        evaluations=best.history.evaluations,
        num_train=len(job.examples),
        num_selection=sum(len(one.rows) for one in job.selections.values()),
        truncations=job.examples.truncations(),
        tokens=sum(one.tokens for _, one in found),
        seconds=sum(one.seconds for _, one in found),
        goodput=best.goodput,
    )


class _Bed:
    """A model with an adapter of one rank, and what measures it; its programs are compiled once."""

    def __init__(self, job: Job, point: Point, mesh: jax.sharding.Mesh):
        run = point.applied(job.run)
        lora = run.lora if job.feed.paradigm.lora else None
        self.job, self.rank, self.model = job, point.rank, load_model(run.model, mesh, lora=lora, seed=run.train.seed)
        rows = scoring_rows(run.train.batch_rows, self.model)
        self.scorers = {
            part: Scorer(self.model, one.feed, run.train.row_length, rows, one.run.data.length_normalise)
            for part, one in job.selections.items()
        }
        self._prepared = {
            part: self.scorers[part].prepare(one.rows, one.reasons) for part, one in job.selections.items()
        }

    def train(self, point: Point, where: Path, listeners: Callable[[Path], Sequence[Listener]]) -> Trained:
        """Train one point of the search."""
        job, run, paradigm = self.job, point.applied(self.job.run), self.job.feed.paradigm
        config, layout = run.train, job.feed.layout
        batches = TrainBatches(
            job.examples, config.row_length, config.batch_rows, config.seed, layout, job.bare, paradigm.dropout
        )
        facts = {**job.facts, "Lora": repr(run.lora) if paradigm.lora else ""}
        return train(
            self.model, batches, config, where,
            evaluate=self._measure, select=job.metric, facts=facts, listeners=listeners(where),
        )  # fmt: skip

    def _measure(self, trainable: Any) -> dict[str, float]:
        found = {part: self._prepared[part].measure(trainable) for part in self.job.selections}
        if len(found) == 1:
            return next(iter(found.values()))
        apart = {f"{part}/{metric}": value for part, values in found.items() for metric, value in values.items()}
        firsts = [found[part][one.feed.task.metrics[0]] for part, one in self.job.selections.items()]
        return {**apart, MEAN: sum(firsts) / len(firsts)}
