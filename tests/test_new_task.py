"""docs/new_task.md, run as it stands: a user's own rows to a finished experiment."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.world import weather_rows, write_rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "new_task.md").read_text("utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
# what a test may change: where rows and model are, and how long it takes
SHORT = ("Train.epochs=1", "Train.min_steps=2", "Train.batch_rows=8", "Train.evaluate_every=0", "Lora.rank=4")


@pytest.fixture(scope="module")
def ran(project, tmp_path_factory):
    """Each block of commands with what it printed, all in one shell in a folder that holds configs/ and the rows."""
    root = tmp_path_factory.mktemp("new_task")
    write_rows(root / "rows.jsonl", weather_rows(120))
    (root / "configs").symlink_to(ROOT / "configs")
    own = "".join(f" --gin.{one}" for one in SHORT)
    named = "\n".join(COMMANDS).replace("path/to/rows.jsonl", "rows.jsonl")
    script = named.replace("path/to/a/small/model", str(project.model)).replace("laptop.gin", f"laptop.gin{own}")
    head = f'set -eu\nfiat() {{ echo "+ fiat $*"; "{sys.executable}" -m fiat_jax "$@"; }}\n'
    done = subprocess.run(["bash", "-c", head + script], cwd=root, env=project.env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return root, done.stdout.split("+ fiat ")[1:]


def test_the_page_shows_rows_as_they_are_read():
    (shown,) = re.findall(r"```json\n(.*?)\n```", PAGE)
    assert json.loads(shown) == weather_rows(1)[0]


def test_every_command_of_the_page_runs_and_no_fiat_stands_outside_of_them(ran):
    _, told = ran
    named = [line.split()[1] for block in COMMANDS for line in block.splitlines() if line.startswith("fiat ")]
    assert [one.split()[0] for one in told] == named
    assert {"data", "init", "prompt", "reason", "experiment", "evaluate"} == set(named)
    assert not re.findall(r"^ *fiat ", re.sub(r"```sh\n.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE)


def test_the_table_has_the_systems_that_the_page_names_on_rows_that_nothing_was_chosen_by(ran):
    root, _ = ran
    results = json.loads((root / "runs" / "mine" / "results.json").read_text())
    assert {row["paradigm"] for row in results["rows"]} == {
        "icl",
        "zero-shot",
        "finetune-lora",
        "fiat",
        "fiat-answer-only",
    }
    assert {row["split"] for row in results["rows"]} == {"validation"}
    tested = json.loads((root / "runs" / "mine-test" / "results.json").read_text())
    assert {(row["paradigm"], row["split"]) for row in tested["rows"]} == {("fiat", "test")}


def test_the_larger_experiment_trains_its_new_cell_alone(ran):
    _, told = ran
    trained = [{line.split()[0] for line in one.splitlines() if "after step" in line} for one in told]
    first, second = (one for one, text in zip(trained, told, strict=True) if text.startswith("experiment") and one)
    assert {name.rsplit("-", 2)[0] for name in first} == {"finetune-lora", "fiat"}
    assert {name.rsplit("-", 2)[0] for name in second} == {"fiat-answer-only"}
