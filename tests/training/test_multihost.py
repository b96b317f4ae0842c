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


def test_two_processes_give_the_losses_of_one_also_after_a_signal_to_one_of_them(tmp_path, spawn):
    alone = spawn(tmp_path / "one", devices=8)
    told = alone.communicate()[0]
    assert alone.returncode == 0, told
    pair = start_two(spawn, tmp_path / "two", "--pause", 0.1)
    while not losses(tmp_path / "two") and pair[0].poll() is None:
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    output = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], output
    assert 0 < len(losses(tmp_path / "two")) < len(losses(tmp_path / "one"))
    pair = start_two(spawn, tmp_path / "two")
    output = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], output
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5, rtol=0)
