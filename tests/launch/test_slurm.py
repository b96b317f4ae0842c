"""The Slurm jobs on a Slurm of one node that the tests start: no root, no munge, nothing of the machine's own."""

import os
import re
import shutil
import socket
import subprocess
import time

import pytest

from .conftest import LAUNCH, free_port

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmctldPort={ctld}
SlurmdPort={d}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
PlugStackConfig=/dev/null
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


@pytest.fixture
def slurm(bench):
    """A bench whose sbatch leads to a Slurm of this one node; `{"fiat": ...}` is what its jobs run."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    found = {name: shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "sbatch", "srun")}
    if lacking := [name for name, where in found.items() if where is None]:
        pytest.skip(f"no {', '.join(lacking)} here (Debian: apt-get install slurmctld slurmd slurm-client)")
    root = bench.root / "slurm"
    for name in ("state", "spool"):
        (root / name).mkdir(parents=True)
    user, host = (
        subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip(),
        socket.gethostname().split(".")[0],
    )
    (root / "slurm.conf").write_text(CONF.format(host=host, user=user, root=root, ctld=free_port(), d=free_port()))
    bench.env["SLURM_CONF"] = str(root / "slurm.conf")
    for name in ("slurmctld", "slurmd"):
        bench.start(found[name], "-D")
    until = time.monotonic() + 30
    while "idle" not in (told := squeue(bench, "sinfo", "-h", "-o", "%T")):
        assert time.monotonic() < until, told + (root / "slurmctld.log").read_text() + (root / "slurmd.log").read_text()
        time.sleep(0.2)
    yield bench
    squeue(bench, "scancel", "-u", user)


def squeue(bench, *command: str) -> str:
    """Run one of Slurm's small commands."""
    return subprocess.run(command, env=bench.env, capture_output=True, text=True, cwd=bench.root).stdout


def submit(bench, *arguments: object) -> str:
    return bench.run("sbatch", "--parsable", *arguments).strip()


def finish(bench, job: str, seconds: float = 500) -> None:
    """Wait until a job, or all of an array, is over."""
    until = time.monotonic() + seconds
    while squeue(bench, "squeue", "-h", "-j", job, "-o", "%T").strip():
        assert time.monotonic() < until, [path.read_text() for path in bench.root.glob("fiat*.log")]
        time.sleep(0.2)


def state(bench, job: str) -> str:
    shown = squeue(bench, "scontrol", "--oneliner", "show", "job", job)
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)["JobState"]


@pytest.mark.slow
@pytest.mark.multihost
def test_a_killed_task_of_two_ends_the_job_which_is_requeued_and_goes_on(slurm, tiny_run):
    job = submit(slurm, "--ntasks=2", LAUNCH / "slurm" / "job.sbatch", *tiny_run)
    slurm.await_steps(5)
    slurm.kill(1)
    finish(slurm, job)
    told = (slurm.root / f"fiat-{job}.log").read_text()
    assert state(slurm, job) == "COMPLETED", told
    # a busy machine may lose a task once more, which is mended the same way
    (restarts,) = re.findall(r"Restarts=(\d+)", squeue(slurm, "scontrol", "show", "job", job))
    assert int(restarts) >= 1
    assert told.count("right over 2 devices") == int(restarts) + 1, "every attempt is examined first"
    assert slurm.steps() == list(range(max(slurm.steps()) + 1)), told


def quick(bench, text: str) -> None:
    """Put a `fiat` that answers its doctor at once in the place of the real one."""
    (bench.root / "bin" / "fiat").write_text(f"#!/bin/bash\nif [[ $1 == doctor ]]; then exit; fi\n{text}\n")


@pytest.mark.slow
def test_75_is_requeued_and_a_mistake_is_not(slurm):
    quick(slurm, "if [[ $1 == mistake ]]; then exit 2; fi; exit $((${SLURM_RESTART_COUNT:-0} ? 0 : 75 * SLURM_PROCID))")
    mistaken = submit(slurm, "--ntasks=2", LAUNCH / "slurm" / "job.sbatch", "fiat", "mistake")
    stopped = submit(slurm, "--ntasks=2", LAUNCH / "slurm" / "job.sbatch", "fiat", "train")
    finish(slurm, mistaken)
    finish(slurm, stopped)
    assert state(slurm, mistaken) == "FAILED"
    assert state(slurm, stopped) == "COMPLETED"


@pytest.mark.slow
def test_tasks_are_told_of_the_end_of_their_time_before_it(slurm):
    quick(
        slurm,
        "trap 'echo told; exit 75' TERM; if ((${SLURM_RESTART_COUNT:-0})); then exit; fi; while sleep 0.2; do :; done",
    )
    job = submit(slurm, "--ntasks=1", "--time=1", "--signal=TERM@55", LAUNCH / "slurm" / "job.sbatch", "fiat", "train")
    finish(slurm, job)
    assert "told" in (slurm.root / f"fiat-{job}.log").read_text()
    assert state(slurm, job) == "COMPLETED"


def test_an_array_does_the_shards(slurm):
    quick(slurm, 'echo "$@"')
    job = submit(slurm, "--array=0-1", LAUNCH / "slurm" / "shards.sbatch", "fiat", "reason", "--backend=openai")
    finish(slurm, job)
    for shard in range(2):
        assert (
            f"reason --backend=openai --shard={shard}/2" in (slurm.root / f"fiat-shard-{job}-{shard}.log").read_text()
        )


def test_a_cancelled_job_stays_so(slurm):
    quick(slurm, "trap 'exit 75' TERM; touch began; while sleep 0.2; do :; done")
    job = submit(slurm, "--ntasks=1", LAUNCH / "slurm" / "job.sbatch", "fiat", "train")
    until = time.monotonic() + 30
    while not (slurm.root / "began").exists() and time.monotonic() < until:
        time.sleep(0.1)
    squeue(slurm, "scancel", job)
    finish(slurm, job)
    assert state(slurm, job) == "CANCELLED"
