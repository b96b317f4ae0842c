"""The main job through the command line: rows and reasoning in, a tuned adapter out that peft and transformers read."""

import json

import numpy as np
import pytest
from support.world import LARGE_MODEL, make_world

LABELS = ("good", "bad")
SETTINGS = (
    "--gin_file=weather.gin",
    "--gin.Model.path=model",
    "--gin.Prompts.max_length=96",
    "--gin.Train.row_length=128",
    "--gin.Train.batch_rows=8",
    "--gin.Train.epochs=2",
    "--gin.Optimizer.learning_rate=1e-2",
    "--gin.Lora.rank=4",
)
IMPORT = ("--gin.Import.answer=large_answer", f"--gin.Import.model={LARGE_MODEL}")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world in which FIAT is trained, from the drafted files to predictions."""
    world = make_world(tmp_path_factory.mktemp("end") / "world")
    world.fiat("data", "split", "data/weather.jsonl", "--out=weather", "--stratify=lang,answer")
    world.fiat("init", "weather/train.jsonl", "--out=.")
    world.fiat("reason", "--import=weather/train.jsonl", "--gin_file=weather.gin", *IMPORT)
    world.fiat("reason", "--import=weather/validation.jsonl", "--gin_file=weather.gin", *IMPORT)
    world.fiat("reason", "--import=weather/test.jsonl", "--gin_file=weather.gin", *IMPORT)
    world.fiat("train", "--workdir=run", *SETTINGS)
    world.fiat("predict", "run", "weather/test.jsonl", "--out=predictions.jsonl")
    return world


def predictions(world):
    return [json.loads(line) for line in (world.root / "predictions.jsonl").read_text().splitlines()]


def rendered(world):
    """What θ_τ reads of each test row, and the ids of its possible answers."""
    from fiat_jax.experiments.bundle import read_bundle
    from fiat_jax.experiments.feed import Feed, read_reasons
    from fiat_jax.experiments.paradigms import find_paradigm
    from fiat_jax.experiments.spec import Prompts, Reasoning
    from fiat_jax.prompts.instructions import load_instructions
    from fiat_jax.prompts.tokenizer import Tokenizer
    from fiat_jax.tasks.readers import read_source

    bundle = read_bundle(world.root / "run")
    rows = list(read_source(str(world.root / "weather/test.jsonl")))
    reasons = read_reasons(bundle.task, rows, Reasoning(str(world.root / "reasoning_store")))
    feed = Feed(
        bundle.task,
        load_instructions(bundle.prompts.file),
        Tokenizer.from_directory(world.model),
        Prompts(bundle.prompts.file, 96),
        find_paradigm("fiat"),
    )
    candidates = dict(zip(bundle.task.labels, feed.renderer.candidates(bundle.task.labels), strict=True))
    return {row["id"]: feed.render(row, reasons, with_target=False).inputs for row in rows}, candidates


def torch_scores(model, inputs, candidates):
    """The log-likelihood of each candidate after the inputs, by torch."""
    import torch

    scores = {}
    for label, ids in candidates.items():
        tokens = torch.tensor(np.concatenate([inputs, ids]))[None].long()
        with torch.no_grad():
            log_probs = model(tokens).logits.log_softmax(-1)[0]
        at = range(len(inputs) - 1, len(inputs) + len(ids) - 1)
        scores[label] = float(sum(log_probs[t, i] for t, i in zip(at, ids.tolist(), strict=True)))
    return scores


def test_predictions_have_every_row_once_with_the_scores_of_all_labels(world):
    rows = [json.loads(line) for line in (world.root / "weather/test.jsonl").read_text().splitlines()]
    found = predictions(world)
    assert [one["id"] for one in found] == [row["id"] for row in rows]
    assert all(max(one["scores"], key=one["scores"].get) == one["prediction"] for one in found)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_other_programs_give_the_exported_model_s_answers_the_same_likelihoods(world, form):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    world.fiat("export", "run", f"--format={form}", f"--out=out-{form}")
    if form == "peft":
        base = AutoModelForCausalLM.from_pretrained(world.model)
        model = PeftModel.from_pretrained(base, world.root / "out-peft")
    else:
        model = AutoModelForCausalLM.from_pretrained(world.root / "out-merged")
    inputs, candidates = rendered(world)
    for one in predictions(world):
        scores = torch_scores(model, inputs[one["id"]], candidates)
        assert scores == pytest.approx(one["scores"], abs=2e-3)


def test_a_finished_run_run_again_trains_nothing_and_says_the_same(world):
    before = json.loads((world.root / "run/results.json").read_text())
    done = world.fiat("train", "--workdir=run", *SETTINGS)
    after = json.loads((world.root / "run/results.json").read_text())
    assert after["rows"] == before["rows"]
    assert "step" not in done.stdout


def test_rows_without_reasoning_are_counted_with_the_command_that_makes_them(world):
    row = {"id": "new", "lang": "en", "report": "It is new on the hill!", "answer": "good"}
    (world.root / "new.jsonl").write_text(json.dumps(row))
    done = world.fiat("predict", "run", "new.jsonl", "--out=none.jsonl", status=2)
    assert "1 of 1 rows" in done.stderr
    assert "fiat reason --import FILE" in done.stderr


def test_an_unknown_setting_is_refused_with_a_near_match(world):
    assert "Did you mean 'Train'?" in world.fiat("train", "--workdir=x", "--gin.Trian.epochs=1", status=2).stderr
    assert "Did you mean 'epochs'?" in world.fiat("train", "--workdir=x", "--gin.Train.epcohs=1", status=2).stderr
