import asyncio
import json
import logging
import os
import signal
import threading
import time
import tracemalloc

import pytest
from support.oracle import Oracle

from fiat_jax.errors import UserError
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Renderer
from fiat_jax.reasoning.backend import FAILED, HIDDEN, REFUSED, Completion, Refused, Unavailable, complete_all
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.generate import bill, generate, write_quarantine
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.reasoning.wanted import Quarantined


def test_every_row_is_asked_once_and_its_answer_is_stored_with_what_was_extracted(task, rows, renderer, store):
    oracle = Oracle()
    summary = generate(task, rows, renderer, oracle, store)
    assert sorted(int(question) for question, _, _ in oracle.asked) == list(range(20))
    assert (summary.wanted, summary.before, summary.written, summary.quarantined) == (20, 0, 20, ())
    assert (summary.prompt_tokens, summary.completion_tokens) == (200, 100)
    records = {record.row_id: record for record in store.lookup(summary.set_key).values()}
    assert records["train-7"].text == "7 is a number. So the answer is yes."
    assert records["train-7"].rationale == "7 is a number."
    assert records["train-7"].answer == "even"


def test_a_second_run_asks_nothing_and_new_rows_are_all_it_asks_for(task, rows, renderer, store):
    generate(task, rows[:15], renderer, Oracle(), store)
    oracle = Oracle()
    summary = generate(task, rows, renderer, oracle, store)
    assert sorted(int(question) for question, _, _ in oracle.asked) == list(range(15, 20))
    assert (summary.before, summary.written) == (15, 5)
    again = Oracle()
    assert generate(task, rows, renderer, again, store).written == 0
    assert again.asked == []


def test_rows_of_equal_content_are_asked_once(task, rows, renderer, store):
    twin = {**rows[3], "id": "twin"}
    oracle = Oracle()
    assert generate(task, [*rows, twin], renderer, oracle, store).wanted == 20
    assert len(oracle.asked) == 20


def test_another_exemplar_or_model_makes_another_set(task, rows, renderer, store, world):
    first = generate(task, rows[:2], renderer, Oracle(), store).set_key
    text = (world / "parity.yaml").read_text().replace("train-2", "train-4")
    (world / "other.yaml").write_text(text)
    instructions = load_instructions(world / "other.yaml", {row["id"]: row for row in rows})
    other = generate(task, rows[:2], Renderer(instructions, renderer.tokenizer, 512), Oracle(), store).set_key
    oracle = Oracle()
    oracle.model["revision"] = "2"
    third = generate(task, rows[:2], renderer, oracle, store).set_key
    assert len({first, other, third}) == 3


def test_bad_rows_go_to_quarantine_with_their_reason_and_are_asked_again(task, rows, renderer, store, tmp_path):
    def says(question):
        if question == "4":
            raise Refused("HTTP 400: too long")
        return "  \n" if question == "5" else "So the answer is no."

    rows[6]["question"] = 6  # the instruction file declares text
    path = tmp_path / "out" / "quarantine.jsonl"
    summary = generate(task, rows, renderer, Oracle(says), store, quarantine=path)
    assert summary.written == 17
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, path.read_text().splitlines())}
    assert reasons.keys() == {"train-4", "train-5", "train-6"}
    assert reasons["train-4"] == "HTTP 400: too long"
    assert "completion is empty" in reasons["train-5"]
    assert "'question' is 6" in reasons["train-6"]
    oracle = Oracle()
    rows[6]["question"] = "6"
    assert generate(task, rows, renderer, oracle, store, quarantine=path).written == 3
    assert not path.exists()


def many(rows, count):
    return [{**rows[0], "id": f"row-{n}", "question": str(n)} for n in range(count)]


def refuses(which):
    def says(question):
        if which(int(question)):
            raise Refused("HTTP 400: unknown parameter")
        return "So the answer is no."

    return says


def test_what_was_not_asked_again_stays_in_quarantine(tmp_path):
    path, (one, two) = tmp_path / "quarantine.jsonl", (Quarantined(name, 0, "why") for name in ("a", "b"))
    held = lambda: [json.loads(line)["id"] for line in path.read_text().splitlines()]  # noqa: E731
    write_quarantine(path, [one])
    write_quarantine(path, [], keep=True)
    assert held() == ["a"]
    write_quarantine(path, [two, one], keep=True)
    assert held() == ["a", "b"]
    write_quarantine(path, [])
    assert not path.exists()


