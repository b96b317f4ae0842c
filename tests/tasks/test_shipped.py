"""The tasks that ship: settings, instruction files and metrics, on real rows where they are, else in their format."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from support.world import write_rows

from fiat_jax.config import Config
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predict import answer_predictions
from fiat_jax.evaluation.scores import score_predictions
from fiat_jax.experiments.feed import rows_by_id
from fiat_jax.experiments.sections import SECTIONS, Prompts
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.tasks.task import Task, read_rows

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "tasks").glob("*.gin"))
REAL = {  # rows of each split, as the data sets have them
    "esnli": {"train": 8640, "validation": 1202},
    "cqa": {"train": 8741, "validation": 1000},
    "svamp": {"train": 650, "validation": 150},
    "xor_attriqa": {"train": 250, "validation": 500},
    "mgsm": {"test": 2750, "exemplars": 88},
}
TOLD = "question: Wo? title: Ort context: It is in Rome.\tin Rome\n"


def shipped(name: str, *bindings: str) -> tuple[Task, str]:
    config = Config(SECTIONS, [str(ROOT / "configs" / "tasks" / f"{name}.gin")], bindings)
    return config.build(Task), str(ROOT / config.build(Prompts).file)


@pytest.fixture
def real(shared_data):
    def real(name: str) -> tuple[Task, str]:
        task, file = shipped(name)
        splits = {k: v.replace("../shared/data", str(shared_data)) for k, v in task.splits.items()}
        return dataclasses.replace(task, splits=splits), file

    return real


@pytest.mark.parametrize("name", SHIPPED)
def test_the_instruction_file_speaks_of_the_task_s_fields_and_labels(name):
    task, file = shipped(name)
    found = load_instructions(file)
    assert set(found.fields) - {task.choices_field} == set(task.fields)
    assert set(found.labels) == set(task.labels)


@pytest.mark.parametrize("name", REAL)
def test_real_rows_are_read_and_right_answers_score_100_in_every_language(name, real):
    task, file = real(name)
    rows = {split: read_rows(task, split) for split in task.splits}
    assert {split: len(found) for split, found in rows.items()} == REAL[name]
    reported = rows["validation" if "validation" in rows else "test"]
    plain = dataclasses.replace(task, metrics=task.metrics[:1])
    right = answer_predictions(plain, reported, [row[task.answer_field] for row in reported])
    assert {row["value"] for row in score_predictions(plain, reported, right, resamples=1)} == {100}
    found = load_instructions(file, rows_by_id(task))
    for row in reported[::97]:
        shown = found.reasoning_prefix(found.reasoning.exemplars.choose(row))
        assert all(exemplar.rationale in shown for exemplar in found.exemplars_for(row))


def test_xor_attriqa_has_average_precision_and_its_prevalence_in_each_of_five_languages(real):
    task, _ = real("xor_attriqa")
    rows = read_rows(task, "validation")
    scored = answer_predictions(task, rows, ["false"] * len(rows))
    ranked = [dataclasses.replace(one, scores={"true": -1.0, "false": -0.5}) for one in scored]
    found = {
        (row["metric"], row["language"]): row["value"] for row in score_predictions(task, rows, ranked, resamples=1)
    }
    assert found["accuracy", "all"] == pytest.approx(85.0, abs=0.1)
    for language, positive in {"bn": 11, "fi": 20, "ja": 9, "ru": 22, "te": 13}.items():
        assert found["average_precision", language] == pytest.approx(found["prevalence", language])
        assert found["prevalence", language] == pytest.approx(positive)


def test_each_language_of_mgsm_is_shown_exemplars_of_its_own(real):
    task, file = real("mgsm")
    found = load_instructions(file, rows_by_id(task))
    for row in read_rows(task, "test")[::125]:
        assert {exemplar.row["lang"] for exemplar in found.exemplars_for(row)} == {row["lang"]}
        for exemplar in found.exemplars_for(row):
            assert found.extract(found.completion(exemplar)).answer == exemplar.answer


def test_gsm8k_s_answer_is_what_stands_behind_its_mark_and_its_solution_the_rationale(tmp_path):
    line = {"question": "Half of 48?", "answer": "48/2 = <<48/2=24>>24\nSo it is 24.\n#### 1,024"}
    file = write_rows(tmp_path / "train.jsonl", [line] * 4)
    task, instructions = shipped("gsm8k", f"TRAIN_FILE={file}", f"TEST_FILE={file}")
    row = read_rows(task, "train")[0]
    assert (row["answer"], row["rationale"]) == ("1,024", "48/2 = <<48/2=24>>24\nSo it is 24.")
    shown = load_instructions(instructions, rows_by_id(task)).reasoning_prefix("default")
    assert "####" not in shown
    assert shown.count("So it is 24. So the answer is 1,024.") == 4
    write_rows(file, [{"question": "Half of 48?", "answer": "24"}])
    with pytest.raises(UserError, match="line 1: field 'answer' lacks '####'"):
        read_rows(task, "train")


def test_xtreme_up_is_read_from_a_file_a_language_as_jsonl_and_as_tsv(tmp_path):
    row = {"question": "Wo?", "title": "Ort", "context": "It is in Rome.", "target": "in Rome"}
    for lang in ("bn", "te"):
        write_rows(tmp_path / f"{lang}.jsonl", [row, {**row, "target": "No Answer"}])
        (tmp_path / f"{lang}.tsv").write_text(TOLD + TOLD.replace("in Rome", 'a "quoted" word'))
    for name, pattern in (("xtreme_up_qa", "*.jsonl"), ("xtreme_up_qa_tsv", "*.tsv?columns=input,target")):
        source = f"{tmp_path}/{pattern}"
        task, _ = shipped(name, f"XTREME_UP_TRAIN='{source}'", f"XTREME_UP_VALIDATION='{source}'")
        rows = read_rows(task, "validation")
        assert [task.language(one) for one in rows] == ["bn", "bn", "te", "te"]
        assert len({one["line"] for one in rows}) == 4
        told = answer_predictions(task, rows, ["Rome"] * 4)
        found = {row["metric"]: row["value"] for row in score_predictions(task, rows, told, resamples=1)}
        assert found["xtreme_up_f1"] == pytest.approx(100 * (2 / 3) / 2)  # one shared word of two and one, and none


def test_a_pattern_that_no_file_has_and_a_line_short_of_a_column_are_told(tmp_path):
    task, _ = shipped("xtreme_up_qa_tsv", f"XTREME_UP_TRAIN='{tmp_path}/*.tsv?columns=input,target'")
    with pytest.raises(UserError, match="no file has such a name"):
        read_rows(task, "train")
    (tmp_path / "bn.tsv").write_text(TOLD + "no tab here\n")
    with pytest.raises(UserError, match=r"bn\.tsv line 2: 1 cells, but the header has 2"):
        read_rows(task, "train")


def test_rows_of_several_files_keep_a_field_named_file_of_their_own(tmp_path):
    with contextlib.chdir(tmp_path):
        write_rows(Path("a.jsonl"), [{"id": "1", "x": "?", "answer": "7", "file": "theirs"}])
        task = Task("t", {"all": "*.jsonl"}, fields=("x",), kind="text")
        assert read_rows(task, "all")[0]["file"] == "theirs"
        assert json.loads(Path("a.jsonl").read_text())["file"] == "theirs"
