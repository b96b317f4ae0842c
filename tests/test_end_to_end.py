"""The main job through the command line: rows and reasoning in, a tuned adapter out that peft and transformers read."""

import json
import shutil

import numpy as np
import pytest
from support.world import IMPORT, LARGE_MODEL, SETTINGS

from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.answers import reasons_of
from fiat_jax.experiments.bundle import open_feed, read_bundle
from fiat_jax.tasks.readers import read_source
from fiat_jax.tasks.task import read_rows

LABELS = ("good", "bad")


def predict(world, run, source, name):
    world.fiat("predict", run, source, f"--out={name}.jsonl")
    return read_predictions(world.root / f"{name}.jsonl")


def prompts_of(world, run, split):
    """What θ_τ reads of each row of a split, and how a bundle renders rows."""
    bundle = read_bundle(world.root / run)
    rows = read_rows(bundle.task, split)
    feed, reasons = open_feed(bundle), reasons_of(bundle, rows, None)
    return rows, feed, [feed.render(row, reasons, with_target=False).inputs for row in rows]


def torch_model(world, run, form):
    """The exported model as other programs read it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = f"{run}-{form}"
    world.fiat("export", run, f"--format={form}", f"--out={out}")
    if form == "merged":
        return AutoModelForCausalLM.from_pretrained(world.root / out)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.model), world.root / out)


def torch_scores(model, feed, rows, inputs) -> list[dict[str, float]]:
    """The log-likelihood of each candidate of each row after its inputs, by torch."""
    import torch

    found = []
    for row, ids in zip(rows, inputs, strict=True):
        candidates = feed.candidates(row)
        whole = [torch.tensor(np.concatenate([ids, candidate])) for candidate in candidates]
        tokens = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True).long()  # causal: padding behind is not seen
        with torch.no_grad():
            log_probs = model(tokens).logits.log_softmax(-1).numpy()
        scores = [
            sum(log_probs[n, t, i] for t, i in enumerate(candidate.tolist(), start=len(ids) - 1))
            for n, candidate in enumerate(candidates)
        ]
        found.append(dict(zip(feed.task.candidates(row), scores, strict=True)))
    return found


@pytest.fixture(scope="module")
def predictions(trained, monkeypatch_module):
    return predict(trained, "run", "weather/test.jsonl", "answers")


@pytest.fixture(scope="module")
def monkeypatch_module(trained):
    """The tests of this file stand in the world's folder, to which its paths are relative."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.root)
        yield patch


def test_predictions_have_every_row_once_and_the_best_of_its_labels(trained, predictions):
    rows = list(read_source(str(trained.root / "weather/test.jsonl")))
    assert [one.id for one in predictions] == [row["id"] for row in rows]
    assert all(tuple(sorted(one.scores)) == tuple(sorted(LABELS)) for one in predictions)
    assert all(max(one.scores, key=one.scores.get) == one.prediction for one in predictions)
    assert {one.prediction for one in predictions} == set(LABELS)


def test_evaluate_says_what_the_predictions_of_its_file_say(trained, predictions):
    trained.fiat("evaluate", "run", "--split=test", "--workdir=evaluated")
    assert read_predictions(trained.root / "evaluated/predictions/fiat-test.jsonl") == predictions
    held = json.loads((trained.root / "evaluated/results.json").read_text())
    value = next(row["value"] for row in held["rows"] if row["language"] == "all")
    by_language = [[one.prediction == one.gold for one in predictions if one.language == lang] for lang in ("en", "de")]
    assert value == pytest.approx(100 * np.mean([np.mean(right) for right in by_language]))
    assert "Task.name = 'weather'" in (trained.root / "evaluated/config.gin").read_text()


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_other_programs_give_every_label_of_every_row_the_same_likelihood(trained, predictions, form):
    model = torch_model(trained, "run", form)
    rows, feed, inputs = prompts_of(trained, "run", "test")
    for one, scores in zip(predictions, torch_scores(model, feed, rows, inputs), strict=True):
        assert scores == pytest.approx(one.scores, abs=1e-4)
        assert max(scores, key=scores.get) == one.prediction


