"""The paper's ladder (Table 3): FIAT with one part after another taken away, down to another θ_τ where there is one."""

from collections.abc import Iterator
from typing import Any

from fiat_jax.experiments.files import ALL, paradigm_of
from fiat_jax.experiments.report.content import DASH, LeftOut, Section, Table, interval, sized
from fiat_jax.experiments.report.measure import difference, main_metric, values_of
from fiat_jax.experiments.report.read import Finished

TITLE = "The ladder"
WITHOUT = {
    "reasoning": "without reasoning",
    "instructions": "without instructions too",
    "lora": "all weights instead of LoRA too",
}
Rung = tuple[str, str, str]  # what it lacks, the paradigm, the path of θ_τ


def ladder(run: Finished) -> Section | LeftOut:
    """Return the score of each rung at every size, and what sets it apart from the one above."""
    rungs, metric = list(_rungs(run)), main_metric(run)
    if len(rungs) < 2 or metric is None:
        return LeftOut(TITLE, "fewer than two rungs were run (Experiment.paradigms = ('ladder',))")
    shown, records = [], []
    for place, (what, paradigm, tau) in enumerate(rungs):
        line = [what, paradigm]
        for size in run.sizes:
            above = _minus(run, rungs[place], rungs[place - 1], size, metric) if place else None
            score = _score(run, paradigm, tau, size, metric)
            line += [interval(score), interval(above, "difference") if above else DASH]
            records.append({"lacks": what, "paradigm": paradigm, "theta_tau": tau, "size": size, "score": score,
                            "minus_above": above})  # fmt: skip
        shown.append(line)
    columns = ["", "paradigm", *(name for size in run.sizes for name in (sized(size), "minus the line above"))]
    note = "On the same rows, seed by seed; below zero where the part that is taken away had helped."
    text = "Each line lacks what the one above lacks, and one part more (Table 3 of the paper)."
    return Section("ladder", TITLE, text, [Table(f"{metric}, %", columns, shown, records, note)])


def _rungs(run: Finished) -> Iterator[Rung]:
    """Yield the rungs: those of the first θ_τ from the whole down, and the last one with each other θ_τ."""
    roles = run.results.get("details", {}).get("paradigms", {})
    found = sorted((len(role["removed"]), name) for name, role in roles.items() if "ladder" in role["groups"])
    names = [name for _, name in found]
    taus = list(dict.fromkeys(cell["theta_tau"] for cell in run.cells.values() if cell["size"]))
    if not names or not taus:
        return
    held: list[str] = []
    for name in names:
        gone = [part for part in roles[name]["removed"] if part not in held]
        yield " and ".join(WITHOUT[part] for part in gone) or run.tau_name(taus[0]), name, taus[0]
        held += gone
    for tau in taus[1:]:
        yield f"{run.tau_name(tau)} instead of {run.tau_name(taus[0])} too", names[-1], tau


def _score(run: Finished, paradigm: str, tau: str, size: int, metric: str) -> dict[str, Any] | None:
    wanted = (paradigm, tau, size, metric, ALL)
    for row in run.systems:
        if (paradigm_of(row["paradigm"]), *(row[n] for n in ("theta_tau", "size", "metric", "language"))) == wanted:
            return {name: row[name] for name in ("value", "ci95")}
    return None


def _minus(run: Finished, one: Rung, other: Rung, size: int, metric: str) -> dict[str, Any] | None:
    """Return a rung minus another one; None where they have no seed in common."""
    ours, theirs = (run.seeds_of(paradigm, size, tau) for _, paradigm, tau in (one, other))
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    sides = ({seed: cells[seed] for seed in both} for cells in (ours, theirs))
    return difference(*(values_of(run, cells, metric) for cells in sides))
