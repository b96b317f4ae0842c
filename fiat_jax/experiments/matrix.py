"""`fiat experiment` and `fiat train`: cells run one after another, their scores, the pairs, and the table."""

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fiat_jax.distributed import is_main
from fiat_jax.evaluation.scores import compare, score_predictions
from fiat_jax.evaluation.systems import Means
from fiat_jax.experiments.across import Scored, statistics_of
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.cells import Done, is_done, run_cell
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.parallel import Work, check_processes, make_cells
from fiat_jax.experiments.progress import listeners_for
from fiat_jax.experiments.results import (
    print_tables,
    source_of,
    table_by_language,
    table_of_comparisons,
    table_of_scores,
    write_results,
)
from fiat_jax.experiments.shown import write_rows
from fiat_jax.experiments.spec import Experiment, Run
from fiat_jax.tasks.task import Task


def run_experiment(experiment: Experiment, workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Run what is missing of the matrix, write results.json and print the table; return the result rows."""
    paradigms = [find_paradigm(name) for name in experiment.paradigms]
    find_paradigm(experiment.against)
    check_processes(experiment.processes)
    bench = Bench(experiment.run, experiment.sizes, paradigms)
    cells = bench.cells(paradigms, experiment.sizes, experiment.seeds)
    means = Means(experiment.underrepresented)
    means.check(bench.task, bench.report_rows)
    rates = experiment.learning_rates or (experiment.run.train.optimizer.learning_rate,)
    missing = [cell for cell in cells if cell.paradigm.trained and not is_done(bench, cell, rates, workdir)]
    count = min(experiment.processes, len(missing))
    if count > 1:
        make_cells(Work(experiment, missing, rates, workdir), count)
    return _run(bench, cells, rates, experiment.against, "experiment", workdir, console, means)


def run_training(run: Run, workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Train one paradigm on all training rows, report it, and leave a bundle in the working directory."""
    paradigm = find_paradigm(run.paradigm)
    bench = Bench(run, (0,), [paradigm])
    cells = bench.cells([paradigm], (0,), (run.train.seed,))
    rates = (run.train.optimizer.learning_rate,)
    rows = _run(bench, cells, rates, run.paradigm, "train", workdir, console)
    if is_main() and paradigm.trained:
        link(workdir / "bundle", Path("cells", cells[0].name, "bundle"))
    return rows


def link(link: Path, target: Path) -> None:
    """Let a link lead to a target; a directory in its place is what an object store made of one."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)


def _run(
    bench: Bench,
    cells: Sequence[Cell],
    rates: Sequence[float],
    against: str,
    verb: str,
    workdir: Path,
    console: Console,
    means: Means | None = None,
) -> list[dict[str, Any]]:
    begun = time.monotonic()

    def listeners(name: str, where: Path):
        return listeners_for(where, name, console)

    done = [run_cell(bench, cell, rates, workdir, listeners) for cell in cells]
    rows = [row for one in done for row in result_rows(bench, one)]
    scored = [Scored(known_of(bench, one.cell), one.cell.paradigm.trained, one.predictions) for one in done]
    if is_main():
        comparisons = comparison_rows(bench, done, against)
        of_rows = {"rows": write_rows(bench, cells, against, workdir)} if means else {}
        path = write_results(
            workdir,
            verb,
            inputs=inputs_of(bench, done) | of_rows,
            rows=rows,
            comparisons=comparisons,
            statistics=statistics_of(bench.task, bench.report_rows, scored, against, means) if means else None,
            seconds=time.monotonic() - begun,
            details={"cells": {one.cell.name: dict(one.facts) for one in done}, "learning_rates": list(rates)},
        )
        print_results(bench, rows, comparisons, against, console)
        console.print(f"results: {path}")
    return rows


def inputs_of(bench: Bench, done: Sequence[Done]) -> dict[str, Any]:
    run = bench.run
    return {
        "theta_tau": {"path": run.model.path, "fingerprint": bench.theta_tau_fingerprint},
        "theta_beta": bench.reasons.model,
        "reasoning_set": bench.reasons.set_key,
        "prompts": {"path": run.prompts.file, "answer_hash": bench.instructions.answer_hash},
        "data": {split: source_of(run.task.splits[split]) for split in (run.data.train_split, run.data.report_split)},
        "predictions": {one.cell.name: one.facts["predictions_sha256"] for one in done},
    }


def print_results(
    bench: Bench, rows: list[dict[str, Any]], comparisons: list[dict[str, Any]], against: str, console: Console
) -> None:
    task, metric = bench.task, bench.task.metrics[0]
    reported = f"{len(bench.report_rows):,} {bench.run.data.report_split} rows"
    if bench.repeated:
        console.print(
            f"warning: {bench.repeated:,} of the {reported} have the inputs of a row of {bench.run.data.train_split}",
            highlight=False,
        )
    print_tables(
        console,
        table_of_scores(rows, metric, f"{task.name}, {metric} in per cent with 95% intervals, {reported}"),
        table_by_language(rows, metric),
        table_of_comparisons(comparisons, metric, f"{against} minus the others, on the same rows"),
    )


def _scored(bench: Bench, *cells: Cell) -> Task:
    """Return the task with the metrics that cells have: θ_β's stored answers carry no scores of labels."""
    if all(cell.paradigm.trained for cell in cells):
        return bench.task
    return dataclasses.replace(bench.task, metrics=tuple(m for m in bench.task.metrics if m != "average_precision"))


def known_of(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Return what rows of results.json say of a cell."""
    run = bench.run
    return {
        "cell": cell.name,
        "paradigm": cell.paradigm.name,
        "theta_tau": run.model.path if cell.paradigm.trained else None,
        "theta_beta": bench.reasons.model if cell.paradigm.needs_reasoning else None,
        "task": run.task.name,
        "size": cell.size,
        "seed": cell.seed,
        "split": run.data.report_split,
        "selected_on": f"{run.data.selection:.0%} of {run.data.train_split}" if cell.paradigm.trained else None,
    }


def result_rows(bench: Bench, done: Done) -> list[dict[str, Any]]:
    """Return the rows of results.json of one cell."""
    known, task = known_of(bench, done.cell), _scored(bench, done.cell)
    return [{**known, **row} for row in score_predictions(task, bench.report_rows, done.predictions)]


def comparison_rows(bench: Bench, done: Sequence[Done], against: str) -> list[dict[str, Any]]:
    """Return `against` minus every other paradigm of its size and seed, pair by pair on the same rows."""
    rows = []
    for a in (one for one in done if one.cell.paradigm.name == against):
        for b in (one for one in done if one.cell.paradigm.name != against):
            trained = [one.cell for one in (a, b) if one.cell.paradigm.trained]
            if len({(cell.size, cell.seed) for cell in trained}) > 1:
                continue
            cell = (trained or [a.cell])[0]
            known = {
                "a": a.cell.paradigm.name,
                "b": b.cell.paradigm.name,
                "task": bench.task.name,
                "size": cell.size,
                "seed": cell.seed,
                "split": bench.run.data.report_split,
            }
            found = compare(_scored(bench, a.cell, b.cell), bench.report_rows, a.predictions, b.predictions)
            rows += [{**known, **row} for row in found]
    return rows
