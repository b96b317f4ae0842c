import asyncio
import email.utils
import time

import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.render import ReasoningPrompt
from fiat_jax.reasoning.backend import FAILED, HIDDEN, REFUSED, Refused, Unavailable
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.reasoning.options import refused_option

QUOTA = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
pytestmark = pytest.mark.usefixtures("quick_retries")
PROMPT = ReasoningPrompt((1, 2), (3,), "Think.\n\n", "Number: 4", ("\n\n",), {"temperature": 0.5, "max_tokens": 9})


def ask(endpoint, times=1, **settings):
    """Ask `times` at once; returns the completions."""
    settings = {"url": endpoint.url, "model": "big", "timeout_seconds": 5.0} | settings
    return ask_backend(OpenAIBackend(Endpoint(**settings)), times)


def ask_backend(backend, times=1):
    async def all_of_them():
        try:
            return await asyncio.gather(*(backend.complete(PROMPT, seed=5, sample=0) for _ in range(times)))
        finally:
            await backend.close()

    return asyncio.run(all_of_them())


def test_a_chat_request_carries_the_whole_prompt_and_its_decoding(endpoint):
    (completion,) = ask(endpoint)
    (request,) = endpoint.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "big",
        "messages": [{"role": "user", "content": "Think.\n\nNumber: 4"}],
        "stop": ["\n\n"],
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 5,
    }
    assert completion.text == "It ends in an even digit. So the answer is yes."
    assert (completion.finish_reason, completion.served_by) == ("stop", "big-2025")
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 7)


def test_a_completions_server_gets_text_or_ids_as_declared(endpoint):
    ask(endpoint, api="completions")
    ask(endpoint, api="completions", send="ids", extra={"min_p": 0.1})
    assert [r.path for r in endpoint.requests] == ["/v1/completions"] * 2
    assert endpoint.requests[0].body["prompt"] == "Think.\n\nNumber: 4"
    assert endpoint.requests[1].body["prompt"] == [1, 2, 3]
    assert endpoint.requests[1].body["min_p"] == 0.1


def test_the_key_is_read_from_the_declared_variable_and_only_from_there(endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ask(endpoint, key_variable="MY_KEY")
    ask(endpoint)
    assert endpoint.requests[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in endpoint.requests[1].headers


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 429, "body": {"error": {"message": "busy"}}},
        {"status": 500, "body": b"<html>oops</html>"},
        {"status": 503, "body": {}},
        {"cut": True},
        {"body": b'{"choices": [{"mess'},
        {"body": b"[]"},
        {"seconds": 30.0},
    ],
    ids=["429", "500", "503", "cut body", "half json", "no object", "hang"],
)
def test_what_may_pass_is_tried_again(endpoint, failure):
    endpoint.reply = lambda n, request: failure if n < 2 else {}
    (completion,) = ask(endpoint, timeout_seconds=0.3)
    assert completion.completion_tokens == 7
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_drips_bytes_is_timed_out_too(endpoint, monkeypatch):
    real = endpoint.server.RequestHandlerClass.end_headers

    def drip(handler):
        real(handler)
        for _ in range(40):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    monkeypatch.setattr(endpoint.server.RequestHandlerClass, "end_headers", drip)
    with pytest.raises(Unavailable, match=r"no answer within 0\.2 s \(2 attempts\)"):
        ask(endpoint, timeout_seconds=0.2, attempts=2)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_holds_every_request_back(endpoint, date):
    backend = OpenAIBackend(Endpoint(endpoint.url, "big"))
    wait = email.utils.formatdate(time.time() + 3, usegmt=True) if date else "1"
    endpoint.reply = lambda n, request: {"status": 429, "headers": {"Retry-After": wait}} if n < 2 else {}
    ask_backend(backend, times=2)
    ask_at = sorted(request.at for request in endpoint.requests)
    assert len(ask_at) == 4
    assert ask_at[2] - ask_at[1] >= 0.9, "a request went out before the endpoint allowed it"


def test_an_endpoint_that_is_overloaded_gets_fewer_requests_at_a_time(endpoint):
    endpoint.reply = lambda n, request: {"status": 503, "seconds": 0.5} if n < 8 else {"seconds": 0.05}
    backend = OpenAIBackend(Endpoint(endpoint.url, "big"), concurrency=8)
    ask_backend(backend, times=8)
    assert endpoint.most_at_once == 8
    endpoint.most_at_once = 0
    ask_backend(backend, times=8)
    assert endpoint.most_at_once < 8, "the pace was forgotten"


def test_an_endpoint_that_asks_for_hours_ends_the_run(endpoint):
    endpoint.reply = lambda n, request: {"status": 429, "headers": {"Retry-After": "7200"}}
    with pytest.raises(UserError, match=r"asks to wait 7200 s.*again later"):
        ask(endpoint)
    assert len(endpoint.requests) == 1


