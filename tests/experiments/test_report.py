"""Reports: their figures against the run's own, their form, and what they do with bad runs and harmful texts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.report_run import EVIL, LANGUAGES, Plan, write_run

from fiat_jax.cli import main
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.report.assemble import write_report
from fiat_jax.experiments.report.training import Rates
from fiat_jax.reasoning.cost import Prices

RATES = Rates(Prices(1.0, 3.0, 1.0), 2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "one"
    write_run(workdir)
    return workdir


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> dict[str, str]:
    """The report in every form, by suffix."""
    out = tmp_path_factory.mktemp("out")
    paths = [out / f"report.{suffix}" for suffix in ("html", "md", "json", "tex")]
    write_report([run], paths, RATES)
    return {path.suffix: path.read_text("utf-8") for path in paths}


@pytest.fixture(scope="module")
def held(written) -> dict[str, dict]:
    """Section → title of a table → table, as JSON has them."""
    sections = json.loads(written[".json"])["sections"]
    return {one["name"]: {table["title"]: table for table in one["tables"]} for one in sections}


def rows_of(table) -> list[dict[str, str]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def right(run, cell) -> dict[str, bool]:
    return {one.id: one.prediction == one.gold for one in read_predictions(run / "predictions" / f"{cell}.jsonl")}


def small(tmp_path, **changed) -> Path:
    """A run of one seed and size with few rows."""
    plan = {"rows": 48, "sizes": (200,), "seeds": (0,), "metrics": ("accuracy",), **changed}
    write_run(tmp_path, Plan(**plan))
    return tmp_path


def test_the_table_is_that_of_the_results(run, held):
    results = json.loads((run / "results.json").read_text())
    table = rows_of(held["scores"]["accuracy, %, of 240 rows of test"])
    for row in results["statistics"]["systems"]:
        if (row["metric"], row["language"]) == ("accuracy", "all"):
            (shown,) = [one for one in table if one["system"] == row["paradigm"]]
            low, high = row["ci95"]
            column = f"{row['size']:,} rows" if row["size"] else "200 rows"
            assert shown[column] == f"{row['value']:.1f} [{low:.1f}, {high:.1f}]"


def test_every_language_has_its_line_with_a_p_corrected_for_their_number(held):
    scores = rows_of(held["languages"]["accuracy, %, 1,000 rows"])
    assert [row["language"] for row in scores] == sorted(LANGUAGES)
    table = held["languages"]["Differences in accuracy by language, 1,000 rows"]
    assert len(table["rows"]) == 3 * len(LANGUAGES)
    assert all(record["p_holm"] >= record["p"] for record in table["records"])


def test_the_square_counts_every_row_once(run, held):
    with_it, without = right(run, "fiat-1000-seed0"), right(run, "fiat-no-reasoning-1000-seed0")
    pairs = [(with_it[row], without[row]) for row in with_it]
    square = [row[1:] for row in held["rows"]["1,000 rows, seed 0"]["rows"]]
    numbers = [[int(re.match(r"\d+", cell)[0]) for cell in row] for row in square]
    assert numbers == [
        [pairs.count((True, True)), pairs.count((False, True))],
        [pairs.count((True, False)), pairs.count((False, False))],
    ]
    assert sum(map(sum, numbers)) == 240


def test_gains_are_those_of_the_predictions(run, held):
    (table,) = held["gains"].values()
    (record,) = [one for one in table["records"] if one["size"] == 1000]
    gains = {}
    for language in LANGUAGES:
        share = {}
        for name in ("fiat", "fiat-no-reasoning"):
            found = [read_predictions(run / "predictions" / f"{name}-1000-seed{seed}.jsonl") for seed in range(3)]
            share[name] = np.mean([p.prediction == p.gold for seed in found for p in seed if p.language == language])
        gains[language] = 100 * (share["fiat"] - share["fiat-no-reasoning"])
    assert record["gains"] == pytest.approx(gains, abs=0.6)  # the mean of 2,000 random halves
    assert record["rank_correlation"] < 0  # the simulated reasoning helps languages that score low


def test_the_audit_counts_what_theta_beta_wrote(run, held):
    icl = right(run, "icl")
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    overall = held["reasoning"]["Reasoning by language"]["records"][-1]
    assert overall["rows"] == 240
    assert overall["truncated"] == sum(row["finish_reason"] == "length" for row in rows)
    assert overall["agreement"]["value"] == pytest.approx(100 * np.mean(list(icl.values())))
    with_it = [right(run, f"fiat-1000-seed{seed}") for seed in range(3)]
    shares = [np.mean([seed[row] for seed in with_it]) for row in icl if icl[row]]
    assert overall["score_where_right"] == pytest.approx(100 * np.mean(shares))


def test_a_point_costs_what_is_spent_beyond_the_baseline_over_what_is_gained(held):
    (table,) = held["cost"].values()
    bills = {(one["system"], one["size"]): one for one in table["records"]}
    fiat, base = bills["fiat", 200], bills["finetune-lora", 200]
    assert fiat["theta_beta_tokens"] == (200 + 240) * 320  # 300 read and 20 written for each row of training and report
    assert base["theta_beta_tokens"] == 0
    asked = 440 * (300 * 1.0 + 20 * 3.0) / 1e6
    assert fiat["money"] == pytest.approx(asked + 2.0 * 20 / 3600)
    gained = fiat["value"] - base["value"]
    assert fiat["per_point"]["money"] == pytest.approx(asked / gained)
    assert "money" in held["cost"]["Cost of a system"]["columns"]


def test_curves_begin_at_step_0(held):
    tables = [table for name, table in held["curves"].items() if name.startswith("Learning curves")]
    assert len(tables) == 2
    assert all(table["rows"][0][0] == "0" for table in tables)
    assert {row[1] for table in tables for row in table["rows"][:1]} == {"50.0"}


def test_calibration_and_instructions_are_told(held):
    assert {row[0] for row in held["calibration"]["Calibration error"]["rows"]} == {
        "icl", "finetune-lora", "fiat-no-reasoning", "fiat"
    }  # fmt: skip
    records = held["instructions"]["Instructions by base model"]["records"]
    assert [(one["size"], one["at_start"]) for one in records] == [(200, [50.0, 50.0]), (1000, [50.0, 50.0])]


def test_the_same_run_makes_the_same_bytes(run, written, tmp_path):
    script = f"from fiat_jax.cli import main; main(['report', {str(run)!r}, '--out', {str(tmp_path / 'r.html')!r}, "
    script += "'--price_prompt=1', '--price_completion=3', '--price_hour=2'])"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env={"PYTHONHASHSEED": "7"})
    assert (tmp_path / "r.html").read_text("utf-8") == written[".html"]


def test_nothing_is_fetched_and_ids_are_unique(written):
    page = written[".html"]
    assert not re.findall(r"""(?:src|href|action)=["'](?!#|data:)""", page.replace(json.dumps(EVIL)[1:-1], ""))
    assert "@import" not in page
    assert "default-src &#39;none&#39;" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert len(page) < 1_000_000


