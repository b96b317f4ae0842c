"""What `fiat reason` adds to its engine's own time: rendering, detokenising, storing each answer as it comes.

    .venv/bin/python benchmarks/reason_overhead.py --torch-python .venv/bin/python

The model has SmolLM2-135M's shape and random weights, float32; 128 rows behind a prompt with three exemplars, 64 new
tokens. The same engine answers the same requests, in turn by itself and as the backend of the bulk generator.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serving import write_tokenizer
from train_step import SHAPE

GOALS = {"seconds": 1.03}
ROWS, NEW = 128, 64
PROMPT = f"""
version: 1
name: words
fields: {{text: text}}
reasoning:
  instructions: Say something about the text.
  example: |
    Text: {{text}}
    Thought: {{rationale}} So the answer is {{answer}}.
  exemplars:
    ids: [r0, r1, r2]
    rationale: reasoning
  decoding: {{temperature: 0.0, max_tokens: {NEW}}}
  extract: {{kind: after, text: So the answer is}}
answer:
  template: |
    {{text}}
    {{answer}}
"""


def measure(model: str, folder: Path, repeats: int) -> dict[str, float]:
    """Return the median seconds of both sides."""
    from fiat_jax.experiments import runtime
    from fiat_jax.inference.requests import Request
    from fiat_jax.prompts.instructions import load_instructions
    from fiat_jax.prompts.render import Renderer
    from fiat_jax.prompts.tokenizer import Tokenizer
    from fiat_jax.reasoning.drive import GenerateOptions
    from fiat_jax.reasoning.generate import generate
    from fiat_jax.reasoning.native import Native, NativeBackend
    from fiat_jax.sharding import MeshConfig
    from fiat_jax.store import ReasoningStore
    from fiat_jax.tasks.task import Task, read_rows

    class Warm(NativeBackend):
        """A backend that outlives a run, so that nothing is loaded or compiled while the clock runs."""

        async def close(self) -> None:
            pass

    runtime.start()
    rng = random.Random(0)
    words = lambda n: " ".join("".join(rng.choices("etaoinshrdlu", k=4)) for _ in range(n))  # noqa: E731
    rows = [{"id": f"r{n}", "text": words(6), "reasoning": words(6), "answer": "x"} for n in range(ROWS + 3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompt.yaml").write_text(PROMPT)
    task = Task(name="words", fields=("text",), kind="text", splits={"train": str(folder / "rows.jsonl")})
    read = read_rows(task, "train")
    instructions = load_instructions(folder / "prompt.yaml", {row["id"]: row for row in read})
    tokenizer = Tokenizer.from_directory(model)
    renderer, asked = Renderer(instructions, tokenizer, 1024), read[3:]
    backend = Warm(Native(model, dtype="float32"), MeshConfig(), tokenizer)
    backend.expect([renderer.reasoning_prompt(row) for row in asked])
    options = GenerateOptions(concurrency=backend.concurrency)
    generate(task, asked[:2], renderer, backend, ReasoningStore(folder / "warm"), options)
    assert backend.worker is not None
    engine, found = backend.worker.engine, {"engine": [], "reason": []}
    for n in range(repeats):
        begun = time.perf_counter()
        generate(task, asked, renderer, backend, ReasoningStore(folder / f"store{n}"), options)
        found["reason"].append(time.perf_counter() - begun)
        requests = []
        for row in asked:
            prompt = renderer.reasoning_prompt(row)
            key = engine.add_prefix(prompt.prefix_ids, tokenizer=tokenizer.fingerprint)
            requests.append(Request(prompt.own_ids, NEW, prefix=key))
        begun = time.perf_counter()
        engine.generate(requests)
        found["engine"].append(time.perf_counter() - begun)
        print(json.dumps({side: seconds[-1] for side, seconds in found.items()}), flush=True)
    return {side: statistics.median(seconds) for side, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="Python with torch and transformers")
    parser.add_argument("--repeats", type=int, default=3, help="times that both sides run in turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model")
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers", "random_llama.py")
        subprocess.run([args.torch_python, script, "--config", json.dumps(SHAPE), "--to", model], check=True)
        write_tokenizer(model)
        seconds = measure(model, Path(folder), args.repeats)
    ratios = {"seconds": seconds["reason"] / seconds["engine"]}
    print(json.dumps({"ratios": ratios, "goals": GOALS, "measured": seconds}))


if __name__ == "__main__":
    main()
