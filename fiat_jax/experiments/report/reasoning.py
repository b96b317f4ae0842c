"""Sections about reasoning: what it gains where, which rows it helps and hurts, and what it looks like."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fiat_jax.evaluation.gains import gains_by_language
from fiat_jax.experiments.files import ALL
from fiat_jax.experiments.report import figures
from fiat_jax.experiments.report.content import (
    DASH,
    Browser,
    Figure,
    LeftOut,
    Section,
    Table,
    count,
    interval,
    number,
    signed,
    sized,
)
from fiat_jax.experiments.report.measure import (
    RIGHT,
    Pair,
    difference,
    is_binary,
    largest,
    main_metric,
    pairs_of,
    reasoning_pairs,
    values_of,
)
from fiat_jax.experiments.report.read import Finished

KINDS = ("helped", "hurt", "right with and without", "wrong with and without")
NO_PAIR = "no two systems that differ in reasoning were trained with one size and seed (fiat and fiat-no-reasoning)"
TRUNCATED = "length"  # the finish reason of a text that was cut


def gains(run: Finished) -> Section | LeftOut:
    """Return what reasoning gains over the score without it, language by language."""
    title, metric, pairs = "What reasoning gains", main_metric(run), reasoning_pairs(run)
    if not pairs or metric is None:
        return LeftOut(title, NO_PAIR if metric else "no metric is a mean over rows")
    if len(run.languages) < 3:
        return LeftOut(title, "gains are ranked over three or more languages")
    if min(len(one) for one in _mean_of_seeds(run, pairs[0].cells_a, metric).values()) < 2:
        return LeftOut(title, "a language has a single row, which cannot be halved")
    found = {p: gains_by_language(*(_mean_of_seeds(run, c, metric) for c in (p.cells_b, p.cells_a))) for p in pairs}
    shown = [
        [language, *(f"{number(g.baselines[language])} → {signed(g.gains[language])}" for g in found.values())]
        for language in run.languages
    ]
    told = [f"{signed(g.correlation, 2)} [{signed(g.ci95[0], 2)}, {signed(g.ci95[1], 2)}]" for g in found.values()]
    columns = ["language", *(_of(pair) for pair in pairs)]
    records = [
        {
            "size": pair.size,
            "theta_tau": pair.theta_tau,
            "a": pair.a,
            "b": pair.b,
            "baselines": g.baselines,
            "gains": g.gains,
        }
        | {"rank_correlation": g.correlation, "ci95": g.ci95}
        for pair, g in found.items()
    ]
    table = Table("Score without reasoning → gain", columns, [*shown, ["rank correlation", *told]], records)
    pair = largest(pairs)
    last, which = found[pair], pairs.index(pair)
    points = {language: (last.baselines[language], last.gains[language]) for language in run.languages}
    seen = (
        f"Gain of reasoning over the score without it, {len(points)} languages, {_of(pair)}: correlation {told[which]}."
    )
    svg = figures.scatter("gains", title, seen, points, f"{metric} without reasoning, %", "gain, points")
    text = (
        f"{pair.a} minus {pair.b} in {metric}, mean of the seeds. Score and gain are of disjoint halves of the rows, "
        f"over 2,000 halvings, so that a language that scores low by chance does not seem to gain much.{_unlike(pair)}"
    )
    return Section("gains", title, text, [Figure("gains", "Gain over score", seen, svg), table])


def instructions(runs: Sequence[Finished]) -> Section | LeftOut:
    """Return what instructions bring to each θ_τ: before any step, and after training."""
    title, rows, records = "What instructions bring", [], []
    for run in runs:
        metric = main_metric(run)
        for pair in pairs_of(run, "fiat-no-reasoning", "finetune-lora") if metric else ():
            starts = [_at_start(run, cells, metric or "") for cells in (pair.cells_b, pair.cells_a)]
            after = difference(*pair.values(metric or ""))
            gain = None if None in starts else starts[1] - starts[0]  # pyright: ignore
            name = run.tau_name(pair.theta_tau or "") + (f" ({run.name})" if len(runs) > 1 else "")
            rows.append([name, sized(pair.size), *map(number, starts), signed(gain), interval(after, "difference")])
            records.append({"theta_tau": pair.theta_tau, "size": pair.size, "at_start": starts, "after": after})
    if not rows:
        return LeftOut(title, "no θ_τ was tuned both with I_τ alone (fiat-no-reasoning) and without it (finetune-lora)")
    columns = ["θ_τ", "trained on", "step 0 without", "step 0 with", "gain at step 0", "gain after training, points"]
    note = "Step 0 is measured on the selection rows, which are few; the last column on the reported rows, paired."
    text = "fiat-no-reasoning against finetune-lora: alike but for I_τ."
    return Section("instructions", title, text, [Table("Instructions by base model", columns, rows, records, note)])


def two_by_two(run: Finished, most: int) -> Section | LeftOut:
    """Return which rows are right and wrong with and without reasoning, and the rows themselves."""
    title, metric, pairs = "Helped and hurt", main_metric(run), reasoning_pairs(run)
    if not pairs or metric is None:
        return LeftOut(title, NO_PAIR if metric else "no metric is a mean over rows")
    shown, records = [], []
    for pair in pairs:
        for seed in pair.cells_a:
            kinds = _kinds(pair, seed, metric)
            counts = [sum(kind == name for kind in kinds.values()) for name in KINDS]
            shown.append(
                [_of(pair), str(seed), *map(count, counts), signed(100 * (counts[0] - counts[1]) / len(kinds))]
            )
            records.append(
                {"theta_tau": pair.theta_tau, "size": pair.size, "seed": seed, "a": pair.a, "b": pair.b}
                | dict(zip(KINDS, counts, strict=True))
            )
    table = Table("Rows, by size and seed", ["trained on", "seed", *KINDS, "helped − hurt, %"], shown, records)
    pair = largest(pairs)
    seed = min(pair.cells_a)
    kinds = _kinds(pair, seed, metric)
    counts = {name: sum(kind == name for kind in kinds.values()) for name in KINDS}
    square = Table(
        f"{_of(pair)}, seed {seed}", ["", f"{pair.a} right", f"{pair.a} wrong"],
        [[f"{pair.b} right", count(counts[KINDS[2]]), f"{count(counts['hurt'])} (hurt)"],
         [f"{pair.b} wrong", f"{count(counts['helped'])} (helped)", count(counts[KINDS[3]])]],
    )  # fmt: skip
    right = (
        "Right: the prediction is" if is_binary(metric) else f"Right: {metric} of {RIGHT:g} or more; the prediction is"
    )
    text = (
        f"{pair.a} has reasoning, {pair.b} has none. {right} compared with the gold answer by {metric}.{_unlike(pair)}"
    )
    browser = Browser(list(_rows(pair, seed, kinds, most)), KINDS, len(kinds))
    return Section("rows", title, text, [square, table, browser])


def audit(run: Finished) -> Section | LeftOut:
    """Return how long reasoning is, how much of it was cut, and how often θ_β's answer is the label."""
    title = "Reasoning"
    told = {row_id: row for row_id, row in run.rows.items() if row["reasoning"] is not None}
    if not told:
        return LeftOut(title, "the run left no rows.jsonl with reasoning")
    metric, icl = main_metric(run), run.seeds_of("icl", 0)
    right = _right_answers(run, metric, icl, told)
    pairs = reasoning_pairs(run)
    pair = largest(pairs) if pairs else None
    with_it = _by_id(run, pair.cells_a, metric) if pair and metric else {}
    rows, records = [], []
    for language in [*run.languages, *([ALL] if len(run.languages) > 1 else [])]:
        of = {row_id: row for row_id, row in told.items() if language in (row["language"], ALL)}
        words = [len(row["reasoning"].split()) for row in of.values()]
        tokens = [row["completion_tokens"] for row in of.values() if row["completion_tokens"] is not None]
        finished = [row["finish_reason"] for row in of.values() if row["finish_reason"] is not None]
        cut = sum(reason == TRUNCATED for reason in finished)
        agree = sum(right[row_id] for row_id in of)
        low, high = binomtest(agree, len(of)).proportion_ci(method="wilson")
        agreement = {"value": 100 * agree / len(of), "ci95": [100 * low, 100 * high]}
        then = [_mean([100 * with_it[i] for i in of if i in with_it and right[i] == side]) for side in (True, False)]
        none = sum(row["large_answer"] is None for row in of.values())
        name = "all rows" if language == ALL else language
        rows.append([
            name, count(len(of)), f"{number(float(np.median(words)), 0)} ({count(max(words))})",
            number(_mean(tokens)), f"{count(cut)} of {count(len(finished))}" if finished else DASH, count(none),
            interval(agreement), *(number(one) for one in then),
        ])  # fmt: skip
        records.append({
            "language": language, "rows": len(of), "median_words": float(np.median(words)), "most_words": max(words),
            "mean_tokens": _mean(tokens), "truncated": cut if finished else None, "no_answer": none,
            "agreement": agreement, "score_where_right": then[0], "score_where_wrong": then[1],
        })  # fmt: skip
    name = pair.a if pair else "θ_τ"
    columns = [
        "language", "rows", "words, median (most)", "tokens, mean", "cut", "no answer", "θ_β right, %",
        f"{name} where θ_β is right, %", f"{name} where it is wrong, %",
    ]  # fmt: skip
    words = [len(row["reasoning"].split()) for row in told.values()]
    counts, edges = np.histogram(words, bins=min(20, max(1, len(set(words)))))
    seen = f"Words of the reasoning about a row: median {np.median(words):.0f}, from {min(words)} to {max(words)}."
    svg = figures.histogram("lengths", title, seen, edges.tolist(), counts.tolist(), "words of reasoning")
    note = "Intervals of the share that is right are Wilson's, 95%. A text is cut where θ_β came to its limit."
    note += f" {name}: {_of(pair)}, the mean of the seeds." if pair else ""
    parts = [Table("Reasoning by language", columns, rows, records, note), Figure("lengths", "Length", seen, svg)]
    cuts = _cuts(run)
    return Section("reasoning", title, f"What θ_β wrote about the {count(len(told))} reported rows.", [*parts, *cuts])