def test_a_text_that_ends_the_script_stays_a_text(written, run):
    page = written[".html"]
    first = json.loads((run / "rows.jsonl").read_text().splitlines()[0])
    assert first["reasoning"] == EVIL
    assert page.count("<script") == page.count("</script>") == 2  # the rows and the page's own
    rows = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert rows[0]["reasoning"] == EVIL
    assert "<img" not in page


def test_names_of_the_users_are_escaped_everywhere(tmp_path):
    evil = "<script>alert(1)</script>$x$_&|"
    workdir = small(tmp_path / "run", languages=("bn", "fi", "te"))
    for path in workdir.rglob("*.json*"):
        path.write_text(path.read_text().replace('"bn"', json.dumps(evil)))
    results = json.loads((workdir / "results.json").read_text())
    from fiat_jax.experiments.files import file_hash, write_json

    results["inputs"]["rows"]["sha256"] = file_hash(workdir / "rows.jsonl")
    paths = {cell: workdir / "predictions" / f"{cell}.jsonl" for cell in results["inputs"]["predictions"]}
    results["inputs"]["predictions"] = {cell: file_hash(path) for cell, path in paths.items()}
    write_json(workdir / "results.json", results)
    outputs = [tmp_path / f"r.{suffix}" for suffix in ("html", "md", "tex")]
    write_report([workdir], outputs, Rates())
    page, markdown, latex = (path.read_text() for path in outputs)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x$_&amp;|" in page
    assert r"\<script\>alert(1)\</script\>$x$\_&\|" in markdown
    assert r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}\$x\$\_\&|" in latex


