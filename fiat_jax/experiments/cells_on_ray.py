"""`fiat experiment --engine=ray`: the cells of a matrix as tasks of a Ray cluster that sees one working directory."""

import os

from rich.console import Console

from fiat_jax.errors import Interrupted
from fiat_jax.experiments import runtime
from fiat_jax.experiments.bench import Cell, bench_of
from fiat_jax.experiments.cells import run_cell
from fiat_jax.experiments.on_ray import RayOptions, await_tasks, started
from fiat_jax.experiments.parallel import Work

SAVING_SECONDS = 60.0  # that a cell has to save itself when it is cancelled


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
    try:
        _, errors = await_tasks(ray, waiting, lambda _: f"made; {len(waiting)} cells are left", console, SAVING_SECONDS)
    except KeyboardInterrupt:
        raise Interrupted(len(work.cells) - len(waiting), len(work.cells)) from None
    if errors:
        raise errors[0]


def _make(work: Work, cell: Cell, cwd: str) -> None:
    """Make one cell, in a process of Ray's."""
    os.chdir(cwd)
    runtime.start()
    bench, console = bench_of(work.experiment, cell.tau), Console(soft_wrap=True)
    run_cell(bench, cell, work.experiment.search, work.workdir, console, renew=True)
