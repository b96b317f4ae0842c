"""How long statistics and the report take: 50,000 rows × 12 systems that rank two labels in eight languages.

    .venv/bin/python benchmarks/report.py [--rows 50000] [--systems 12] [--seeds 1]

Predictions are simulated and written first, off the clock. On the clock: what `fiat experiment` computes of finished
cells (`statistics` of results.json: every system and every difference, accuracy and average precision, by language
and over them), then `fiat report` in a process of its own, which reads the predictions and writes the page.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fiat_jax.evaluation.predictions import Prediction, write_predictions
from fiat_jax.evaluation.systems import Means
from fiat_jax.experiments.across import Scored, statistics_of
from fiat_jax.experiments.files import SCHEMA, file_hash, write_json
from fiat_jax.tasks.task import Task

GOAL_SECONDS = 30.0
LANGUAGES = ("bn", "en", "fi", "hi", "ja", "ru", "ta", "te")
NAMED = ("icl", "fiat", "fiat-no-reasoning", "finetune-lora")
TASK = Task("made", fields=("x",), language_field="lang", labels=("yes", "no"), positive_label="yes",
            metrics=("accuracy", "average_precision"))  # fmt: skip


def simulated(rows: list[dict[str, str]], strength: float, seed: int) -> list[Prediction]:
    """Return noisy log-odds of the right label."""
    odds = np.random.default_rng(seed).normal(size=len(rows))
    found = []
    for row, noise in zip(rows, odds.tolist(), strict=True):
        score = noise + (strength if row["answer"] == "yes" else -strength)
        prediction = "yes" if score > 0 else "no"
        values = {"accuracy": float(prediction == row["answer"])}
        found.append(
            Prediction(row["id"], row["lang"], row["answer"], prediction, {"yes": score, "no": 0.0}, None, values)
        )
    return found


def write_inputs(workdir: Path, count: int, systems: int, seeds: int) -> tuple[list[dict[str, str]], list[Scored]]:
    """Write predictions and rows.jsonl; return the rows and the cells."""
    rows = [
        {"id": f"r{n}", "lang": LANGUAGES[n % 8], "x": "?", "answer": "yes" if n // 8 % 4 == 0 else "no"}
        for n in range(count)
    ]
    names, cells = [*NAMED, *(f"other-{n}" for n in range(systems))][:systems], []
    for place, name in enumerate(names):
        trained = name != "icl"
        for seed in range(seeds if trained else 1):
            cell = f"{name}-8000-seed{seed}" if trained else name
            known = {
                "cell": cell, "paradigm": name, "theta_tau": "small" if trained else None, "theta_beta": "large",
                "task": "made", "size": 8000 if trained else 0, "seed": seed, "split": "test", "selected_on": None,
            }  # fmt: skip
            cells.append(Scored(known, trained, simulated(rows, 0.3 + 0.05 * place, 100 * place + seed)))
            write_predictions(workdir / "predictions" / f"{cell}.jsonl", cells[-1].predictions)
    with (workdir / "rows.jsonl").open("w") as file:
        for n, row in enumerate(rows):
            text = "It follows from what is said. " * (1 + n % 20)
            told = {
                "id": row["id"],
                "language": row["lang"],
                "gold": row["answer"],
                "fields": {"x": "?"},
                "prompt": text * 2,
            }
            told |= {"reasoning": text, "large_answer": "yes", "finish_reason": "stop", "prompt_tokens": 500}
            file.write(json.dumps(told | {"completion_tokens": 60, "cached_tokens": None}) + "\n")
    return rows, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--systems", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        workdir = Path(root)
        rows, cells = write_inputs(workdir, given.rows, given.systems, given.seeds)
        begun, cpu = time.perf_counter(), time.process_time()
        statistics = statistics_of(TASK, rows, cells, "fiat", Means())
        computed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        systems, seeds = statistics["systems"], {one.known["cell"]: one.known for one in cells}
        by_system = {(row["paradigm"], row["metric"], row["language"]): row for row in systems}
        results = [
            {**known, **{key: by_system[known["paradigm"], metric, language][key] for key in ("value", "ci95", "n")}}
            | {"metric": metric, "language": language}
            for known in seeds.values()
            for metric in TASK.metrics
            for language in (*LANGUAGES, "all")
        ]
        hashes = {cell: file_hash(workdir / "predictions" / f"{cell}.jsonl") for cell in seeds}
        told = {"sha256": file_hash(workdir / "rows.jsonl"), "theta_beta_tokens": {}}
        inputs = {"predictions": hashes, "rows": told}
        write_json(workdir / "results.json", {
            "schema": SCHEMA, "verb": "experiment", "inputs": inputs, "versions": {}, "rows": results,
            "comparisons": [], "hardware": {"device": "none", "devices": 1}, "seconds": 0.0, "statistics": statistics,
            "details": {"cells": {}, "learning_rates": []},
        })  # fmt: skip
        page, begun = workdir / "report.html", time.perf_counter()
        command = [sys.executable, "-m", "fiat_jax", "report", str(workdir), f"--out={page}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        reported, size = time.perf_counter() - begun, page.stat().st_size
    print(f"{given.rows:,} rows × {given.systems} systems × {given.seeds} seeds: statistics {computed:.1f} s ", end="")
    print(f"({cpu:.1f} s of one core), report {reported:.1f} s, a page of {size / 1e6:.1f} MB")
    total = computed + reported
    seconds = {"statistics": computed, "report": reported}
    print(
        json.dumps(
            {"ratios": {"goal / seconds": GOAL_SECONDS / total}, "goals": {"goal / seconds": 1.0}, "seconds": seconds}
        )
    )


if __name__ == "__main__":
    main()
