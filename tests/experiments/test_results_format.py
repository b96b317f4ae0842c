"""What verbs write has the fields that docs/results-format.md names, and no others."""

import json
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/results-format.md").read_text()


def fields_of(text: str) -> set[str]:
    """Return the fields that the first column of a table names."""
    lines = re.findall(r"^\|(.+?)\|", text, flags=re.MULTILINE)
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line)}


def part(begin: str, end: str) -> str:
    """Return the page from one text to another."""
    return PAGE[PAGE.index(begin) : PAGE.index(end)]


def named_in(line_begins: str) -> set[str]:
    """Return the names of a sentence of the page, without those in brackets."""
    line = next(line for line in PAGE.splitlines() if line.startswith(line_begins))
    return set(re.findall(r"`([^`]+)`", re.sub(r"[({\[][^)}\]]*[)}\]]", "", line[len(line_begins) :])))


@pytest.fixture(scope="module", params=["train", "experiment"])
def workdir(request):
    if request.param == "experiment":
        return request.getfixturevalue("experiment").workdir
    return request.getfixturevalue("trained").root / "run"


@pytest.fixture(scope="module")
def held(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_results_have_the_fields_of_the_page(held):
    of_experiments = set() if held["verb"] == "experiment" else {"statistics"}
    assert set(held) == fields_of(part("## results.json", "`inputs` of")) - of_experiments
    assert held["schema"] == 1


def test_every_row_and_every_comparison_has_the_fields_of_the_page(held):
    rows = fields_of(part("A row of `rows`:", "A row of `comparisons`"))
    assert {frozenset(row) for row in held["rows"]} == {frozenset(rows)}
    wanted = {frozenset(named_in("A row of `comparisons`:"))} if held["verb"] == "experiment" else set()
    assert {frozenset(row) for row in held["comparisons"]} == wanted


def test_statistics_have_the_fields_of_the_page(experiment):
    for name, rows in experiment.results["statistics"].items():
        assert {frozenset(row) for row in rows} == {frozenset(named_in(f"- A row of `{name}`:"))}


def test_every_reported_row_has_the_fields_of_the_page(experiment):
    fields = fields_of(part("## rows.jsonl", "## train_log.jsonl"))
    lines = (experiment.workdir / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert {frozenset(json.loads(line)) for line in lines} == {frozenset(fields)}
    told = experiment.results["inputs"]["rows"]["theta_beta_tokens"]
    assert {split: (one["rows"], one["counted"]) for split, one in told.items()} == {
        "train": (96, 0),
        "validation": (12, 0),
    }


def test_every_cell_has_the_facts_of_the_page(held):
    trained = fields_of(part("`details`:", "## Predictions"))
    for name, facts in held["details"]["cells"].items():
        always = {"key", "predictions_sha256"}
        assert set(facts) == always | ({"set"} if name == "icl" else trained)


def test_every_prediction_has_the_fields_of_the_page(workdir):
    fields = fields_of(part("## Predictions", "Every figure can"))
    lines = [line for file in workdir.glob("predictions/*.jsonl") for line in file.read_text().splitlines()]
    assert {frozenset(json.loads(line)) for line in lines} == {frozenset(fields)}


def test_every_line_of_a_log_has_the_fields_of_the_page(workdir):
    step, evaluation = {"step", "loss", "grad_norm", "tokens", "seconds"}, {"step", "evaluation"}
    section = PAGE[PAGE.index("## train_log.jsonl") :]
    assert all(f"`{name}`" in section for name in step | evaluation)
    for log in workdir.glob("cells/*/lr-*/train_log.jsonl"):
        found = {frozenset(json.loads(line)) for line in log.read_text().splitlines()}
        assert found == {frozenset(step), frozenset(evaluation)}
