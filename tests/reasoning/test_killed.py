"""The generator is killed with SIGKILL in the middle of its work and started again."""

import subprocess
import sys
import time

from fiat_jax.reasoning.generate import generate
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend

RUN = """
import sys
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.generate import generate
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Task, read_rows

world, url, store = sys.argv[1:]
task = Task(name="parity", splits={"train": f"{world}/parity.jsonl"}, fields=("question",), labels=("even", "odd"))
rows = read_rows(task, "train")
instructions = load_instructions(f"{world}/parity.yaml", {row["id"]: row for row in rows})
renderer = Renderer(instructions, Tokenizer.from_directory(world), 512)
backend = OpenAIBackend(Endpoint(url=url, model="big"))
generate(task, rows, renderer, backend, ReasoningStore(store), GenerateOptions(concurrency=3))
"""


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.002)


def test_after_kill_9_only_the_missing_calls_are_made(task, rows, renderer, store, world, endpoint):
    command = [sys.executable, "-c", RUN, str(world), endpoint.url, store.path]
    for stored in (4, 11):  # the second process goes on where the first was killed
        first, answers = len(endpoint.requests), stored - len(stored_rows(store))
        endpoint.reply = lambda n, request, end=first + answers: {"seconds": 0.0 if n < end else 60.0}
        with subprocess.Popen(command) as process:
            wait_until(
                lambda at=stored, asked=first + answers + 3: (
                    len(stored_rows(store)) == at and len(endpoint.requests) == asked
                )
            )
            process.kill()
            assert process.wait() == -9
        assert len(stored_rows(store)) == stored

    asked_before, known = len(endpoint.requests), stored_rows(store)
    endpoint.reply = lambda n, request: {}
    summary = generate(task, rows, renderer, OpenAIBackend(Endpoint(url=endpoint.url, model="big")), store)
    assert (summary.before, summary.written) == (11, 9)
    missing = [renderer.reasoning_prompt(row) for row in rows if row["id"] not in known]
    assert sorted(endpoint.asked()[asked_before:]) == sorted(prompt.prefix_text + prompt.own_text for prompt in missing)
    assert len(endpoint.requests) == 20 + 3 + 3, "only what was under way at the two kills is asked twice"
    assert store.verify() == []


def stored_rows(store):
    return {record.row_id for key in store.sets() for record in store.lookup(key).values()}