def test_a_bundle_taken_elsewhere_answers_alike_and_says_where_its_reasoning_is_from(trained, predictions, tmp_path):
    trained.fiat("export", "run", "--format=bundle", "--out=taken")
    shutil.move(trained.root / "taken", tmp_path / "taken")
    shutil.copytree(trained.model, tmp_path / "base")
    base = f"--gin.Model.path={tmp_path / 'base'}"
    trained.fiat("predict", tmp_path / "taken", "weather/test.jsonl", "--out=taken.jsonl", base)
    assert read_predictions(trained.root / "taken.jsonl") == predictions
    held = json.loads((tmp_path / "taken/bundle.json").read_text())
    (provenance,) = held["sets"].values()
    assert provenance["model"]["name"] == LARGE_MODEL
    assert list(held["sets"]) == [held["reasoning"]["set"]]
    again = trained.fiat("export", "run", "--format=bundle", f"--out={tmp_path / 'taken'}", status=2)
    assert "not an empty folder" in again.stderr
    other = trained.fiat(
        "predict", tmp_path / "taken", "weather/test.jsonl", "--out=x.jsonl", "--gin.Model.pth=x", status=2
    )
    assert "Did you mean 'path'" in other.stderr


def test_rows_without_an_answer_are_predicted_alike(trained, predictions):
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in read_source("weather/test.jsonl")]
    (trained.root / "unanswered.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = predict(trained, "run", "unanswered.jsonl", "unanswered-answers")
    assert [(one.id, one.scores) for one in found] == [(one.id, one.scores) for one in predictions]
    assert {one.gold for one in found} == {None}


@pytest.fixture(scope="module")
def other_tasks(trained, monkeypatch_module):
    """Tasks with choices and with numbers, drafted and trained; the last tuned in all weights."""
    for name, paradigm in (("riddle", "fiat"), ("sums", "finetune")):
        store = f"--gin.Reasoning.store=store-{name}"
        for command in (
            ("data", "split", f"data/{name}.jsonl", f"--out={name}", "--shares=train=0.7,validation=0.3"),
            ("init", f"{name}/train.jsonl", "--out=."),
            ("reason", f"--import=data/{name}.jsonl", f"--gin_file={name}.gin", store, *IMPORT),
        ):
            assert trained.main(*command) == 0
        few = ("--gin.Train.epochs=1", "--gin.Prompts.max_new_tokens=6", f"--gin.Run.paradigm={paradigm}")
        trained.fiat("train", f"--workdir={name}-run", f"--gin_file={name}.gin", store, *SETTINGS, *few)
    return trained


def test_the_choices_of_each_row_are_ranked(other_tasks):
    bundle = read_bundle("riddle-run")
    rows = read_rows(bundle.task, "validation")
    found = predict(other_tasks, "riddle-run", "riddle/validation.jsonl", "riddle-answers")
    assert [list(one.scores) for one in found] == [row["choices"] for row in rows]
    model = torch_model(other_tasks, "riddle-run", "merged")
    _, feed, inputs = prompts_of(other_tasks, "riddle-run", "validation")
    for one, scores in zip(found, torch_scores(model, feed, rows, inputs), strict=True):
        assert scores == pytest.approx(one.scores, abs=1e-4)


def test_numbers_are_generated_as_transformers_generates_them(other_tasks):
    import torch

    found = predict(other_tasks, "sums-run", "sums/validation.jsonl", "sums-answers")
    model = torch_model(other_tasks, "sums-run", "merged")
    _, feed, inputs = prompts_of(other_tasks, "sums-run", "validation")
    for one, ids in zip(found, inputs, strict=True):
        tokens = torch.tensor(ids)[None].long()
        stop = feed.tokenizer.eos_id
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False,
            eos_token_id=stop, pad_token_id=stop,
        )  # fmt: skip
        assert feed.tokenizer.decode(out[0, len(ids) :].tolist()) == one.completion
        assert one.scores is None


def test_all_weights_tuned_leave_a_whole_model_and_no_adapter(other_tasks):
    assert not (other_tasks.root / "sums-run/bundle/adapter").exists()
    refused = other_tasks.fiat("export", "sums-run", "--format=peft", "--out=none", status=2)
    assert "has no adapter; use --format=merged" in refused.stderr
