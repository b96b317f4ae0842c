"""Figures of finished cells: scores, pairs and statistics; worked out once for the same predictions."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fiat_jax import evaluation
from fiat_jax.data.examples import content_key
from fiat_jax.distributed import is_main
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import compare, score_predictions
from fiat_jax.evaluation.systems import Means
from fiat_jax.experiments import across
from fiat_jax.experiments.across import Scored, statistics_of
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.cells import Done
from fiat_jax.experiments.feed import unranked
from fiat_jax.experiments.files import file_hash, write_json
from fiat_jax.experiments.runtime import versions
from fiat_jax.tasks.task import Task

Made = Sequence[tuple[Bench, Done]]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What results.json has under `rows`, `comparisons` and `statistics` (None: of one cell there are none)."""

    rows: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    statistics: dict[str, list[dict[str, Any]]] | None


def figures_of(made: Made, against: str, means: Means | None, workdir: Path) -> Figures:
    """Return the figures of finished cells: those that WORKDIR/cache holds of the same predictions, or worked out now.

    Statistics are worked out where there are `means`.
    """
    key = _key(made, against, means)
    path = workdir / "cache" / "figures.json"
    held = _held(path)
    if held.get("key") == key:
        return Figures(held["rows"], held["comparisons"], held["statistics"])
    bench, done = made[0][0], [one for _, one in made]
    scored = [
        Scored(known, one.cell.paradigm.trained, predictions)
        for of, one in made
        for known, (_, _, predictions) in zip(known_of(of, one), one.systems, strict=True)
    ]
    found = Figures(
        [row for of, one in made for row in result_rows(of, one)],
        comparison_rows(bench, done, against),
        statistics_of(bench.task, bench.report_rows, scored, against, means) if means else None,
    )
    if is_main():
        write_json(path, {"key": key, **dataclasses.asdict(found)})
    return found


def _key(made: Made, against: str, means: Means | None) -> str:
    """Return the hash of all that figures depend on: predictions, what is said of them, and how they are measured."""
    bench = made[0][0]
    code = [*sorted(Path(evaluation.__file__).parent.glob("*.py")), across.__file__, __file__]
    cells = [
        (known, one.cell.paradigm.trained, one.facts["predictions_sha256"], one.facts.get("predictions_bare_sha256"))
        for of, one in made
        for known in known_of(of, one)
    ]
    return content_key([*map(file_hash, code)], versions(), repr((bench.task, against, means, cells)), bench.rows_key)


def _held(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # none, or damaged: they are worked out anew
        return {}


def _scored(bench: Bench, *systems: Sequence[Prediction]) -> Task:
    """Return the task with the metrics that systems have: answers that were not ranked carry no scores of labels."""
    if all(one.scores is not None for predictions in systems for one in predictions):
        return bench.task
    return unranked(bench.task)


def known_of(bench: Bench, done: Done) -> list[dict[str, Any]]:
    """Return what rows of results.json say of each line that a cell has in tables."""
    cell, run = done.cell, bench.run
    reasons = bench.reasons_of(cell.paradigm)
    return [
        {
            "cell": name,
            "paradigm": system,
            "theta_tau": run.model.path if cell.paradigm.answers == "tau" else None,
            "theta_beta": reasons.model if cell.paradigm.needs_reasoning else None,
            "task": run.task.name,
            "size": cell.size,
            "seed": cell.seed,
            "split": run.data.report_split,
            "selected_on": f"{run.data.selection:.0%} of {run.data.train_split}" if cell.paradigm.trained else None,
        }
        for name, system, _ in done.systems
    ]


def result_rows(bench: Bench, done: Done) -> list[dict[str, Any]]:
    """Return the rows of results.json of one cell."""
    return [
        {**known, **row}
        for known, (_, _, predictions) in zip(known_of(bench, done), done.systems, strict=True)
        for row in score_predictions(_scored(bench, predictions), bench.report_rows, predictions)
    ]


def comparison_rows(bench: Bench, done: Sequence[Done], against: str) -> list[dict[str, Any]]:
    """Return `against` minus every other system of its θ_τ, and each paradigm with the first θ_τ minus with another.

    Both are of one size and seed, on the same rows.
    """
    lines = [(one, *line) for one in done for line in one.systems]
    mine = [a for a in done if a.cell.paradigm.name == against]
    pairs = [(a, *line) for a in mine for line in lines if line[1] != a.cell.name and _one_tau(a.cell, line[0].cell)]
    first = [a for a in done if a.cell.tau == bench.tau]
    pairs += [
        (a, *line) for a in first for line in lines if line[1] == line[0].cell.name and _apart(a.cell, line[0].cell)
    ]
    rows = []
    for a, b, _, system, predictions in pairs:
        trained = [one.cell for one in (a, b) if one.cell.paradigm.trained]
        if len({(cell.size, cell.seed) for cell in trained}) > 1:
            continue
        cell = (trained or [a.cell])[0]
        known = {
            "a": a.cell.system,
            "b": system,
            "task": bench.task.name,
            "size": cell.size,
            "seed": cell.seed,
            "split": bench.run.data.report_split,
        }
        scored = _scored(bench, a.predictions, predictions)
        rows += [{**known, **row} for row in compare(scored, bench.report_rows, a.predictions, predictions)]
    return rows


def _one_tau(a: Cell, b: Cell) -> bool:
    """Return whether two cells are of one θ_τ, or θ_β answers in one of them."""
    return a.tau == b.tau or "" in (a.tau, b.tau)


def _apart(a: Cell, b: Cell) -> bool:
    """Return whether two cells are of one paradigm and two θ_τ."""
    return a.paradigm == b.paradigm and not _one_tau(a, b)
