"""The watch: who is silent, stuck or gone is named; who works or has left is not."""

import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from fiat_jax.errors import LOST
from fiat_jax.training import watch as watch_module
from fiat_jax.training.watch import LEFT, Watch, stepping, watched


class Words:
    """A board in this process, which may be told to fail."""

    def __init__(self, **words: str):
        self.words = {int(name[1:]): word for name, word in words.items()}
        self.gone = False

    def say(self, word: str) -> None:
        if self.gone:
            raise ConnectionError("socket closed")
        self.words[0] = word

    def read(self) -> dict[int, str]:
        if self.gone:
            raise ConnectionError("socket closed")
        return dict(self.words)


class Ended:
    """What is called in place of the end of the process."""

    def __init__(self):
        self.status, self.called = 0, threading.Event()

    def __call__(self, status: int) -> None:
        self.status = status
        self.called.set()


@pytest.fixture
def ended():
    return Ended()


def watch(board, ended, **limits) -> Watch:
    return Watch("training", common=board, end=ended, **({"every": 0.02, "silent": 0.3, "stuck": 60.0} | limits))


def test_a_silent_process_is_named_with_its_host_and_step(ended, capfd):
    with watch(Words(p1="7 41 node-b"), ended) as mine:
        mine.reached(42)
        assert ended.called.wait(5)
    assert ended.status == LOST == 69
    told = capfd.readouterr().err
    assert "training, step 42, process 0 on " in told
    assert "process 1 on node-b, last heard of at step 41, is silent" in told
    assert "start all of them again" in told
    assert "test_watch.py" in told  # the stacks


def test_a_process_that_goes_on_speaking_is_not_silent(ended):
    board = Words(p1="0 0 node-b")
    with watch(board, ended):
        for count in range(30):
            board.words[1] = f"{count} 5 node-b"
            time.sleep(0.03)
    assert not ended.called.is_set()


def test_a_process_that_has_left_is_not_missed(ended):
    board = Words(p1="3 5 node-b")
    with watch(board, ended):
        time.sleep(0.1)
        board.words[1] = LEFT
        time.sleep(0.6)
    assert not ended.called.is_set()
    assert board.words[0] == LEFT


def test_who_leaves_by_an_exception_does_not_say_so(ended):
    board = Words()
    with pytest.raises(ZeroDivisionError), watch(board, ended):
        raise ZeroDivisionError
    assert board.words.get(0) != LEFT


def test_a_board_that_is_gone_is_process_0_lost(ended, capfd):
    board = Words()
    with watch(board, ended):
        time.sleep(0.1)
        board.gone = True
        assert ended.called.wait(5)
    assert ended.status == LOST
    assert "process 0 is lost" in capfd.readouterr().err


def test_a_failed_collective_waits_until_it_is_known_who_is_lost(ended, capfd):
    board = Words(p1="7 41 node-b")
    with pytest.raises(jax.errors.JaxRuntimeError), watch(board, ended):
        raise jax.errors.JaxRuntimeError("connection reset by peer")
    assert ended.status == LOST
    assert "node-b" in capfd.readouterr().err


@pytest.mark.parametrize("board", [None, Words()], ids=["one process", "several"])
def test_a_step_that_takes_too_long_is_named_and_rest_is_not_a_step(ended, capfd, board):
    with watch(board, ended, stuck=0.3) as mine:
        mine.reached(3)
        mine.rest()
        time.sleep(0.6)
        assert not ended.called.is_set()
        mine.reached(4)
        assert ended.called.wait(5)
    assert ended.status == LOST
    assert "step 4, process 0" in (told := capfd.readouterr().err)
    assert "no step for 0 s" in told


def test_time_in_which_the_watch_itself_could_not_run_is_no_silence_of_others(ended):
    class Stopping(Words):
        def say(self, word):
            super().say(word)
            if word.startswith("3 "):
                time.sleep(0.5)  # longer than others may be silent

    board = Stopping(p1="7 41 node-b")
    with watch(board, ended):
        time.sleep(0.65)
        board.words[1] = "8 41 node-b"
        time.sleep(0.1)
    assert not ended.called.is_set()


def test_steps_are_told_of_to_the_watch_that_lasts_longer(monkeypatch):
    board = Words()
    monkeypatch.setattr(watch_module, "place", lambda: (0, 2))
    monkeypatch.setattr(watch_module, "board", lambda: board)
    with watched("the run"):
        with stepping("training") as mine:
            mine.reached(3)
        with stepping("training") as again:
            assert again is mine
            again.begin(0)
            assert again.what == "training"
        assert mine.what == "the run"
        assert board.words.get(0) != LEFT
    assert board.words[0] == LEFT
    with stepping("training") as alone:
        assert alone is not mine


def test_what_fails_while_stepping_keeps_its_name_and_the_others_are_waited_for_once(ended, monkeypatch, capfd):
    def fail():
        with watch(Words(p1="7 41 node-b"), ended) as mine:
            monkeypatch.setattr(watch_module, "_running", mine)
            with stepping("training"):
                mine.reached(42)
                raise jax.errors.JaxRuntimeError("connection reset by peer")

    monkeypatch.setattr(watch_module, "SILENT", 0.3)
    with pytest.raises(jax.errors.JaxRuntimeError):
        fail()
    assert ended.status == LOST
    assert "training, step 42, process 0 on " in (told := capfd.readouterr().err)
    assert "process 1 on node-b, last heard of at step 41, is silent" in told


def test_a_run_that_has_not_begun_to_step_is_not_stuck(ended):
    with watch(None, ended, stuck=0.1):
        time.sleep(0.4)
    assert not ended.called.is_set()


STOPPED = """
import sys
from fiat_jax.training.watch import Watch
with Watch("training", every=0.05, stuck=1.0) as watch:
    watch.reached(1)
    print("stepping", flush=True)
    sys.stdin.readline()
"""


def test_a_process_that_was_stopped_for_long_goes_on_when_it_is_continued():
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"stepping\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert process.poll() is None
    process.communicate(b"\n", timeout=20)
    assert process.returncode == 0