def test_an_endpoint_that_never_recovers_is_unavailable(endpoint):
    endpoint.reply = lambda n, request: {"status": 500, "body": {"error": {"message": "overloaded"}}}
    with pytest.raises(Unavailable, match=r"HTTP 500: overloaded \(3 attempts\)"):
        ask(endpoint, attempts=3)
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"status": 400, "body": {"error": {"message": "prompt is too long"}}}, "prompt is too long"),
        ({"body": {"choices": []}}, "holds no text"),
        ({"body": {"choices": [{"message": {"content": None}}]}}, "holds no text"),
    ],
)
def test_a_row_that_is_refused_is_not_asked_again(endpoint, reply, reason):
    endpoint.reply = lambda n, request: reply
    with pytest.raises(Refused, match=reason):
        ask(endpoint)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"status": 401, "body": {"error": "bad key"}}, r"HTTP 401: bad key.*environment variable OPENAI_API_KEY"),
        ({"status": 429, "body": QUOTA}, "exceeded your quota"),
        ({"status": 307, "headers": {"Location": "http://elsewhere/v1"}}, "location http://elsewhere/v1; set the URL"),
        ({"status": 404, "body": {"detail": "no such path"}}, "HTTP 404"),
    ],
)
def test_what_no_row_can_pass_is_one_clear_error(endpoint, reply, message):
    endpoint.reply = lambda n, request: reply
    with pytest.raises(UserError, match=message):
        ask(endpoint)
    assert len(endpoint.requests) == 1


def test_a_misspelt_model_is_told_apart_with_what_the_endpoint_lists(endpoint):
    endpoint.reply = lambda n, request: {"status": 404, "body": {"error": {"message": "no model bigg"}}}
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="bigg"))
    backend.identity()
    with pytest.raises(UserError, match=r"It lists big\. Did you mean 'big'\?"):
        ask_backend(backend)


def test_identity_is_the_declared_name_with_what_stays_of_the_report(endpoint):
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big", revision="r1"))
    expected = {"name": "big", "revision": "r1", "reported": {"id": "big", "root": "org/big", "owned_by": "org"}}
    assert backend.identity() == expected
    endpoint.models["body"]["data"][0]["created"] = 99
    assert backend.identity() == expected
    endpoint.models = {"status": 404}
    assert backend.identity() == {"name": "big", "revision": "r1"}


def says(content, finish_reason="stop", spent=None, **message):
    details = {} if spent is None else {"completion_tokens_details": {"reasoning_tokens": spent}}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 8}, **details}
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    return {"body": {"choices": [choice], "usage": usage}}


@pytest.mark.parametrize(
    ("reply", "bucket", "reason"),
    [
        (says("x", "content_filter"), REFUSED, "content filter"),
        (says(None, refusal="I cannot help with that"), REFUSED, "model refuses: I cannot help"),
        (says("", "length", spent=7), HIDDEN, "does not show it.*raise decoding.max_tokens"),
        (says("", reasoning_content="hmm"), HIDDEN, "leaves it out of `content`.*declare Endpoint.reasoning_field"),
        (says(None, reasoning="hmm"), HIDDEN, "leaves it out of `content`"),
        (says([]), FAILED, "holds no text"),
    ],
)
def test_why_there_is_no_answer_is_told_apart_and_its_tokens_are_counted(endpoint, reply, bucket, reason):
    endpoint.reply = lambda n, request: reply
    with pytest.raises(Refused, match=reason) as raised:
        ask(endpoint)
    assert raised.value.bucket == bucket
    paid = raised.value.completion
    assert (paid.prompt_tokens, paid.completion_tokens, paid.cached_tokens) == (11, 7, 8)


def test_tokens_of_reasoning_that_is_not_shown_are_kept_with_the_answer(endpoint):
    endpoint.reply = lambda n, request: says("So the answer is yes.", spent=5)
    (completion,) = ask(endpoint)
    assert (completion.hidden_tokens, completion.cached_tokens) == (5, 8)


@pytest.mark.parametrize("spelling", ["reasoning_content", "reasoning"])
def test_declared_reasoning_is_read_before_the_content_in_either_spelling(endpoint, spelling):
    endpoint.reply = lambda n, request: says("So the answer is yes.", spent=5, **{spelling: "It is even.\n"})
    (completion,) = ask(endpoint, reasoning_field="reasoning_content")
    assert completion.text == "It is even.\n\nSo the answer is yes."
    assert completion.hidden_tokens is None


def test_declared_reasoning_that_does_not_come_is_no_answer(endpoint):
    endpoint.reply = lambda n, request: says("So the answer is yes.")
    with pytest.raises(Refused, match=r"no `reasoning_content` or `reasoning`.*it has role, content"):
        ask(endpoint, reasoning_field="reasoning_content")


def test_reasoning_is_never_guessed_and_what_is_left_out_or_in_is_said_once(endpoint, caplog):
    endpoint.reply = lambda n, request: says("<think>no</think> yes", reasoning="It is even.")
    completions = ask(endpoint, times=3)
    assert {completion.text for completion in completions} == {"<think>no</think> yes"}
    told = [record.getMessage() for record in caplog.records]
    assert sum("only `content` is stored" in message for message in told) == 1
    assert sum("stored as they are" in message for message in told) == 1


