import dataclasses
import json

import pytest
from support.endpoint import answer

from fiat_jax.errors import UserError
from fiat_jax.reasoning.backend import FAILED, REFUSED
from fiat_jax.reasoning.batch import read_answers, write_requests
from fiat_jax.reasoning.generate import generate
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.reasoning.wanted import make_plan, provenance_of
from fiat_jax.store import ReasoningStore


@pytest.fixture
def backend(endpoint):
    return OpenAIBackend(Endpoint(endpoint.url, "big"))


@pytest.fixture
def plan(task, rows, renderer, backend, store):
    def plan():
        return make_plan(task, rows, store, provenance_of(task, renderer.instructions, backend.identity()), 1)

    return plan


def outcome(request, **changes):
    """A line of a batch's output, for a line of its input."""
    response = {"status_code": 200, "request_id": "r", "body": answer()}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None} | changes


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def requests_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_asks_and_stores_what_a_live_run_does(task, rows, renderer, backend, store, plan, endpoint, tmp_path):
    assert write_requests(tmp_path / "in.jsonl", plan(), renderer, backend) == ()
    requests = requests_in(tmp_path / "in.jsonl")
    found = read_answers(write(tmp_path / "out.jsonl", map(outcome, requests)), plan(), renderer, backend, store)
    assert (found.written, found.before, found.quarantined, found.unknown) == (20, 0, (), 0)

    live = ReasoningStore(tmp_path / "live")
    summary = generate(task, rows, renderer, backend, live)
    assert store.lookup(summary.set_key) == live.lookup(summary.set_key)
    bodies = sorted(json.dumps(request["body"], sort_keys=True) for request in requests)
    assert bodies == sorted(json.dumps(request.body, sort_keys=True) for request in endpoint.requests)
    assert {(request["method"], request["url"]) for request in requests} == {("POST", "/v1/chat/completions")}


def test_only_what_is_missing_is_written_and_bringing_it_in_twice_changes_nothing(
    renderer, backend, store, plan, tmp_path
):
    write_requests(tmp_path / "in.jsonl", plan(), renderer, backend)
    requests = requests_in(tmp_path / "in.jsonl")
    some = write(tmp_path / "some.jsonl", map(outcome, requests[:5]))
    assert read_answers(some, plan(), renderer, backend, store).written == 5
    write_requests(tmp_path / "in.jsonl", plan(), renderer, backend)
    assert requests_in(tmp_path / "in.jsonl") == requests[5:]
    again = read_answers(some, plan(), renderer, backend, store)
    assert (again.written, again.before) == (0, 5)
    assert store.verify() == []


def test_requests_that_failed_are_quarantined_with_their_reason(renderer, backend, store, plan, tmp_path):
    write_requests(tmp_path / "in.jsonl", plan(), renderer, backend)
    one, two, three, four, *_ = requests_in(tmp_path / "in.jsonl")
    filtered = {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}
    lines = [
        outcome(one),
        outcome(two, response=None, error={"code": "batch_expired", "message": "expired"}),
        outcome(three, response={"status_code": 400, "body": {"error": {"message": "too long"}}}),
        outcome(four, response={"status_code": 200, "body": filtered}),
        outcome(one | {"custom_id": one["custom_id"].replace("/", "/0", 1)}),
    ]
    found = read_answers(write(tmp_path / "out.jsonl", lines), plan(), renderer, backend, store)
    assert (found.written, found.unknown) == (1, 1)
    expired, long, refused = found.quarantined
    assert (expired.bucket, long.bucket, refused.bucket) == (FAILED, FAILED, REFUSED)
    assert "batch_expired" in expired.reason
    assert "too long" in long.reason


def test_a_row_that_cannot_be_asked_is_named_and_the_others_are_written(
    task, rows, renderer, backend, store, plan, tmp_path
):
    rows[6]["question"] = 6  # the instruction file declares text
    (unrendered,) = write_requests(tmp_path / "in.jsonl", plan(), renderer, backend)
    assert unrendered.row_id == "train-6"
    assert len(requests_in(tmp_path / "in.jsonl")) == 19


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 1: not JSON"),
        (b'{"custom_id": 5}', "line 1: no custom_id"),
        (b'{"custom_id": "request-1"}', "is none of `fiat reason --batch_out`"),
        (b'{"custom_id": "0123456789abcdef/row/0"}', "is of set 0123456789abcdef, and these settings make set"),
    ],
)
def test_a_file_of_something_else_is_an_error_with_its_line(renderer, backend, store, plan, tmp_path, line, message):
    (tmp_path / "out.jsonl").write_bytes(line)
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / "out.jsonl", plan(), renderer, backend, store)


def test_the_seed_of_a_request_is_that_of_a_live_run(task, rows, renderer, backend, store, plan, tmp_path):
    made = plan()
    warm = dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, decoding={"temperature": 1.0}))
    write_requests(tmp_path / "in.jsonl", warm, renderer, backend)
    seeds = {request["body"]["seed"] for request in requests_in(tmp_path / "in.jsonl")}
    assert len(seeds) == 20
