"""How a server ends: by a signal in any phase, or because its engine has failed; and connections that never ask."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import time

import httpx
import pytest
from support.server import SMALL, serving

LONG = ("--gin.Native.path=large", *SMALL, "--gin.Serve.max_length=2000")
STORY = {"model": "large", "prompt": "It is", "max_tokens": 1900, "temperature": 1.0, "seed": 3}
# the engine's thread fails when the file `fail` is there, and so does whatever is asked of the engine afterwards
FAILING = """
from pathlib import Path
from fiat_jax.inference.engine import Engine
def failing(method):
    def called(self, *args, **kwargs):
        if Path("fail").exists():
            raise MemoryError("the device is gone")
        return method(self, *args, **kwargs)
    return called
Engine.step, Engine.cancel = failing(Engine.step), failing(Engine.cancel)
"""
# weights that take for ever to read
LOADING = """
import time
from fiat_jax.experiments.serve import Assembly
Assembly.load = lambda *args: time.sleep(600)
"""
IMPATIENT = """
from fiat_jax.serving import run
run.SILENT_SECONDS = 0.5
"""


@pytest.fixture
def fail(pair):
    file = pair.root / "fail"
    yield file.touch
    file.unlink(missing_ok=True)


def test_when_the_engine_fails_all_who_wait_hear_of_it_and_the_server_ends_with_status_1(pair, fail):
    with serving(pair, *LONG, before=FAILING) as server, concurrent.futures.ThreadPoolExecutor(32) as pool:

        def ask(n):
            body = {**STORY, "stream": n % 3 == 0, **({"echo": True, "logprobs": 1} if n % 3 == 1 else {})}
            try:
                return server.http().post("/v1/completions", json=body)
            except httpx.HTTPError as error:
                return error

        asking = [pool.submit(ask, n) for n in range(24)]
        while server.sequences() < 16:
            time.sleep(0.02)
        fail()
        answers = [one.result(30) for one in asking]
        whole = [answer for n, answer in enumerate(answers) if n % 3]
        assert {answer.status_code for answer in whole} <= {500, 503}
        for answer in answers[::3]:
            *_, last, done = answer.text.split("\n\n")[:-1] if answer.status_code == 200 else [answer.text, ""]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] in (500, 503)
            assert done in ("data: [DONE]", "")
        assert server.process.wait(15) == 1
        assert server.says("MemoryError: the device is gone")
        assert server.says("RuntimeError: an engine has failed")


def test_a_signal_while_models_are_loaded_does_not_wait_for_them(pair):
    with serving(pair, *LONG, ready=False, before=LOADING) as server:
        assert server.http().get("/health").status_code == 503
        assert server.stop(seconds=10) == 0


@pytest.mark.parametrize("after", [0.0, 0.5, 1.0, 2.0])
def test_a_signal_at_any_moment_of_the_start_ends_it_well(pair, after):
    with serving(pair, *LONG, ready=False) as server:
        server.says("listening")
        time.sleep(after)
        assert server.stop(seconds=20) == 0, server.lines


def test_what_is_being_scored_is_under_way_too_when_the_server_drains(pair):
    with serving(pair, *LONG) as server, concurrent.futures.ThreadPoolExecutor(16) as pool:
        text = {"model": "large", "prompt": ["It is sunny! " * 90] * 16, "max_tokens": 0, "echo": True, "logprobs": 1}
        asking = [pool.submit(server.http().post, "/v1/completions", json=text) for _ in range(10)]
        while not any("sequences" in line for line in server.lines) and not any(one.done() for one in asking):
            time.sleep(0.001)
        server.process.send_signal(signal.SIGTERM)
        server.says("draining")
        statuses = {one.result(60).status_code for one in asking}
        assert statuses <= {200, 503}
        assert 200 in statuses
        assert server.process.wait(30) == 0
        assert server.says("drained")


def test_signals_while_draining_end_it_with_status_0(pair):
    with serving(pair, *LONG) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(_swallow, server, {**STORY, "n": 8, "stream": True})
        while not server.sequences():
            time.sleep(0.01)
        for _ in range(5):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        assert server.process.wait(20) == 0


def _swallow(server, body):
    with contextlib.suppress(httpx.HTTPError):
        server.http().post("/v1/completions", json=body)


def test_connections_that_ask_for_nothing_are_closed_and_those_that_wait_are_not(pair):
    with serving(pair, *LONG, before=IMPATIENT) as server:
        host, port = server.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(300)]
        drip = silent[0]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.http().post, "/v1/completions", json={**STORY, "n": 16})
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for letter in b"GET /v1/models HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
                    drip.send(bytes([letter]))
                    time.sleep(0.05)
            assert time.monotonic() - begun < 20
            assert waiting.result(60).status_code == 200
        for connection in silent[1:]:
            assert connection.recv(1) == b""
            connection.close()
        drip.close()
        assert server.files() < 60
