"""`fiat experiment` and `fiat train`: cells run one after another, their scores, the pairs, and the table."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fiat_jax.distributed import is_main
from fiat_jax.evaluation.systems import Means
from fiat_jax.experiments.bench import Bench, Cell, bench_of
from fiat_jax.experiments.cells import BARE, Done, check_cells, is_done, run_cell
from fiat_jax.experiments.measured import Figures, figures_of
from fiat_jax.experiments.paradigms import find_paradigm, find_paradigms, roles
from fiat_jax.experiments.parallel import Work, check_processes, make_cells
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

Plan = list[tuple[Bench, Cell]]


def run_experiment(
    experiment: Experiment,
    workdir: Path,
    console: Console,
    shard: Shard = EVERYTHING,
    engine: Callable[[Work], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of the matrix, write results.json and print the table; return the result rows.

    `engine` makes the trained cells where they are not made here.
    One shard of several makes its own cells alone; the one after which all are made writes the results.
    """
    begun = time.monotonic()
    plan, search = plan_of(experiment), experiment.search
    check_processes(experiment.processes)
    means = Means(experiment.underrepresented)
    means.check(plan[0][0].task, plan[0][0].report_rows)
    mine = [pair for number, pair in enumerate(plan) if number % shard.of == shard.index]
    to_train = _to_train(mine, search, workdir)
    check_cells(to_train)
    missing = [cell for _, cell in to_train]
    count = min(experiment.processes, len(missing))
    if engine is not None:
        engine(Work(experiment, missing, workdir))
    elif count > 1:
        make_cells(Work(experiment, missing, workdir), count)
    if shard.of > 1:
        for bench, cell in mine:
            run_cell(bench, cell, search, workdir, console, renew=True)
        left = [cell.name for bench, cell in plan if not is_done(bench, cell, search, workdir)]
        if left:
            console.print(
                f"shard {shard.index} of {shard.of}: its {len(mine)} cells are made; of all {len(plan)}, {len(left)} "
                f"are not ({', '.join(left[:3])}{', …' if len(left) > 3 else ''}). Whoever makes the last one writes "
                "the results",
                highlight=False,
            )
            return []
    return _run(plan, search, experiment.against, "experiment", workdir, console, begun, means)


def plan_of(experiment: Experiment) -> Plan:
    """Return the cells of the matrix, each with the bench that makes it; what is wrong shows before any is made."""
    paradigms = find_paradigms(experiment.paradigms, experiment.run.own)
    find_paradigm(experiment.against, experiment.run.own)
    plan: Plan = []
    bench = None
    for tau in experiment.theta_taus or [""]:
        bench = bench_of(experiment, tau, bench)
        plan += [(bench, cell) for cell in bench.cells(paradigms, experiment.sizes, experiment.seeds)]
    return list({cell.name: (bench, cell) for bench, cell in reversed(plan)}.values())[::-1]  # of θ_β alone once


def run_training(run: Run, workdir: Path, console: Console) -> list[dict[str, Any]]:
    """Train one paradigm on all training rows, report it, and leave a bundle in the working directory."""
    begun, paradigm = time.monotonic(), find_paradigm(run.paradigm, run.own)
    bench = Bench(run, (0,), [paradigm])
    cells = bench.cells([paradigm], (0,), (run.train.seed,))
    plan, search = [(bench, cell) for cell in cells], [Point.of(run)]
    check_cells(_to_train(plan, search, workdir))
    rows = _run(plan, search, run.paradigm, "train", workdir, console, begun)
    if is_main() and paradigm.trained:
        link(workdir / "bundle", Path("cells", cells[0].name, "bundle"))
    return rows


def _to_train(plan: Plan, search: Sequence[Point], workdir: Path) -> Plan:
    """Return the cells that are trained and have no result yet."""
    return [(one, cell) for one, cell in plan if cell.paradigm.trained and not is_done(one, cell, search, workdir)]


def link(link: Path, target: Path) -> None:
    """Let a link lead to a target; a directory in its place is what an object store made of one."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)


def _run(
    plan: Plan,
    search: Sequence[Point],
    against: str,
    verb: str,
    workdir: Path,
    console: Console,
    begun: float,
    means: Means | None = None,
) -> list[dict[str, Any]]:
    renew = verb == "experiment"
    made = [(bench, run_cell(bench, cell, search, workdir, console, renew=renew)) for bench, cell in plan]
    found = figures_of(made, against, means, workdir)
    if is_main():
        bench, done = made[0][0], [one for _, one in made]
        taus = {one.run.model.path: one.theta_tau_fingerprint for one, _ in made}
        inputs = {**inputs_of(bench, done), **({"theta_taus": taus} if len(taus) > 1 else {})}
        if means:
            own = [cell for other, cell in plan if other is bench]
            inputs["rows"] = write_rows(bench, own, against, workdir)
        path = write_results(
            workdir,
            verb,
            inputs=inputs,
            rows=found.rows,
            comparisons=found.comparisons,
            statistics=found.statistics,
            seconds=time.monotonic() - begun,
            details={
                "cells": {one.cell.name: dict(one.facts) for one in done},
                "learning_rates": list(dict.fromkeys(point.learning_rate for point in search)),
                "search": [dataclasses.asdict(point) for point in search],
                "paradigms": roles(one.cell.paradigm for one in done),
            },
        )
        print_results(bench, found, against, console)
        for kernel in sorted({one.facts["attention"] for one in done if "attention" in one.facts}):
            console.print(f"attention: {kernel}", highlight=False, markup=False)
        console.print(f"results: {path}")
    return found.rows


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


def print_results(bench: Bench, found: Figures, against: str, console: Console) -> None:
    """Print the tables of a run; of several seeds their means."""
    task, metric = bench.task, bench.task.metrics[0]
    reported = f"{len(bench.report_rows):,} {bench.run.data.report_split} rows"
    if bench.repeated:
        console.print(
            f"warning: {bench.repeated:,} of the {reported} have the inputs of a row of {bench.run.data.train_split}",
            highlight=False,
        )
    seeds = {row["seed"] for row in found.rows}
    scores, pairs, of = found.rows, found.comparisons, ""
    if found.statistics and len(seeds) > 1:
        scores = [{**row, "seed": None} for row in found.statistics["systems"]]
        pairs, of = found.statistics["differences"], f", means of {len(seeds)} seeds"
    title = f"{task.name}, {metric} in per cent with 95% intervals, {reported}{of}"
    print_tables(
        console,
        table_of_scores(scores, metric, title),
        table_by_language(found.rows, metric),
        table_of_comparisons(pairs, metric, f"{against} minus the others, on the same rows{of}"),
    )
