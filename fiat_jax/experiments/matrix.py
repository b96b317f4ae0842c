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
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import compare, score_predictions
from fiat_jax.evaluation.systems import Means
from fiat_jax.experiments.across import Scored, statistics_of
from fiat_jax.experiments.bench import Bench, Cell, bench_of
from fiat_jax.experiments.cells import BARE, Done, is_done, run_cell
from fiat_jax.experiments.feed import unranked
from fiat_jax.experiments.paradigms import find_paradigm, find_paradigms, roles
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
from fiat_jax.experiments.spec import Experiment, Point, Run
from fiat_jax.reasoning.shard import EVERYTHING, Shard
from fiat_jax.tasks.task import Task

Plan = list[tuple[Bench, Cell]]


def run_experiment(
    experiment: Experiment, workdir: Path, console: Console, shard: Shard = EVERYTHING
) -> list[dict[str, Any]]:
    """Run what is missing of the matrix, write results.json and print the table; return the result rows.

    One shard of several makes its own cells alone; the one after which all are made writes the results.
    """
    plan, search = plan_of(experiment), experiment.search
    check_processes(experiment.processes)
    means = Means(experiment.underrepresented)
    means.check(plan[0][0].task, plan[0][0].report_rows)
    mine = [pair for number, pair in enumerate(plan) if number % shard.of == shard.index]
    missing = [cell for bench, cell in mine if cell.paradigm.trained and not is_done(bench, cell, search, workdir)]
    count = min(experiment.processes, len(missing))
    if count > 1:
        make_cells(Work(experiment, missing, workdir), count)
    if shard.of > 1:
        for bench, cell in mine:
            _made(bench, cell, search, workdir, console, renew=True)
        left = [cell.name for bench, cell in plan if not is_done(bench, cell, search, workdir)]
        if left:
            console.print(
                f"shard {shard.index} of {shard.of}: its {len(mine)} cells are made; of all {len(plan)}, {len(left)} "
                f"are not ({', '.join(left[:3])}{', …' if len(left) > 3 else ''}). Whoever makes the last one writes "
                "the results",
                highlight=False,
            )
            return []
    return _run(plan, search, experiment.against, "experiment", workdir, console, means)


def plan_of(experiment: Experiment) -> Plan:
    """Return the cells of the matrix, each with the bench that makes it; what is wrong shows before any is made."""
    paradigms = find_paradigms(experiment.paradigms, experiment.run.own)
    find_paradigm(experiment.against, experiment.run.own)
    plan: Plan = []
    for tau in experiment.theta_taus or [""]:
        bench = bench_of(experiment, tau)
        plan += [(bench, cell) for cell in bench.cells(paradigms, experiment.sizes, experiment.seeds)]
    return list({cell.name: (bench, cell) for bench, cell in reversed(plan)}.values())[::-1]  # of θ_β alone once


