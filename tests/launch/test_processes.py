"""The local and the ssh launcher: who is told what, when all begin again, and what stops them."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from .conftest import LAUNCH, executable, free_port

LOCAL, SSH = LAUNCH / "local" / "run.sh", LAUNCH / "ssh" / "run.sh"
STAND_IN = """#!/usr/bin/env bash
# ssh as the launcher calls it: options, a host, one word of shell
while [[ $1 == -* ]]; do if [[ $1 == -o ]]; then shift; fi; shift; done
echo "$1" >>"$STAND_IN_HOSTS"
cd / && exec env -i PATH="$PATH" HOME="$HOME" bash -c "$2"
"""


@pytest.fixture(params=["local", "ssh"])
def launcher(request, bench):
    """Either launcher with two processes; ssh is a stand-in that runs its command here, in an empty environment."""
    if request.param == "local":
        return [LOCAL, "2"]
    executable(bench.root / "bin" / "ssh", STAND_IN)
    bench.env["STAND_IN_HOSTS"] = str(bench.root / "hosts.asked")
    (bench.root / "hosts").write_text("# two machines\n\nann@one.example   # process 0\ntwo.example\n")
    return [SSH, "hosts"]


def test_each_process_is_told_who_it_is_and_words_arrive_as_they_were(bench, launcher):
    bench.run(
        *launcher,
        "bash",
        "-c",
        'echo "$FIAT_PROCESS_ID/$FIAT_NUM_PROCESSES" at $FIAT_COORDINATOR: "$1"',
        "-",
        "a  'b' $c",
    )
    where = "one.example" if launcher[0] == SSH else "127.0.0.1"
    for process in range(2):
        assert bench.log(process) == f"{process}/2 at {where}:{bench.env['FIAT_PORT']}: a  'b' $c\n"
    if launcher[0] == SSH:
        assert sorted((bench.root / "hosts.asked").read_text().split()) == ["ann@one.example", "two.example"]


def test_shards_are_told_their_part_and_nobody_to_join(bench, launcher):
    bench.run(
        launcher[0],
        "--shards",
        *launcher[1:],
        "bash",
        "-c",
        'echo "$FIAT_PROCESS_ID/$FIAT_NUM_PROCESSES${FIAT_COORDINATOR-}"',
    )
    assert [bench.log(process) for process in range(2)] == ["0/2\n", "1/2\n"]


@pytest.mark.parametrize("status", [69, 75, 137])
def test_what_starting_again_mends_is_started_again_so_many_times(bench, launcher, status):
    told = bench.run(*launcher, "bash", "-c", f"exit $((FIAT_PROCESS_ID * {status}))", status=status, FIAT_RESTARTS="1")
    assert told.count("all processes begin again") == 1
    assert f"process 1 on {'two.example' if launcher[0] == SSH else 'localhost'} ended with status {status}" in told


def test_a_mistake_is_not_tried_again_whoever_else_fails_first(bench, launcher):
    told = bench.run(
        *launcher, "bash", "-c", "sleep 0.3$((1 - FIAT_PROCESS_ID)); exit $((2 + 73 * FIAT_PROCESS_ID))", status=2
    )
    assert "begin again" not in told


def test_who_does_not_end_after_another_failed_is_stopped(bench, launcher):
    stubborn = "if ((FIAT_PROCESS_ID)); then exit 69; fi; trap '' TERM; while sleep 0.1; do :; done"
    bench.run(*launcher, "bash", "-c", stubborn, status=69, FIAT_RESTARTS="0", FIAT_GRACE="1")
    assert "Killed" in bench.log(0)


def test_processes_are_asked_to_save_when_their_launcher_is_killed(bench, launcher):
    saving = (
        "trap 'touch saved.$FIAT_PROCESS_ID; exit 75' TERM; touch began.$FIAT_PROCESS_ID; while sleep 0.1; do :; done"
    )
    process = bench.start(*launcher, "bash", "-c", saving)
    await_files(bench, "began.0", "began.1")
    process.kill()
    process.wait()
    await_files(bench, "saved.0", "saved.1")


def test_sigterm_stops_all_and_begins_nothing_again(bench, launcher):
    saving = "trap 'exit 75' TERM; touch began.$FIAT_PROCESS_ID; while sleep 0.1; do :; done"
    process = bench.start(*launcher, "bash", "-c", saving)
    await_files(bench, "began.0", "began.1")
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=30)[0]
    assert process.returncode == 75, told
    assert "begin again" not in told


def await_files(bench, *names):
    until = time.monotonic() + 20
    while not all((bench.root / name).exists() for name in names):
        assert time.monotonic() < until, names
        time.sleep(0.05)


@pytest.mark.parametrize("arguments", [["0", "true"], ["2"], ["x", "true"]], ids=str)
def test_a_wrong_call_is_told_how_it_goes(bench, arguments):
    assert "usage:" in bench.run(LOCAL, *arguments, status=2)


def test_a_file_without_hosts_is_named(bench):
    (bench.root / "hosts").write_text("# nobody\n")
    assert "hosts names no host" in bench.run(SSH, "hosts", "true", status=2)


@pytest.mark.slow
@pytest.mark.multihost
def test_a_killed_process_ends_its_run_which_goes_on_by_itself(bench, tiny_run):
    process = bench.start(LOCAL, "2", *tiny_run)
    bench.await_steps(5, process)
    bench.kill(1)
    told = process.communicate(timeout=240)[0]
    assert process.returncode == 0, told
    assert "process 1 on localhost ended with status 137" in told
    assert "all processes begin again (1 of at most 20 times)" in told
    assert bench.log(0).splitlines()[-1].startswith("best")
    assert bench.steps() == list(range(max(bench.steps()) + 1))


@pytest.mark.slow
@pytest.mark.multihost
def test_sigterm_saves_and_ends_with_75_and_the_same_command_goes_on(bench, tiny_run):
    process = bench.start(LOCAL, "2", *tiny_run)
    bench.await_steps(3, process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 75, told
    before = bench.steps()
    bench.run(LOCAL, "2", *tiny_run)
    assert bench.steps()[: len(before)] == before
    assert bench.steps() == list(range(max(bench.steps()) + 1)), "steps that were saved are not done again"


@pytest.fixture
def sshd(bench, tmp_path):
    """A real sshd on loopback for this user, and a client that trusts it."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not server or not shutil.which("ssh"):
        pytest.skip("no sshd and ssh here (Debian: apt-get install openssh-server)")
    port, home = free_port(), tmp_path / "ssh"
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    shutil.copy(home / "user.pub", home / "authorized")
    command = [server, "-D", "-e", "-f", "/dev/null", "-h", str(home / "host"), "-p", str(port)]
    for option in ("ListenAddress=127.0.0.1", f"AuthorizedKeysFile={home / 'authorized'}", "PidFile=none", "UsePAM=no"):
        command += ["-o", option]
    command += ["-o", "StrictModes=no", "-o", f"SetEnv=PATH={bench.env['PATH']}"]
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    process = bench.start(*command)
    options = f"-F none -p {port} -i {home / 'user'} -o LogLevel=ERROR"
    bench.env["FIAT_SSH"] = f"ssh {options} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no"
    until = time.monotonic() + 20
    while subprocess.run([*bench.env["FIAT_SSH"].split(), "localhost", "true"], capture_output=True).returncode:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.2)
    (bench.root / "hosts").write_text("127.0.0.1\nlocalhost\n")
    names = (
        "PATH",
        "PYTHONPATH",
        "XLA_FLAGS",
        "JAX_PLATFORMS",
        "JAX_DISABLE_MOST_OPTIMIZATIONS",
        "FIAT_COMPILATION_CACHE",
    )
    bench.env["FIAT_SETUP"] = "export " + " ".join(f"{name}='{bench.env[name]}'" for name in names)
    return bench


@pytest.mark.multihost
def test_two_hosts_by_ssh_are_examined(sshd):
    told = sshd.run(SSH, "hosts", "fiat", "doctor", "--storage=shared", "--devices=2")
    assert "right over 2 devices" in told


def test_a_process_killed_on_a_real_host_begins_again(sshd):
    once = "echo $$ >pid.$FIAT_PROCESS_ID; test -e again && exit; touch began.$FIAT_PROCESS_ID; exec sleep 60"
    process = sshd.start(SSH, "hosts", "bash", "-c", once, FIAT_GRACE="1")
    await_files(sshd, "began.0", "began.1")
    (sshd.root / "again").touch()
    sshd.kill(1)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 0, told
    assert "process 1 on localhost ended with status 137" in told


@pytest.mark.slow
@pytest.mark.multihost
def test_two_hosts_by_ssh_train_and_a_killed_one_is_begun_again(sshd, tiny_run):
    process = sshd.start(SSH, "hosts", *tiny_run)
    sshd.await_steps(5, process)
    sshd.kill(1)
    told = process.communicate(timeout=240)[0]
    assert process.returncode == 0, told
    assert sshd.steps() == list(range(max(sshd.steps()) + 1))
