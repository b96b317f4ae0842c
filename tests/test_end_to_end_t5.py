"""The main job with an encoder-decoder: the same commands, and peft and transformers give the same answers."""

import json
import shutil

import pytest
from support.world import SETTINGS

from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.answers import reasons_of
from fiat_jax.experiments.bundle import open_feed, read_bundle
from fiat_jax.tasks.task import read_rows

T5 = "--gin.Model.path=t5"


@pytest.fixture(scope="module")
def world(project):
    """The tiny world with a random T5 of two depths, tuned on a task of labels and, in all weights, on numbers."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=400,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(project.root / "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(project.model / name, project.root / "t5" / name)
    project.fiat("train", "--workdir=t5-run", "--gin_file=weather.gin", *SETTINGS, T5)
    shares = "--shares=train=0.7,validation=0.3"
    assert project.main("data", "split", "data/sums.jsonl", "--out=numbers", shares) == 0
    assert project.main("init", "numbers/train.jsonl", "--out=.") == 0
    few = ("--gin.Train.epochs=1", "--gin.Prompts.max_new_tokens=6", "--gin.Run.paradigm=finetune")
    project.fiat("train", "--workdir=t5-sums-run", "--gin_file=numbers.gin", *SETTINGS, T5, *few)
    return project


@pytest.fixture(scope="module", autouse=True)
def here(world):
    """The tests of this file stand in the world's folder, to which its paths are relative."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.root)
        yield


def read_by_others(world, run, form):
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    world.fiat("export", run, f"--format={form}", f"--out={run}-{form}")
    if form == "merged":
        return AutoModelForSeq2SeqLM.from_pretrained(f"{run}-merged").eval()
    return PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained("t5"), f"{run}-{form}").eval()


def predicted(world, run, split):
    """A bundle's predictions of a split of its task, how it renders rows, and what θ_τ reads of each."""
    bundle = read_bundle(run)
    rows, feed = read_rows(bundle.task, split), open_feed(bundle)
    world.fiat("predict", run, bundle.task.splits[split], f"--out={run}.jsonl")
    inputs = [feed.render(row, reasons_of(bundle, rows, None), with_target=False).inputs for row in rows]
    return read_predictions(f"{run}.jsonl"), rows, feed, inputs


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_other_programs_give_every_label_the_same_likelihood(world, form):
    import torch

    model = read_by_others(world, "t5-run", form)
    found, rows, feed, inputs = predicted(world, "t5-run", "test")
    for one, row, ids in zip(found, rows, inputs, strict=True):
        for label, answer in zip(feed.task.candidates(row), feed.candidates(row), strict=True):
            with torch.no_grad():
                labels = torch.tensor(answer[None]).long()
                loss = model(input_ids=torch.tensor(ids[None]).long(), labels=labels).loss
            assert -float(loss) * len(answer) == pytest.approx(one.scores[label], abs=1e-4)


def test_what_the_encoder_read_ends_with_the_end_token_in_training_as_in_prediction(world):
    _, rows, feed, inputs = predicted(world, "t5-run", "test")
    assert all(ids[-1] == feed.tokenizer.eos_id for ids in inputs)
    reasons = reasons_of(read_bundle("t5-run"), rows, None)
    trained_on = [feed.render(row, reasons, with_target=True).inputs for row in rows]
    assert [ids.tolist() for ids in inputs] == [ids.tolist() for ids in trained_on]


def test_numbers_are_generated_as_transformers_generates_them(world):
    import torch

    model = read_by_others(world, "t5-sums-run", "merged")
    found, _, feed, inputs = predicted(world, "t5-sums-run", "validation")
    for one, ids in zip(found, inputs, strict=True):
        read, stop = torch.tensor(ids[None]).long(), feed.tokenizer.eos_id
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": stop, "pad_token_id": 0}
        out = model.generate(read, attention_mask=torch.ones_like(read), decoder_start_token_id=0, **options)
        assert feed.tokenizer.decode(out[0, 1:].tolist()) == one.completion


def test_a_tokenizer_of_another_kind_of_model_is_refused(world):
    config = json.loads((world.root / "t5/config.json").read_text())
    shutil.copytree("t5", "t5-odd")
    (world.root / "t5-odd/config.json").write_text(json.dumps(config | {"is_encoder_decoder": False}))
    refused = ("train", "--workdir=none", "--gin_file=weather.gin", *SETTINGS, "--gin.Model.path=t5-odd")
    assert "has is_encoder_decoder False" in world.fiat(*refused, status=2).stderr
