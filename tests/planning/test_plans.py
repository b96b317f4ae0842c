"""The plans that ship: their files resolve, and their meshes fit their slices."""

import importlib.util
import math
from pathlib import Path

import pytest

from fiat_jax.config import Config
from fiat_jax.experiments.sections import SECTIONS
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.planning.plan import PlanConfig, read_shape
from fiat_jax.reasoning.native import Native
from fiat_jax.sharding import MeshConfig
from fiat_jax.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("plans", ROOT / "benchmarks" / "plans.py")
assert SPEC is not None
assert SPEC.loader is not None
PLANS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(PLANS)
CASES = PLANS.cases()


def settings(arguments: list[str]) -> Config:
    files = [str(ROOT / a.partition("=")[2]) for a in arguments if a.startswith("--gin_file=")]
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return Config({**SECTIONS, "Plan": PlanConfig}, files, bindings)


@pytest.mark.parametrize("name", CASES)
def test_every_plan_that_ships_is_of_a_known_shape_on_a_mesh_that_fits_its_slice(name):
    config, topology = settings(CASES[name]), CASES[name][-1].partition("=")[2]
    chips = math.prod(int(n) for n in topology.partition(":")[2].split("x"))
    data, fsdp, expert, tensor = config.build(MeshConfig).shape(chips)
    if config.binds("Native"):
        shape, _ = read_shape(str(ROOT / config.build(Native).path))
    else:
        shape, _ = read_shape(str(ROOT / config.build(ModelConfig).path))
        assert config.build(TrainConfig).batch_rows % (data * fsdp * expert) == 0
    assert isinstance(shape, DecoderConfig)
    assert shape.num_kv_heads % tensor == 0
    assert shape.num_experts % expert == 0
    assert config.build(PlanConfig).input_tokens < config.build(TrainConfig).row_length or config.binds("Native")


def test_every_model_file_of_configs_has_a_plan():
    files = {path.name for path in (ROOT / "configs" / "plans").glob("*.gin")} - {"lora.gin", "engine.gin"}
    named = {Path(a.partition("=")[2]).name for arguments in CASES.values() for a in arguments if "configs/plans" in a}
    assert files == named