@pytest.mark.parametrize(
    "other", [{"reasoning_field": "reasoning_content"}, {"api": "completions"}, {"api": "completions", "send": "ids"}]
)
def test_what_is_asked_otherwise_is_another_set(endpoint, other):
    plain, declared = (OpenAIBackend(Endpoint(endpoint.url, "big", **one)).identity() for one in ({}, other))
    assert declared == plain | other


def test_no_server_at_the_url_is_said_at_once():
    backend = OpenAIBackend(Endpoint(url="http://127.0.0.1:9", model="big"))
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/v1 does not answer: ConnectError.*Is the server up"):
        backend.identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api": "chats"}, "api is 'chats'"),
        ({"send": "ids"}, "'ids' with api = 'completions'"),
        ({"model": ""}, "model is empty"),
        ({"url": "localhost:8000"}, "not the URL of an endpoint"),
        ({"attempts": 0}, "attempts is 0"),
        ({"reasoning_field": "thinking"}, "reasoning_field is 'thinking'"),
        ({"reasoning_field": "reasoning_content", "api": "completions"}, "with api = 'chat'"),
        ({"price_in": 1.0}, "one is missing"),
        ({"price_in": 1.0, "price_out": -1.0}, "expected 0 or more"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        OpenAIBackend(Endpoint(**({"model": "big"} | settings)))


def takes_no(option, message=None, **error):
    """Return an endpoint's reply that refuses requests with an option."""
    told = {"message": message or f"Unsupported parameter: '{option}' is not supported with this model.", **error}
    return lambda n, request: {"status": 400, "body": {"error": told}} if option in request.body else {}


def test_what_one_request_found_out_the_others_know(endpoint, caplog):
    endpoint.reply = takes_no("seed", param="seed")
    backend = OpenAIBackend(Endpoint(endpoint.url, "big"))
    (found_out,) = ask_backend(backend)
    assert found_out.left_out == ("seed",)
    assert {completion.left_out for completion in ask_backend(backend, times=5)} == {("seed",)}
    assert len(endpoint.requests) == 7, "more than one request found it out"
    assert "seed" not in endpoint.requests[1].body
    assert "does not take `seed`, which is left out" in caplog.text
    assert backend.about()["dropped"] == ["seed"]


def test_a_request_that_is_refused_for_its_own_sake_leaves_no_option_out(endpoint):
    long = {"status": 400, "body": {"error": {"message": "'max_tokens' is too large: the prompt has 9,000 tokens"}}}
    endpoint.reply = lambda n, request: long if n == 0 else {}
    backend = OpenAIBackend(Endpoint(endpoint.url, "big"))
    with pytest.raises(Refused, match="too large"):
        ask_backend(backend)
    assert len(ask_backend(backend, times=3)) == 3
    assert all("max_tokens" in request.body for request in endpoint.requests)
    assert backend.about()["dropped"] == []


def test_the_limit_of_tokens_is_sent_by_its_other_name(endpoint):
    told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    endpoint.reply = takes_no("max_tokens", told)
    backend = OpenAIBackend(Endpoint(endpoint.url, "big"))
    ask_backend(backend)
    assert endpoint.requests[-1].body["max_completion_tokens"] == 9
    assert "max_tokens" not in endpoint.requests[-1].body
    assert backend.about()["dropped"] == ["max_tokens is sent as max_completion_tokens"]


@pytest.mark.parametrize(
    ("option", "where"),
    [
        ("temperature", r"reasoning\.decoding\.temperature of the instruction file"),
        ("stop", r"reasoning\.stop of the instruction file"),
        ("min_p", r"Endpoint\.extra"),
    ],
)
def test_what_changes_the_texts_is_never_left_out(endpoint, option, where):
    endpoint.reply = takes_no(option)
    with pytest.raises(UserError, match=rf"does not take `{option}`.*{where} sets it.*makes another set"):
        ask(endpoint, extra={"min_p": 0.1})
    assert len(endpoint.requests) == 1


SENT = {"seed", "stop", "max_tokens", "temperature", "chat_template_kwargs"}


@pytest.mark.parametrize(
    ("error", "option"),
    [
        ({"error": {"message": "Unrecognized request argument supplied: seed"}}, "seed"),
        (
            {"error": {"message": "Unsupported value", "param": "temperature", "code": "unsupported_value"}},
            "temperature",
        ),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs", "input": 5}]}, "seed"),
        ({"detail": "unknown field chat_template_kwargs"}, "chat_template_kwargs"),
        ({"error": {"message": "'max_tokens' is too large: 9. The model's maximum context length is 8"}}, None),
        ({"error": {"message": "unsupported role", "param": "messages.0.role"}}, None),
        ({"error": {"message": "the content is not allowed by our policy"}}, None),
        ({"message": "unsupported: seedling"}, None),
        ({}, None),
    ],
)
def test_which_option_an_error_refuses(error, option):
    assert refused_option(error, SENT) == option
