"""OpenAI's Batch API by files: the missing requests written as its input, its output brought into the store."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fiat_jax.errors import UserError
from fiat_jax.prompts.render import Renderer
from fiat_jax.reasoning.backend import Refused
from fiat_jax.reasoning.openai import OpenAIBackend
from fiat_jax.reasoning.wanted import Plan, Quarantined, Wanted, seed_of, to_record
from fiat_jax.store import ReasoningStore, Record

WRITTEN_AT_ONCE = 1000  # records, between two waits for the disk


@dataclass(frozen=True)
class BatchRead:
    """What came of a file: `before` were stored already, `unknown` are lines of rows that are none of these."""

    written: int
    before: int
    quarantined: tuple[Quarantined, ...]
    unknown: int


def write_requests(path: Path, plan: Plan, renderer: Renderer, backend: OpenAIBackend) -> tuple[Quarantined, ...]:
    """Write the missing requests, whole or not at all, as a live run would send them; return those that cannot be made.

    A request is known again by its custom_id, SET/ROW/SAMPLE.
    """
    unrendered = []
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as file:
        for want in plan.missing:
            try:
                prompt = renderer.reasoning_prompt(want.row)
            except UserError as error:
                unrendered.append(Quarantined(want.row_id, want.sample, str(error)))
                continue
            request = {
                "custom_id": f"{plan.provenance.set_key}/{want.key}/{want.sample}",
                "method": "POST",
                "url": f"/v1{backend.path}",
                "body": backend.body(prompt, seed_of(want, plan.provenance)),
            }
            file.write(json.dumps(request) + "\n")
    temporary.replace(path)
    return tuple(unrendered)


def read_answers(
    path: Path, plan: Plan, renderer: Renderer, backend: OpenAIBackend, store: ReasoningStore
) -> BatchRead:
    """Store the answers of a file: the records are those of a live run, and what is stored already stays.

    Raises:
        UserError: a line that is no answer, or one to a request of another set.
    """
    wanted = {(want.key, want.sample): want for want in plan.missing}
    written = before = unknown = 0
    quarantined: list[Quarantined] = []
    waiting: list[Record] = []
    with store.open_set(plan.provenance) as writer:
        for where, answer in _lines(path):
            key = _key(answer, plan.provenance.set_key, where)
            want = wanted.pop(key, None)
            if want is None:
                known = key[0] in plan.keys
                before, unknown = before + known, unknown + (not known)
                continue
            try:
                waiting.append(_record(answer, want, plan, renderer, backend))
            except Refused as error:
                quarantined.append(Quarantined(want.row_id, want.sample, str(error), error.bucket))
            if len(waiting) == WRITTEN_AT_ONCE:
                writer.append(*waiting)
                written, waiting = written + len(waiting), []
        writer.append(*waiting)
    return BatchRead(written + len(waiting), before, tuple(quarantined), unknown)


def _record(answer: Mapping, want: Wanted, plan: Plan, renderer: Renderer, backend: OpenAIBackend) -> Record:
    error, response = answer.get("error"), answer.get("response") or {}
    body = response.get("body")
    if error or response.get("status_code") != 200 or not isinstance(body, dict):
        raise Refused(f"the batch has no answer: {json.dumps(error or response, ensure_ascii=False)[:500]}")
    return to_record(want, backend.read(body), plan.provenance, renderer.instructions)


def _lines(path: Path) -> Iterator[tuple[str, Mapping]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            try:
                answer = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not JSON ({error}); fetch the batch's output again") from None
            if not isinstance(answer, dict) or not isinstance(answer.get("custom_id"), str):
                raise UserError(f"{where}: no custom_id; give the output (or error) file of a batch")
            yield where, answer


def _key(answer: Mapping, set_key: str, where: str) -> tuple[str, int]:
    parts = answer["custom_id"].split("/")
    if len(parts) != 3 or not parts[2].isdecimal():
        raise UserError(f"{where}: custom_id {answer['custom_id']!r} is none of `fiat reason --batch_out`")
    if parts[0] != set_key:
        raise UserError(
            f"{where}: the answer is of set {parts[0]}, and these settings make set {set_key}; give those (model, "
            "instruction file, exemplars) that the requests were written with"
        )
    return parts[1], int(parts[2])
