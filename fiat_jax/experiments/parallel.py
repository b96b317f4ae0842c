"""Cells made by several processes of this machine, each on its share of the CPU cores."""

import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from fiat_jax.errors import EXIT_RESTARTABLE, EXIT_USER, Interrupted, UserError
from fiat_jax.experiments import runtime
from fiat_jax.experiments.bench import Cell, bench_of
from fiat_jax.experiments.cells import run_cell
from fiat_jax.experiments.spec import Experiment


@dataclasses.dataclass(frozen=True)
class Work:
    """Cells of an experiment to be made, in the order in which they are begun."""

    experiment: Experiment
    cells: Sequence[Cell]
    workdir: Path


def check_processes(count: int) -> None:
    """Refuse to divide what cannot be divided.

    Raises:
        UserError: accelerators, or a run of several hosts.
    """
    if count > 1 and (jax.default_backend() != "cpu" or jax.process_count() > 1):
        raise UserError(
            f"Experiment.processes is {count}: cells are made side by side on the CPU cores of one machine alone; "
            "accelerators work on one cell together, so leave it at 1"
        )


def make_cells(work: Work, count: int) -> None:
    """Make the cells with so many processes; what one has done stays done whatever happens to the others.

    Raises:
        UserError: a cell's mistake, or a process that was killed.
        Interrupted: SIGINT or SIGTERM came; all is saved.
    """
    context = multiprocessing.get_context("spawn")
    numbers, told = context.SimpleQueue(), context.SimpleQueue()
    for number in [*range(len(work.cells)), *[None] * count]:
        numbers.put(number)
    workers = [_begin(context, work, share, numbers, told) for share in _shares(count)]
    try:
        status = _first_failure(workers)
    except KeyboardInterrupt:
        status = EXIT_RESTARTABLE
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
    if not status:
        return
    heard = []
    while not told.empty():
        heard.append(told.get())
    mistakes = [word for word in heard if word]
    if mistakes:
        raise UserError(mistakes[0])
    if status == EXIT_RESTARTABLE:
        raise Interrupted(len(heard), len(work.cells))
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    raise UserError(
        f"a process that made cells ended with {how}; what is done is kept. Where memory was short, lower "
        "Experiment.processes"
    )


def _first_failure(workers: Iterable[SpawnProcess]) -> int:
    """Wait until all have ended or one has failed; return its exit status, or 0."""
    running = {worker.sentinel: worker for worker in workers}
    while running:
        for sentinel in wait(list(running)):
            ended = running.pop(int(sentinel))  # pyright: ignore
            ended.join()
            if ended.exitcode:
                return ended.exitcode
    return 0


def _begin(context: SpawnContext, work: Work, cores: set[int], numbers: Any, told: Any) -> SpawnProcess:
    worker = context.Process(target=_worker, args=(work, cores, numbers, told))
    worker.start()
    return worker


def _shares(count: int) -> list[set[int]]:
    """Return as many sets of cores, as equal as can be; empty ones where a process may not choose its cores."""
    if sys.platform != "linux":
        return [set() for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[number::count] or cores) for number in range(count)]


def _worker(work: Work, cores: set[int], numbers: Any, told: Any) -> None:
    """Make one cell after another until none is left; tell "" of each, or what was wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX counts the threads it may use
    try:
        runtime.start()
        console, benches = Console(soft_wrap=True), {}
        while (number := numbers.get()) is not None:
            cell = work.cells[number]
            if cell.tau not in benches:
                benches[cell.tau] = bench_of(work.experiment, cell.tau)
            run_cell(benches[cell.tau], cell, work.experiment.search, work.workdir, console, renew=True)
            told.put("")
    except UserError as error:
        told.put(str(error))
        sys.exit(EXIT_USER)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(EXIT_RESTARTABLE)
