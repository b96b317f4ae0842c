"""A task with its prompt file."""

import json

import pytest
import tokenizers

from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Task, read_rows

PROMPT = """
version: 1
name: parity
fields: {question: text}
labels: {even: "yes", odd: "no"}
reasoning:
  instructions: Is the number even? Think first.
  example: |
    Number: {question}
    Reasoning: {rationale} So the answer is {answer}.
  exemplars:
    ids: [train-2]
    rationale: why
  stop: ["\\n\\n"]
  decoding: {temperature: 0.0, max_tokens: 20}
  extract: {kind: after, text: "So the answer is"}
answer:
  template: |
    {question}
    Even: {answer}
"""


@pytest.fixture
def quick_retries(monkeypatch):
    """Retries that need not be waited for."""
    monkeypatch.setattr("fiat_jax.reasoning.http.LONGEST_BACKOFF_SECONDS", 0.02)


@pytest.fixture
def world(tmp_path):
    """A directory with parity.jsonl (20 rows), parity.yaml and tokenizer files; row N asks about the number N."""
    rows = [
        {"id": f"train-{n}", "question": str(n), "answer": "odd" if n % 2 else "even", "why": f"{n} is what it is."}
        for n in range(20)
    ]
    (tmp_path / "parity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "parity.yaml").write_text(PROMPT)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({token: n for n, token in enumerate(["<eos>", *alphabet])}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    return tmp_path


@pytest.fixture
def task(world):
    return Task(
        name="parity",
        splits={"train": str(world / "parity.jsonl")},
        fields=("question",),
        answer_field="answer",
        labels=("even", "odd"),
        kind="label",
    )


@pytest.fixture
def rows(task):
    return read_rows(task, "train")


@pytest.fixture
def renderer(world, rows):
    instructions = load_instructions(world / "parity.yaml", {row["id"]: row for row in rows})
    return Renderer(instructions, Tokenizer.from_directory(world), 512)


@pytest.fixture
def store(tmp_path):
    return ReasoningStore(tmp_path / "store")
