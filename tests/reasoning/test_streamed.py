"""Answers that come in pieces: heard as they are written, and in the end the same as in one piece."""

import asyncio
import threading

import pytest

from fiat_jax.prompts.render import ReasoningPrompt
from fiat_jax.reasoning.backend import REFUSED, Refused, Unavailable
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend

pytestmark = pytest.mark.usefixtures("quick_retries")
PROMPT = ReasoningPrompt((1, 2), (3,), "Think.\n\n", "Number: 4", ("\n\n",), {"temperature": 0.5, "max_tokens": 9})
USAGE = {"model": "big-2025", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
DONE = "[DONE]"


def chunk(finish_reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def hear(endpoint, heard, **settings):
    """Ask once; what is heard goes to `heard`."""

    async def once():
        given = {"url": endpoint.url, "model": "big", "timeout_seconds": 5.0} | settings
        backend = OpenAIBackend(Endpoint(**given))
        try:
            return await backend.complete(PROMPT, seed=5, sample=0, heard=heard)
        finally:
            await backend.close()

    return asyncio.run(once())


def test_pieces_are_heard_before_the_answer_is_whole(endpoint):
    pieces, first = [], threading.Event()

    def heard(piece):
        pieces.append(piece)
        first.set()

    def events():
        yield chunk(role="assistant", content="")
        yield chunk(content="It ends in ")
        assert first.wait(5), "the first piece was not heard while the answer was being written"
        yield chunk(content="an even digit.")
        yield chunk("stop")
        yield USAGE
        yield DONE

    endpoint.reply = lambda n, request: {"events": events()}
    found = hear(endpoint, heard)
    assert pieces == ["It ends in ", "an even digit."]
    assert (found.text, found.finish_reason, found.served_by) == ("It ends in an even digit.", "stop", "big-2025")
    assert (found.prompt_tokens, found.completion_tokens) == (11, 7)
    (request,) = endpoint.requests
    assert request.body["stream"] is True
    assert request.body["stream_options"] == {"include_usage": True}


def test_plain_completions_are_heard_too(endpoint):
    pieces = []
    texts = [("It ", None), ("is.", "length")]
    events = [*({"choices": [{"text": text, "finish_reason": why}]} for text, why in texts), DONE]
    endpoint.reply = lambda n, request: {"events": events}
    found = hear(endpoint, pieces.append, api="completions")
    assert (pieces, found.text, found.finish_reason) == (["It ", "is."], "It is.", "length")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_is_put_apart_is_heard_first_and_is_the_text_in_the_end(endpoint, name):
    pieces = []
    events = [
        *(chunk(**{name: text}) for text in ("\nEven ", "digits. ", "\n")),
        *(chunk(content=text) for text in (" So the ", "answer is yes.", "\n")),
        chunk("stop"),
        DONE,
    ]
    endpoint.reply = lambda n, request: {"events": events}
    found = hear(endpoint, pieces.append, reasoning_field="reasoning_content")
    assert found.text == "Even digits.\n\nSo the answer is yes." == "".join(pieces)
    assert pieces[:2] == ["Even", " digits."]


def test_an_endpoint_that_answers_in_one_piece_is_not_heard(endpoint):
    pieces = []
    assert hear(endpoint, pieces.append).text == "It ends in an even digit. So the answer is yes."
    assert pieces == []


@pytest.mark.parametrize("option", ["stream_options", "stream"])
def test_what_an_endpoint_does_not_take_of_streaming_is_left_out(endpoint, option):
    refusal = {"error": {"message": f"Unsupported parameter: {option}", "param": option}}
    endpoint.reply = lambda n, request: {"status": 400, "body": refusal} if option in request.body else {}
    assert hear(endpoint, lambda piece: None).text
    assert [option in request.body for request in endpoint.requests] == [True, False]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ([], r"ended without \[DONE\]"),
        ([{"error": {"message": "out of memory"}}, DONE], "out of memory"),
        (["{broken", DONE], "no JSON"),
    ],
)
def test_an_answer_that_breaks_off_is_asked_for_again_only_where_nothing_was_heard(endpoint, rest, said):
    pieces = []
    begins = [[], [chunk(content="Well, ")]]
    endpoint.reply = lambda n, request: {"events": [*begins[n], *rest]}
    with pytest.raises(Unavailable, match=f"{said}.*in the middle of its answer"):
        hear(endpoint, pieces.append)
    assert len(endpoint.requests) == 2
    assert pieces == ["Well, "]


def test_a_model_that_refuses_is_told_apart(endpoint):
    events = [chunk(refusal="I cannot "), chunk("stop", refusal="help."), DONE]
    endpoint.reply = lambda n, request: {"events": events}
    with pytest.raises(Refused, match="the model refuses: I cannot help") as refused:
        hear(endpoint, lambda piece: None)
    assert refused.value.bucket == REFUSED


def test_whoever_hangs_up_ends_the_request(endpoint):
    begun, ended = threading.Event(), threading.Event()

    def events():
        try:
            yield chunk(content="Well, ")
            begun.set()
            while True:
                yield chunk(content="and so on, ")
        finally:
            ended.set()

    endpoint.reply = lambda n, request: {"events": events()}

    async def leave():
        backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big", timeout_seconds=60.0))
        asked = asyncio.create_task(backend.complete(PROMPT, seed=5, sample=0, heard=lambda piece: None))
        await asyncio.to_thread(begun.wait, 5)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await asyncio.to_thread(ended.wait, 5), "the endpoint goes on writing to nobody"
        await backend.close()

    asyncio.run(leave())
