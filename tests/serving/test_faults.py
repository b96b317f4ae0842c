"""A server among clients that do all they should not: nothing fails, nothing hangs, nothing is left behind."""

import asyncio
import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time

import httpx
import pytest
from support.server import Server

STORY = {"model": "large", "prompt": "It is", "max_tokens": 400, "temperature": 1.0, "seed": 3}


def failures(server: Server) -> list[str]:
    """What the log says of errors of the server's own."""
    return [line for line in server.lines if "Traceback" in line or '"status": 500' in line]


@pytest.fixture
def unharmed(server):
    """After the test the server has failed in nothing, nobody is inside, and the next request is answered."""
    before = len(failures(server))
    yield server
    assert failures(server)[before:] == []
    assert server.settled()
    begun = time.monotonic()
    assert server.http().post("/v1/completions", json={**STORY, "max_tokens": 2}).status_code == 200
    assert time.monotonic() - begun < 30  # nothing made it work for long


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    return connection


def head(path="/v1/completions", length: int | None = None, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *more]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def asked(body: dict, **more) -> bytes:
    text = json.dumps(body | more).encode()
    return head(length=len(text)) + text


def answered(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    parts = []
    with contextlib.suppress(ConnectionError, TimeoutError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def chat(content: str, **more) -> dict:
    return {"model": "fiat", "messages": [{"role": "user", "content": content}], **more}


@pytest.mark.parametrize(
    ("path", "content", "statuses"),
    [
        ("completions", "[" * 100_000, {400}),
        ("chat/completions", json.dumps(chat("[" * 40_000)), {400}),
        ("chat/completions", json.dumps(chat('{"a":' * 20_000)), {400}),
        ("chat/completions", json.dumps(chat('{"report": "\\ud800"}')), {200}),  # no JSON: a text like any other
        ("chat/completions", json.dumps(chat('{"report": NaN}')), {400}),
        ("completions", '{"model": "large", "prompt": "\\ud800"}', {400}),
        ("completions", '{"model": "large", "prompt": "a", "stop": ["\\udfff"]}', {400}),
        ("completions", '{"model": "large", "prompt": "a", "max_tokens": 2, "seed": ' + "9" * 4_000 + "}", {200}),
        ("completions", '{"model": "large", "prompt": "a", "seed": ' + "9" * 100_000 + "}", {400}),
        ("completions", '{"model": "large", "prompt": [' + "9" * 4_000 + "]}", {400}),
        ("completions", '{"model": "large", "prompt": "a", "temperature": NaN}', {400}),
        ("completions", '{"model": "large", "prompt": "a", "temperature": 1e-320, "max_tokens": 2}', {200}),
        ("completions", json.dumps({**STORY, "top_p": 1e-40, "max_tokens": 3, "logprobs": 5}), {200}),
        ("completions", json.dumps({**STORY, "prompt": ["a"] * 30_000}), {400}),
        ("completions", json.dumps({**STORY, "stop": ["x" * 10_000] * 16}), {200}),
        ("completions", json.dumps({**STORY, "stop": list("abcdefghijklmnop")}), {200}),
        ("completions", json.dumps({**STORY, "stop": ["", ""], "max_tokens": 2}), {200}),
        ("chat/completions", json.dumps({"model": "large", "messages": chat("")["messages"] * 5_000}), {400}),
        ("chat/completions", json.dumps(chat("hi", chat_template_kwargs={"self": 1}) | {"model": "large"}), {400}),
        ("chat/completions", '{"model": "large", "messages": [{"role": "user", "content": "a", "name": "b"}]}', {400}),
        ("prefixes", '{"model": "large", "prompt": "\\ud800"}', {400}),
        ("prefixes", '{"model": "fiat-tau", "prompt": "a"}', {400}),
    ],
)  # fmt: skip
def test_bodies_made_to_break_a_server_do_not(unharmed, path, content, statuses):
    begun = time.monotonic()
    found = unharmed.http().post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    assert found.status_code in statuses
    assert found.headers["Content-Type"].startswith("application/json")
    assert time.monotonic() - begun < 30  # nothing made it work for long


def test_small_answers_do_not_wait_to_be_acknowledged(server):
    http = server.http()
    seconds = [
        http.post("/v1/completions", json={"model": "no", "prompt": ""}).elapsed.total_seconds() for _ in range(20)
    ]
    assert sorted(seconds)[5] < 0.035  # 0.04 is what Nagle's algorithm waits


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind(unharmed, stream):
    whole = asked(STORY, stream=stream, n=4, echo=True, logprobs=2, stop=["zzz"])
    randomly = random.Random(0)
    for n in range(60):
        connection = connect(unharmed)
        connection.sendall(whole[: randomly.randrange(len(whole))] if n % 3 == 0 else whole)
        if n % 3 == 1:
            connection.shutdown(socket.SHUT_WR)
        if n % 3 == 2:
            time.sleep(randomly.random() / 20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not end
        connection.close()


def test_what_a_client_never_sent_whole_is_its_own_fault(unharmed):
    for number in range(3):
        connection = connect(unharmed)
        connection.sendall(head(length=1000) + b'{"prompt": "It' if number else head(length=1000))
        connection.close()
    line = json.loads(unharmed.says('"status": 499'))
    assert line["path"] == "/v1/completions"


def test_requests_in_one_go_are_answered_in_turn(unharmed):
    connection = connect(unharmed)
    for n in range(5):
        connection.sendall(asked(STORY, max_tokens=n + 1, temperature=0))
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    found = answered(connection)
    assert found.count(b"HTTP/1.1 200 OK") == 6
    assert found.endswith(b'{"status":"ready"}')
    connection.close()


def test_a_body_in_many_small_pieces_is_one_body(unharmed):
    text, connection = json.dumps({**STORY, "max_tokens": 2}).encode(), connect(unharmed)
    connection.sendall(head("/v1/completions", None, "Transfer-Encoding: chunked", "Connection: close"))
    for n in range(len(text)):
        connection.sendall(b"1\r\n" + text[n : n + 1] + b"\r\n")
    connection.sendall(b"0\r\n\r\n")
    assert b'"finish_reason":"length"' in answered(connection)
    connection.close()


def test_what_is_no_http_is_refused(unharmed):
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 4 + b"x y z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
        head("/v1/completions", 5, "Content-Length: 6") + b"{}",
        head("/v1/completions", None, "Transfer-Encoding: gzip") + b"{}",
    ):
        connection = connect(unharmed)
        with contextlib.suppress(ConnectionError):
            connection.sendall(nonsense)
        assert b" 200 " not in answered(connection)[:20]
        connection.close()


def test_the_most_completions_at_once_are_all_answered(unharmed):
    body = {**STORY, "prompt": ["It is"] * 16, "n": 16, "max_tokens": 4, "echo": True, "logprobs": 3, "stop": ["a"]}
    found = unharmed.http().post("/v1/completions", json=body)
    assert [choice["index"] for choice in found.json()["choices"]] == list(range(256))
    lines = unharmed.http().post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    texts = [""] * 256
    for line in lines[:-2]:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in found.json()["choices"]]
    assert len(set(texts)) > 8


def test_no_more_prefixes_are_held_than_may_be_however_they_come(unharmed):
    def add(n):
        return unharmed.http().post("/v1/prefixes", json={"model": "large", "prompt": f"It is sunny on hill {n} and"})

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(add, [*range(24), *range(6)]))
    assert {answer.status_code for answer in answers} == {200, 409}
    http = unharmed.http()
    mine = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    assert len(mine) == 8
    assert [http.delete(f"/v1/prefixes/{key}").status_code for key in mine] == [200] * 8


