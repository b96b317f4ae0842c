"""`statistics` of results.json: systems over all their seeds, what sets them apart, how sure they are of themselves."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiat_jax.evaluation.calibration import calibration, confidences
from fiat_jax.evaluation.metrics import find_metrics
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.systems import Means, Measured
from fiat_jax.tasks.task import Row, Task

OF_A_CELL = ("cell", "seed")  # what cells of one system differ in


@dataclasses.dataclass(frozen=True)
class Scored:
    """A finished cell: what its rows of results.json say of it, and its predictions; `trained`: its seed matters."""

    known: Mapping[str, Any]
    trained: bool
    predictions: Sequence[Prediction]

    @property
    def system(self) -> tuple[Any, ...]:
        """What the cells of one system have in common."""
        return tuple(value for name, value in self.known.items() if name not in OF_A_CELL)


def statistics_of(
    task: Task, rows: Sequence[Row], cells: Sequence[Scored], against: str, means: Means
) -> dict[str, list[dict[str, Any]]]:
    """Return what results.json has under `statistics`; docs/results-format.md names every field."""
    systems: dict[tuple[Any, ...], list[Scored]] = {}
    for cell in cells:
        systems.setdefault(cell.system, []).append(cell)
    seeds = {
        key: {one.known["seed"] if one.trained else None: one.predictions for one in found}
        for key, found in systems.items()
    }
    measured = Measured(task, rows, seeds, means)
    scores = [
        {**_shared(found), "seeds": [one.known["seed"] for one in found], **row}
        for key, found in systems.items()
        for row in measured.scores(key)
    ]
    differences = []
    for a, b in _pairs(systems, against):
        pairs = measured.pairs(a, b)
        if pairs:
            one, other = systems[a], systems[b]
            sized = one[0] if one[0].trained else other[0]
            known = {"a": one[0].known["paradigm"], "b": other[0].known["paradigm"]}
            known |= {name: sized.known[name] for name in ("theta_tau", "task", "size")}
            trained = [(one[i] if one[i].trained else other[j]).known["seed"] for i, j in pairs]
            known |= {"seeds": trained, "split": sized.known["split"]}
            differences += [{**known, **row} for row in measured.differences(a, b)]
    return {"systems": scores, "differences": differences, "calibration": [*_calibrations(task, cells)]}


def _shared(cells: Sequence[Scored]) -> dict[str, Any]:
    return {name: value for name, value in cells[0].known.items() if name not in OF_A_CELL}


def _pairs(systems: Mapping[tuple[Any, ...], Sequence[Scored]], against: str):
    """Yield `against` and each other paradigm, where both are of one θ_τ and one size, or not trained at all."""
    for a, (one, *_) in systems.items():
        for b, (other, *_) in systems.items():
            if one.known["paradigm"] != against or other.known["paradigm"] == against:
                continue
            both = one.trained and other.trained
            if not both or all(one.known[name] == other.known[name] for name in ("theta_tau", "size")):
                yield a, b


def _calibrations(task: Task, cells: Sequence[Scored]):
    """Yield the calibration error and the bins of each cell that ranked candidates, over the rows of all languages."""
    metric = next((one for one in find_metrics((*task.metrics, "accuracy")) if one.binary), None)
    assert metric is not None
    assert metric.per_row is not None
    for cell in cells:
        sure = confidences(cell.predictions)
        if sure is None:
            continue
        gold = [str(one.gold) for one in cell.predictions]
        right = metric.per_row(gold, [one.prediction for one in cell.predictions])
        found = calibration(sure, right)
        yield {
            "cell": cell.known["cell"],
            "error": 100 * found.error,
            "confidence": 100 * float(np.mean(sure)),
            "right": 100 * float(np.mean(right)),
            "n": len(sure),
            "bins": [dataclasses.asdict(one) for one in found.bins],
        }