def test_a_handful_of_prompts_keeps_the_answers_that_came(task, rows, renderer):
    def says(question):
        if question in ("3", "4"):
            raise {"3": Unavailable("no answer after 8 attempts"), "4": Refused("not that")}[question]
        return "So the answer is no."

    found = asyncio.run(complete_all(Oracle(says), [renderer.reasoning_prompt(row) for row in rows[:6]]))
    assert [type(one).__name__ for one in found] == [*["Completion"] * 3, "Unavailable", "Refused", "Completion"]
    with pytest.raises(UserError, match="none of 2 prompts got an answer; the first: no answer after 8 attempts"):
        asyncio.run(complete_all(Oracle(says), [renderer.reasoning_prompt(row) for row in rows[3:5]]))


def test_a_run_ends_where_too_large_a_share_of_those_that_ended_failed(task, rows, renderer, store):
    oracle = Oracle(refuses(lambda n: n >= 20))
    with pytest.raises(UserError, match=r"21 of 41 requests failed.*share of 0\.5.*unknown parameter.*is stored"):
        generate(task, many(rows, 90), renderer, oracle, store, GenerateOptions(concurrency=1))
    assert len(oracle.asked) == 41
    assert len(store.lookup(next(iter(store.sets())))) == 20


def test_a_run_in_which_nothing_succeeds_ends_after_twenty_requests(task, rows, renderer, store):
    oracle = Oracle(refuses(lambda n: True))
    with pytest.raises(UserError, match="20 of 20 requests failed"):
        generate(task, many(rows, 90), renderer, oracle, store, GenerateOptions(concurrency=1))
    assert len(oracle.asked) == 20


def test_failures_among_successes_do_not_end_the_run_and_a_share_of_one_never_does(task, rows, renderer, store):
    mixed = Oracle(refuses(lambda n: n % 3 == 0))
    assert generate(task, many(rows, 90), renderer, mixed, store, GenerateOptions(concurrency=1)).written == 60
    lost = Oracle(refuses(lambda n: True))
    summary = generate(task, many(rows, 90), renderer, lost, store, GenerateOptions(max_failures=1.0))
    assert (summary.written, len(summary.quarantined)) == (0, 30)


def test_what_came_of_each_request_is_counted_apart(task, rows, renderer, store):
    class Mixed(Oracle):
        async def complete(self, prompt, *, seed, sample):
            number = int(prompt.own_text.split("Number: ")[1].split("\n")[0])
            if number < 4:
                raise Refused("no", REFUSED if number < 3 else HIDDEN)
            if number < 6:
                return Completion(" ", "stop")
            finish_reason, text = ("length", "I") if number < 10 else ("stop", "So the answer is no.")
            return Completion(text, finish_reason, 10, 5, cached_tokens=4, hidden_tokens=3 if number > 17 else None)

    summary = generate(task, rows, renderer, Mixed(), store)
    buckets = [summary.in_bucket(bucket) for bucket in (REFUSED, HIDDEN, FAILED)]
    assert (buckets, summary.written) == ([3, 1, 2], 14)
    assert (summary.cut_short, summary.without_answer, summary.with_hidden) == (4, 4, 2)
    assert (summary.prompt_tokens, summary.cached_tokens) == (140, 56)
    assert {record.cached_tokens for record in store.lookup(summary.set_key).values()} == {4}


def test_seeds_come_from_the_record_and_not_from_the_order(task, rows, renderer, store, world, tmp_path):
    (world / "warm.yaml").write_text(
        (world / "parity.yaml").read_text().replace("temperature: 0.0", "temperature: 0.7")
    )
    instructions = load_instructions(world / "warm.yaml", {row["id"]: row for row in rows})
    warm = Renderer(instructions, renderer.tokenizer, 512)
    one, other = Oracle(), Oracle()
    generate(task, rows, warm, one, store, GenerateOptions(samples=2, concurrency=3))
    generate(task, rows[::-1], warm, other, type(store)(tmp_path / "other"), GenerateOptions(samples=2))
    assert sorted(one.asked) == sorted(other.asked)
    assert len({seed for _, _, seed in one.asked}) == 40
    greedy = Oracle()
    generate(task, rows, renderer, greedy, store)
    assert {seed for _, _, seed in greedy.asked} == {None}
    with pytest.raises(UserError, match="all the same at temperature 0"):
        generate(task, rows, renderer, greedy, store, GenerateOptions(samples=2))


