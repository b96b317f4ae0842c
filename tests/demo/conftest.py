"""The demo, run once on few rows with the shipped models."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from fiat_jax.config import Config
from fiat_jax.demo.run import SETTINGS, DemoConfig, run_demo
from fiat_jax.demo.task import TaskConfig
from fiat_jax.experiments.sections import SECTIONS


@pytest.fixture(scope="session")
def small() -> DemoConfig:
    bindings = ["SIZE = 40", "World.test = 30", "World.validation = 4", "Train.epochs = 1", "Train.min_steps = 0"]
    sections = {**SECTIONS, "World": TaskConfig, "Demo": DemoConfig}
    return Config(sections, [str(SETTINGS["demo"])], bindings).build(DemoConfig)


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