def test_a_prefix_that_comes_and_goes_changes_no_answer(unharmed):
    shared = "It is sunny on hill 3! " * 5
    body = {**STORY, "prompt": shared + "And", "temperature": 0, "max_tokens": 9, "echo": True, "logprobs": 1}
    expected = unharmed.http().post("/v1/completions", json=body).json()["choices"]
    ends = time.monotonic() + 6
    statuses: list[int] = []

    def come_and_go():
        http = unharmed.http()
        while time.monotonic() < ends:
            held = http.post("/v1/prefixes", json={"model": "large", "prompt": shared}).json()
            statuses.append(http.delete(f"/v1/prefixes/{held['id']}").status_code)

    def ask(_):
        http, found = unharmed.http(), []
        while time.monotonic() < ends:
            answer = http.post("/v1/completions", json=body)
            found.append((answer.status_code, answer.json().get("choices")))
        return found

    coming = threading.Thread(target=come_and_go)
    coming.start()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = [one for answers in pool.map(ask, range(6)) for one in answers]
    coming.join()
    assert {status for status, _ in found} == {200}
    assert {json.dumps([choice["text"] for choice in choices]) for _, choices in found} == {
        json.dumps([choice["text"] for choice in expected])
    }
    assert {200, 409} >= set(statuses) >= {200}
    for one in unharmed.http().get("/v1/prefixes").json()["data"]:
        unharmed.http().delete(f"/v1/prefixes/{one['id']}")


def test_texts_that_are_scored_are_counted_like_others(server):
    """Nobody gets past the queue by asking for `echo` alone."""
    text = "It is sunny on hill 3! " * 10
    body = {**STORY, "prompt": [text] * 16, "max_tokens": 0, "echo": True, "logprobs": 1}

    async def flood():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            return await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(60)))

    statuses = [answer.status_code for answer in asyncio.run(flood())]
    assert set(statuses) == {200, 429}
    assert server.settled()


@pytest.mark.slow
def test_after_floods_of_faults_neither_files_nor_memory_are_left(unharmed):
    """200 at once, each with a fault of its own; what the first two floods warmed up is all there is."""

    async def one(n):
        reader, writer = await asyncio.open_connection(*unharmed.url.removeprefix("http://").split(":"))
        randomly = random.Random(n)
        whole = asked(STORY, seed=n, stream=n % 2 == 0, n=1 + n % 4, echo=n % 3 == 0, logprobs=n % 6)
        with contextlib.suppress(ConnectionError):
            kind = n % 5
            writer.write(whole[: randomly.randrange(10, len(whole))] if kind == 0 else whole)
            await writer.drain()
            if kind == 1:
                writer.write_eof()
            await asyncio.sleep(randomly.random() * 0.6)
            if kind == 2:
                await reader.read(64)
            if kind == 3:
                writer.transport.abort()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def flood():
        await asyncio.gather(*(one(n) for n in range(200)))

    sizes = []
    for _ in range(5):
        asyncio.run(flood())
        assert unharmed.settled()
        time.sleep(0.5)
        sizes.append((unharmed.files(), unharmed.memory()))
    assert sizes[-1][0] <= sizes[1][0] + 5
    assert sizes[-1][1] <= sizes[1][1] + 25, sizes
