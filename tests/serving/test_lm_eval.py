"""lm-evaluation-harness as a client: what it measures over HTTP is what the engine says by itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.world import write_rows

from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.models.model import ModelConfig, load_model
from fiat_jax.prompts.conversation import conversation_ids
from fiat_jax.prompts.detokenize import TextStream
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import MeshConfig

LM_EVAL = shutil.which("lm_eval", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
pytestmark = pytest.mark.skipif(LM_EVAL is None, reason="no lm_eval: pip install 'lm_eval[api]' transformers torch")

ROWS = [{"text": f"It is {('sunny', 'grey')[n % 2]} on hill {n}!", "label": n % 2} for n in range(6)]
LABELS = ("good", "bad")
STOP = ("\n\n", "6", "7")
HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{text}}}}\\nSky:"
"""
TASKS = {
    "choose": 'output_type: multiple_choice\ndoc_to_choice: ["good", "bad"]\ndoc_to_target: label\n'
    "metric_list: [{metric: acc}]\n",
    "write": 'output_type: generate_until\ndoc_to_target: "{{label}}"\nmetric_list: [{metric: exact_match}]\n'
    f"generation_kwargs: {{until: {json.dumps(STOP)}, max_gen_toks: 20, do_sample: false, temperature: 0}}\n",
}


@pytest.fixture(scope="module")
def large(pair):
    """θ_β in an engine of this process, and its tokenizer."""
    path = str(pair.root / "large")
    model = load_model(ModelConfig(path), MeshConfig(1, 1, 1).build(jax.devices()[:1]), tuned=False)
    tokenizer = Tokenizer.from_directory(path)
    return Engine(
        model, tokenizer.eos_id, EngineConfig(slots=4, slot_length=256, prefill_rows=4, score=True)
    ), tokenizer


@pytest.fixture
def measured(server, pair, tmp_path):
    """Run lm_eval with a task of ours, and return what it asked and was answered, row by row."""

    def measured(kind, path, task, *more):
        rows = write_rows(tmp_path / "rows.jsonl", ROWS)
        (tmp_path / "task.yaml").write_text(HEAD.format(name=task, rows=rows) + TASKS[task])
        about = f"model=large,base_url={server.url}/v1/{path},tokenizer={pair.root / 'large'},num_concurrent=4,"
        options = ("--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples", "--tasks", task)
        arguments = ("--model", kind, "--model_args", about + "tokenizer_backend=huggingface", *options, *more)
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
        env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OPENAI_API_KEY": "none"}
        done = subprocess.run([LM_EVAL, *map(str, arguments)], env=env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        (found,) = (tmp_path / "out").rglob("samples_*.jsonl")
        return [json.loads(line) for line in found.read_text().splitlines()]

    return measured


@pytest.mark.parametrize("batch", [1, 4])
def test_its_log_likelihoods_are_the_engines(measured, large, batch):
    engine, tokenizer = large
    found = measured("local-completions", "completions", "choose", f"--batch_size={batch}")
    asked = [f"{row['text']}\nSky:" for row in ROWS]
    ranked = [
        engine.rank(tokenizer.encode(text, start=True), [tokenizer.encode(f" {label}") for label in LABELS])
        for text in asked
    ]
    expected = [[sum(log_probs) for log_probs in row] for row in ranked]
    told = [[float(answer[0][0]) for answer in one["resps"]] for one in sorted(found, key=lambda one: one["doc_id"])]
    np.testing.assert_allclose(told, expected, atol=1e-3)
    for one in found:
        best = int(np.argmax(expected[one["doc_id"]]))
        assert one["acc"] == float(best == ROWS[one["doc_id"]]["label"])


@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
def test_what_it_has_written_is_what_the_engine_writes_up_to_where_it_stops(measured, large, kind):
    engine, tokenizer = large
    chat = ["--apply_chat_template"] if kind.startswith("chat") else []
    found = measured(f"local-{kind.replace('/', '-')}", kind, "write", *chat)
    assert len(found) == len(ROWS)
    for one in found:
        text = f"{ROWS[one['doc_id']]['text']}\nSky:"
        ids = conversation_ids(tokenizer, [("user", text)]) if chat else tokenizer.encode(text, start=True)
        ((completion,),) = engine.generate([Request(tuple(ids), 20)])
        stream = TextStream(tokenizer, STOP)
        assert one["resps"] == [[stream.push(completion.tokens) + stream.finish()]]