def test_what_a_run_lacks_is_left_out_and_said(tmp_path):
    workdir = small(tmp_path / "run", paradigms=("icl", "finetune-lora"), languages=("en",))
    report = write_report([workdir], [tmp_path / "r.md"], Rates())
    text = (tmp_path / "r.md").read_text()
    left_out = {one.title for one in report.left_out}
    assert left_out == {
        "The ladder",
        "Languages",
        "Training rows",
        "What reasoning gains",
        "Helped and hurt",
        "What instructions bring",
    }
    assert all(f"- {title}: " in text for title in left_out)


def test_a_run_of_before_there_were_statistics_has_the_scores_of_its_cells(tmp_path):
    workdir = small(tmp_path / "run")
    results = json.loads((workdir / "results.json").read_text())
    del results["statistics"], results["inputs"]["rows"]
    (workdir / "results.json").write_text(json.dumps(results))
    (workdir / "rows.jsonl").unlink()
    report = write_report([workdir], [tmp_path / "r.json"], Rates())
    value = next(r["value"] for r in results["rows"] if (r["cell"], r["language"]) == ("fiat-200-seed0", "all"))
    (row,) = [row for row in report.sections[0].tables[0].rows if row[0] == "fiat"]
    assert row[1].startswith(f"{value:.1f} [")
    assert "Reasoning" in {one.title for one in report.left_out}


def test_two_runs_are_compared_on_the_same_rows(run, tmp_path):
    other = tmp_path / "two"
    write_run(other, Plan(draw=1, theta_tau="models/other"))
    report = write_report([run, other], [tmp_path / "r.md"], Rates())
    section = report.sections[0]
    assert (section.name, section.text) == ("versus", "two against one.")
    (row,) = [
        r for r in section.tables[0].records if (r["system"], r["size"], r["metric"]) == ("fiat", 1000, "accuracy")
    ]
    shares = [
        np.mean([list(right(workdir, f"fiat-1000-seed{seed}").values()) for seed in range(3)])
        for workdir in (run, other)
    ]
    assert row["difference"] == pytest.approx(100 * (shares[1] - shares[0]))
    assert row["ci95"][0] < row["difference"] < row["ci95"][1]
    assert "models/other" in (tmp_path / "r.md").read_text()


def test_runs_on_other_rows_are_compared_without_an_interval(run, tmp_path):
    small(tmp_path / "two")
    report = write_report([run, tmp_path / "two"], [tmp_path / "r.md"], Rates())
    assert all(row[-1].endswith("(no interval)") for row in report.sections[0].tables[0].rows)


def test_figures_change_with_the_predictions_or_not_at_all(run, tmp_path):
    workdir = small(tmp_path / "run")
    path = workdir / "predictions" / "fiat-200-seed0.jsonl"
    path.write_text(path.read_text().replace('"yes"', '"no"', 1))
    with pytest.raises(UserError, match=r"is not the file that results\.json was written of"):
        write_report([workdir], [tmp_path / "r.md"], Rates())
    assert not (tmp_path / "r.md").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "--out=r.html"], "has no results.json"),
        (["{run}", "--out=r.pdf"], "ends in .html, .md, .json, .tex"),
        (["{run}", "{run}", "{run}", "--out=r.html"], "or of two to compare; 3 were named"),
        (["{run}", "--out=r.html", "--price_prompt=1"], "go together"),
        (["{run}", "--out=r.html", "--price_hour=-1"], "0 or more"),
        (["{run}", "--out=r.html", "--rows=0"], "show one row at least"),
    ],
)
def test_mistakes_are_told_in_a_line(run, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(one.format(run=run) for one in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_many_rows_the_first_of_each_kind_are_shown(run, tmp_path):
    report = write_report([run], [tmp_path / "r.html"], Rates(), most_rows=8)
    (browser,) = [part for section in report.sections for part in section.parts if hasattr(part, "kinds")]
    kinds = [row["kind"] for row in browser.rows]
    assert (len(kinds), browser.of) == (8, 240)
    assert all(kinds.count(kind) == 2 for kind in browser.kinds)


def test_a_report_needs_neither_jax_nor_tensorflow(run, tmp_path):
    script = "import sys; from fiat_jax.cli import main\n"
    script += f"assert main(['report', {str(run)!r}, '--out', {str(tmp_path / 'r.html')!r}]) == 0\n"
    script += "print(*({'jax', 'tensorflow', 'seqio', 'flax', 'transformers', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
