"""A run whose state is saved on one layout goes on with another, or with other processes, and is the same run."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.kinds import KINDS
from support.layout_run import drawn_mesh, layout_run

from fiat_jax.sharding import MeshConfig

TESTS = Path(__file__).resolve().parents[1]
STEPS, TOLERANCE = 50, 1e-5


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "train_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Of a kind of model and what of it is tuned: the losses of one device."""

    @functools.cache
    def alone(kind, tuned="LoRA"):
        where = tmp_path_factory.mktemp("alone")
        one = MeshConfig(1, 1, 1)
        assert layout_run(kind, one, where, tuned=tuned)
        return losses(where)

    return alone


def same(found, wanted, told):
    assert len(found) == len(wanted) > STEPS
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE, err_msg=str(told))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_layouts_drawn_at_random(kind, seed, tmp_path, alone):
    random = np.random.default_rng([seed, len(kind)])
    stops = sorted(int(step) for step in random.choice(range(2, 18), 1 if seed == 0 else 3, replace=False))
    meshes = [drawn_mesh(kind, random) for _ in range(len(stops) + 1)]
    tuned = "LoRA" if seed % 2 == 0 else "all weights"
    for mesh, stop in zip(meshes, [*stops, -1], strict=True):
        assert layout_run(kind, mesh, tmp_path, stop, tuned) == (stop == -1)
    same(losses(tmp_path), alone(kind, tuned), (tuned, stops, meshes))


@pytest.mark.slow
@pytest.mark.multihost
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_does_with_other_numbers_of_processes(kind, tmp_path, alone):
    random = np.random.default_rng(len(kind))
    asked = []
    for processes, stop in ((2, 5), (4, 11), (1, 26), (2, -1)):
        mesh = drawn_mesh(kind, random)
        asked.append((processes, stop, mesh))
        sizes = [mesh.data, mesh.fsdp, mesh.expert, mesh.tensor]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            where = {"FIAT_COORDINATOR": f"127.0.0.1:{taken.getsockname()[1]}", "FIAT_NUM_PROCESSES": str(processes)}
        where |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}"}
        where |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
        command = [sys.executable, "-m", "support.layout_run", kind, tmp_path, *sizes, f"--stop={stop}"]
        run = [
            subprocess.Popen(
                [str(word) for word in command],
                env=os.environ | where | {"FIAT_PROCESS_ID": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(processes)
        ]
        told = [process.communicate(timeout=500)[0] for process in run]
        assert [process.returncode for process in run] == [0 if stop == -1 else 75] * processes, told
    same(losses(tmp_path), alone(kind), asked)
