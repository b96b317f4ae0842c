"""Meshes of a target ranked: those that fit first, the fastest first among them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from fiat_jax.errors import UserError
from fiat_jax.models.config import Config, DecoderConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.planning.plan import model_of
from fiat_jax.planning.target import Target
from fiat_jax.planning.train import TrainPlan
from fiat_jax.sharding import DECODE, MeshConfig


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh, and its plan as it goes into results.json; without a plan, why there is none."""

    mesh: MeshConfig
    found: dict[str, Any] | None
    why_not: str = ""

    @property
    def rank(self) -> tuple:
        """Smaller is better: what fits, by its rate; then what does not, by what it takes; then what has no plan."""
        if self.found is None:
            return 2, 0.0
        if self.found["fits"] is False:
            return 1, max(program["memory"]["total"] for program in self.found["programs"].values())
        return 0, -(self.found["tokens_per_second"] or 0.0)

    def as_json(self) -> dict[str, Any]:
        """Return it for results.json."""
        sizes = {"data": self.mesh.data, "fsdp": self.mesh.fsdp, "tensor": self.mesh.tensor}
        return {"mesh": sizes, "why_not": self.why_not, "plan": self.found}


def meshes(devices: int, slices: int) -> Iterator[MeshConfig]:
    """Yield every mesh over so many devices whose data axis lies across the slices."""
    for tensor in _divisors(devices):
        for fsdp in _divisors(devices // tensor):
            data = devices // tensor // fsdp
            if data % slices == 0:
                yield MeshConfig(data, fsdp, tensor, slices)


def search(
    asked: Any, target: Target, config: Config, run: Callable[[Any], dict[str, Any]], told=lambda text: None
) -> list[Candidate]:
    """Return every mesh's plan, the best first.

    Args:
        asked: a `TrainPlan` or an `EnginePlan`, whose mesh is replaced.
        run: from what is asked to its plan as JSON.
    """
    found = []
    for mesh in meshes(len(target.devices), asked.mesh.slices):
        one = dataclasses.replace(asked, mesh=mesh)
        why_not = unfit(one, config, target)
        if why_not:
            found.append(Candidate(mesh, None, why_not))
            continue
        told(f"mesh data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}")
        try:
            found.append(Candidate(mesh, run(one)))
        except UserError as error:
            found.append(Candidate(mesh, None, str(error)))
    return sorted(found, key=lambda candidate: candidate.rank)


def unfit(asked: Any, config: Config, target: Target) -> str:
    """Return why a mesh needs no compiling: "" where it does."""
    mesh = asked.mesh
    heads = config.num_kv_heads if isinstance(config, DecoderConfig) else config.num_heads
    if heads % mesh.tensor:
        return f"tensor {mesh.tensor} does not divide {heads} heads of keys"
    built = target.mesh(mesh)
    if isinstance(asked, TrainPlan):
        rows, ways = asked.train.batch_rows // asked.train.accumulate, mesh.data * mesh.fsdp
        if rows % ways:
            return f"{rows} rows are not divided by data x fsdp, {ways}"
        lora = asked.lora if asked.plan.tuned == "adapter" else None
        model = model_of(asked.model, built, lora, tuned=True)
    else:
        model = model_of(ModelConfig(asked.native.path, asked.native.dtype), built, None, tuned=False, rules=DECODE)
    held = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves((model.trainable, model.frozen))
    )
    if target.memory is not None and held > target.memory:
        return f"weights alone take {held / 2**30:.1f} GiB a device"
    return ""


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
