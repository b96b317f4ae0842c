"""The bulk generator: asks θ_β for the reasoning that is not stored yet, and stores each answer as it comes."""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fiat_jax.errors import UserError
from fiat_jax.prompts.render import Renderer
from fiat_jax.reasoning.backend import Backend
from fiat_jax.reasoning.cost import Prices
from fiat_jax.reasoning.drive import Drive, GenerateOptions
from fiat_jax.reasoning.progress import Meter
from fiat_jax.reasoning.wanted import Quarantined, make_plan, provenance_of
from fiat_jax.store import Provenance, ReasoningStore
from fiat_jax.tasks.task import Row, Task

logger = logging.getLogger(__name__)
FIGURES = ("without_answer", "cut_short", "with_hidden", "prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass(frozen=True)
class Summary:
    """What one run did. `wanted` counts requests, `before` those already stored, `written` the new ones.

    Of those written, `without_answer` lack one that could be extracted, `cut_short` ended at max_tokens, and of
    `with_hidden` the endpoint showed but a part; `quarantined` got nothing usable, for reasons of several buckets.
    `cost` is None without prices; `dropped` are options that the endpoint did not take. `changes` says where the
    model's identity changed, within the set or during the run; `interrupted` that a signal or the money ended the run
    early, so that the same command goes on from here, and `stopped_by` what other than a signal did.
    """

    set_key: str
    wanted: int
    before: int
    written: int
    quarantined: tuple[Quarantined, ...]
    without_answer: int
    cut_short: int
    with_hidden: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: float | None
    dropped: tuple[str, ...]
    changes: tuple[str, ...]
    interrupted: bool
    stopped_by: str
    seconds: float

    def in_bucket(self, bucket: str) -> int:
        """Return how many of the quarantined are there for this kind of reason."""
        return sum(entry.bucket == bucket for entry in self.quarantined)


@dataclass(frozen=True)
class Bill:
    """What a run would ask for: rows, tokens of their prompts, and the most tokens that they may be answered with.

    `asked` has a row once for each of its samples; `cost_at_most` is None without prices; `unrendered` are the rows
    whose prompt cannot be made, with the reason.
    """

    set_key: str
    wanted: int
    asked: tuple[Row, ...]
    prompt_tokens: int
    completion_tokens_at_most: int
    cost_at_most: float | None
    unrendered: tuple[Quarantined, ...]

    @property
    def requests(self) -> int:
        """How many requests that are."""
        return len(self.asked)


def generate(
    task: Task,
    rows: Sequence[Row],
    renderer: Renderer,
    backend: Backend,
    store: ReasoningStore,
    options: GenerateOptions | None = None,
    *,
    prices: Prices | None = None,
    quarantine: Path | None = None,
    console: Console | None = None,
) -> Summary:
    """Ask for what the store lacks, and store each answer as it comes.

    Rows that fail go to the file `quarantine` with their reason, and are asked for again next time. Rows of equal
    content are asked for once. SIGINT and SIGTERM let the requests under way end, up to `options.grace_seconds`, and a
    second one drops them. Raises UserError where no row can succeed; what was answered is kept.
    """
    options = options or GenerateOptions()
    if options.max_cost is not None and prices is None:
        raise UserError("Generate.max_cost needs prices: set Endpoint.price_in and Endpoint.price_out")
    provenance = provenance_of(task, renderer.instructions, backend.identity())
    plan = make_plan(task, rows, store, provenance, options.samples)
    missing = plan.missing
    changes = _other_reports(store, provenance)
    began = time.monotonic()
    with store.open_set(provenance) as writer, Meter(len(missing), console) as meter:
        drive = Drive(plan, renderer, backend, writer, options, meter, prices)
        noted = backend.about() if missing else {}
        if missing:
            store.note_backend(provenance.set_key, noted)
        whole = False
        try:
            drive.run()
            whole = not drive.interrupted
        finally:
            write_quarantine(quarantine, drive.quarantined, keep=not whole)
            if missing and backend.about() != noted:  # by now it is known what the endpoint does not take
                store.note_backend(provenance.set_key, backend.about())
    if not drive.interrupted and missing:
        changes += _identity_change(backend, provenance)
    changes += _served_by_several(store, provenance)
    for change in changes:
        logger.warning("%s", change)
    written = drive.written
    return Summary(
        set_key=provenance.set_key,
        wanted=plan.wanted,
        before=plan.wanted - len(missing),
        written=written["records"],
        quarantined=tuple(drive.quarantined),
        **{name: written[name] for name in FIGURES},
        cost=None if prices is None else drive.spent,
        dropped=tuple(backend.about().get("dropped", ())),
        changes=tuple(changes),
        interrupted=drive.interrupted,
        stopped_by=drive.stopped_by,
        seconds=time.monotonic() - began,
    )


def bill(
    task: Task,
    rows: Sequence[Row],
    renderer: Renderer,
    backend: Backend,
    store: ReasoningStore,
    options: GenerateOptions | None = None,
    prices: Prices | None = None,
) -> Bill:
    """Count what `generate` would ask for, without asking θ_β for anything but its identity."""
    options = options or GenerateOptions()
    provenance = provenance_of(task, renderer.instructions, backend.identity())
    plan = make_plan(task, rows, store, provenance, options.samples)
    tokens, asked, unrendered = 0, [], []
    for want in plan.missing:
        try:
            prompt = renderer.reasoning_prompt(want.row)
            tokens += len(prompt.prefix_ids) + len(prompt.own_ids)
            asked.append(want.row)
        except UserError as error:
            unrendered.append(Quarantined(want.row_id, want.sample, str(error)))
    at_most = len(asked) * int(str(provenance.decoding.get("max_tokens", 0)))
    cost = None if prices is None else prices.of(tokens, at_most)
    return Bill(provenance.set_key, plan.wanted, tuple(asked), tokens, at_most, cost, tuple(unrendered))


def _identity_change(backend: Backend, provenance: Provenance) -> list[str]:
    try:
        identity = backend.identity()
    except UserError as error:
        return [f"the model's identity could not be read again at the end: {error}"]
    if identity == dict(provenance.model):
        return []
    before, key = dict(provenance.model), provenance.set_key
    return [f"the model changed during the run, from {before} to {identity}: set {key} is mixed"]


def _served_by_several(store: ReasoningStore, provenance: Provenance) -> list[str]:
    served = Counter(record.served_by for record in store.records(provenance.set_key) if record.served_by)
    if len(served) < 2:
        return []
    counts = ", ".join(f"{name} ({count} records)" for name, count in served.most_common())
    return [f"set {provenance.set_key} was answered by {counts}"]


def _other_reports(store: ReasoningStore, provenance: Provenance) -> list[str]:
    """Sets that differ in nothing but what the endpoint reports: their rows are about to be asked for again."""

    def declared(of: Provenance) -> tuple[object, ...]:
        model = {name: value for name, value in of.model.items() if name != "reported"}
        return model, of.prompt_hash, dict(of.decoding), of.source

    now = provenance.model.get("reported")
    return [
        f"the endpoint reports {now}, but {other.model.get('reported')} for set {key} of the same model, prompt and "
        f"decoding; set {provenance.set_key} begins apart from it"
        for key, other in store.sets().items()
        if key != provenance.set_key and declared(other) == declared(provenance)
    ]


def write_quarantine(path: Path | None, quarantined: Sequence[Quarantined], *, keep: bool = False) -> None:
    """Write what got no usable answer; without any, remove the file that an earlier run left.

    With `keep` what an earlier run left stays, of rows that are not among these: they may not have been asked again.
    """
    if path is None:
        return
    entries = {
        (entry.row_id, entry.sample): {
            "id": entry.row_id, "sample": entry.sample, "bucket": entry.bucket, "reason": entry.reason,
        }
        for entry in quarantined
    }  # fmt: skip
    if keep and path.exists():
        earlier = map(json.loads, path.read_text("utf-8").splitlines())
        entries = {(one["id"], one["sample"]): one for one in earlier} | entries
    if not entries:
        path.unlink(missing_ok=True)  # of an earlier run, whose rows have since been answered
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries.values()]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="backslashreplace")