def _cuts(run: Finished) -> list[Table]:
    """Return what the length budget cut of what θ_τ reads in training."""
    rows = [
        [cell, language, kind, count(cut["rows"]), count(cut["tokens"])]
        for cell, facts in run.cells.items()
        for language, kinds in (facts.get("truncations") or {}).items()
        for kind, cut in kinds.items()
    ]
    return (
        [Table("Cut by the length budget of θ_τ", ["cell", "language", "what", "rows", "tokens"], rows)] if rows else []
    )


def _right_answers(
    run: Finished, metric: str | None, icl: Mapping[int, str], told: Mapping[str, Any]
) -> dict[str, bool]:
    """Return whether θ_β's answer is the label: by the main metric where its answers were scored, else as a text."""
    found = {row_id: row["large_answer"] == row["gold"] for row_id, row in told.items()}
    if metric and icl:
        scored = _by_id(run, icl, metric)
        found |= {row_id: value >= RIGHT for row_id, value in scored.items() if row_id in found}
    return found


def _by_id(run: Finished, cells: Mapping[int, str], metric: str) -> dict[str, float]:
    """Return row id → value, the mean of seeds."""
    columns = [{one.id: one.values[metric] for one in run.predictions(cell)} for cell in cells.values()]
    return {row_id: float(np.mean([column[row_id] for column in columns])) for row_id in columns[0]}


