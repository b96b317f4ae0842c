"""Several processes of one run, on this machine."""

import json
import re
import signal
import socket
import time

import fsspec
import numpy as np
import pytest

from fiat_jax.errors import LOST

pytestmark = pytest.mark.multihost


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(spawn, *workdirs, arguments=(), processes=2):
    """Processes of one run that have eight devices together; where several directories are given, each has its own."""
    where = {"FIAT_COORDINATOR": f"127.0.0.1:{free_port()}", "FIAT_NUM_PROCESSES": str(processes)}
    return [
        spawn(
            workdirs[index % len(workdirs)],
            *arguments,
            devices=8 // processes,
            FIAT_PROCESS_ID=str(index),
            **where,
        )
        for index in range(processes)
    ]


def losses(workdir):
    log = workdir / "train_log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(line["loss"], line["tokens"]) for line in lines if "loss" in line]


def likelihoods(workdir):
    lines = map(json.loads, (workdir / "train_log.jsonl").read_text().splitlines())
    return [line["evaluation"]["likelihood"] for line in lines if "evaluation" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, spawn):
    """The losses of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("one")
    process = spawn(workdir, devices=8)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    return losses(workdir)


def finish(run, status: int) -> None:
    output = [process.communicate()[0] for process in run]
    assert [process.returncode for process in run] == [status] * len(run), output


def await_steps(workdir, run, count: int = 1) -> None:
    """Wait until a run has logged so many steps, or one of its processes has ended."""
    while len(losses(workdir)) < count and all(process.poll() is None for process in run):
        time.sleep(0.05)


def test_two_processes_give_the_losses_of_one(tmp_path, spawn, alone):
    finish(start(spawn, tmp_path / "two"), 0)
    np.testing.assert_allclose(losses(tmp_path / "two"), alone, atol=1e-5, rtol=0)


def test_rows_go_where_the_devices_of_a_process_lie_whatever_their_order(tmp_path, spawn):
    """On a TPU slice devices do not lie in the order of processes, and two processes may share a tensor axis."""
    finish([spawn(tmp_path / "one", "--tensor", 2, devices=8)], 0)
    finish(start(spawn, tmp_path / "two", arguments=("--tensor", 2, "--mixed")), 0)
    for found in (losses, likelihoods):
        np.testing.assert_allclose(found(tmp_path / "two"), found(tmp_path / "one"), atol=1e-5, rtol=0)
    assert len(likelihoods(tmp_path / "one")) > 2


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path, spawn, alone):
    pair = start(spawn, tmp_path / "two", arguments=("--pause", 0.1))
    await_steps(tmp_path / "two", pair)
    pair[1].send_signal(signal.SIGTERM)
    finish(pair, 75)
    assert 0 < len(losses(tmp_path / "two")) < len(alone)
    finish(start(spawn, tmp_path / "two"), 0)
    np.testing.assert_allclose(losses(tmp_path / "two"), alone, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "then"), [(1, 1), (0, 2), (1, 4)])
def test_a_killed_process_is_named_by_the_other_which_ends_and_any_number_go_on(tmp_path, spawn, alone, victim, then):
    workdir = tmp_path / "run"
    pair = start(spawn, workdir, arguments=("--pause", 0.1))
    await_steps(workdir, pair, 10)
    pair[victim].kill()
    told = pair[1 - victim].communicate(timeout=60)[0]
    pair[victim].communicate()
    assert pair[1 - victim].returncode == LOST, told
    assert re.search(rf"training, step \d+, process {1 - victim} on \S+: process {victim} ", told), told
    assert 0 < len(losses(workdir)) < len(alone)
    finish(start(spawn, workdir, processes=then), 0)
    np.testing.assert_allclose(losses(workdir), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_who_waits_in_vain_for_the_others_says_so_and_ends(tmp_path, spawn, index):
    port = free_port()
    where = {"FIAT_COORDINATOR": f"127.0.0.1:{port}", "FIAT_NUM_PROCESSES": "2", "FIAT_JOIN_SECONDS": "1"}
    alone = spawn(tmp_path, FIAT_PROCESS_ID=str(index), **where)
    told = alone.communicate(timeout=60)[0]
    assert alone.returncode == LOST, told
    assert f"cannot join the others of its run (coordinator 127.0.0.1:{port}), of which it is process {index}" in told


def test_a_directory_that_hosts_do_not_share_is_noticed_by_all_at_the_start(tmp_path, spawn):
    told = [process.communicate()[0] for process in start(spawn, tmp_path / "here", tmp_path / "there")]
    for text in told:
        assert "not one directory to all hosts: process 1 does not see" in text
    assert not losses(tmp_path / "here")


def test_where_two_that_trained_into_an_object_store_were_killed_one_goes_on(tmp_path, spawn, alone, bucket):
    pair = start(spawn, f"{bucket}/tiny", arguments=("--kill_at", 12))
    for process in pair:
        process.communicate()
    assert all(process.returncode for process in pair)
    log, stored = f"{bucket}/tiny/train_log.jsonl", fsspec.filesystem("s3", skip_instance_cache=True)
    for part in ("then", "now"):
        (tmp_path / part).mkdir()
    stored.get_file(log, str(tmp_path / "then" / "train_log.jsonl"))
    assert 0 < len(losses(tmp_path / "then")) < len(alone)
    finish([spawn(f"{bucket}/tiny", devices=8)], 0)
    stored.get_file(log, str(tmp_path / "now" / "train_log.jsonl"))
    np.testing.assert_allclose(losses(tmp_path / "now"), alone, atol=1e-5, rtol=0)
