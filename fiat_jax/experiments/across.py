"""`statistics` of results.json: systems over all their seeds, what sets them apart, how sure they are of themselves."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiat_jax.evaluation.calibration import calibration, confidences
from fiat_jax.evaluation.metrics import find_metrics
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.systems import Means, Measured
from fiat_jax.experiments.files import paradigm_of
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
            taus = {one[0].known["theta_tau"], other[0].known["theta_tau"]} - {None}
            known |= {"theta_tau": taus.pop() if len(taus) == 1 else None}
            known |= {name: sized.known[name] for name in ("task", "size")}
            trained = [(one[i] if one[i].trained else other[j]).known["seed"] for i, j in pairs]
            known |= {"seeds": trained, "split": sized.known["split"]}
            differences += [{**known, **row} for row in measured.differences(a, b)]
    return {"systems": scores, "differences": differences, "calibration": [*_calibrations(task, cells)]}


def _shared(cells: Sequence[Scored]) -> dict[str, Any]:
    return {name: value for name, value in cells[0].known.items() if name not in OF_A_CELL}


def _pairs(systems: Mapping[tuple[Any, ...], Sequence[Scored]], against: str):
    """Yield `against` and each other paradigm of its θ_τ, then each paradigm with the first θ_τ and with another one.

    Both are of one size, or one is not trained.
    """
    taus = [found[0].known["theta_tau"] for found in systems.values()]
    first = next((tau for tau in taus if tau is not None), None)
    for across in (False, True):
        for a, (one, *_) in systems.items():
            for b, (other, *_) in systems.items():
                ours, theirs = (paradigm_of(each.known["paradigm"]) for each in (one, other))
                same_tau = one.known["theta_tau"] == other.known["theta_tau"]
                if one.trained and other.trained and one.known["size"] != other.known["size"]:
                    continue
                if across and ours == theirs and one.known["theta_tau"] == first and not same_tau:
                    yield a, b
                alone = None in (one.known["theta_tau"], other.known["theta_tau"])  # θ_β answers
                if not across and ours == against != theirs and (same_tau or alone):
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
