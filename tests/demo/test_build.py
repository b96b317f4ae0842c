"""The demo's models, made from nothing: what of their texts is learnt, and that what is made is kept."""

import random

import numpy as np
import pytest
from rich.console import Console

from fiat_jax.data.batches import TrainBatches
from fiat_jax.demo.build import FAR, NEAR, PartsLayout, Recipe, build, pretraining_examples, stage, tuning_examples
from fiat_jax.demo.families import Families
from fiat_jax.demo.languages import languages
from fiat_jax.demo.run import LARGE
from fiat_jax.demo.world import PRETRAINING, Teller
from fiat_jax.prompts.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_directory(LARGE)


@pytest.mark.parametrize("kind", ["pages", "prompts"])
def test_what_is_learnt_has_weight_and_what_is_read_has_none(tokenizer, kind):
    make = pretraining_examples if kind == "pages" else tuning_examples
    batches = TrainBatches(make(tokenizer, 40, 7, True), 448, 4, 0, PartsLayout)
    draw = random.Random("7 pretraining" if kind == "pages" else "7 tuning True")
    families = Families(draw, languages(), Teller(draw, PRETRAINING))
    wanted = []
    for _ in range(40):
        parts = families.page() if kind == "pages" else families.prompt(draw.choice((0, 1, 2, 3, 3)), ("think",))
        wanted.append(("".join(part.text for part in parts), "".join(part.text for part in parts if part.learnt)))
    found = []
    for step in range(batches.num_batches(0)):
        batch = batches.batch(step)
        assert (batch["tokens"] >= 0).all()
        assert (batch["targets"] >= 0).all()
        for row in range(4):
            for segment in range(1, batch["segments"][row].max() + 1):
                read = batch["tokens"][row][batch["segments"][row] == segment]
                example = batch["examples"][row][batch["segments"][row][batch["target_positions"][row]] == segment]
                (number,) = set(example.tolist()) - {-1}
                mine = batch["examples"][row] == number
                learnt = batch["targets"][row][mine & (batch["weights"][row] > 0)]
                assert learnt[-1] == tokenizer.eos_id
                found.append((tokenizer.decode(read[1:]), tokenizer.decode(learnt[:-1])))
    assert sorted(found) == sorted(wanted)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Models of nearly no training, made as the shipped ones are."""
    out = tmp_path_factory.mktemp("models")
    recipe = Recipe("tiny", 32, (NEAR, FAR), 2, 64, stage(420, 1e-3), stage(300, 1e-3, row_length=512), thinks=False)
    build(out, Console(quiet=True), [recipe])
    return out, recipe


@pytest.mark.slow
def test_models_can_be_made_from_nothing(built):
    from safetensors.numpy import load_file

    out, _ = built
    before, after = (load_file(out / name / "model.safetensors") for name in ("tiny-base", "tiny"))
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_what_is_made_is_not_made_again(built):
    out, recipe = built
    made = (out / "tiny" / "model.safetensors").stat().st_mtime_ns
    build(out, Console(quiet=True), [recipe])
    assert (out / "tiny" / "model.safetensors").stat().st_mtime_ns == made
