"""A finished experiment of several seeds, sizes and paradigms, simulated, and written by the project's own writers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiat_jax.evaluation.predictions import Prediction, write_predictions
from fiat_jax.evaluation.scores import compare, score_predictions, with_values
from fiat_jax.evaluation.systems import Means
from fiat_jax.experiments.across import Scored, statistics_of
from fiat_jax.experiments.files import file_hash
from fiat_jax.experiments.paradigms import find_paradigm, roles
from fiat_jax.experiments.results import write_results
from fiat_jax.tasks.task import Task

# θ_τ's log-odds of the right label: of all training rows, and what each tenfold of them adds
STRENGTHS = {
    "icl": (0.7, 0.0),
    "finetune-lora": (0.1, 0.35),
    "fiat-no-reasoning": (0.3, 0.35),
    "fiat": (0.9, 0.35),
}
LANGUAGES = {"bn": -0.6, "fi": 0.3, "te": -0.3, "en": 0.8}
EVIL = "</script><script>window.hacked = true</script><img src=x onerror='window.hacked = true'> & \u2028 𝒳 \ud83d"
TASK = Task(
    "attribution",
    fields=("question",),
    language_field="lang",
    labels=("yes", "no"),
    positive_label="yes",
    metrics=("accuracy", "average_precision"),
)


@dataclass(frozen=True)
class Plan:
    """What is simulated; `evil` rows hold what would harm a careless page, `theta_taus` are names of several models."""

    rows: int = 240
    sizes: Sequence[int] = (200, 1000)
    seeds: Sequence[int] = (0, 1, 2)
    paradigms: Sequence[str] = tuple(STRENGTHS)
    metrics: Sequence[str] = ("accuracy", "average_precision")
    languages: Sequence[str] = tuple(LANGUAGES)
    theta_tau: str = "models/small"
    theta_taus: Sequence[str] = ()
    evil: bool = True
    draw: int = 0


def simulated_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of the task."""
    return [
        {"id": f"row-{n}", "lang": plan.languages[n % len(plan.languages)], "question": f"Question {n}?",
         "answer": "yes" if n // len(plan.languages) % 3 == 0 else "no"}
        for n in range(plan.rows)
    ]  # fmt: skip


def predictions(task: Task, rows: Sequence[dict[str, Any]], strength: float, key: Sequence[int]) -> list[Prediction]:
    """Return noisy log-odds; hard rows are hard for every system."""
    hard = np.random.default_rng(1).normal(size=len(rows))
    rng = np.random.default_rng([7, *key])
    noise, seed_effect = rng.normal(size=len(rows)), 0.1 * rng.normal()
    found = []
    for row, common, own in zip(rows, hard, noise, strict=True):
        sign = 1 if row["answer"] == "yes" else -1
        odds = float(sign * (strength + LANGUAGES[row["lang"]] + seed_effect) + common + 0.7 * own)
        odds = round(odds, 4)
        scores = {"yes": odds, "no": 0.0}
        found.append(Prediction(row["id"], row["lang"], row["answer"], "yes" if odds > 0 else "no", scores))
    return with_values(task, found)


def write_run(workdir: Path, plan: Plan = Plan()) -> list[dict[str, Any]]:  # noqa: B008  frozen
    """Write the run; return the rows of its results."""
    task = Task(**{**TASK.__dict__, "metrics": tuple(plan.metrics)})
    rows, scored, cells, hashes = simulated_rows(plan), [], {}, {}
    systems = [(name, tau) for tau in plan.theta_taus or [""] for name in plan.paradigms if name != "icl" or tau in
               ("", *plan.theta_taus[:1])]  # fmt: skip
    for number, (name, tau) in enumerate(systems):
        trained = name != "icl"
        system = f"{name}@{tau}" if tau and trained else name
        base, more = STRENGTHS[name]
        for size in plan.sizes if trained else (0,):
            for seed in plan.seeds if trained else (0,):
                strength = base + more * (np.log10(size / 200) if size else 0)
                found = predictions(task, rows, strength, (plan.draw, number, size, seed))
                cell = f"{system}-{size}-seed{seed}" if trained else name
                known = {
                    "cell": cell, "paradigm": system,
                    "theta_tau": (f"models/{tau}" if tau else plan.theta_tau) if trained else None,
                    "theta_beta": "Large" if name in ("icl", "fiat") else None, "task": task.name, "size": size,
                    "seed": seed, "split": "test", "selected_on": "10% of train" if trained else None,
                }  # fmt: skip
                hashes[cell] = write_predictions(workdir / "predictions" / f"{cell}.jsonl", found)
                scored.append(Scored(known, trained, found))
                cells[cell] = {"key": "0", "predictions_sha256": hashes[cell]} | (
                    _facts(size, strength) if trained else {}
                )
    results = [
        {**one.known, **row} for one in scored for row in score_predictions(task, rows, one.predictions, resamples=500)
    ]
    write_results(
        workdir,
        "experiment",
        inputs={
            "theta_tau": {"path": plan.theta_tau},
            "predictions": hashes,
            "rows": _write_rows(workdir, plan, rows, scored),
        },
        rows=results,
        comparisons=_comparisons(task, rows, scored),
        statistics=statistics_of(task, rows, scored, "fiat", Means(plan.languages[:2])),
        seconds=12.5,
        details={"cells": cells, "learning_rates": [1e-3], "paradigms": roles(map(find_paradigm, plan.paradigms))},
    )
    (workdir / "config.gin").write_text(f"Model.path = '{plan.theta_tau}'\nExperiment.seeds = {tuple(plan.seeds)}\n")
    return results


def _facts(size: int, strength: float) -> dict[str, Any]:
    curve = [[step, {"accuracy": 50 + 20 * strength * (1 - np.exp(-step / 40))}] for step in (0, 25, 50, 100)]
    return {
        "learning_rate": 1e-3, "best_step": 100, "selection": curve[-1][1], "evaluations": curve,
        "rows_trained_on": size * 9 // 10, "rows_selected_on": size // 10, "trained_parameters": 1000,
        "frozen_parameters": 10_000, "truncations": {"bn": {"reasoning": {"rows": 3, "tokens": 41}}},
        "tokens": 1000 * size, "seconds": 0.1 * size, "goodput": {},
    }  # fmt: skip


def _comparisons(task: Task, rows: Sequence[dict[str, Any]], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    ours = next((one for one in scored if one.known["paradigm"] == "fiat"), None)
    icl = next((one for one in scored if one.known["paradigm"] == "icl"), None)
    if ours is None or icl is None:
        return []
    task = Task(**{**task.__dict__, "metrics": ("accuracy",)})
    known = {"a": "fiat", "b": "icl", "task": task.name, "size": ours.known["size"], "seed": 0, "split": "test"}
    return [{**known, **row} for row in compare(task, rows, ours.predictions, icl.predictions, resamples=500)]


def _write_rows(workdir: Path, plan: Plan, rows: Sequence[dict[str, Any]], scored: Sequence[Scored]) -> dict[str, Any]:
    icl = {one.id: one for cell in scored if cell.known["paradigm"] == "icl" for one in cell.predictions}
    lines = []
    for n, row in enumerate(rows):
        reasoning = EVIL if plan.evil and n == 0 else " ".join(["because it is so,"] * (1 + n % 9))
        lines.append(json.dumps({
            "id": row["id"], "language": row["lang"], "gold": row["answer"], "fields": {"question": row["question"]},
            "prompt": f"Answer yes or no.\n\n{row['question']}\nReasoning: {reasoning}\nAnswer:",
            "reasoning": reasoning, "large_answer": icl[row["id"]].prediction if icl else None,
            "finish_reason": "length" if n % 20 == 0 else "stop",
            "prompt_tokens": 300, "completion_tokens": 4 * (1 + n % 9), "cached_tokens": None,
        }) + "\n")  # fmt: skip
    path = workdir / "rows.jsonl"
    path.write_text("".join(lines), "utf-8")
    each = {"prompt_tokens": 300, "completion_tokens": 20, "cached_tokens": 0}
    tokens = {
        split: {"rows": n, "counted": n, **{name: value * n for name, value in each.items()}}
        for split, n in (("train", max(plan.sizes)), ("test", len(rows)))
    }
    return {"key": "0", "sha256": file_hash(path), "theta_beta_tokens": tokens}
