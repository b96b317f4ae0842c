"""A small world, and the demo run on it once."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from fiat_jax.demo.run import DemoConfig, run_demo
from fiat_jax.demo.theta_tau import ThetaTauConfig
from fiat_jax.demo.world import World, WorldConfig
from fiat_jax.training.config import TrainConfig


@pytest.fixture(scope="session")
def world() -> World:
    return World(WorldConfig())


@pytest.fixture(scope="session")
def small() -> DemoConfig:
    train = TrainConfig(epochs=1, batch_rows=8, row_length=192)
    return DemoConfig(
        world=WorldConfig(train=200, validation=12, test=60, pages=500, creatures=60),
        theta_tau=ThetaTauConfig(width=32, mlp_width=64, train=dataclasses.replace(train, row_length=128)),
        train=train,
    )


@dataclasses.dataclass(frozen=True)
class Ran:
    """A finished demo: where, and what it printed and returned."""

    workdir: Path
    text: str
    results: list[dict[str, Any]]


@pytest.fixture(scope="session")
def ran(small, tmp_path_factory) -> Ran:
    workdir = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=200, file=io.StringIO())
    jax.config.update("jax_disable_most_optimizations", True)  # programs that run a few steps compile in half the time
    try:
        results = run_demo(workdir, console, small)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return Ran(workdir, console.export_text(), results)
