"""The cells of an experiment as Ray tasks, on a Ray that the test starts on this machine."""

import json
import sys

import numpy as np
import pytest

ONE_RATE = "--gin.Experiment.learning_rates=(1e-2,)"


@pytest.fixture
def arguments(experiment, tmp_path):
    """The experiment of one rate in a working directory of its own."""
    return ("experiment", *experiment.arguments, ONE_RATE, "--engine=ray", f"--workdir={tmp_path}/on-ray")


def test_without_ray_the_extra_is_named(experiment, arguments, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert experiment.world.main(*arguments) == 2
    assert "pip install 'fiat-jax[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["--shard=0/2", "--gin.Experiment.processes=2"])
def test_ray_divides_the_cells_by_itself(experiment, arguments, other, capsys):
    assert experiment.world.main(*arguments, other) == 2
    assert "--engine=ray divides the cells by itself" in capsys.readouterr().err


@pytest.mark.multihost
def test_every_cell_trains_as_it_does_alone_and_none_twice(experiment, arguments, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra of 245 MB, which `make setup` leaves out: pip install ray")
    told = experiment.world.fiat(*arguments).stdout
    held = json.loads((tmp_path / "on-ray" / "results.json").read_text())
    cells = {row["cell"] for row in experiment.results["rows"]}
    assert {row["cell"] for row in held["rows"]} == cells
    trained = cells - {"icl"}
    assert {line.split(":")[0] for line in told.splitlines() if ": made; " in line} == trained
    for cell in trained:
        ours, alone = (_losses(workdir, cell) for workdir in (tmp_path / "on-ray", experiment.workdir))
        np.testing.assert_allclose(ours, alone, rtol=1e-3)
    assert ": made; " not in experiment.world.fiat(*arguments).stdout


@pytest.mark.multihost
def test_a_mistake_in_a_task_is_told_as_one(experiment, arguments):
    pytest.importorskip("ray", reason="ray is an extra of 245 MB, which `make setup` leaves out: pip install ray")
    told = experiment.world.fiat(*arguments, "--gin.Train.row_length=48", status=2).stderr
    assert "does not fit a packed row of 48 tokens" in told
    assert "Traceback" not in told


def _losses(workdir, cell):
    lines = map(json.loads, (workdir / "cells" / cell / "lr-0.01" / "train_log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]
