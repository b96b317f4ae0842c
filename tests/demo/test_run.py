"""The demo, from nothing to a table and an answered question, in a small version."""

import hashlib
import json

import pytest
from rich.console import Console

from fiat_jax.config import Config
from fiat_jax.demo.run import run_demo
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.sections import SECTIONS, Experiment
from fiat_jax.prompts.tokenizer import Tokenizer


def test_it_reports_each_paradigm_in_each_language(ran):
    assert {(row["paradigm"], row["language"]) for row in ran.results} == {
        (paradigm, language)
        for paradigm in ("icl", "finetune-lora", "fiat")
        for language in ("all", "talu", "bren", "oshi")
    }


def test_every_figure_is_that_of_its_predictions(ran):
    held = json.loads((ran.workdir / "results.json").read_text())
    for name, digest in held["inputs"]["predictions"].items():
        path = ran.workdir / "predictions" / f"{name}.jsonl"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        right = [one.gold == one.prediction for one in read_predictions(path)]
        (value,) = (row["value"] for row in held["rows"] if row["cell"] == name and row["language"] == "all")
        assert value == pytest.approx(100 * sum(right) / len(right))


def test_it_shows_a_question_that_the_large_model_gets_wrong_and_what_to_do_next(ran):
    shown = dict(line.strip().split(maxsplit=1) for line in ran.text.splitlines() if line.startswith("   "))
    (answered,) = read_predictions(ran.workdir / "answer.jsonl")
    assert shown["FIAT"] == answered.prediction
    assert shown["θ_β"].removeprefix("alone ") != shown["right"]
    assert shown["reasoning"]
    assert "fiat init" in ran.text


def test_run_again_it_computes_nothing_and_says_the_same(ran, small, monkeypatch):
    monkeypatch.setattr("fiat_jax.demo.theta_tau.train", None)
    monkeypatch.setattr("fiat_jax.experiments.fit.train", None)
    assert run_demo(ran.workdir, Console(quiet=True), small) == ran.results


def test_its_settings_are_those_of_a_gin_file_that_an_experiment_can_start_from(ran):
    experiment = Config(SECTIONS, [str(ran.workdir / "config.gin")]).build(Experiment)
    assert experiment.paradigms == ("icl", "finetune-lora", "fiat")
    assert experiment.run.train.row_length == 192
    assert experiment.run.task.splits["test"] == str(ran.workdir / "data" / "test.jsonl")


def test_no_answer_and_no_reasoning_is_in_the_question_that_is_asked(ran):
    assert set(json.loads((ran.workdir / "question.jsonl").read_text())) == {"id", "lang", "context", "question"}


def test_its_tokenizer_reads_every_row_back(ran):
    (theta_tau,) = ran.workdir.glob("theta_tau-*")
    tokenizer = Tokenizer.from_directory(theta_tau)
    texts = (ran.workdir / "data" / "test.jsonl").read_text().splitlines()
    assert tokenizer.bos_id is not None
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


def test_transformers_reads_the_model_that_it_makes(ran):
    from transformers import AutoModelForCausalLM

    (theta_tau,) = ran.workdir.glob("theta_tau-*")
    model = AutoModelForCausalLM.from_pretrained(theta_tau)
    assert model.config.num_hidden_layers == 2
    assert model.num_parameters() == 32 * 640 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
