"""Sections of scores: the table, the differences, languages, training sizes, calibration."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from fiat_jax.experiments.files import ALL, AT
from fiat_jax.experiments.report import figures
from fiat_jax.experiments.report.content import (
    Figure,
    LeftOut,
    Section,
    Table,
    count,
    interval,
    number,
    p_value,
    sized,
)
from fiat_jax.experiments.report.read import Finished, Record

MEANS = {ALL: "mean of languages", "micro": "mean of rows", "underrepresented": "under-represented languages"}


def label(run: Finished, row: Mapping[str, Any]) -> str:
    """Return a system's name: its paradigm, and what else tells systems of this run apart."""
    parts = [str(row["paradigm"] or row["cell"])]
    for field in ("task", "theta_tau"):
        told = field == "theta_tau" and AT in parts[0]
        if len({one[field] for one in run.systems} - {None}) > 1 and row[field] and not told:
            parts.append(PurePath(row[field]).name)
    return " · ".join(parts)


def table(run: Finished) -> Section:
    """Return every system's score at every size, and what sets the systems apart."""
    parts: list[Table] = []
    sizes = run.sizes or [0]
    for metric in run.metrics:
        rows = [row for row in run.systems if (row["metric"], row["language"]) == (metric, ALL)]
        by_label: dict[str, dict[int, Record]] = {}
        for row in rows:
            by_label.setdefault(label(run, row), {})[row["size"] or 0] = row
        shown = [[name, *(interval(at.get(size, at.get(0))) for size in sizes)] for name, at in by_label.items()]
        n = rows[0]["n"]
        title = f"{metric}, %, of {count(n)} rows of {rows[0]['split']}"
        parts.append(Table(title, ["system", *map(sized, sizes)], shown, rows, _seeds_note(rows)))
    parts += _means(run)
    for metric in run.metrics:
        rows = [row for row in run.differences if (row["metric"], row["language"]) == (metric, ALL)]
        if rows:
            parts.append(_differences(f"Differences in {metric}, points", rows))
    text = "Brackets hold 95% intervals."
    if len(run.languages) > 1:
        text += f" Every score is the plain mean of {len(run.languages)} languages."
    return Section("scores", "Scores", text, parts)


def _seeds_note(rows: Sequence[Record]) -> str:
    """Return what the intervals are about."""
    most = max(len(row["seeds"]) for row in rows)
    if most == 1:
        return "One seed: intervals are about the choice of rows, not about the seed of the training."
    spread = [row["sd_seeds"] for row in rows if row["sd_seeds"] is not None]
    return (
        f"Means of up to {most} seeds; intervals are about the choice of rows and of seeds. Scores of seeds have a "
        f"standard deviation of {number(min(spread))} to {number(max(spread))} points."
    )


def _means(run: Finished) -> list[Table]:
    """Return the means over languages beside one another, where there is more than one."""
    if len(run.languages) < 2:
        return []
    found = []
    for metric in run.metrics:
        rows = [row for row in run.systems if row["metric"] == metric and row["language"] in MEANS]
        names = [name for name in MEANS if any(row["language"] == name for row in rows)]
        if len(names) < 2:
            continue
        systems: dict[tuple[str, int], dict[str, Record]] = {}
        for row in rows:
            systems.setdefault((label(run, row), row["size"] or 0), {})[row["language"]] = row
        shown = [[name, sized(size), *(interval(at.get(m)) for m in names)] for (name, size), at in systems.items()]
        found.append(Table(f"Means of {metric}, %", ["system", "trained on", *(MEANS[m] for m in names)], shown, rows))
    return found


def _differences(title: str, rows: Sequence[Record]) -> Table:
    shown = [
        [
            f"{row['a']} − {row['b']}", sized(row["size"]), interval(row, "difference"), p_value(row["p"]),
            count(len(row["seeds"])), number(row["se_rows"], 2), number(row["se_seeds"], 2),
        ]
        for row in rows
    ]  # fmt: skip
    columns = ["difference", "trained on", "points", "p", "seeds", "s.e. of rows", "s.e. of seeds"]
    return Table(
        title, columns, shown, rows, "On the same rows, seed by seed. p is not corrected for the number of pairs."
    )


