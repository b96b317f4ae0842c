import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.tiny_run import CONFIG, likelihood, tiny_batches, tiny_model

from fiat_jax.training.loop import train

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def quick_compilation():
    """Programs that run a few steps compile in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture
def run(model, tmp_path):
    """Train the tiny run in `where`, with other parts where they are given; return what `train` returns."""

    def run(where="run", config=CONFIG, *, model=model, batches=None, evaluate=None, select="likelihood", **options):
        batches, evaluate = batches or tiny_batches(config), evaluate or likelihood(model)
        with jax.set_mesh(model.mesh):
            return train(model, batches, config, tmp_path / where, evaluate=evaluate, select=select, **options)

    return run


@pytest.fixture
def log_of(tmp_path):
    """Return the lines of a run's log without what the clock says."""

    def log_of(where="run"):
        lines = [json.loads(line) for line in (tmp_path / where / "train_log.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

    return log_of


@pytest.fixture(scope="session")
def spawn():
    """Start the tiny run as a process of its own; return the process."""

    def spawn(*arguments: object, devices: int = 1, **env: str) -> subprocess.Popen:
        settings = {
            "PYTHONPATH": str(TESTS),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "support.tiny_run", *map(str, arguments)],
            env=os.environ | settings | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return spawn
