"""`fiat experiment --engine=ray`: the cells of a matrix as tasks of a Ray cluster that sees one working directory."""

import os
from pathlib import Path

from rich.console import Console

from fiat_jax.errors import Interrupted
from fiat_jax.experiments import runtime
from fiat_jax.experiments.bench import Cell, bench_of
from fiat_jax.experiments.cells import run_cell
from fiat_jax.experiments.on_ray import RayOptions, started
from fiat_jax.experiments.parallel import Work
from fiat_jax.experiments.progress import listeners_for


def make_cells_on_ray(work: Work, options: RayOptions, console: Console) -> None:
    """Make cells, each a task with what `options` say it takes; wait for all of them, whatever becomes of one.

    Raises:
        UserError: a cell's mistake, or Ray is not installed.
        Interrupted: a task was stopped; all is saved.
    """
    if not work.cells:
        return
    ray = started()
    resources = {"num_cpus": options.cpus, "num_gpus": options.gpus, "resources": dict(options.resources)}
    # max_calls: a process for each cell, whose memory on accelerators is given back when it ends
    task = ray.remote(**resources, max_calls=1, max_retries=0)(_make)
    waiting = {task.remote(work, cell, os.getcwd()): cell.name for cell in work.cells}
    errors: list[BaseException] = []
    try:
        while waiting:
            (ended,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(ended)
            try:
                ray.get(ended)
                console.print(f"{name}: made; {len(waiting)} cells are left", highlight=False)
            except ray.exceptions.RayTaskError as error:
                errors.append(error.cause)
                console.print(f"{name}: {error.cause}", highlight=False, markup=False)
    except KeyboardInterrupt:
        for ref in waiting:
            ray.cancel(ref)  # a task saves and ends, as a run by itself does
        ray.wait(list(waiting), num_returns=len(waiting), timeout=60)
        raise Interrupted(len(work.cells) - len(waiting), len(work.cells)) from None
    if errors:
        raise errors[0]


def _make(work: Work, cell: Cell, cwd: str) -> None:
    """Make one cell, in a process of Ray's."""
    os.chdir(cwd)
    runtime.start()
    console = Console(soft_wrap=True)

    def listeners(name: str, where: Path):
        return listeners_for(where, name, console)

    run_cell(bench_of(work.experiment, cell.tau), cell, work.experiment.search, work.workdir, listeners, renew=True)
