"""A server's life among clients that leave, read slowly and come back, and through signals and kills."""

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time

import httpx
import openai
import pytest
from support.server import SMALL, serving
from support.world import write_rows

LONG = ("--gin.Native.path=large", *SMALL, "--gin.Serve.max_length=2000", "--gin.Serve.queue=400")
STORY = {"model": "large", "prompt": "It is", "max_tokens": 1900, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def long(pair):
    """A server whose answers may be long."""
    with serving(pair, *LONG) as server:
        yield server


def test_after_a_flood_of_clients_that_leave_a_short_request_is_answered_at_once(long):
    async def flood():
        async with httpx.AsyncClient(base_url=long.url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:

            async def leave(n):
                asked = {**STORY, "stream": n % 2 == 0, "temperature": 1.0, "seed": n}
                try:
                    async with asyncio.timeout(0.5), http.stream("POST", "/v1/completions", json=asked) as answer:
                        async for _ in answer.aiter_bytes():
                            pass
                except TimeoutError:
                    return True
                return False

            left = await asyncio.gather(*(leave(n) for n in range(200)))
            begun = time.monotonic()
            answer = await http.post("/v1/completions", json={**STORY, "max_tokens": 3})
            return sum(left), answer, time.monotonic() - begun

    left, answer, seconds = asyncio.run(flood())
    assert left > 150
    assert answer.status_code == 200
    assert seconds < 5
    assert long.settled()


def test_a_client_that_reads_slowly_holds_up_nobody(long):
    body = json.dumps({**STORY, "stream": True}).encode()
    host, port = long.url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    slow = []
    for _ in range(8):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        slow.append(connection)
    answer = long.http().post("/v1/completions", json={**STORY, "max_tokens": 3})
    assert answer.status_code == 200
    assert long.settled(60)  # the engine does not wait for them
    for connection in slow:
        connection.close()


def test_who_asks_to_stop_gets_what_is_under_way_and_takes_nothing_new(pair):
    with serving(pair, *LONG) as server:
        client, told = server.openai(), []

        def listen():
            for chunk in client.completions.create(**STORY, stream=True):
                told.append(chunk.choices[0])

        listening = threading.Thread(target=listen)
        listening.start()
        while not told:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        server.says("draining: 1 sequences are under way")
        assert server.http().get("/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="the server is draining"):
            server.openai().completions.create(**STORY)
        listening.join(60)
        assert told[-1].finish_reason in ("length", "stop")
        assert server.process.wait(30) == 0
        assert server.says("drained")


def test_a_second_signal_does_not_wait(pair):
    with serving(pair, *LONG) as server:
        asked = threading.Thread(target=_swallow, args=(server, {**STORY, "n": 16}))
        asked.start()
        while not server.sequences():
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        server.says("draining")
        assert server.stop(signal.SIGINT, 20) == 0
        assert "sequences were dropped" in server.says("dropped")
        asked.join(20)


def _swallow(server, body):
    with contextlib.suppress(httpx.HTTPError):
        server.http().post("/v1/completions", json=body)


def test_requests_while_the_models_are_loaded_are_told_to_come_back(pair):
    with serving(pair, *LONG, ready=False) as server:
        answer = server.http().post("/v1/completions", json=STORY)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the server is starting"
        assert answer.headers["Retry-After"] == "5"
        assert server.http().get("/health").json() == {"status": "starting"}
        assert server.stop() == 0


def test_a_server_that_is_killed_and_comes_back_costs_fiat_reason_no_row(pair, free_port):
    rows = [{"id": f"k{n}", "lang": "en", "report": f"It is sunny on hill {n}!"} for n in range(60)]
    write_rows(pair.root / "many.jsonl", rows)
    options = (*LONG, f"--gin.Serve.port={free_port}", "--gin.Serve.prefix_length=256", "--gin.Serve.max_length=96")
    asked = (
        "reason", "--backend=openai", "--gin_file=weather.gin", "--gin.Prompts.file=pair/prompts.yaml",
        "--gin.Task.splits={'train': 'weather/train.jsonl', 'new': 'many.jsonl'}", "--gin.Reason.splits=('new',)",
        f"--gin.Endpoint.url=http://127.0.0.1:{free_port}/v1", "--gin.Endpoint.model=large",
        "--gin.Endpoint.api=completions", "--gin.Endpoint.attempts=50", "--gin.Reason.tokenizer=large",
        "--gin.Reasoning.store=killed_store", "--gin.Generate.concurrency=8",
    )  # fmt: skip
    done = []
    with serving(pair, *options) as first:
        asking = threading.Thread(target=lambda: done.append(pair.fiat(*asked)))
        asking.start()
        while not (pair.root / "killed_store").exists() or not list((pair.root / "killed_store").rglob("*.jsonl")):
            time.sleep(0.02)
        first.process.kill()
        assert not done
    with serving(pair, *options) as second:
        asking.join(240)
        lines = second.http().get("/metrics").text.splitlines()
        (cached,) = (
            float(line.split()[-1]) for line in lines if line.startswith("fiat_tokens_total") and "cached" in line
        )
    assert cached > 0  # I_β is held by the second server as well, which was told of it as it knew of none
    assert "60 written" in done[0].stdout
    parts = (pair.root / "killed_store").rglob("parts/*.jsonl")
    lines = [line for part in parts for line in part.read_text().splitlines()]
    assert sorted(json.loads(line)["row_id"] for line in lines) == sorted(row["id"] for row in rows)


@pytest.fixture
def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
