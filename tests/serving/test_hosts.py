"""One server on the devices of two processes: the first listens, and both compute the same blocks."""

import contextlib
import signal
import socket
import time

import pytest
from support.server import SMALL, Server, serving

pytestmark = pytest.mark.multihost
MODELS = ("--bundle=pair", "--gin.Native.path=large", *SMALL, "--gin.Serve.max_length=512")
OVER_TWO = ("--gin.Mesh.data=1", "--gin.Mesh.tensor=2", "--gin.Serve.prefix_length=64")


@contextlib.contextmanager
def two_processes(pair):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = {"FIAT_COORDINATOR": f"127.0.0.1:{taken.getsockname()[1]}", "FIAT_NUM_PROCESSES": "2"}
    env = [where | {"FIAT_PROCESS_ID": str(index)} for index in range(2)]
    options = (*MODELS, *OVER_TWO)
    with (
        serving(pair, *options, env=env[1], ready=False) as second,
        serving(pair, *options, env=env[0], ready=False) as first,
    ):
        first.says("ready:", 240)
        yield first, second


def asks(server: Server):
    """What clients of all kinds are told."""
    client = server.openai()
    text = {"model": "large", "prompt": "It is sunny on", "max_tokens": 20}
    held = server.http().post("/v1/prefixes", json={"model": "large", "prompt": "It is sunny"}).json()
    found = [
        client.completions.create(**text, temperature=0).choices[0].text,
        *(choice.text for choice in client.completions.create(**text, n=3, seed=4).choices),
        [chunk.choices[0].text for chunk in client.completions.create(**text, seed=5, stream=True)],
        held["tokens"],
    ]
    echo = client.completions.create(**text | {"max_tokens": 0}, echo=True, logprobs=1)
    assert len(echo.choices[0].logprobs.tokens) > 3
    with contextlib.suppress(TimeoutError), contextlib.closing(client.completions.create(**text, stream=True)) as cut:
        next(iter(cut))
    fused = client.chat.completions.create(
        model="fiat", messages=[{"role": "user", "content": "It is grey on hill 1!"}]
    )
    return [*found, fused.choices[0].message.content, fused.choices[0].message.reasoning_content]


def test_two_processes_answer_as_one_does_and_end_together(pair):
    with serving(pair, *MODELS, "--gin.Serve.prefix_length=64") as alone:
        expected = asks(alone)
    with two_processes(pair) as (first, second):
        assert asks(first) == expected
        time.sleep(3)  # while nothing is asked they hear from each other
        assert asks(first)[0] == expected[0]
        second.process.send_signal(signal.SIGTERM)  # as launchers do, to all
        assert first.stop() == 0
        assert second.process.wait(60) == 0