def run_training(run: Run, workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Train one paradigm on all training rows, report it, and leave a bundle in the working directory."""
    paradigm = find_paradigm(run.paradigm, run.own)
    bench = Bench(run, (0,), [paradigm])
    cells = bench.cells([paradigm], (0,), (run.train.seed,))
    rows = _run([(bench, cell) for cell in cells], [Point.of(run)], run.paradigm, "train", workdir, console)
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


def _made(bench: Bench, cell: Cell, search: Sequence[Point], workdir: Path, console: Console, renew: bool) -> Done:
    def listeners(name: str, where: Path):
        return listeners_for(where, name, console)

    return run_cell(bench, cell, search, workdir, listeners, renew=renew)


def _run(
    plan: Plan,
    search: Sequence[Point],
    against: str,
    verb: str,
    workdir: Path,
    console: Console,
    means: Means | None = None,
) -> list[dict[str, Any]]:
    begun, renew = time.monotonic(), verb == "experiment"
    made = [(bench, _made(bench, cell, search, workdir, console, renew)) for bench, cell in plan]
    rows = [row for bench, one in made for row in result_rows(bench, one)]
    scored = [
        Scored(known, one.cell.paradigm.trained, predictions)
        for bench, one in made
        for known, predictions in known_of(bench, one)
    ]
    if is_main():
        bench, done = made[0][0], [one for _, one in made]
        comparisons = comparison_rows(bench, done, against)
        taus = {one.run.model.path: one.theta_tau_fingerprint for one, _ in made}
        inputs = {**inputs_of(bench, done), **({"theta_taus": taus} if len(taus) > 1 else {})}
        if means:
            own = [cell for other, cell in plan if other is bench]
            inputs["rows"] = write_rows(bench, own, against, workdir)
        path = write_results(
            workdir,
            verb,
            inputs=inputs,
            rows=rows,
            comparisons=comparisons,
            statistics=statistics_of(bench.task, bench.report_rows, scored, against, means) if means else None,
            seconds=time.monotonic() - begun,
            details={
                "cells": {one.cell.name: dict(one.facts) for one in done},
                "learning_rates": list(dict.fromkeys(point.learning_rate for point in search)),
                "search": [dataclasses.asdict(point) for point in search],
                "paradigms": roles(one.cell.paradigm for one in done),
            },
        )
        print_results(bench, rows, comparisons, against, console)
        for kernel in sorted({one.facts["attention"] for one in done if "attention" in one.facts}):
            console.print(f"attention: {kernel}", highlight=False, markup=False)
        console.print(f"results: {path}")
    return rows


def inputs_of(bench: Bench, done: Sequence[Done]) -> dict[str, Any]:
    run = bench.run
    bare = {one.cell.name + BARE: one.facts["predictions_bare_sha256"] for one in done if one.bare is not None}
    others = {name: reasons.set_key for name, reasons in bench.others.items()}
    return {
        "theta_tau": {"path": run.model.path, "fingerprint": bench.theta_tau_fingerprint},
        "theta_beta": bench.reasons.model,
        "reasoning_set": bench.reasons.set_key,
        **({"reasoning_sets": others} if others else {}),
        "prompts": {"path": run.prompts.file, "answer_hash": bench.instructions.answer_hash},
        "data": {split: source_of(run.task.splits[split]) for split in (run.data.train_split, run.data.report_split)},
        "predictions": {**{one.cell.name: one.facts["predictions_sha256"] for one in done}, **bare},
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


def _scored(bench: Bench, *systems: Sequence[Prediction]) -> Task:
    """Return the task with the metrics that systems have: answers that were not ranked carry no scores of labels."""
    if all(one.scores is not None for predictions in systems for one in predictions):
        return bench.task
    return unranked(bench.task)


def known_of(bench: Bench, done: Done) -> list[tuple[dict[str, Any], Sequence[Prediction]]]:
    """Return what rows of results.json say of each line that a cell has in tables, and its predictions."""
    cell, run = done.cell, bench.run
    reasons = bench.reasons_of(cell.paradigm)
    return [
        (
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
            },
            predictions,
        )
        for name, system, predictions in done.systems
    ]


def result_rows(bench: Bench, done: Done) -> list[dict[str, Any]]:
    """Return the rows of results.json of one cell."""
    return [
        {**known, **row}
        for known, predictions in known_of(bench, done)
        for row in score_predictions(_scored(bench, predictions), bench.report_rows, predictions)
    ]


def comparison_rows(bench: Bench, done: Sequence[Done], against: str) -> list[dict[str, Any]]:
    """Return `against` minus every other system of its size, seed and θ_τ, pair by pair on the same rows."""
    rows = []
    for a in (one for one in done if one.cell.paradigm.name == against):
        for b, name, system, predictions in ((one, *line) for one in done for line in one.systems):
            if name == a.cell.name or (b.cell.tau and b.cell.tau != a.cell.tau):
                continue
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
