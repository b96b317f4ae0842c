"""The demo, from shipped models to a table, an answered question and a page, on few rows."""

import hashlib
import json

from rich.console import Console

from fiat_jax.config import Config
from fiat_jax.demo.run import CHECKPOINTS, LARGE, SMALL, UNTUNED, run_demo
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.sections import SECTIONS, Experiment
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.store import ReasoningStore

FUSED = "fiat-40-seed0"


def test_it_reports_each_paradigm_in_each_language(ran):
    languages = {row["language"] for row in ran.results}
    assert len(languages) == 11
    assert {(row["paradigm"], row["language"]) for row in ran.results} == {
        (paradigm, language) for paradigm in ("icl", "finetune-lora", "fiat") for language in languages
    }


def test_the_large_model_reasons_about_every_row_in_the_way_it_is_shown(ran):
    store = ReasoningStore(ran.workdir / "reasoning_store")
    (key,) = store.sets()
    records = list(store.records(key))
    assert len({record.row_id for record in records}) == 70
    assert sum(record.text.strip().startswith("In English: ") for record in records) > 60


def test_every_figure_is_that_of_its_predictions(ran):
    held = json.loads((ran.workdir / "results.json").read_text())
    assert len(held["inputs"]["predictions"]) == 3
    for name, digest in held["inputs"]["predictions"].items():
        path = ran.workdir / "predictions" / f"{name}.jsonl"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_it_shows_a_question_that_the_pair_mends_a_page_and_what_to_do_next(ran):
    shown = dict(line.strip().split(maxsplit=1) for line in ran.text.splitlines() if line.startswith("   "))
    large, fused = (read_predictions(ran.workdir / "predictions" / f"{name}.jsonl") for name in ("icl", FUSED))
    mended = [b for a, b in zip(large, fused, strict=True) if a.prediction != a.gold == b.prediction]
    assert shown["right"] == (mended or fused)[0].gold
    assert shown["fused"] == (mended or fused)[0].prediction
    page = (ran.workdir / "results.html").read_text()
    assert "fiat" in page
    assert shown["passage"].split(".")[0] in page
    assert "fiat init" in ran.text


def test_run_again_it_computes_nothing_and_says_the_same(ran, small, monkeypatch):
    monkeypatch.setattr("fiat_jax.experiments.fit.train", None)
    monkeypatch.setattr("fiat_jax.demo.run.ask_pair", lambda *_: {})
    assert run_demo(ran.workdir, Console(quiet=True), small) == ran.results


def test_its_settings_are_those_of_a_gin_file_that_an_experiment_can_start_from(ran):
    experiment = Config(SECTIONS, [str(ran.workdir / "config.gin")]).build(Experiment)
    assert experiment.paradigms == ("icl", "finetune-lora", "fiat")
    assert experiment.run.task.splits["test"] == str(ran.workdir / "data" / "test.jsonl")


def test_the_shipped_tokenizer_reads_every_row_back(ran):
    tokenizer = Tokenizer.from_directory(LARGE)
    texts = (ran.workdir / "data" / "test.jsonl").read_text().splitlines()
    assert tokenizer.bos_id is not None
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


def test_the_shipped_models_are_small_and_transformers_reads_them():
    from transformers import AutoModelForCausalLM

    size = sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file())
    assert size < 12e6
    large, small, untuned = (
        AutoModelForCausalLM.from_pretrained(path).num_parameters() for path in (LARGE, SMALL, UNTUNED)
    )
    assert small == untuned
    assert large > 3 * small