def test_a_change_of_the_model_in_mid_run_is_reported(task, rows, renderer, store, caplog):
    class Swapped(Oracle):
        async def complete(self, prompt, *, seed, sample):
            self.model = {"name": "oracle", "revision": "swapped"}
            self.served_by = "new" if len(self.asked) > 8 else "old"
            return await super().complete(prompt, seed=seed, sample=sample)

    with caplog.at_level(logging.WARNING):
        summary = generate(task, rows, renderer, Swapped(), store, GenerateOptions(concurrency=1))
    assert len(summary.changes) == 2
    assert "the model changed during the run" in caplog.text
    assert "was answered by new (11 records), old (9 records)" in caplog.text


def test_a_set_that_only_the_endpoints_report_sets_apart_is_pointed_at(task, rows, renderer, store):
    oracle = Oracle()
    oracle.model["reported"] = {"root": "/models/a"}
    assert generate(task, rows, renderer, oracle, store).changes == ()
    oracle.model["reported"] = {"root": "/models/b"}
    (change,) = generate(task, rows, renderer, oracle, store).changes
    assert "begins apart from it" in change


def test_a_set_keeps_how_its_model_was_last_asked(task, rows, renderer, store, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    url = endpoint.url.replace("://", "://user:secret@")
    summary = generate(task, rows[:3], renderer, OpenAIBackend(Endpoint(url, "big", "r1")), store)
    noted = store.backend(summary.set_key)
    assert noted == {
        "kind": "openai", "url": endpoint.url, "model": "big", "revision": "r1", "api": "chat", "send": "text",
        "reasoning_field": "content", "key_variable": "OPENAI_API_KEY", "dropped": [],
    }  # fmt: skip
    assert "secret" not in json.dumps(noted)
    generate(task, rows[:3], renderer, Oracle(), store)
    assert store.backend(summary.set_key) == noted, "a run that asked nothing left its mark"


def test_what_an_endpoint_does_not_take_is_noted_in_the_set_and_the_record(
    task, rows, renderer, store, world, endpoint
):
    text = (world / "parity.yaml").read_text().replace("temperature: 0.0", "temperature: 0.7")
    (world / "warm.yaml").write_text(text)
    instructions = load_instructions(world / "warm.yaml", {row["id"]: row for row in rows})
    error = {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed", "code": "unsupported_parameter"}}
    endpoint.reply = lambda n, request: {"status": 400, "body": error} if "seed" in request.body else {}
    backend = OpenAIBackend(Endpoint(endpoint.url, "big"))
    summary = generate(task, rows, Renderer(instructions, renderer.tokenizer, 512), backend, store)
    assert (summary.written, summary.dropped, len(endpoint.requests)) == (20, ("seed",), 21)
    assert store.backend(summary.set_key)["dropped"] == ["seed"]
    assert {record.seed for record in store.lookup(summary.set_key).values()} == {None}


def test_the_bill_is_what_the_run_will_ask(task, rows, renderer, store):
    generate(task, rows[:5], renderer, Oracle(), store)
    rows[6]["question"] = 6
    expected = bill(task, rows, renderer, Oracle(), store)
    assert (expected.wanted, expected.requests, len(expected.unrendered)) == (20, 14, 1)
    prompt = renderer.reasoning_prompt(rows[7])
    assert (
        14 * len(prompt.prefix_ids) < expected.prompt_tokens < 14 * (len(prompt.prefix_ids) + len(prompt.own_ids) + 2)
    )
    assert expected.completion_tokens_at_most == 14 * 20
    assert generate(task, rows, renderer, Oracle(), store).written == expected.requests


def test_no_more_requests_are_under_way_than_allowed(task, rows, renderer, store, endpoint):
    endpoint.reply = lambda n, request: {"seconds": 0.02}
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big"))
    assert generate(task, rows, renderer, backend, store, GenerateOptions(concurrency=4)).written == 20
    assert 2 <= endpoint.most_at_once <= 4


def test_a_misbehaving_endpoint_is_worked_through(task, rows, renderer, store, endpoint, quick_retries):
    failures = [
        {"status": 500},
        {"cut": True},
        {"status": 429, "headers": {"Retry-After": "0.1"}},
        {"seconds": 5.0},
        {},
    ]
    endpoint.reply = lambda n, request: failures[n % 5]
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big", timeout_seconds=0.5, attempts=50))
    summary = generate(task, rows, renderer, backend, store, GenerateOptions(concurrency=8))
    assert (summary.written, summary.quarantined) == (20, ())
    assert store.verify() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_requests_under_way_end_and_the_next_run_goes_on(task, rows, renderer, store, endpoint, number):
    enough = threading.Event()

    def reply(n, request):
        if n == 6:
            os.kill(os.getpid(), number)
            enough.set()
        return {"seconds": 0.3 if n >= 6 else 0.0}

    endpoint.reply = reply
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big"))
    summary = generate(task, rows, renderer, backend, store, GenerateOptions(concurrency=2))
    assert enough.is_set()
    assert summary.interrupted
    assert summary.written == len(endpoint.requests) < 20, "a request that was under way, and paid for, was dropped"
    endpoint.reply = lambda n, request: {}
    rest = generate(task, rows, renderer, backend, store)
    assert (rest.written, rest.interrupted) == (20 - summary.written, False)
    assert len(set(endpoint.asked())) == len(endpoint.asked()) == 20


def test_a_signal_during_the_first_request_lets_no_other_begin(task, rows, renderer, store, endpoint):
    def reply(n, request):
        os.kill(os.getpid(), signal.SIGINT)
        return {"seconds": 0.3}

    endpoint.reply = reply
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big"))
    summary = generate(task, rows, renderer, backend, store)
    assert (summary.written, summary.interrupted, len(endpoint.requests)) == (1, True, 1)


def test_signal_handlers_of_the_caller_come_back(task, rows, renderer, store):
    def mine(*args):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        generate(task, rows, renderer, Oracle(), store)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_signal_does_not_wait(task, rows, renderer, store, endpoint):
    def reply(n, request):
        if n == 0:
            return {}  # the first request goes alone
        if n < 3:
            time.sleep(0.3 * n)  # two signals at once are one
            os.kill(os.getpid(), signal.SIGINT)
        return {"seconds": 60.0}

    endpoint.reply = reply
    backend = OpenAIBackend(Endpoint(url=endpoint.url, model="big"))
    summary = generate(task, rows, renderer, backend, store, GenerateOptions(concurrency=3))
    assert summary.interrupted
    assert summary.written == 1
    assert summary.seconds < 20


def test_a_full_disk_ends_the_run_with_its_error(task, rows, renderer, store, monkeypatch):
    def refuse(fd):
        raise OSError(28, "No space left on device")

    generate(task, rows[:1], renderer, Oracle(), store)  # makes the set
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="No space left"):
        generate(task, rows, renderer, Oracle(), store)


@pytest.mark.parametrize("wrong", [{"max_failures": 1.5}, {"max_cost": 0.0}, {"concurrency": 0}])
def test_an_option_that_makes_no_sense_is_named(wrong):
    with pytest.raises(UserError, match=f"Generate.{next(iter(wrong))} is"):
        GenerateOptions(**wrong)


def test_a_run_holds_no_texts_in_memory(task, rows, renderer, store):
    rows = many(rows, 1000)
    generate(task, rows[:1], renderer, Oracle(), store)  # what is made once
    oracle = Oracle(lambda question: f"{question} " * 5000)
    tracemalloc.start()
    try:
        assert generate(task, rows, renderer, oracle, store, GenerateOptions(concurrency=2)).written == 999
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    texts = sum(len(record.text) for record in store.lookup(next(iter(store.sets()))).values())
    assert texts > 1.5e7
    assert peak < texts / 4
