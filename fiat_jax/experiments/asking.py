"""`fiat reason --backend`: a large model is asked for what the store lacks, by itself or by way of batch files."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fiat_jax.distributed import place
from fiat_jax.errors import Interrupted, UserError
from fiat_jax.experiments.card import agreement_line, make_card, write_card
from fiat_jax.experiments.feed import read_instructions
from fiat_jax.experiments.reason import Reason, rows_of
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.backend import HIDDEN, REFUSED
from fiat_jax.reasoning.batch import read_answers, write_requests
from fiat_jax.reasoning.cost import Prices, money
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.generate import Bill, Summary, bill, generate, write_quarantine
from fiat_jax.reasoning.native import Native, NativeBackend
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.reasoning.shard import EVERYTHING, Shard
from fiat_jax.reasoning.wanted import Plan, Quarantined, make_plan, provenance_of
from fiat_jax.sharding import MeshConfig
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Row, Task

MOST_IN_A_BATCH = 50_000  # requests, by OpenAI's rules


@dataclasses.dataclass(frozen=True)
class Job:
    """θ_β, what it is asked, and where its answers go; `rows` are the shard's of `every_row`."""

    reason: Reason
    backend: OpenAIBackend | NativeBackend
    renderer: Renderer
    store: ReasoningStore
    options: GenerateOptions
    every_row: Sequence[Row]
    shard: Shard = EVERYTHING
    prices: Prices | None = None

    @property
    def task(self) -> Task:
        return self.reason.task

    @functools.cached_property
    def rows(self) -> list[Row]:
        return self.shard.rows(self.task, self.every_row)

    def expect(self, price: Bill) -> None:
        """Tell an engine what it will be asked: its shapes follow from that."""
        if isinstance(self.backend, NativeBackend):
            self.backend.expect([self.renderer.reasoning_prompt(row) for row in price.asked])

    def plan(self) -> Plan:
        """Ask the backend who it is, and the store what it lacks."""
        provenance = provenance_of(self.task, self.renderer.instructions, self.backend.identity())
        return make_plan(self.task, self.rows, self.store, provenance, self.options.samples)


def endpoint_job(reason: Reason, endpoint: Endpoint, shard: Shard = EVERYTHING) -> Job:
    """Return the job of an OpenAI-compatible endpoint."""
    if not reason.tokenizer:
        raise UserError("no tokenizer to count tokens with: give --gin.Reason.tokenizer=DIRECTORY (any model's)")
    backend = OpenAIBackend(endpoint, reason.options.concurrency)
    return _job(reason, backend, _renderer(reason, reason.tokenizer), reason.options, shard, endpoint.prices)


def engine_job(reason: Reason, native: Native, mesh: MeshConfig, shard: Shard = EVERYTHING) -> Job:
    """Return the job of the engine of this process."""
    if reason.tokenizer:
        raise UserError("Reason.tokenizer is for endpoints; the engine reads with the tokenizer of Native.path")
    if place()[1] > 1:
        raise UserError(
            "the engine of `fiat reason --backend=native` is that of one process, and this is one of several of a run: "
            "start each by itself, with --shard=0/N to --shard=N-1/N, or ask a `fiat serve` that spans them"
        )
    renderer = _renderer(reason, native.path)
    backend = NativeBackend(native, mesh, renderer)
    options = dataclasses.replace(reason.options, concurrency=max(backend.concurrency, reason.options.concurrency))
    return _job(reason, backend, renderer, options, shard)


def _renderer(reason: Reason, tokenizer: str) -> Renderer:
    return Renderer(
        read_instructions(reason.prompts, reason.task), Tokenizer.from_directory(tokenizer), reason.prompts.max_length
    )


def _job(
    reason: Reason,
    backend: OpenAIBackend | NativeBackend,
    renderer: Renderer,
    options: GenerateOptions,
    shard: Shard,
    prices: Prices | None = None,
) -> Job:
    store, rows = ReasoningStore(reason.reasoning.store), rows_of(reason.task, reason.splits)
    return Job(reason, backend, renderer, store, options, rows, shard, prices)


def ask(job: Job, workdir: Path, dry_run: bool, console: Console) -> None:
    """Print the first request and the bill, ask for what is missing, print what came of it, write the set's card."""
    price = bill(job.task, job.rows, job.renderer, job.backend, job.store, job.options, job.prices)
    print_bill(job, price, console)
    job.expect(price)
    if dry_run:
        return
    summary = generate_shard(job, workdir, console if console.is_terminal else None)
    console.print(summary_line(summary), highlight=False)
    asked = job.store.backend(summary.set_key) or {}
    if "attention" in asked:
        console.print(f"attention: {asked['attention']}", highlight=False, markup=False)
    finish(job, summary.set_key, workdir, console)
    if summary.interrupted:
        raise Interrupted(summary.before + summary.written, summary.wanted, summary.stopped_by)


