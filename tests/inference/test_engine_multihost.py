"""An engine over the processes of a run: each makes the same calls and has all answers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.engine_run import engine_texts

pytestmark = pytest.mark.multihost
TESTS = Path(__file__).resolve().parents[1]


def test_two_processes_write_the_texts_of_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    where = {"FIAT_COORDINATOR": f"127.0.0.1:{port}", "FIAT_NUM_PROCESSES": "2", "PYTHONPATH": str(TESTS)}
    where["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    command = [sys.executable, str(TESTS / "support" / "engine_run.py")]
    pair = [
        subprocess.Popen(
            command,
            env=os.environ | where | {"FIAT_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    told = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    expected = engine_texts()
    assert [json.loads(out.splitlines()[-1]) for out, _ in told] == [expected, expected]
