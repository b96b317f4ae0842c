"""Sections about the run itself: what it was made from and on, and what sets two runs apart."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fiat_jax.experiments.files import ALL
from fiat_jax.experiments.report.content import (
    DASH,
    LeftOut,
    Section,
    Table,
    Text,
    count,
    interval,
    signed,
    sized,
)
from fiat_jax.experiments.report.measure import difference, main_metric, same_rows, values_of
from fiat_jax.experiments.report.read import Finished
from fiat_jax.experiments.report.scores import label


def origin(run: Finished) -> Section:
    """Return inputs with their hashes, versions, hardware and settings."""
    results = run.results
    groups = [
        ("Inputs", dict(_flat(results["inputs"]))),
        ("Versions", results["versions"]),
        ("Hardware", results["hardware"]),
    ]
    parts: list[Any] = [
        Table(title, ["what", "value"], [[name, _text(value)] for name, value in found.items()], [found])
        for title, found in groups
    ]
    cells = [
        [name, f"{facts['learning_rate']:g}", count(facts["best_step"]), count(facts["rows_trained_on"]),
         count(facts["trained_parameters"]), facts["selected_on"] or DASH]
        for name, facts in run.cells.items() if "learning_rate" in facts
    ]  # fmt: skip
    if cells:
        columns = ["cell", "learning rate", "step", "rows trained on", "trained parameters", "selected on"]
        parts.append(Table("What selection chose", columns, cells))
    if run.settings:
        parts.append(Text("All settings (config.gin)", run.settings))
    text = (
        f"fiat {results['verb']}, whose last call took {count(results['seconds'])} s. The predictions have the hashes "
        "that are told here."
    )
    return Section("origin", "Where this is from", text, parts)


def versus(a: Finished, b: Finished) -> Section | LeftOut:
    """Return systems that both runs have, the second minus the first, and what their settings differ in."""
    title, metric = "The two runs", main_metric(a)
    named = [
        {(label(run, row), row["size"], row["metric"]): row for row in run.systems if row["language"] == ALL}
        for run in (a, b)
    ]
    both = [key for key in named[0] if key in named[1]]
    if not both:
        return LeftOut(title, "the runs have no system of one name, size and metric in common")
    rows, records, unpaired = [], [], False
    for key in both:
        name, size, of = key
        one, other = named[0][key], named[1][key]
        found = _paired(a, b, one, other, of) if of == metric else None
        told = {"difference": other["value"] - one["value"], **(found or {})}
        shown = interval(told, "difference") if found else f"{signed(told['difference'])} (no interval)"
        unpaired |= found is None
        rows.append([name, sized(size), of, interval(one), interval(other), shown])
        records.append({"system": name, "size": size, "metric": of, "first": one, "second": other, **told})
    columns = ["system", "trained on", "metric", a.name, b.name, "second − first, points"]
    note = "On the same rows, seed by seed."
    if unpaired:
        note += f" Without an interval: the rows differ, no seed is shared, or the metric is not {metric}."
    parts: list[Any] = [Table("Systems of both runs", columns, rows, records, note)]
    changed = difflib.unified_diff(a.settings.splitlines(), b.settings.splitlines(), a.name, b.name, lineterm="", n=0)
    lines = [line for line in changed if not line.startswith("@@")]
    if lines:
        parts.append(Text("Settings that differ", "\n".join(lines)))
    inputs = [dict(_flat(run.results["inputs"])) for run in (a, b)]
    names = [name for name in dict.fromkeys((*inputs[0], *inputs[1])) if inputs[0].get(name) != inputs[1].get(name)]
    apart = [[name, _text(inputs[0].get(name)), _text(inputs[1].get(name))] for name in names]
    if apart:
        parts.append(Table("Inputs that differ", ["what", a.name, b.name], apart))
    return Section("versus", title, f"{b.name} against {a.name}.", parts)


def _paired(
    a: Finished, b: Finished, one: Mapping[str, Any], other: Mapping[str, Any], metric: str
) -> dict[str, Any] | None:
    """Return the second minus the first on the same rows; None where they have other rows or no seed in common."""
    cells = [run.seeds_of(row["paradigm"], row["size"], row["theta_tau"]) for run, row in ((a, one), (b, other))]
    seeds = sorted(cells[0].keys() & cells[1].keys())
    if not seeds or not same_rows(a.predictions(cells[0][seeds[0]]), b.predictions(cells[1][seeds[0]])):
        return None
    ours, theirs = ({seed: found[seed] for seed in seeds} for found in cells)
    return difference(values_of(b, theirs, metric), values_of(a, ours, metric))


def _flat(value: Any, before: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and plain values."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, (*before, str(name)))
    else:
        yield ".".join(before), value


def _text(value: Any) -> str:
    return DASH if value in (None, "") else str(value)