def generate_shard(job: Job, workdir: Path, console: Console | None) -> Summary:
    """Ask for what is missing of a job's rows."""
    return generate(
        job.task, job.rows, job.renderer, job.backend, job.store, job.options, prices=job.prices,
        quarantine=workdir / job.shard.file("quarantine.jsonl"), console=console,
    )  # fmt: skip


def write_batch(job: Job, file: Path, console: Console) -> None:
    """Write the missing requests as the Batch API takes them."""
    backend, plan = _endpoint_of(job), job.plan()
    unrendered = write_requests(file, plan, job.renderer, backend)
    count = len(plan.missing) - len(unrendered)
    console.print(
        f"{file}: {count:,} requests of {plan.wanted:,} that set {plan.provenance.set_key} lacks; bring the answers in "
        f"with --batch_in and the same settings",
        highlight=False,
    )
    if count > MOST_IN_A_BATCH:
        console.print(
            f"warning: OpenAI takes {MOST_IN_A_BATCH:,} in a file; --shard=0/n writes a part", highlight=False
        )
    _print_unrendered(unrendered, console)


def read_batch(job: Job, files: Sequence[Path], workdir: Path, console: Console) -> None:
    """Bring the answers of batches into the store."""
    backend, quarantined, plan = _endpoint_of(job), [], job.plan()
    for file in files:
        found = read_answers(file, plan, job.renderer, backend, job.store)
        quarantined += found.quarantined
        console.print(
            f"{file}: {found.written:,} answers written into set {plan.provenance.set_key}, {found.before:,} were "
            f"there, {len(found.quarantined):,} in quarantine, {found.unknown:,} of other rows",
            highlight=False,
        )
        plan = job.plan()
    job.store.note_backend(plan.provenance.set_key, backend.about())
    write_quarantine(workdir / job.shard.file("quarantine.jsonl"), quarantined)
    console.print(f"{len(plan.missing):,} of {plan.wanted:,} requests are missing", highlight=False)
    finish(job, plan.provenance.set_key, workdir, console)


def _endpoint_of(job: Job) -> OpenAIBackend:
    if not isinstance(job.backend, OpenAIBackend):
        raise UserError("batches are of an endpoint: --batch_out and --batch_in go with --backend=openai")
    return job.backend


def finish(job: Job, set_key: str, workdir: Path, console: Console) -> None:
    """Write the card of the whole set, and say how far it agrees with the labels."""
    vote = job.reason.reasoning.vote
    card = make_card(job.task, job.every_row, job.store, set_key, vote=vote, prices=job.prices)
    path = write_card(workdir, card)
    console.print(agreement_line(card), highlight=False)
    console.print(f"card of the set: {path}", highlight=False)


def print_bill(job: Job, price: Bill, console: Console) -> None:
    """Show the first request, what all of them take, and which rows cannot be asked."""
    for row in price.asked[:1]:
        first = job.renderer.reasoning_prompt(row)
        console.print(first.prefix_text + first.own_text, markup=False, highlight=False)
    line = (
        f"{price.requests:,} requests of {price.wanted:,} are not stored in set {price.set_key}: "
        f"{price.prompt_tokens:,} prompt tokens (counted by {job.renderer.tokenizer.source}), at most "
        f"{price.completion_tokens_at_most:,} answer tokens"
    )
    if price.cost_at_most is not None:
        line += f", which cost {money(price.cost_at_most)} at most"
    if job.options.max_cost is not None:
        line += f"; not more than {money(job.options.max_cost)} will be spent"
    console.print(line, highlight=False)
    _print_unrendered(price.unrendered, console)


def _print_unrendered(rows: Sequence[Quarantined], console: Console) -> None:
    for row in rows:
        console.print(f"row {row.row_id} cannot be asked: {row.reason}", markup=False)


def summary_line(summary: Summary) -> str:
    """Return what came of a run, each outcome by its own name."""
    refused, hidden, lost = summary.in_bucket(REFUSED), summary.in_bucket(HIDDEN), len(summary.quarantined)
    written = {
        "cut short": summary.cut_short,
        "without an answer": summary.without_answer,
        "with hidden reasoning": summary.with_hidden,
    }
    other = lost - refused - hidden
    quarantined = {"refused": refused, "nothing but hidden reasoning": hidden, "for other reasons": other}
    cached = f" ({summary.cached_tokens:,} cached)" if summary.cached_tokens else ""
    cost = "" if summary.cost is None else f", cost {money(summary.cost)}"
    dropped = f"; not taken by the endpoint: {', '.join(summary.dropped)}" if summary.dropped else ""
    tokens = f"{summary.prompt_tokens:,}{cached} + {summary.completion_tokens:,} tokens"
    return (
        f"set {summary.set_key}: {summary.written:,} written, {summary.before:,} were there, {lost:,} in quarantine"
        f"{_counts('of those written', written)}{_counts('in quarantine', quarantined)}; "
        f"{tokens}{cost}, {summary.seconds:.1f} s{dropped}"
    )


def _counts(of: str, counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return f"; {of} {shown}" if shown else ""
