"""The claims of the paper, measured on a finished `fiat demo --full`: every figure is told, whichever way it comes out.

Values are per cent of the task's first metric. Systems of several seeds are the mean of their seeds in every row;
intervals are of 95%, from resampled rows within languages, of differences on the same rows.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from fiat_jax.errors import UserError
from fiat_jax.evaluation.gains import gains_by_language
from fiat_jax.evaluation.predictions import Prediction, read_predictions
from fiat_jax.evaluation.statistics import RESAMPLES, bootstrap_p, interval, resampled_means
from fiat_jax.experiments.results import with_interval

RIVALS = ("icl", "finetune", "finetune-lora")  # what FIAT is to beat
CONTROLS = ("fiat-answer-only", "fiat-rationale-only", "fiat-shuffled")
RUNGS = (
    ("FIAT", "fiat"),
    ("without reasoning", "fiat-no-reasoning"),
    ("nor instructions", "finetune-lora"),
    ("nor LoRA (all weights tuned)", "finetune"),
    ("nor an instruction-tuned base", "base: finetune"),
)

ByLanguage = dict[str, np.ndarray]  # language → [n] values in 0..1


@dataclass(frozen=True)
class Measured:
    """The values of every system by (name, size), and those of its seeds."""

    metric: str
    values: Mapping[tuple[str, int], ByLanguage]
    of_seeds: Mapping[tuple[str, int], Sequence[ByLanguage]]

    @property
    def sizes(self) -> list[int]:
        """The training sizes."""
        return sorted({size for _, size in self.values} - {0})

    def of(self, name: str, size: int) -> ByLanguage:
        """Return a system's values; one that is not trained has no size."""
        return self.values[name, size] if (name, size) in self.values else self.values[name, 0]

    def __contains__(self, name: str) -> bool:
        return any(name == known for known, _ in self.values)


class Finished(NamedTuple):
    """An experiment's working directory and rows of results; `prefix` is put before the names of its paradigms."""

    prefix: str
    workdir: Path
    rows: Sequence[Mapping[str, Any]]


def read_measured(runs: Iterable[Finished], wanted: Callable[[Prediction], bool] = lambda _: True) -> Measured:
    """Read the predictions of experiments on the same rows, those that are wanted."""
    of_seeds: dict[tuple[str, int], list[ByLanguage]] = {}
    metric, rows_read = "", []
    for prefix, workdir, rows in runs:
        metric = rows[0]["metric"]
        cells = {row["cell"]: (prefix + row["paradigm"], row["size"] or 0) for row in rows}
        for cell, system in cells.items():
            found = [one for one in read_predictions(workdir / "predictions" / f"{cell}.jsonl") if wanted(one)]
            ids = sorted(one.id for one in found)
            rows_read = rows_read or ids
            if ids != rows_read:
                raise UserError(
                    f"the predictions of {cell} in {workdir} are of other rows than those before; remove it"
                )
            of_seeds.setdefault(system, []).append(_by_language(found, metric))
    means = {
        system: {language: np.mean([one[language] for one in seeds], axis=0) for language in seeds[0]}
        for system, seeds in of_seeds.items()
    }
    return Measured(metric, means, of_seeds)


def claims(measured: Measured, whole: Measured, untuned: Mapping[str, Sequence[Prediction]]) -> dict[str, Any]:
    """Return every claim's figures as JSON.

    `whole` is of the rows whose answers are marked whole: where nothing is to be learnt of how a name is marked.
    `untuned` are the predictions of θ_τ before any step, with instructions ("instructed") and without ("bare").
    """
    m = measured
    icl = m.of("icl", 0)
    gains = {size: gains_by_language(m.of("fiat-no-reasoning", size), m.of("fiat", size)) for size in m.sizes}
    bare, instructed = (_by_language(untuned[name], m.metric) for name in ("bare", "instructed"))
    return {
        "metric": m.metric,
        "large": {"all": score(icl), "by_language": {name: score({name: column}) for name, column in icl.items()}},
        "ladder": [
            {"rung": rung, "system": name, "size": size, **score(m.of(name, size)), "step": _step(m, index, size)}
            for size in m.sizes
            for index, (rung, name) in enumerate(RUNGS)
        ],
        "controls": [
            {"system": name, "size": size, **score(m.of(name, size))}
            for size in m.sizes
            for name in CONTROLS
            if (name, size) in m.values
        ],
        "fiat_against": _fiat_against(m),
        "fiat_against_where_marked_whole": _fiat_against(whole),
        "gain_of_reasoning": {
            size: {"baselines": g.baselines, "gains": g.gains, "rank_correlation": g.correlation, "ci95": g.ci95}
            for size, g in gains.items()
        },
        "instructions_at_step_0": {
            "bare": score(bare), "instructed": score(instructed), "gain": difference(instructed, bare)
        },
    }  # fmt: skip


def score(values: ByLanguage) -> dict[str, Any]:
    """Return the mean over languages, and its interval."""
    replicates = np.mean([_means(column, name) for name, column in values.items()], axis=0)
    return {"value": 100 * _macro(values), "ci95": [100 * bound for bound in interval(replicates)]}


