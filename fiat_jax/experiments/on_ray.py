"""`fiat reason --engine=ray`: the shards of one run as tasks of a Ray cluster, all of them writing into one store."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fiat_jax.errors import Interrupted, UserError
from fiat_jax.experiments.asking import endpoint_job, engine_job, finish, generate_shard, print_bill, summary_line
from fiat_jax.experiments.reason import Reason
from fiat_jax.reasoning.generate import Summary, bill
from fiat_jax.reasoning.native import Native
from fiat_jax.reasoning.openai import Endpoint
from fiat_jax.reasoning.shard import Shard
from fiat_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """How shards, or cells of an experiment, become tasks.

    Args:
        shards: how many; 0: as many as fit on the cluster at once. Of an experiment each cell is a task.
        cpus, gpus: what each of them takes.
        resources: what else, by Ray's name for it: {'TPU': 4}.
    """

    shards: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.shards < 0 or self.cpus <= 0 or self.gpus < 0:
            raise UserError(
                f"Ray.shards, cpus and gpus are {self.shards}, {self.cpus} and {self.gpus}; see docs/reason.md"
            )


@dataclasses.dataclass(frozen=True)
class Work:
    """What every task is given: settings alone, for what is made of them is not sent between machines."""

    reason: Reason
    backend: Endpoint | Native
    mesh: MeshConfig
    workdir: Path
    cwd: str

    def job(self, shard: Shard):
        """Return the job of a shard, on the machine that does it."""
        if isinstance(self.backend, Endpoint):
            return endpoint_job(self.reason, self.backend, shard)
        return engine_job(self.reason, self.backend, self.mesh, shard)


def ask_on_ray(work: Work, options: RayOptions, dry_run: bool, console: Console) -> None:
    """Ask for all that is missing, a shard a task; wait for all of them, whatever becomes of one.

    The cluster is that of RAY_ADDRESS; without it Ray is started on this machine. `Generate.max_cost` is divided by the
    shards; other settings are each shard's.
    """
    whole = work.job(Shard())
    price = bill(whole.task, whole.rows, whole.renderer, whole.backend, whole.store, whole.options, whole.prices)
    print_bill(whole, price, console)
    if dry_run:
        return
    ray = started()
    count = options.shards or _fitting(ray.cluster_resources(), options)
    task = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, resources=dict(options.resources))(_shard)
    shared = dataclasses.replace(work, reason=_share_of(work.reason, count))
    waiting = {task.remote(shared, Shard(index, count)): f"shard {index} of {count}" for index in range(count)}
    summaries, errors = await_tasks(ray, waiting, summary_line, console, work.reason.options.grace_seconds + 10)
    finish(whole, price.set_key, work.workdir, console)
    if errors:
        raise errors[0]
    _check_interrupted(summaries)


def _shard(work: Work, shard: Shard) -> Summary:
    """Do one shard's work, in a process of Ray's."""
    os.chdir(work.cwd)
    job = work.job(shard)
    job.expect(bill(job.task, job.rows, job.renderer, job.backend, job.store, job.options))
    return generate_shard(job, work.workdir, None)


def _share_of(reason: Reason, count: int) -> Reason:
    limit = reason.options.max_cost
    options = dataclasses.replace(reason.options, max_cost=None if limit is None else limit / count)
    return dataclasses.replace(reason, options=options)


def _check_interrupted(summaries: list[Summary]) -> None:
    stopped = [one for one in summaries if one.interrupted]
    if stopped:
        done, of = sum(one.before + one.written for one in summaries), sum(one.wanted for one in summaries)
        raise Interrupted(done, of, stopped[0].stopped_by)


def _fitting(cluster: Mapping[str, float], options: RayOptions) -> int:
    needs = {"CPU": options.cpus, "GPU": options.gpus, **options.resources}
    fitting = int(min(cluster.get(name, 0.0) / need for name, need in needs.items() if need))
    if not fitting:
        raise UserError(f"no shard fits on the cluster, which has {dict(cluster)}; one takes {needs}")
    return fitting


def await_tasks(
    ray: Any, waiting: dict[Any, str], told: Callable[[Any], str], console: Console, grace_seconds: float
) -> tuple[list[Any], list[BaseException]]:
    """Wait for all tasks, whatever becomes of one, and print of each what came of it.

    Args:
        waiting: the names of tasks by their references; who has ended is taken out.
        told: what is printed of a result.
        grace_seconds: how long tasks that are cancelled may take to save what they have.

    Returns:
        The results, and what was raised, in the order in which the tasks ended.

    Raises:
        KeyboardInterrupt: again, after all that still run were cancelled.
    """
    results, errors = [], []
    try:
        while waiting:
            (ended,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(ended)
            try:
                results.append(ray.get(ended))
                console.print(f"{name}: {told(results[-1])}", highlight=False, markup=False)
            except ray.exceptions.RayError as error:  # what the task raised, or how its worker was lost
                errors.append(getattr(error, "cause", None) or error)
                console.print(f"{name}: {errors[-1]}", highlight=False, markup=False)
    except KeyboardInterrupt:
        for ref in waiting:
            ray.cancel(ref)  # a task saves and ends, as a run by itself does
        ray.wait(list(waiting), num_returns=len(waiting), timeout=grace_seconds)
        raise
    return results, errors


def started() -> Any:
    """Return Ray, begun on the cluster of RAY_ADDRESS or on this machine."""
    try:
        import ray  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise UserError("--engine=ray needs Ray: pip install 'fiat-jax[ray]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    return ray
