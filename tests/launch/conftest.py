"""What the launchers start: a tiny run, and `fiat` of this checkout on PATH."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@dataclass
class Bench:
    """A directory with `fiat` and stand-ins in bin/, the launchers' environment, and what was started in it."""

    root: Path
    env: dict[str, str]
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: object, **env: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=self.root,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *command: object, status: int = 0, **env: str) -> str:
        process = self.start(*command, **env)
        told = process.communicate(timeout=240)[0]
        assert process.returncode == status, told
        return told

    def log(self, process: int) -> str:
        return (self.root / "logs" / f"{process}.log").read_text()

    def steps(self) -> list[int]:
        """The steps that the tiny run has logged."""
        log = self.root / "run" / "train_log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [line["step"] for line in found if "loss" in line]

    def pid(self, process: int) -> int:
        return int((self.root / f"pid.{process}").read_text())

    def await_steps(self, count: int, launcher: subprocess.Popen | None = None, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while len(self.steps()) < count and time.monotonic() < until:
            assert launcher is None or launcher.poll() is None, launcher.communicate()[0]
            time.sleep(0.05)

    def kill(self, process: int) -> None:
        os.kill(self.pid(process), signal.SIGKILL)


@pytest.fixture
def bench(tmp_path):
    executable(tmp_path / "bin" / "fiat", f'#!/bin/sh\nexec {sys.executable} -m fiat_jax "$@"\n')
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FIAT_", "SLURM_"))} | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": " ".join(flags),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "FIAT_COMPILATION_CACHE": os.environ["FIAT_COMPILATION_CACHE"],
        "FIAT_PORT": str(free_port()),
        "FIAT_GRACE": "60",
        "COLUMNS": "200",
    }
    made = Bench(tmp_path, env)
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


@pytest.fixture
def tiny_run() -> tuple[str, ...]:
    """The command of a run whose processes leave their ids in pid.INDEX; slow enough to be killed."""
    index = "${FIAT_PROCESS_ID:-$SLURM_PROCID}"
    train = f"{sys.executable} -m support.tiny_run run --pause 0.1"
    return "bash", "-c", f"echo $$ > pid.{index}; exec {train}"
