import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.once import made_once
from support.world import SETTINGS, World

from fiat_jax.config import Config
from fiat_jax.experiments.bench import Bench
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.sections import SECTIONS, Run

ARGUMENTS = (
    "--gin_file=weather.gin",
    *SETTINGS,
    "--gin.Train.epochs=1",
    "--gin.Task.metrics=('accuracy','average_precision')",
    "--gin.Task.positive_label=good",
    "--gin.Experiment.sizes=(48,0)",
    "--gin.Experiment.paradigms=('icl','fiat','fiat-shuffled')",
    "--gin.Experiment.learning_rates=(1e-2,1e-3)",
)


@pytest.fixture
def bench(project):
    """Return the bench of some paradigms on the task weather; `settings` are further --gin.NAME=VALUE."""

    def bench(*paradigms: str, sizes=(0,), settings=(), native=None) -> Bench:
        bindings = [one.removeprefix("--gin.") for one in (*SETTINGS, *settings)]
        run = Config(SECTIONS, [str(project.root / "weather.gin")], bindings).build(Run, native=native)
        with contextlib.chdir(project.root):
            return Bench(run, sizes, [find_paradigm(name, run.own) for name in paradigms])

    return bench


@dataclass(frozen=True)
class Ran:
    """A finished `fiat experiment`: the world, the arguments, the working directory and its results.json."""

    world: World
    arguments: tuple[str, ...]
    workdir: Path
    results: dict[str, Any]

    def rows(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the rows of results.json that have these values."""
        return [row for row in self.results["rows"] if wanted.items() <= row.items()]


@pytest.fixture(scope="session")
def experiment(project, new_project, tmp_path_factory) -> Ran:
    """Three paradigms, two sizes, two learning rates."""

    def make(folder: Path) -> None:
        world = new_project(folder / "world")
        world.fiat("experiment", *ARGUMENTS, "--workdir=experiment")
        (world.root / "experiment").rename(folder / "experiment")
        shutil.rmtree(world.root)

    workdir = made_once(tmp_path_factory, "experiment", make, project.root) / "experiment"
    return Ran(project, ARGUMENTS, workdir, json.loads((workdir / "results.json").read_text()))
