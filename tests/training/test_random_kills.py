"""Runs of two processes that are killed at random moments, again and again, are the run that was never killed.

    FIAT_KILLS=30 pytest -m "slow and multihost" tests/training/test_random_kills.py

FIAT_KILLS: how many runs are killed, a third of them in each of three chains; FIAT_KILL_SEED: where and when, to have a
failure again as nearly as clocks allow. A chain goes on in one working directory, killed time after time, until its run
comes to the end; then another begins.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.world import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.multihost, pytest.mark.timeout(3 * 3600)]
CHAINS = ("the loop", "the loop again", "fiat train")
KILLS = int(os.environ.get("FIAT_KILLS", "9")) // len(CHAINS)
SEED = int(os.environ.get("FIAT_KILL_SEED") or int.from_bytes(os.urandom(3), "big"))
NOTICED = 60.0  # seconds within which the other process has ended
JOIN = 30  # seconds for which processes wait for each other
WHO = ((0,), (1,), (0,), (1,), (0, 1))
WHEN = ("any time", "start", "evaluation", "a save", "a save")
NAMED = r"(step \d+|outside steps), process {0} on \S+: .*(process {1} |process 0 is lost)"


def walk(workdir: Path, *within: str):
    """Yield every path under a directory that may change meanwhile, in order; of checkpoints those named alone."""
    for folder, folders, files in os.walk(workdir):
        folders.sort()
        yield from (Path(folder, name) for name in (*folders, *sorted(files)))
        if Path(folder).name == "checkpoints":
            folders[:] = [name for name in folders if name in within]
        elif Path(folder).parent.name == "checkpoints":
            folders.clear()


class Run:
    """What two processes do in a working directory, and what is left of it."""

    def __init__(self, command, cwd: Path, env: dict[str, str]):
        self._command, self._cwd, self._env = command, cwd, env

    def start(self, workdir: Path) -> list[subprocess.Popen]:
        """Begin or go on."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            where = {"FIAT_COORDINATOR": f"127.0.0.1:{taken.getsockname()[1]}", "FIAT_NUM_PROCESSES": "2"}
        where["FIAT_JOIN_SECONDS"] = str(JOIN)
        return [
            subprocess.Popen(
                [sys.executable, *self._command(workdir)],
                cwd=self._cwd,
                env=os.environ | self._env | where | {"FIAT_PROCESS_ID": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]

    def log(self, workdir: Path) -> list[dict]:
        """The whole lines of its log without what the clock says."""
        found = []
        for path in logs(workdir):
            lines = path.read_text().splitlines(keepends=True)
            found += [json.loads(line) for line in lines if line.endswith("\n")]
        return [{name: value for name, value in line.items() if name != "seconds"} for line in found]

    def left(self, workdir: Path) -> dict:
        """What a finished run left: its log, every file of results as bytes, and figures."""
        names = ("*.safetensors", "predictions/*.jsonl", "bundle/prompts.yaml")
        files = {str(path.relative_to(workdir)): path.read_bytes() for name in names for path in workdir.rglob(name)}
        results = workdir / "results.json"
        rows = json.loads(results.read_text())["rows"] if results.exists() else None
        return {"log": self.log(workdir), "files": files, "rows": rows}


def logs(workdir: Path) -> list[Path]:
    """The logs of its runs."""
    return [path for path in walk(workdir) if path.name == "train_log.jsonl"]


def told(process: subprocess.Popen, seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still there after {seconds:.0f} s: {process.communicate()[0]}")


@pytest.fixture(params=CHAINS)
def run(request, tmp_path):
    tests = Path(__file__).resolve().parents[1]
    env = {
        "PYTHONPATH": f"{tests.parent}:{tests}",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    if request.param != "fiat train":
        # so that every third step is one in which something is written
        command = lambda workdir: ("-m", "support.tiny_run", workdir, "--pause", "0.05", "--checkpoint_every", "3")  # noqa: E731
        return Run(command, tmp_path, env)
    project = request.getfixturevalue("project")
    settings = ("--gin_file=weather.gin", *SETTINGS, "--gin.Train.checkpoint_every=3", "--gin.Mesh.data=4")
    command = lambda workdir: ("-m", "fiat_jax", "train", f"--workdir={workdir}", *settings)  # noqa: E731
    return Run(command, project.root, env)


def test_runs_killed_at_random_moments_are_the_run_that_was_never_killed(run, tmp_path, request):
    random = np.random.default_rng([SEED, CHAINS.index(request.node.callspec.params["run"])])
    begun = time.monotonic()
    finish(run, tmp_path / "straight")
    whole = time.monotonic() - begun
    expected = run.left(tmp_path / "straight")
    assert sum("loss" in line for line in expected["log"]) > 10
    number, killed, finished = 0, [], 0
    while number < KILLS or killed:
        workdir = tmp_path / str(finished)
        if number < KILLS:
            killed.append(kill_one(run, workdir, random, whole, expected["log"]))
            number += 1
            print(f"seed {SEED}, {number}: {killed[-1]}, {len(run.log(workdir))} lines", file=sys.stderr)
            if not killed[-1].endswith("finished"):
                continue
        finish(run, workdir)
        assert run.left(workdir) == expected, f"seed {SEED}, {killed}"
        finished, killed = finished + 1, []


def finish(run: Run, workdir: Path) -> None:
    """Begin or go on, to the end."""
    pair = run.start(workdir)
    output = [told(process, 1200) for process in pair]
    status = [process.returncode for process in pair]
    assert status == [0, 0], f"seed {SEED}, {status}: {output}"


def kill_one(run: Run, workdir: Path, random, whole: float, expected: list[dict]) -> str:
    """Begin or go on, kill one process or both, see that the other ends as it should; return what was done."""
    who, when = WHO[random.integers(len(WHO))], WHEN[random.integers(len(WHEN))]
    seconds = random.uniform(0, whole / (3 if when == "start" else 1))
    kept, saves, later = ("latest", "best")[random.integers(2)], random.integers(1, 6), random.uniform(0, 0.05)
    begun, seen = time.time(), set()

    def now() -> bool:
        if when == "evaluation":
            return evaluating(run, workdir, expected, begun)
        if when == "a save":
            seen.update(path for path in walk(workdir, kept) if path.parent.name == kept and "tmp" in path.name)
            return len(seen) >= saves
        return time.time() - begun > seconds

    pair = run.start(workdir)
    while not now() and all(process.poll() is None for process in pair):
        time.sleep(0.01)
    time.sleep(later)
    at = time.time()
    for index in who:
        pair[index].kill()
    outputs = {index: told(pair[index], NOTICED) for index in (*who, *{0, 1}.difference(who))}
    what = f"process {who} killed at {when} ({at - begun:.1f} s), {time.time() - at:.1f} s"
    log = run.log(workdir)
    assert log == expected[: len(log)], f"seed {SEED}, {what}"
    for survivor in {0, 1}.difference(who):
        status, text = pair[survivor].returncode, outputs[survivor]
        if status == 0:
            assert log == expected, f"seed {SEED}, {what}: {text}"
        else:
            named = re.search(NAMED.format(survivor, who[0]), text)
            assert named or "cannot join the others" in text, f"seed {SEED}, {what}, status {status}: {text}"
            what += f", status {status}{'' if named else ' (had not joined)'}"
    return what + (", finished" if log == expected else "")


def evaluating(run: Run, workdir: Path, expected: list[dict], since: float) -> bool:
    """Whether all steps before an evaluation have been logged since then, and it has not."""
    written = [path for path in logs(workdir) if path.stat().st_mtime > since]
    count = len(run.log(workdir)) if written else 0
    return 0 < count < len(expected) and "evaluation" in expected[count]
