"""The command line: what it costs to start, what verbs write, and how they end when they are stopped."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.world import IMPORT, SETTINGS

from fiat_jax.config import Config
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments import sections
from fiat_jax.tasks.task import Task, read_rows

TRAIN = ("train", "--gin_file=weather.gin", *SETTINGS)


def results(world, workdir):
    return json.loads((world.root / workdir / "results.json").read_text())


def task_of(world) -> Task:
    task = Config(sections.SECTIONS, [str(world.root / "weather.gin")]).build(Task)
    return dataclasses.replace(task, splits={k: str(world.root / v) for k, v in task.splits.items()})


def test_help_imports_nothing_that_takes_time():
    code = "import sys; from fiat_jax.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "fiat_jax.cli" in loaded
    assert not {"jax", "numpy", "rich", "tensorflow", "seqio", "gin"} & set(loaded)


def test_every_verb_has_help(capsys):
    from fiat_jax.cli import VERBS, main

    for verb in VERBS:
        with pytest.raises(SystemExit) as ended:
            main([*verb.split("_"), "--help"])
        assert ended.value.code == 0
        assert "usage: fiat " + verb.replace("_", " ") in capsys.readouterr().out


def test_every_verb_has_its_function():
    from fiat_jax.cli import VERBS

    for verb, module in VERBS.items():
        assert callable(getattr(importlib.import_module(f"fiat_jax.verbs.{module}"), verb))


def test_split_and_draft_make_a_task_that_lints_clean_and_renders(project, capsys):
    parts = {split: read_rows(task_of(project), split) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 96, "validation": 12, "test": 12}
    assert all(sum(row["lang"] == "en" for row in rows) == len(rows) / 2 for rows in parts.values())
    look = ("weather.yaml", "--task=weather.gin", "--tokenizer=model", "--gin.Reasoning.store=reasoning_store")
    assert project.main("prompt", "lint", *look) == 0
    assert "nothing to mend" in capsys.readouterr().out
    assert project.main("prompt", "render", *look, "--row=1") == 0
    shown = capsys.readouterr().out
    row = parts["train"][1]
    for text in (row["report"], row["reasoning"], f"Answer: {row['answer']}</s>", "what θ_β is asked"):
        assert text in shown


def test_import_again_writes_nothing(project, capsys):
    assert project.main("reason", "--import=data/weather.jsonl", "--gin_file=weather.gin", *IMPORT) == 0
    assert "0 rows imported" in capsys.readouterr().out.replace("\n", " ")


def test_the_table_is_the_last_thing_printed(trained):
    lines = (trained.root / "run.txt").read_text().splitlines()
    assert lines[-1] == "results: run/results.json"
    assert any("fiat " in line and "[" in line for line in lines[-12:])


def test_the_written_settings_are_read_back_as_the_same_run(trained):
    written = Config(sections.SECTIONS, [str(trained.root / "run/config.gin")]).build(sections.Run)
    asked = [argument.removeprefix("--gin.") for argument in SETTINGS]
    given = Config(sections.SECTIONS, [str(trained.root / "weather.gin")], asked).build(sections.Run)
    assert written == given


def test_a_finished_run_is_answered_from_what_is_stored_without_tensorflow(trained):
    before = results(trained, "run")
    code = "import sys; from fiat_jax.cli import main; main(sys.argv[1:]); print('loaded', *sys.modules)"
    command = [sys.executable, "-c", code, *TRAIN, "--workdir=run"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=trained.root, env=trained.env)
    loaded = done.stdout.rsplit("loaded", 1)[1].split()
    assert "jax" in loaded
    assert not {"tensorflow", "seqio", "tensorboard"} & set(loaded)
    assert "after step" not in done.stdout
    assert results(trained, "run")["rows"] == before["rows"]


def test_a_run_that_is_killed_and_one_that_is_stopped_end_as_the_one_that_was_not(trained):
    for sign, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        process = subprocess.Popen(
            [sys.executable, "-m", "fiat_jax", *TRAIN, "--workdir=stopped", "--gin.Train.checkpoint_every=7"],
            cwd=trained.root, env=trained.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        log = trained.root / "stopped/cells/fiat-96-seed0/lr-0.01/train_log.jsonl"
        seen = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size <= seen + 200):
            time.sleep(0.02)
        process.send_signal(sign)
        told = process.communicate()[1]
        assert process.returncode == status, told
    assert "all is saved: run the same command to go on" in told
    trained.fiat(*TRAIN, "--workdir=stopped", "--gin.Train.checkpoint_every=7")
    name = "predictions/fiat-96-seed0.jsonl"
    assert read_predictions(trained.root / "stopped" / name) == read_predictions(trained.root / "run" / name)


def test_a_dry_run_shows_everything_and_trains_nothing(trained):
    shown = trained.fiat(*TRAIN, "--workdir=dry", "--dry_run").stdout
    for text in ("Train.epochs = 6", "input tokens, ", "88 to train on, 8 to select by", " trained, 25,824 frozen"):
        assert text in shown
    assert "memory of one step in MiB a device, as compiled: arguments" in shown
    assert not (trained.root / "dry").exists()


def test_a_verb_without_settings_refuses_them(project, capsys):
    assert project.main("init", "weather/train.jsonl", "--gin.Train.epochs=1") == 2
    assert "takes no settings: leave out --gin.Train.epochs=1" in capsys.readouterr().err


def test_an_interrupt_outside_of_training_is_restartable_too(project, monkeypatch, capsys):
    from fiat_jax.verbs import tasks

    monkeypatch.setattr(tasks, "init", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert project.main("init", "weather/train.jsonl") == 75
    assert "goes on from what is saved" in capsys.readouterr().err


def test_on_linux_the_command_starts_over_once_so_that_malloc_asks_for_huge_pages(monkeypatch):
    from fiat_jax import __main__ as command

    started = []
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(command, "main", lambda: 7)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fiat_jax", "demo"])
    monkeypatch.setattr(os, "environ", {})
    command.run()
    assert started == [(sys.executable, [sys.executable, "-m", "fiat_jax", "demo"])]
    assert os.environ == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    monkeypatch.setattr(os, "environ", {"GLIBC_TUNABLES": ""})
    assert command.run() == 7
    assert len(started) == 1
