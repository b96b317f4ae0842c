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


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Programs that run a few steps compile in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def evaluator(model):
    return likelihood(model)


@pytest.fixture
def run(model, evaluator, tmp_path):
    """Train the tiny run in `where`, with other parts where they are given; return what `train` returns."""
    own = model

    def run(where="run", config=CONFIG, *, model=own, batches=None, evaluate=None, select="likelihood", **options):
        evaluate = evaluate or (evaluator if model is own else likelihood(model))
        batches = batches or tiny_batches(config)
        with jax.set_mesh(model.mesh):
            return train(model, batches, config, tmp_path / where, evaluate=evaluate, select=select, **options)

    return run


@pytest.fixture(scope="module")
def straight(model, evaluator, tmp_path_factory):
    """The run that nothing interrupted: what `train` returns, and its log."""
    where = tmp_path_factory.mktemp("straight")
    with jax.set_mesh(model.mesh):
        done = train(model, tiny_batches(), CONFIG, where, evaluate=evaluator, select="likelihood")
    return done, read_log(where)


@pytest.fixture
def log_of(tmp_path):
    """Return the lines of a run's log without what the clock says."""
    return lambda where="run": read_log(tmp_path / where)


def read_log(where):
    lines = [json.loads(line) for line in (where / "train_log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


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
