"""Cells made side by side by processes of one machine: as those made one after another, and none lost."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fiat_jax.errors import UserError
from fiat_jax.experiments.parallel import check_processes

SIDE_BY_SIDE = ("--gin.Experiment.processes=2", "--gin.Experiment.learning_rates=(1e-2,)")


@pytest.fixture(scope="module")
def stopped(experiment):
    """The same experiment of one rate in two processes, asked to stop in its first training runs."""
    workdir = experiment.world.root / "side-by-side"
    command = (sys.executable, "-m", "fiat_jax", "experiment", *experiment.arguments, *SIDE_BY_SIDE)
    world, told = experiment.world, {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen([*command, f"--workdir={workdir}"], cwd=world.root, env=world.env, **told)
    while not list(workdir.glob("cells/*/*/train_log.jsonl")) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    return SimpleNamespace(workdir=workdir, told=run.communicate()[0], status=run.returncode)


@pytest.fixture(scope="module")
def finished(experiment, stopped):
    done = experiment.world.fiat("experiment", *experiment.arguments, *SIDE_BY_SIDE, f"--workdir={stopped.workdir}")
    return SimpleNamespace(workdir=stopped.workdir, told=done.stdout)


def losses(workdir, cell):
    lines = map(json.loads, (workdir / "cells" / cell / "lr-0.01" / "train_log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_asked_to_stop_it_saves_and_says_how_to_go_on(stopped):
    assert stopped.status == 75, stopped.told
    assert "run the same command to go on" in stopped.told
    assert "Traceback" not in stopped.told


def test_then_it_goes_on_and_every_cell_trains_as_it_does_alone(experiment, finished):
    cells = {row["cell"] for row in experiment.results["rows"]}
    for cell in cells - {"icl"}:
        ours, alone = losses(finished.workdir, cell), losses(experiment.workdir, cell)
        assert len(ours) == len(alone) > 3
        np.testing.assert_allclose(ours, alone, rtol=1e-3)
    results = json.loads((finished.workdir / "results.json").read_text())
    assert {row["cell"] for row in results["rows"]} == cells
    assert results["seconds"] > max(facts.get("seconds", 0) for facts in results["details"]["cells"].values())


def test_a_mistake_in_a_process_is_told_as_one(experiment, finished):
    other = "--gin.Train.row_length=48"
    arguments = (*experiment.arguments, *SIDE_BY_SIDE, other, f"--workdir={finished.workdir}")
    told = experiment.world.fiat("experiment", *arguments, status=2).stderr
    assert "does not fit a packed row of 48 tokens" in told
    assert "Traceback" not in told


def test_accelerators_are_not_divided(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_processes(1)
    with pytest.raises(UserError, match=r"Experiment\.processes is 2"):
        check_processes(2)
