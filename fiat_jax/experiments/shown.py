"""rows.jsonl: the reported rows as θ_τ reads them, with what θ_β wrote, so that a report needs no store."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiat_jax.data.examples import content_key
from fiat_jax.experiments.bench import Bench, Cell
from fiat_jax.experiments.files import ROWS, file_hash
from fiat_jax.store import ReasoningStore, Record
from fiat_jax.tasks.task import Row, row_key

TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")


def write_rows(bench: Bench, cells: Sequence[Cell], against: str, workdir: Path) -> dict[str, Any]:
    """Write WORKDIR/rows.jsonl where it is not there yet; return its `key` and `sha256`, and θ_β's tokens by split."""
    path, trained = workdir / ROWS, [cell for cell in cells if cell.paradigm.trained]
    cell = next((one for one in trained if one.paradigm.name == against), trained[0] if trained else None)
    key = content_key("rows", dict(bench.identity(cell)) if cell else bench.reasons.set_key)
    held = _held(workdir)
    if held.get("key") == key and path.exists() and held.get("sha256") == file_hash(path):
        return held
    records = _records(bench)
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in _shown(bench, cell, records)]
    unfinished = path.with_name(f".{ROWS}.tmp")
    unfinished.write_text(
        "".join(lines), "utf-8", errors="backslashreplace"
    )  # half an emoji: a completion that was cut
    unfinished.replace(path)
    data = bench.run.data
    splits = {data.train_split: bench.train_rows, data.report_split: bench.report_rows}
    tokens = {split: _tokens(bench, rows, records) for split, rows in splits.items()} if records else {}
    return {"key": key, "sha256": file_hash(path), "theta_beta_tokens": tokens}


def _held(workdir: Path) -> dict[str, Any]:
    """Return what an earlier results.json says of rows.jsonl."""
    path = workdir / "results.json"
    try:
        return json.loads(path.read_text("utf-8"))["inputs"]["rows"]
    except (OSError, ValueError, KeyError):  # none, of before there was one, or damaged: it is written anew
        return {}


def _records(bench: Bench) -> dict[str, list[Record]]:
    """Return what θ_β wrote about the rows of this experiment, by the hash of their content."""
    if not bench.reasons.by_id:
        return {}
    wanted = {row_key(bench.task, row) for row in (*bench.train_rows, *bench.report_rows)}
    found: dict[str, list[Record]] = {}
    for record in ReasoningStore(bench.run.reasoning.store).records(bench.reasons.set_key):
        if record.row in wanted:
            found.setdefault(record.row, []).append(record)
    return found


def _shown(bench: Bench, cell: Cell | None, records: Mapping[str, Sequence[Record]]):
    task, feed = bench.task, bench.feed(cell) if cell else None
    reasons = bench.reasons_for(cell, bench.report_rows) if cell else bench.reasons
    for row in bench.report_rows:
        told = bench.reasons.by_id.get(row[task.id_field])
        rendered = feed.render(row, reasons, with_target=False) if feed else None
        of_row = records.get(row_key(task, row), ())
        record = next((one for one in of_row if told and one.rationale == told.rationale), None)
        yield {
            "id": row[task.id_field],
            "language": task.language(row),
            "gold": row[task.answer_field],
            "fields": {name: row[name] for name in task.fields},
            "prompt": "".join(segment.text for segment in rendered.segments) if rendered else None,
            "reasoning": told.rationale if told else None,
            "large_answer": told.answer if told else None,
            "finish_reason": record.finish_reason if record else None,
            **{name: getattr(record, name) if record else None for name in TOKENS},
        }


def _tokens(bench: Bench, rows: Sequence[Row], records: Mapping[str, Sequence[Record]]) -> dict[str, int]:
    """Return θ_β's tokens for rows, all samples; `counted` are the rows whose tokens are known, not imported."""
    found = {"rows": len(rows), "counted": 0, **dict.fromkeys(TOKENS, 0)}
    for row in rows:
        of_row = [one for one in records.get(row_key(bench.task, row), ()) if one.completion_tokens is not None]
        found["counted"] += bool(of_row)
        for record in of_row:
            for name in TOKENS:
                found[name] += getattr(record, name) or 0
    return found
