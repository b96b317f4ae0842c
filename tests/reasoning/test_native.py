"""The engine as θ_β: it fills the store as an endpoint would, and each text is that of its row alone."""

import dataclasses
import json

import pytest
from support.texts import full_pass_texts

from fiat_jax.errors import UserError
from fiat_jax.models.model import ModelConfig, load_model
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.generate import generate
from fiat_jax.reasoning.native import Native, NativeBackend
from fiat_jax.sharding import MeshConfig
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Task, read_rows

PROMPT = """
version: 1
name: weather
fields: {report: text}
labels: {good: "good", bad: "bad"}
reasoning:
  instructions: Is the weather good?
  example: |
    Report: {report}
    Reasoning: {rationale} It is {answer}.
  exemplars:
    ids: [w0, w1]
    rationale: reasoning
  stop: STOP
  decoding: {temperature: HEAT, max_tokens: 12}
  extract: {kind: after, text: "It is"}
answer:
  template: |
    {report}
    Good: {answer}
"""


@pytest.fixture(scope="module")
def asked(project, tmp_path_factory):
    """Return a function: what `generate` is called with, for a temperature and stop strings."""
    splits = {"train": str(project.data / "weather.jsonl")}
    task = Task(name="weather", fields=("report",), kind="label", labels=("good", "bad"), splits=splits)
    rows = read_rows(task, "train")[2:22]

    def asked(heat="0.0", stop="[]"):
        file = tmp_path_factory.mktemp("prompt") / "weather.yaml"
        file.write_text(PROMPT.replace("HEAT", heat).replace("STOP", stop))
        by_id = {row["id"]: row for row in read_rows(task, "train")}
        tokenizer = Tokenizer.from_directory(str(project.model))
        return task, rows, Renderer(load_instructions(str(file), lambda split: by_id), tokenizer, 256)

    return asked


@pytest.fixture(scope="module")
def backend(project):
    """Return a backend for rows that are to come."""

    def backend(task, rows, renderer, **settings):
        native = Native(str(project.model), dtype="float32", **({"slots": 3, "block": 5, "prefill_rows": 2} | settings))
        made = NativeBackend(native, MeshConfig(), renderer)
        made.expect([renderer.reasoning_prompt(row) for row in rows])
        return made

    return backend


def texts(store, key):
    return {record.row_id: record.text for record in store.lookup(key).values()}


def test_every_row_gets_the_text_that_the_model_writes_for_it_alone(asked, backend, project, tmp_path):
    task, rows, renderer = asked()
    store = ReasoningStore(tmp_path / "store")
    summary = generate(task, rows, renderer, backend(task, rows, renderer), store)
    assert (summary.written, summary.before, len(summary.quarantined)) == (20, 0, 0)
    prompts = [renderer.reasoning_prompt(row) for row in rows]
    model = load_model(ModelConfig(str(project.model)), MeshConfig(1, 1, 1).build([one_device()]), tuned=False)
    expected = full_pass_texts(model, [[*p.prefix_ids, *p.own_ids] for p in prompts], 12)
    end = renderer.tokenizer.eos_id
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in expected]
    decoded = [renderer.tokenizer.decode(ids) for ids in expected]
    assert texts(store, summary.set_key) == {row["id"]: text for row, text in zip(rows, decoded, strict=True)}
    assert len(set(decoded)) > 2
    again = generate(task, rows, renderer, backend(task, rows, renderer), store)
    assert (again.written, again.before) == (0, 20)


def one_device():
    import jax

    return jax.devices()[0]


def test_samples_are_the_same_for_any_number_of_slots_and_requests_at_a_time(asked, backend, tmp_path):
    task, rows, renderer = asked(heat="1.0")
    found = []
    for n, (slots, concurrency) in enumerate(((3, 4), (16, 30))):
        store = ReasoningStore(tmp_path / str(n))
        made = backend(task, rows[:6], renderer, slots=slots)
        options = GenerateOptions(samples=2, concurrency=concurrency)
        summary = generate(task, rows[:6], renderer, made, store, options)
        records = store.lookup(summary.set_key).values()
        found.append({(record.row_id, record.sample): record.text for record in records})
    assert found[0] == found[1]
    assert len(found[0]) == 12
    assert any(found[0][row["id"], 0] != found[0][row["id"], 1] for row in rows[:6])


def test_a_stop_string_ends_a_text_wherever_tokens_are_cut(asked, backend, tmp_path):
    task, rows, renderer = asked()
    store = ReasoningStore(tmp_path / "a")
    summary = generate(task, rows, renderer, backend(task, rows, renderer), store)
    whole = texts(store, summary.set_key)
    row_id, stop = next((row, text[-2:]) for row, text in whole.items() if text.find(text[-2:]) > 0)
    task, _, renderer = asked(stop=f"[{stop!r}]")
    store = ReasoningStore(tmp_path / "b")
    summary = generate(task, rows, renderer, backend(task, rows, renderer), store)
    cut = {row: text.split(stop)[0] for row, text in whole.items()}
    assert texts(store, summary.set_key) == {row: text for row, text in cut.items() if text.strip()}
    reasons = {record.row_id: record.finish_reason for record in store.lookup(summary.set_key).values()}
    assert reasons[row_id] == "stop"


def test_prompts_that_the_model_cannot_read_are_refused_before_it_is_loaded(asked, backend, monkeypatch):
    task, rows, renderer = asked()
    monkeypatch.setattr("fiat_jax.reasoning.native.load_model", lambda *_, **__: pytest.fail("loaded"))
    long = dataclasses.replace(renderer.reasoning_prompt(rows[0]), own_ids=(5,) * 300)
    with pytest.raises(UserError, match="reads 256: use fewer exemplars"):
        backend(task, [], renderer).expect([long])


def test_the_model_is_named_by_its_weights(asked, backend, project):
    task, _, renderer = asked()
    identity = backend(task, [], renderer).identity()
    assert identity["name"] == "model"
    assert identity["dtype"] == "float32"
    assert len(str(identity["fingerprint"])) > 10
    assert identity["tokenizer"] == renderer.tokenizer.fingerprint


def test_the_command_fills_the_store_and_asks_nothing_twice(project):
    (project.root / "native.yaml").write_text(PROMPT.replace("HEAT", "0.0").replace("STOP", "[]"))
    settings = [
        "--gin_file=weather.gin",
        "--gin.Prompts.file=native.yaml",
        "--gin.Prompts.max_length=256",
        "--gin.Reasoning.store=native_store",
        "--gin.Native.path=model",
        "--gin.Native.dtype=float32",
        "--gin.Native.prefixes=prefixes",
    ]
    told = project.fiat("reason", "--backend=native", *settings).stdout
    assert "120 written, 0 were there, 0 in quarantine" in told
    assert "attention: plain" in told
    (noted,) = (project.root / "native_store").glob("*/backend.json")
    assert json.loads(noted.read_text())["attention"] == "plain"
    assert list((project.root / "prefixes").iterdir())
    told = project.fiat("reason", "--backend=native", *settings).stdout
    assert "0 written, 120 were there" in told
