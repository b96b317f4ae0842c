"""What a server refuses, and to whom: keys, hosts, sizes, and how many at once."""

import concurrent.futures
import json

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.server import SMALL, serving

from fiat_jax.errors import UserError
from fiat_jax.serving.config import Serve
from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.gate import Gate

ASKED = {"model": "large", "prompt": "It is", "max_tokens": 2}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "seed", "stop", "stream", "stream_options",
    "logprobs", "echo", "messages", "row", "top_logprobs", "max_completion_tokens", "chat_template_kwargs", "best_of",
)  # fmt: skip
LIKELY = {
    "model": st.sampled_from(["large", "fiat", "fiat-tau"]),
    "prompt": st.text(max_size=30) | st.lists(st.integers(-5, 400), max_size=9) | st.lists(st.text(max_size=9)),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": st.text(max_size=30)})
    ),
    "max_tokens": st.integers(-1, 9),
    "stop": st.text(max_size=3),
    "row": st.dictionaries(st.sampled_from(["report", "lang"]), st.text(max_size=30)),
}
BODIES = st.fixed_dictionaries({}, optional={name: LIKELY.get(name, VALUES) | VALUES for name in FIELDS})


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=BODIES | VALUES, chat=st.booleans(), cut=st.integers(0, 40))
def test_no_body_whatever_makes_the_server_fail(http, body, chat, cut):
    text = json.dumps(body).encode()
    text = text[: len(text) - cut] if cut > 36 else text
    path = "/v1/chat/completions" if chat else "/v1/completions"
    answer = http.post(path, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_no_json_or_too_large_is_refused(http):
    for content, kind, status in (
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"prompt": "' + b"a" * 200_000 + b'"}', "application/json", 413),
    ):
        answer = http.post("/v1/completions", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert answer.json()["error"]["message"]

    def endless():
        for _ in range(100):
            yield b" " * 10_000

    answer = http.post("/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert http.get("/v1/nowhere").status_code == 404
    assert http.get("/v1/completions").status_code == 405


def test_a_page_from_elsewhere_cannot_ask_a_server_without_a_key(http):
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert http.get("/health", headers={"Host": "evil.example"}).status_code == 200
    for host in ("localhost:123", "127.0.0.1", "[::1]:80"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_each_request_has_an_id_and_a_line_in_the_log_without_its_text(server, http):
    secret = "It is a secret number 4711"
    answer = http.post("/v1/completions", json={**ASKED, "prompt": secret}, headers={"X-Request-Id": "my-id.7"})
    assert answer.headers["X-Request-Id"] == "my-id.7"
    line = json.loads(server.says('"my-id.7"'))
    assert line["status"] == 200
    assert line["model"] == "large"
    assert line["path"] == "/v1/completions"
    assert line["completion_tokens"] >= 1
    assert line["seconds"] > 0
    strange = http.post("/v1/completions", json=ASKED, headers={"X-Request-Id": "a b\tc"}).headers["X-Request-Id"]
    assert len(strange) == 32
    assert not [line for line in server.lines if "secret" in line]


def test_what_was_done_is_counted(http):
    def count(name):
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.split()[-1]) for line in lines)

    asked = 'fiat_requests_total{model="large",path="/v1/completions",status="200"}'
    tokens = 'fiat_tokens_total{kind="completion",model="large"}'
    before = count(asked), count(tokens)
    usage = http.post("/v1/completions", json=ASKED).json()["usage"]
    assert count(asked) == before[0] + 1
    assert count(tokens) == before[1] + usage["completion_tokens"]
    assert count('fiat_sequences{model="large"') == 0
    assert count('fiat_first_token_seconds_count{model="large"}') > 0


@pytest.fixture(scope="module")
def guarded(pair):
    """A server with a key and room for three sequences, whose answers take long."""
    small = (
        "--gin.Native.slots=2",
        "--gin.Serve.queue=1",
        "--gin.Serve.request_seconds=20",
        "--gin.Serve.log_text=True",
    )
    options = ("--gin.Native.path=large", *SMALL, *small, "--gin.Serve.max_length=2000")
    with serving(pair, *options, env={"FIAT_API_KEY": "sésame"}) as server:
        yield server


def test_the_key_opens_all_paths_and_nothing_else_does_but_health(guarded):
    paths = ("/", "/metrics", "/v1/models", "/v1/prefixes", "/nowhere")
    anyone = guarded.http()
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": "sésame".encode()}):
            answer = anyone.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert anyone.get("/health").json() == {"status": "ready"}
    with pytest.raises(openai.AuthenticationError):
        guarded.openai("wrong").models.list()
    bearer = {"Authorization": "Bearer sésame".encode()}
    assert [anyone.get(path, headers=bearer).status_code for path in paths] == [200, 200, 200, 200, 404]
    assert anyone.get("/", auth=("anyone", "sésame")).status_code == 200
    assert anyone.get("/v1/models", headers={**bearer, "Host": "elsewhere.example"}).status_code == 200


def test_who_finds_the_queue_full_is_told_to_come_back_and_those_inside_are_answered(guarded):
    http = guarded.http(headers={"Authorization": "Bearer sésame".encode()})
    asked = {"prompt": "It is", "max_tokens": 700, "temperature": 0, "n": 1}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: http.post("/v1/completions", json=asked), range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [429] * 5
    assert {answer.headers["Retry-After"] for answer in answers if answer.status_code == 429} == {"1"}
    assert len({answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200}) == 1
    too_many = http.post("/v1/completions", json={**asked, "n": 4})
    assert too_many.status_code == 400
    assert "4 completions are asked for at once; this server takes 3" in too_many.text
    assert http.post("/v1/completions", json={**asked, "max_tokens": 1}).status_code == 200


def test_the_log_tells_texts_where_that_is_wanted(guarded):
    http = guarded.http(headers={"Authorization": "Bearer sésame".encode(), "X-Request-Id": "told"})
    answer = http.post("/v1/completions", json={"prompt": "Es ist trüb", "max_tokens": 5, "n": 2}).json()
    line = json.loads(guarded.says('"told"'))
    assert line["asked"] == "Es ist trüb"
    assert line["answered"] == [choice["text"] for choice in answer["choices"]]


def test_the_gate_counts_and_drains():
    import asyncio

    async def life():
        gate = Gate(3)
        with pytest.raises(ApiError, match="the server is starting"):
            gate.enter(1)
        gate.state = "ready"
        gate.enter(2)
        with pytest.raises(ApiError, match="2 sequences are under way or wait"):
            gate.enter(2)
        gate.enter(1)
        assert await gate.drain(0.01) is False
        with pytest.raises(ApiError, match="the server is draining"):
            gate.enter(1)
        asyncio.get_running_loop().call_later(0.01, gate.leave, 3)
        assert await gate.drain(5) is True

    asyncio.run(life())


def test_settings_that_cannot_be_are_refused():
    for wrong, message in (
        ({"port": 70_000}, "Serve.port is 70000"),
        ({"samples": 0}, "Serve.samples is 0"),
        ({"when_reasoning_fails": "shrug"}, "expected 'refuse' or 'answer'"),
    ):
        with pytest.raises(UserError, match=message):
            Serve(**wrong)
    assert [Serve(host=host).local for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "10.0.0.1", "a.b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_an_address_that_is_taken_is_said(server, pair):
    port = httpx.URL(server.url).port
    message = pair.fiat("serve", "--gin.Native.path=large", f"--gin.Serve.port={port}", status=2).stderr
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use); give another" in message