def languages(run: Finished) -> Section | LeftOut:
    """Return scores and differences by language, at the largest size."""
    title = "Languages"
    if len(run.languages) < 2:
        return LeftOut(title, "the rows are of one language (Task.language_field names the field that tells them)")
    size, parts = max(run.sizes, default=0), []
    for metric in run.metrics:
        rows = [row for row in run.systems if row["metric"] == metric and row["language"] in run.languages
                and (row["size"] or 0) in (size, 0)]  # fmt: skip
        names = list(dict.fromkeys(label(run, row) for row in rows))
        by_place = {(row["language"], label(run, row)): row for row in rows}
        n = {row["language"]: row["n"] for row in rows}
        shown = [[lang, count(n[lang]), *(interval(by_place.get((lang, x))) for x in names)] for lang in run.languages]
        parts.append(Table(f"{metric}, %, {sized(size)}", ["language", "rows", *names], shown, rows))
    for metric in run.metrics:
        rows = [row for row in run.differences if row["metric"] == metric and row["language"] in run.languages
                and row["size"] in (size, 0)]  # fmt: skip
        if rows:
            columns = ["language", "difference", "points", "p", "p (Holm)"]
            shown = [
                [
                    row["language"],
                    f"{row['a']} − {row['b']}",
                    interval(row, "difference"),
                    p_value(row["p"]),
                    p_value(row["p_holm"]),
                ]
                for row in rows
            ]
            note = "Holm's p is corrected for the number of languages of a pair."
            parts.append(Table(f"Differences in {metric} by language, {sized(size)}", columns, shown, rows, note))
    return Section("languages", title, "", parts)


def sizes(run: Finished) -> Section | LeftOut:
    """Return the score over the training size."""
    title = "Training rows"
    if len(run.sizes) < 2:
        return LeftOut(title, "there is one training size (Experiment.sizes)")
    metric = run.metrics[0]
    rows = [row for row in run.systems if (row["metric"], row["language"]) == (metric, ALL)]
    found = []
    for name in dict.fromkeys(label(run, row) for row in rows):
        of = sorted((row for row in rows if label(run, row) == name), key=lambda row: row["size"] or 0)
        if not of[0]["size"]:
            of = [{**of[0], "size": size} for size in run.sizes]
        columns = ([row["value"] for row in of], [row["ci95"][0] for row in of], [row["ci95"][1] for row in of])
        found.append(figures.Line(name, [row["size"] for row in of], *columns))
    ends = "; ".join(f"{one.label} from {number(one.y[0])} to {number(one.y[-1])}" for one in found)
    told = f"{metric} in per cent over {count(run.sizes[0])} to {count(run.sizes[-1])} training rows: {ends}."
    svg = figures.lines("sizes", title, told, found, "training rows", f"{metric}, %", log_x=True)
    return Section("sizes", title, "", [Figure("sizes", f"{metric} over training rows", told, svg)])


def calibrations(run: Finished) -> Section | LeftOut:
    """Return how far confidence and being right agree."""
    title, cells = "Calibration", run.results.get("statistics", {}).get("calibration", [])
    if not cells:
        return LeftOut(title, "no system ranked candidates, so none has a confidence")
    known = run.cells
    largest = max(known[cell["cell"]]["size"] or 0 for cell in cells)
    systems: dict[tuple[str, int], list[Record]] = {}
    for cell in cells:
        of = known[cell["cell"]]
        systems.setdefault((label(run, of), of["size"] or 0), []).append(cell)
    keys = "error", "confidence", "right"
    means = {at: [number(sum(one[key] for one in of) / len(of)) for key in keys] for at, of in systems.items()}
    shown = [[name, sized(size), *means[name, size], count(len(of))] for (name, size), of in systems.items()]
    found = []
    for (name, trained_on), (cell, *_) in systems.items():
        if trained_on == largest:
            bins = ([100 * one[key] for one in cell["bins"]] for key in ("confidence", "right"))
            found.append(figures.Line(name, *bins))
    told = f"Share of right answers over confidence at {sized(largest)}, one seed; on the diagonal both are equal."
    columns = ["system", "trained on", "error", "mean confidence", "right", "seeds"]
    note = (
        f"Expected calibration error of {count(cells[0]['n'])} rows over 15 bins of equal width, %, mean of the seeds; "
        "above 0 by chance too where rows are few."
    )
    parts = [
        Figure(
            "reliability", "Confidence and being right", told, figures.reliability("reliability", title, told, found)
        ),
        Table("Calibration error", columns, shown, cells, note),
    ]
    text = "Confidence is the probability of the answer among its candidates, over the rows of all languages."
    return Section("calibration", title, text, parts)
