"""`fiat train` with parts: two tasks drawn at their rates train one adapter, and each is measured apart."""

import json

import numpy as np
import pytest
from support.world import IMPORT, SETTINGS

from fiat_jax.config import Config
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments import sections

MIXTURE = """
Mixture.rates = {'weather': 2, 'riddle': 1}
Mixture.files = {'weather': 'weather.gin', 'riddle': 'mixed/riddle.gin'}
Mixture.draws = 60
riddle/Reasoning.store = 'store-mixed'
riddle/Reasoning.set = '0000'
"""
FEW = "--gin.Train.epochs=2"
SET = "--gin.riddle/Reasoning.set="  # a flag wins over the file, for a part too


@pytest.fixture(scope="module")
def mixed(project):
    """The world after `fiat train --workdir=mixed/run` on two of its tasks; one is a part's own file."""
    store = "--gin.Reasoning.store=store-mixed"
    shares = "--shares=train=0.7,validation=0.3"
    assert project.main("data", "split", "data/riddle.jsonl", "--out=mixed-riddle", shares) == 0
    assert project.main("init", "mixed-riddle/train.jsonl", "--out=mixed") == 0
    gin = next((project.root / "mixed").glob("*.gin"))
    gin.rename(project.root / "mixed/riddle.gin")
    text = (project.root / "mixed/riddle.gin").read_text()
    assert project.main("reason", "--import=data/riddle.jsonl", "--gin_file=mixed/riddle.gin", store, *IMPORT) == 0
    assert "Prompts.file" in text
    (project.root / "mixture.gin").write_text(MIXTURE)
    project.fiat("train", "--workdir=mixed/run", "--gin_file=mixture.gin", *SETTINGS, FEW, SET)
    return project


@pytest.fixture(scope="module", autouse=True)
def here(mixed):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mixed.root)
        yield


def test_each_part_is_reported_by_its_own_rows_and_metrics(mixed):
    held = json.loads((mixed.root / "mixed/run/results.json").read_text())
    names = {part: row["task"] for part in ("weather", "riddle") for row in held["rows"] if part in row["cell"]}
    assert len(set(names.values())) == 2
    for part, task in names.items():
        predictions = read_predictions(f"mixed/run/predictions/fiat-mixture-seed0-{part}.jsonl")
        (row,) = [row for row in held["rows"] if row["task"] == task and row["language"] == "all"]
        by_language = {
            lang: [p.prediction == p.gold for p in predictions if p.language == lang] for lang in ("en", "de")
        }
        assert row["value"] == pytest.approx(100 * np.mean([np.mean(right) for right in by_language.values()]))
        assert row["n"] == len(predictions)
    facts = held["details"]["facts"]
    assert {"weather/accuracy", "riddle/accuracy", "mean"} <= facts["selection"].keys()
    firsts = [facts["selection"][f"{part}/accuracy"] for part in names]
    assert facts["selection"]["mean"] == pytest.approx(np.mean(firsts))
    assert facts["rows_trained_on"] == 2 * 60
    assert len(facts["evaluations"]) == 3  # before the first step, and as often as there were epochs


def test_parts_are_drawn_at_their_rates(mixed):
    (rows,) = (mixed.root / "mixed/run/cache").glob("*/rows.json")
    ids = json.loads(rows.read_text())["row_ids"]
    assert 0.5 < np.mean([row_id.startswith("w") for row_id in ids]) < 0.8


def test_every_part_has_a_bundle_of_the_one_adapter_and_predicts_by_it(mixed):
    adapters = [(mixed.root / f"mixed/run/parts/{part}/bundle/adapter/adapter_model.safetensors").read_bytes()
                for part in ("weather", "riddle")]  # fmt: skip
    assert adapters[0] == adapters[1]
    mixed.fiat("evaluate", "mixed/run/parts/riddle/bundle", "--workdir=mixed/again")
    again = read_predictions("mixed/again/predictions/fiat-validation.jsonl")
    assert again == read_predictions("mixed/run/predictions/fiat-mixture-seed0-riddle.jsonl")


def test_what_was_recorded_makes_the_same_run_which_is_not_run_again(mixed):
    cell = mixed.root / "mixed/run/cells/fiat-mixture-seed0-riddle.json"
    before = cell.stat().st_mtime_ns
    done = mixed.fiat("train", "--workdir=mixed/run", "--gin_file=mixed/run/config.gin")
    assert cell.stat().st_mtime_ns == before
    assert "after step" not in done.stdout
    text = (mixed.root / "mixed/run/config.gin").read_text()
    config = Config(sections.SECTIONS, ["mixed/run/config.gin"])
    parts = {part: config.build(sections.Run, part) for part in ("weather", "riddle")}
    assert sections.mixture_as_gin(config.build(sections.Mixture), parts) == text
    assert (parts["weather"].reasoning.store, parts["riddle"].reasoning.store) == ("reasoning_store", "store-mixed")


def test_parts_may_be_read_in_two_ways(mixed):
    """One part with its reasoning and the other without."""
    few = ("--gin.Train.epochs=1", "--gin.riddle/Run.paradigm=fiat-no-reasoning")
    mixed.fiat("train", "--workdir=mixed/two", "--gin_file=mixture.gin", *SETTINGS, SET, *few)
    cells = {path.stem for path in (mixed.root / "mixed/two/predictions").glob("*.jsonl")}
    assert cells == {"fiat-mixture-seed0-weather", "fiat-no-reasoning-mixture-seed0-riddle"}
    config = Config(sections.SECTIONS, ["mixed/two/config.gin"])
    read = {part: config.build(sections.Run, part).paradigm for part in ("weather", "riddle")}
    assert read == {"weather": "fiat", "riddle": "fiat-no-reasoning"}
    mixed.fiat("evaluate", "mixed/two/parts/riddle/bundle", "--workdir=mixed/without")
    again = read_predictions("mixed/without/predictions/fiat-no-reasoning-validation.jsonl")
    assert again == read_predictions("mixed/two/predictions/fiat-no-reasoning-mixture-seed0-riddle.jsonl")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--gin.riddle/Train.epochs=9"], "differ in their train, and train one model"),
        (["--gin.riddel/Task.name=x"], "'riddel' is no part of Mixture.rates"),
        (
            ["--gin.Mixture.rates={'weather': 1}"],
            "'riddle' is no part of Mixture.rates; leave out riddle/; parts",
        ),
        (["--gin.Mixture.files={'sums': 'weather.gin'}"], "sums/Task: 'sums' is no part"),
        (["--gin.Mixture.rates={'weather': 1, 'riddle': 0}"], "each of a rate above 0"),
        (["--gin.Run.paradigm=icl"], "icl trains none"),
        (["--gin.riddle/Run.paradigm=finetune"], "one trains adapters and one all weights"),
        (["--gin.riddle/Run.paradigm=fiat-dropout"], "reads every row in one way"),
        (["--gin.Mixture.files={'weather': 'gone.gin'}"], "gone.gin: no such file"),
    ],
)
def test_a_mixture_that_cannot_be_trained_is_one_error(mixed, capsys, extra, said):
    command = ["train", "--workdir=never-made", "--gin_file=mixture.gin", *SETTINGS, SET, *extra]
    assert mixed.main(*command) == 2
    assert said in capsys.readouterr().err
    assert not (mixed.root / "never-made").exists()


def test_an_experiment_takes_no_mixture(mixed, capsys):
    assert mixed.main("experiment", "--workdir=never-made", "--gin_file=mixture.gin", *SETTINGS) == 2
    assert "Mixture.rates is for `fiat train`" in capsys.readouterr().err
