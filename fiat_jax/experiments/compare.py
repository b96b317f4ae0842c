"""`fiat reason compare`: two backends write about the same rows, and how far their texts and answers are the same."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fiat_jax.errors import Interrupted, UserError
from fiat_jax.evaluation import statistics
from fiat_jax.experiments.asking import Job, print_bill
from fiat_jax.experiments.files import ALL, file_hash
from fiat_jax.experiments.results import with_interval, write_results
from fiat_jax.reasoning.generate import bill, generate
from fiat_jax.store import ReasoningStore, Record
from fiat_jax.tasks.task import row_key

PAIRS = "pairs.jsonl"
SIDES = ("first", "second")
METRICS = ("identical_text", "equal_answer")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two records of one row and sample; `first_difference` is the place of the first character that differs."""

    id: str
    language: str
    sample: int
    identical_text: bool
    equal_answer: bool
    first_difference: int | None
    answers: tuple[str | None, str | None]


def compare(jobs: Sequence[Job], count: int, workdir: Path, dry_run: bool, console: Console) -> list[dict[str, Any]]:
    """Ask both about the first `count` rows, into stores of their own in the working directory; write results.json."""
    begun = time.monotonic()
    if count < 1:
        raise UserError(f"--rows={count}: compare one row at least")
    stores = [ReasoningStore(workdir / side) for side in SIDES]
    jobs = [
        dataclasses.replace(job, every_row=job.every_row[:count], store=store)
        for job, store in zip(jobs, stores, strict=True)
    ]
    keys = [_ask(job, side, dry_run, console) for job, side in zip(jobs, SIDES, strict=True)]
    if dry_run:
        return []
    found = [store.lookup(key) for store, key in zip(stores, keys, strict=True)]
    pairs = pair(jobs[0], *found)
    if not pairs:
        raise UserError(f"no row has an answer of both; {workdir} has the quarantine of each")
    (workdir / PAIRS).write_text(_as_lines(pairs), "utf-8", errors="backslashreplace")
    rows = _rows(jobs, pairs)
    differing = sorted(one.first_difference for one in pairs if one.first_difference is not None)
    path = write_results(
        workdir,
        "reason compare",
        inputs={
            side: {"set": key, "model": dict(store.provenance(key).model), "asked": store.backend(key)}
            for side, key, store in zip(SIDES, keys, stores, strict=True)
        }
        | {"pairs": file_hash(workdir / PAIRS)},
        rows=rows,
        seconds=time.monotonic() - begun,
        details={"pairs": len(pairs), "first_difference": _places(differing)},
    )
    _print(rows, pairs, console)
    console.print(f"results: {path}", highlight=False)
    return rows


def pair(job: Job, first: Mapping[Any, Record], second: Mapping[Any, Record]) -> list[Pair]:
    """Return what both have of each of the job's rows, in the order of ids; their sets may hold other rows too."""
    task, rows = job.task, {row_key(job.task, row): row for row in job.rows}
    both = [(rows[key[0]], a, second[key]) for key, a in first.items() if key in second and key[0] in rows]
    return [
        Pair(
            id=str(row[task.id_field]),
            language=task.language(row),
            sample=a.sample,
            identical_text=a.text == b.text,
            equal_answer=a.answer == b.answer,
            first_difference=None if a.text == b.text else len(os.path.commonprefix([a.text, b.text])),
            answers=(a.answer, b.answer),
        )
        for row, a, b in sorted(both, key=lambda found: (str(found[0][task.id_field]), found[1].sample))
    ]


def _ask(job: Job, side: str, dry_run: bool, console: Console) -> str:
    price = bill(job.task, job.rows, job.renderer, job.backend, job.store, job.options, job.prices)
    console.print(f"{side}:", highlight=False)
    print_bill(job, price, console)
    job.expect(price)
    if dry_run:
        return price.set_key
    summary = generate(
        job.task, job.rows, job.renderer, job.backend, job.store, job.options, prices=job.prices,
        quarantine=Path(job.store.path).with_name(f"quarantine-{side}.jsonl"),
        console=console if console.is_terminal else None,
    )  # fmt: skip
    if summary.interrupted:
        raise Interrupted(summary.before + summary.written, summary.wanted, summary.stopped_by)
    return summary.set_key


def _rows(jobs: Sequence[Job], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return rows of results.json, in per cent, by language and as the mean of languages."""
    reason = jobs[0].reason
    known = {
        "cell": "compare",
        "paradigm": None,
        "theta_tau": None,
        "theta_beta": " | ".join(str(job.backend.about().get("model") or job.backend.about()["path"]) for job in jobs),
        "task": reason.task.name,
        "size": 0,
        "seed": 0,
        "split": ",".join(reason.splits or reason.task.splits),
        "selected_on": None,
    }
    rows = []
    for metric in METRICS:
        groups: dict[str, list[bool]] = {}
        for one in pairs:
            groups.setdefault(one.language, []).append(getattr(one, metric))
        replicates = {
            name: statistics.resampled_means(np.array(groups[name], float), statistics.RESAMPLES, _generator(metric))
            for name in sorted(groups)
        }
        means = {name: float(np.mean(groups[name])) for name in replicates}
        means[ALL], replicates[ALL] = float(np.mean([*means.values()])), np.mean([*replicates.values()], axis=0)
        for name, mean in means.items():
            interval = [100 * bound for bound in statistics.interval(replicates[name])]
            n = len(pairs) if name == ALL else len(groups[name])
            rows.append({**known, "language": name, "metric": metric, "value": 100 * mean, "ci95": interval, "n": n})
    return rows


def _generator(metric: str) -> np.random.Generator:
    return np.random.default_rng(METRICS.index(metric))


def _places(places: Sequence[int]) -> dict[str, int] | None:
    if not places:
        return None
    return {"texts": len(places), "min": places[0], "median": places[len(places) // 2], "max": places[-1]}


def _as_lines(pairs: Sequence[Pair]) -> str:
    return "".join(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in pairs)


def _print(rows: Sequence[Mapping[str, Any]], pairs: Sequence[Pair], console: Console) -> None:
    table = Table(title=f"the first against the second, {len(pairs):,} texts, per cent")
    for name in ("language", *METRICS, "n"):
        table.add_column(name.replace("_", " "), justify="left" if name == "language" else "right")
    for language in dict.fromkeys(row["language"] for row in rows):
        cells = [row for row in rows if row["language"] == language]
        table.add_row(language, *(with_interval(row) for row in cells), f"{cells[0]['n']:,}")
    console.print(table)
    for one in [one for one in pairs if not one.identical_text][:3]:
        console.print(f"row {one.id}: texts differ from character {one.first_difference:,} on", highlight=False)
