"""`fiat experiment` and `fiat train`: cells run one after another, their scores, the pairs, and the table."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fiat_jax.evaluation.scores import compare, score_predictions
from fiat_jax.experiments.cells import Bench, Cell, Done, run_cell
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.progress import listeners_for
from fiat_jax.experiments.results import (
    file_hash,
    print_tables,
    table_by_language,
    table_of_comparisons,
    table_of_scores,
    write_results,
)
from fiat_jax.experiments.spec import Experiment, Run


def run_experiment(experiment: Experiment, workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Run what is missing of the matrix, write results.json and print the table; return the result rows."""
    paradigms = [find_paradigm(name) for name in experiment.paradigms]
    find_paradigm(experiment.against)
    bench = Bench(experiment.run, experiment.sizes, paradigms)
    cells = bench.cells(paradigms, experiment.sizes, experiment.seeds)
    return _run(bench, cells, experiment.learning_rates, experiment.against, "experiment", workdir, console)


def run_training(run: Run, workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Train one paradigm on all training rows, report it, and leave a bundle in the working directory."""
    paradigm = find_paradigm(run.paradigm)
    bench = Bench(run, (0,), [paradigm])
    cells = bench.cells([paradigm], (0,), (run.train.seed,))
    rates = (run.train.optimizer.learning_rate,)
    rows = _run(bench, cells, rates, run.paradigm, "train", workdir, console)
    made = workdir / "cells" / cells[0].name / "bundle"
    link = workdir / "bundle"
    if made.exists() and not link.exists():
        link.symlink_to(made.relative_to(workdir))
    return rows


def _run(
    bench: Bench,
    cells: Sequence[Cell],
    rates: Sequence[float],
    against: str,
    verb: str,
    workdir: Path,
    console: Console,
) -> list[dict[str, Any]]:
    begun = time.monotonic()

    def listeners(name: str):
        return lambda where: listeners_for(where, f"{name} {where.name}", console)

    done = [run_cell(bench, cell, rates, workdir, listeners) for cell in cells]
    rows = [row for one in done for row in result_rows(bench, one)]
    comparisons = comparison_rows(bench, done, against)
    run = bench.run
    inputs = {
        "theta_tau": {"path": run.model.path, "fingerprint": bench.theta_tau_fingerprint},
        "theta_beta": bench.reasons.model,
        "reasoning_set": bench.reasons.set_key,
        "prompts": {"path": run.prompts.file, "answer_hash": bench.instructions.answer_hash},
        "data": {
            split: {"path": source, "sha256": file_hash(source) if Path(source).is_file() else None}
            for split, source in run.task.splits.items()
        },
        "predictions": {one.cell.name: one.facts["predictions_sha256"] for one in done},
    }
    details = {"cells": {one.cell.name: dict(one.facts) for one in done}, "learning_rates": list(rates)}
    path = write_results(
        workdir,
        verb,
        inputs=inputs,
        rows=rows,
        comparisons=comparisons,
        seconds=time.monotonic() - begun,
        details=details,
    )
    metric = run.task.metrics[0]
    title = f"{run.task.name}, {metric} in per cent with 95% intervals, {len(bench.report_rows):,} {run.data.report_split} rows"
    print_tables(
        console,
        table_of_scores(rows, metric, title),
        table_by_language(rows, metric),
        table_of_comparisons(comparisons, metric, f"{against} minus the others, on the same rows"),
    )
    console.print(f"results: {path}")
    return rows


def result_rows(bench: Bench, done: Done) -> list[dict[str, Any]]:
    """Return the rows of results.json of one cell."""
    cell, run = done.cell, bench.run
    task = bench.task
    if not cell.paradigm.trained:  # θ_β's stored answers carry no scores of labels
        task = dataclasses.replace(task, metrics=tuple(m for m in task.metrics if m != "average_precision"))
    known = {
        "cell": cell.name,
        "paradigm": cell.paradigm.name,
        "theta_tau": run.model.path if cell.paradigm.trained else None,
        "theta_beta": bench.reasons.model if cell.paradigm.needs_reasoning else None,
        "task": task.name,
        "size": cell.size,
        "seed": cell.seed,
        "split": run.data.report_split,
        "selected_on": f"{run.data.selection:.0%} of {run.data.train_split}" if cell.paradigm.trained else None,
    }
    return [{**known, **row} for row in score_predictions(task, bench.report_rows, done.predictions)]


def comparison_rows(bench: Bench, done: Sequence[Done], against: str) -> list[dict[str, Any]]:
    """Return `against` minus every other paradigm of its size and seed, pair by pair on the same rows."""
    rows = []
    for a in (one for one in done if one.cell.paradigm.name == against):
        for b in done:
            same = not b.cell.paradigm.trained or (b.cell.size, b.cell.seed) == (a.cell.size, a.cell.seed)
            if b.cell.paradigm.name == against or not same:
                continue
            task = bench.task
            if not b.cell.paradigm.trained:
                task = dataclasses.replace(task, metrics=tuple(m for m in task.metrics if m != "average_precision"))
            known = {
                "a": a.cell.paradigm.name,
                "b": b.cell.paradigm.name,
                "task": task.name,
                "size": a.cell.size,
                "seed": a.cell.seed,
                "split": bench.run.data.report_split,
            }
            found = compare(task, bench.report_rows, a.predictions, b.predictions)
            rows += [{**known, **row} for row in found]
    return rows
