"""Several processes of one run, on this machine."""

import json
import signal
import socket
import time

import numpy as np
import pytest

pytestmark = pytest.mark.multihost


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_two(spawn, workdir, *arguments):
    """Two processes with four devices each."""
    where = {"FIAT_COORDINATOR": f"127.0.0.1:{free_port()}", "FIAT_NUM_PROCESSES": "2"}
    return [spawn(workdir, *arguments, devices=4, FIAT_PROCESS_ID=str(index), **where) for index in range(2)]


def losses(workdir):
    log = workdir / "train_log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(line["loss"], line["tokens"]) for line in lines if "loss" in line]


@pytest.fixture
def alone(tmp_path, spawn):
    """The losses of one process with eight devices."""
    process = spawn(tmp_path / "one", devices=8)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    return losses(tmp_path / "one")


def finish(pair, status: int) -> None:
    output = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [status, status], output


def test_two_processes_give_the_losses_of_one(tmp_path, spawn, alone):
    finish(start_two(spawn, tmp_path / "two"), 0)
    np.testing.assert_allclose(losses(tmp_path / "two"), alone, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path, spawn, alone):
    pair = start_two(spawn, tmp_path / "two", "--pause", 0.1)
    while not losses(tmp_path / "two") and pair[0].poll() is None:
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    finish(pair, 75)
    assert 0 < len(losses(tmp_path / "two")) < len(alone)
    finish(start_two(spawn, tmp_path / "two"), 0)
    np.testing.assert_allclose(losses(tmp_path / "two"), alone, atol=1e-5, rtol=0)