def difference(a: ByLanguage, b: ByLanguage) -> dict[str, Any]:
    """Return a minus b on the same rows, its interval and two-sided p."""
    apart = {name: a[name] - b[name] for name in a}
    replicates = np.mean([_means(column, name) for name, column in apart.items()], axis=0)
    ci95 = [100 * bound for bound in interval(replicates)]
    return {"difference": 100 * _macro(apart), "ci95": ci95, "p": bootstrap_p(replicates)}


def print_claims(found: Mapping[str, Any], console: Console) -> None:
    """Print the ladder, what FIAT is compared with, and the gains by language."""
    sizes = list(dict.fromkeys(row["size"] for row in found["ladder"]))
    ladder = Table(title=f"The ladder: {found['metric']} in per cent, mean of the seeds, 95% intervals of rows")
    ladder.add_column("parts removed, one after another")
    for size in sizes:
        ladder.add_column(f"{size:,} rows", justify="right")
    for rung in dict.fromkeys(row["rung"] for row in found["ladder"]):
        ladder.add_row(rung, *(with_interval(row) for row in found["ladder"] if row["rung"] == rung))
    for name in dict.fromkeys(row["system"] for row in found["controls"]):
        shown = {row["size"]: with_interval(row) for row in found["controls"] if row["system"] == name}
        ladder.add_row(f"control: {name}", *(shown.get(size, "") for size in sizes))
    ladder.add_row("θ_β alone, few-shot", *[with_interval(found["large"]["all"])] * len(sizes))
    console.print(ladder)

    for key, which in (("fiat_against", ""), ("fiat_against_where_marked_whole", ", no answer a name")):
        beats = Table(title=f"FIAT minus its rivals on the same rows{which}")
        beats.add_column("rival")
        for size in sizes:
            beats.add_column(f"{size:,} rows", justify="right")
        for rival in dict.fromkeys(row["rival"] for row in found[key]):
            rows = [row for row in found[key] if row["rival"] == rival]
            beats.add_row(rival, *(with_interval(row, "difference") for row in rows))
        console.print(beats)

    languages = Table(title="What reasoning gains, by language: score without it → gain, of disjoint halves")
    languages.add_column("language")
    languages.add_column("θ_β alone", justify="right")
    for size in sizes:
        languages.add_column(f"{size:,} rows", justify="right")
    by_size = found["gain_of_reasoning"]
    for name, alone in found["large"]["by_language"].items():
        told = (f"{g['baselines'][name]:.1f} → {g['gains'][name]:+.1f}" for g in by_size.values())
        languages.add_row(name, with_interval(alone), *told)
    correlations = ((g["rank_correlation"], *g["ci95"]) for g in by_size.values())
    languages.add_row("rank correlation", "", *("{:+.2f} [{:+.2f}, {:+.2f}]".format(*one) for one in correlations))
    console.print(languages)

    start = found["instructions_at_step_0"]
    console.print(
        f"θ_τ before any step: {with_interval(start['bare'])} without instructions, "
        f"{with_interval(start['instructed'])} with them; difference {with_interval(start['gain'], 'difference')}",
        highlight=False,
    )


def _fiat_against(m: Measured) -> list[dict[str, Any]]:
    """Return FIAT minus each rival at each size, and the same of each seed."""
    return [
        {
            "rival": rival,
            "size": size,
            **difference(m.of("fiat", size), m.of(rival, size)),
            "of_seeds": _of_seeds(m, rival, size),
        }
        for rival in RIVALS
        for size in m.sizes
    ]


def _step(m: Measured, index: int, size: int) -> dict[str, Any] | None:
    """Return what a rung loses against the one above."""
    return difference(m.of(RUNGS[index][1], size), m.of(RUNGS[index - 1][1], size)) if index else None


def _of_seeds(m: Measured, rival: str, size: int) -> list[dict[str, Any]]:
    """Return the differences of each seed; a rival without training is the same to all."""
    theirs = m.of_seeds.get((rival, size)) or [m.of(rival, size)] * len(m.of_seeds["fiat", size])
    return [difference(a, b) for a, b in zip(m.of_seeds["fiat", size], theirs, strict=True)]


def _by_language(predictions: Sequence[Prediction], metric: str) -> ByLanguage:
    values: dict[str, list[tuple[str, float]]] = {}
    for one in predictions:
        values.setdefault(one.language, []).append((one.id, one.values[metric]))
    return {language: np.array([value for _, value in sorted(rows)]) for language, rows in sorted(values.items())}


def _macro(values: ByLanguage) -> float:
    return float(np.mean([column.mean() for column in values.values()]))


def _means(column: np.ndarray, language: str) -> np.ndarray:
    """Return resampled means of a language's rows, the same random numbers whatever they are asked for."""
    return resampled_means(column, RESAMPLES, np.random.default_rng(zlib.crc32(language.encode())))
