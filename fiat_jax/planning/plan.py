"""One plan: the programs of a run compiled for a target, and what follows for memory and time."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fiat_jax.errors import UserError
from fiat_jax.models.checkpoints import read_config
from fiat_jax.models.config import Config
from fiat_jax.models.families import family_of
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import Model, ModelConfig, abstract_model, kernel_of
from fiat_jax.models.tensors import Family
from fiat_jax.planning import cautions
from fiat_jax.planning.account import Account, account
from fiat_jax.planning.compiled import Compiler, Facts
from fiat_jax.planning.hlo import Module, parse
from fiat_jax.planning.roofline import Roofline, roofline
from fiat_jax.planning.target import Target, shape_of
from fiat_jax.sharding import MESH_AXES, TRAIN, MeshConfig, ShardingRules

GIB = 2**30
TUNED = ("adapter", "all")
DECODE = "decode"  # the program that reads one token of each row, whose scores stay on chip


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is planned besides what the sections of a run say.

    Args:
        tuned: "adapter" (LoRA), or "all" weights.
        input_tokens, target_tokens: of a typical training example; packed rows are made of such.
        prefix_tokens: what requests share, I_β; prompt_tokens, new_tokens: of each request.
    """

    tuned: str = "adapter"
    input_tokens: int = 480
    target_tokens: int = 32
    prefix_tokens: int = 2048
    prompt_tokens: int = 256
    new_tokens: int = 512

    def __post_init__(self):
        if self.tuned not in TUNED:
            raise UserError(f"Plan.tuned is {self.tuned!r}; it is one of {', '.join(TUNED)}")
        for name in ("input_tokens", "target_tokens", "prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"Plan.{name} is {getattr(self, name)}; it must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of one compiled program on its target."""

    facts: Facts
    module: Module | None
    account: Account | None
    roofline: Roofline | None
    cautions: tuple[str, ...]
    weights_moved: tuple[float, float] = (0.0, 0.0)  # and what theory asks

    def fits(self, memory: int | None) -> bool | None:
        """Whether it fits into so many bytes a device; None where these are not known."""
        if self.facts.refused:
            return False
        return None if memory is None else self.facts.memory.total <= memory

    def as_json(self, memory: int | None) -> dict[str, Any]:
        """Return all of it for results.json, sizes in bytes and times in seconds."""
        held = self.facts.memory
        found: dict[str, Any] = {
            "fits": self.fits(memory),
            "memory": {**dataclasses.asdict(held), "total": held.total},
            "of_memory": None if memory is None else held.total / memory,
            "refused": self.facts.refused,
            "largest": [list(one) for one in self.facts.largest],
            "compile_seconds": self.facts.seconds,
            "cautions": list(self.cautions),
        }
        if self.account is not None and self.module is not None:
            found |= {
                "flops": self.account.flops,
                "bytes": self.account.bytes,
                "weights_moved": self.weights_moved[0],
                "weights_asked": self.weights_moved[1],
                "collectives": [dataclasses.asdict(one) for one in self.account.collectives],
                "assumed_loops": dict(self.account.assumed),
                "loops_counted_once": list(self.account.unknown),
                "calls_not_counted": list(self.account.uncounted),
                "kernels": cautions.kernels(self.module),
            }
        if self.roofline is not None:
            found["roofline"] = {
                **dataclasses.asdict(self.roofline),
                "seconds": self.roofline.seconds,
                "bound": self.roofline.bound,
            }
        return found


def read_shape(path: str) -> tuple[Config, Family]:
    """Return what config.json in a directory says of a model, whose weights need not be there."""
    hf_config = read_config(path)
    family = family_of(hf_config, path)
    return family.read_config(hf_config, path), family


def model_of(
    model: ModelConfig, mesh: Mesh, lora: LoraConfig | None, tuned: bool, rules: ShardingRules = TRAIN
) -> Model:
    """Return a model of shapes."""
    config, family = read_shape(model.path)
    kernel = kernel_of(config, model, mesh)
    how = {"dtype": model.dtype, "remat": model.remat, "rules": rules, "family": family, "kernel": kernel}
    return abstract_model(config, mesh, lora=lora, tuned=tuned, **how)  # pyright: ignore


def examine(
    facts: Facts,
    target: Target,
    model: Model,
    *,
    trips: Mapping[str, float],
    said: tuple[str, ...],
    passes: int,
    runs: float = 1,
) -> Program:
    """Return what follows from a compiled program.

    Args:
        trips: how often loops run whose length data decide (see `account`).
        said: cautions that hold of its arguments already.
        passes: how often theory gathers the weights in one run of it.
        runs: what is counted is the share of one of so many, which the program makes at a time.
    """
    if not facts.text:
        return Program(facts, None, None, None, (*said, "XLA cannot print this program: nothing is counted of it"))
    mesh, module = model.mesh, parse(facts.text)
    counted = account(module, shape_of(mesh), trips).over(runs)
    found = [*said, *cautions.of_vocabulary(counted, model.config.vocab_size), *cautions.of_padding(module)]
    found += cautions.of_copies(module) + cautions.of_weights(counted, model, passes)
    found += [] if facts.name == DECODE else cautions.of_kernels(module, model)
    found += [f"a loop whose length only data decide is counted once: {name}" for name in counted.unknown]
    found += [f"operations of kernel {name} are not counted" for name in counted.uncounted]
    line = None
    if target.chip is not None:
        line = roofline(counted, target.chip, mesh.devices, mesh.axis_names)
    return Program(facts, module, counted, line, tuple(found), cautions.weights_moved(counted, model, passes))


def target_json(target: Target, mesh: Mesh) -> dict[str, Any]:
    """Return the target for results.json."""
    chip = None if target.chip is None else dataclasses.asdict(target.chip)
    return {
        "topology": target.name,
        "device_kind": target.kind,
        "devices": len(target.devices),
        "memory": target.memory,
        "chip": chip,
        "mesh": shape_of(mesh),
    }


def compiler_for(target: Target, directory: Path, told) -> Compiler:
    """Return what compiles for a target."""
    about = {"target": target.name, "kind": target.kind, "jax": jax.__version__, "compiler": _compiler_version(target)}
    return Compiler(directory, about, target.devices[0].platform == "tpu", told)


def _compiler_version(target: Target) -> str:
    return str(getattr(target.devices[0].client, "platform_version", ""))


def typical(count: int, inputs: int, targets: int) -> Any:
    """Return so many training examples of these lengths."""
    from fiat_jax.data.examples import Example, Examples

    ids, answer = np.ones(inputs, np.int32), np.ones(targets, np.int32)
    return Examples.of(Example(str(n), "und", ids, answer) for n in range(count))


def mesh_text(config: MeshConfig, target: Target) -> str:
    """Return "data 1, fsdp 16, expert 1, tensor 1"."""
    return ", ".join(f"{name} {size}" for name, size in zip(MESH_AXES, config.shape(len(target.devices)), strict=True))