def _mean_of_seeds(run: Finished, cells: Mapping[int, str], metric: str) -> dict[str, np.ndarray]:
    return {language: values.mean(0) for language, values in values_of(run, cells, metric).items()}


def _kinds(pair: Pair, seed: int, metric: str) -> dict[str, str]:
    """Return row id → what reasoning did to it."""
    sides = ({seed: cells[seed]} for cells in (pair.cells_a, pair.cells_b))
    with_it, without = (_by_id(pair.run, cells, metric) for cells in sides)
    names = {(True, False): "helped", (False, True): "hurt", (True, True): KINDS[2], (False, False): KINDS[3]}
    return {row_id: names[value >= RIGHT, without[row_id] >= RIGHT] for row_id, value in with_it.items()}


def _rows(pair: Pair, seed: int, kinds: Mapping[str, str], most: int) -> Iterator[dict[str, Any]]:
    """Yield rows to look at, in their order; of more than `most` the first of each kind, as many of each."""
    kept: set[str] = set()
    ids = {name: [row_id for row_id, kind in kinds.items() if kind == name] for name in KINDS}
    for rank in range(max(map(len, ids.values()))):
        for of_kind in ids.values():
            if rank < len(of_kind) and len(kept) < most:
                kept.add(of_kind[rank])
    with_it, without = (pair.run.predictions(cells[seed]) for cells in (pair.cells_a, pair.cells_b))
    other = {one.id: one for one in without}
    for one in with_it:
        if one.id in kept:
            row = pair.run.rows.get(one.id, {})
            answers = {pair.a: one.prediction, pair.b: other[one.id].prediction, "θ_β": row.get("large_answer")}
            yield {
                "id": one.id, "language": one.language, "kind": kinds[one.id], "gold": one.gold, "answers": answers,
                "prompt": row.get("prompt"), "reasoning": row.get("reasoning"),
            }  # fmt: skip


def _at_start(run: Finished, cells: Mapping[int, str], metric: str) -> float | None:
    """Return the score on the selection rows before the first step, the mean of seeds."""
    starts = [dict(run.cells[cell].get("evaluations", [])).get(0) for cell in cells.values()]
    return _mean([one[metric] for one in starts if one and metric in one])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _of(pair: Pair) -> str:
    taus = {cell["theta_tau"] for cell in pair.run.cells.values() if cell["theta_tau"]}
    return sized(pair.size) + (f", {pair.run.tau_name(pair.theta_tau)}" if len(taus) > 1 and pair.theta_tau else "")


def _unlike(pair: Pair) -> str:
    """Return a warning where the two differ in more than reasoning."""
    more = {"finetune-lora": "I_τ", "finetune": "I_τ and LoRA"}.get(pair.b)
    return f" The one without reasoning also lacks {more}: run fiat-no-reasoning to tell the two apart." if more else ""
