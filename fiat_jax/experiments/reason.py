"""`fiat reason`: reasoning into the store, imported or asked of a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fiat_jax.errors import Interrupted, UserError
from fiat_jax.experiments.feed import read_instructions
from fiat_jax.experiments.spec import Prompts, Reasoning
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.backend import HIDDEN, REFUSED
from fiat_jax.reasoning.cost import Prices, money
from fiat_jax.reasoning.drive import GenerateOptions
from fiat_jax.reasoning.generate import Bill, Summary, bill, generate
from fiat_jax.reasoning.importer import import_reasoning
from fiat_jax.reasoning.native import Native, NativeBackend
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.sharding import MeshConfig
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Row, Task, read_rows


@dataclasses.dataclass(frozen=True)
class Reason:
    """What `fiat reason` is asked.

    Args:
        splits: whose rows get reasoning; none named: all splits of the task.
        tokenizer: the directory of a tokenizer that counts θ_β's tokens.
    """

    task: Task
    prompts: Prompts
    reasoning: Reasoning
    options: GenerateOptions
    splits: tuple[str, ...] = ()
    tokenizer: str = ""


@dataclasses.dataclass(frozen=True)
class Import:
    """What `fiat reason --import` is asked.

    Args:
        rationale, answer: the fields of the file that hold the reasoning and the large model's answer.
        model, revision: which model wrote it.
        splits: whose rows it is for; none named: all splits of the task.
    """

    task: Task
    reasoning: Reasoning
    rationale: str = "reasoning"
    answer: str = ""
    model: str = ""
    revision: str = ""
    splits: tuple[str, ...] = ()


def rows_of(task: Task, splits: Sequence[str]) -> list[Row]:
    """Return the rows of several splits, of all where none is named, with or without answers."""
    return [row for split in splits or task.splits for row in read_rows(task, split, answers_required=False)]


def import_files(job: Import, files: Sequence[str], console: Console) -> None:
    """Bring reasoning that files hold into the store: one set, whatever the number of files."""
    if not job.model:
        raise UserError("which model wrote this reasoning? Give --gin.Import.model='NAME'")
    rows, store = rows_of(job.task, job.splits), ReasoningStore(job.reasoning.store)
    mapping = {"rationale": job.rationale, **({"answer": job.answer} if job.answer else {})}
    for file in files:
        done = import_reasoning(
            job.task, rows, file, store, mapping=mapping, model=job.model, revision=job.revision or None
        )
        lacking = len(done.without_reasoning)
        console.print(
            f"{file}: {done.written:,} rows imported into set {done.set_key} of {store.path}, {done.before:,} were "
            f"there, {done.same_content:,} share another row's, {lacking:,} of {len(rows):,} rows are not in it, "
            f"{done.without_answer:,} came without an answer, {done.unknown:,} entries belong to no row",
            highlight=False,
        )
        if done.foreign_answers:
            labels = ", ".join(job.task.labels)
            console.print(
                f"warning: {done.foreign_answers:,} answers of the large model are none of the labels {labels}; θ_τ "
                "reads them as they are",
                highlight=False,
            )


def ask_endpoint(reason: Reason, endpoint: Endpoint, workdir: Path, dry_run: bool, console: Console) -> None:
    """Ask an OpenAI-compatible endpoint for what the store lacks."""
    if not reason.tokenizer:
        raise UserError("no tokenizer to count tokens with: give --gin.Reason.tokenizer=DIRECTORY (any model's)")
    tokenizer = Tokenizer.from_directory(reason.tokenizer)
    _ask(
        reason,
        OpenAIBackend(endpoint, reason.options.concurrency),
        tokenizer,
        workdir,
        dry_run,
        console,
        endpoint.prices,
    )


def ask_engine(
    reason: Reason, native: Native, mesh: MeshConfig, workdir: Path, dry_run: bool, console: Console
) -> None:
    """Let the engine of this process write what the store lacks."""
    if reason.tokenizer:
        raise UserError("Reason.tokenizer is for endpoints; the engine reads with the tokenizer of Native.path")
    tokenizer = Tokenizer.from_directory(native.path)
    backend = NativeBackend(native, mesh, tokenizer)
    options = dataclasses.replace(reason.options, concurrency=max(backend.concurrency, reason.options.concurrency))
    _ask(dataclasses.replace(reason, options=options), backend, tokenizer, workdir, dry_run, console)


def _ask(
    reason: Reason,
    backend: OpenAIBackend | NativeBackend,
    tokenizer: Tokenizer,
    workdir: Path,
    dry_run: bool,
    console: Console,
    prices: Prices | None = None,
) -> None:
    rows = rows_of(reason.task, reason.splits)
    instructions = read_instructions(reason.prompts, reason.task)
    renderer = Renderer(instructions, tokenizer, reason.prompts.max_length)
    store = ReasoningStore(reason.reasoning.store)
    price = bill(reason.task, rows, renderer, backend, store, reason.options, prices)
    first = renderer.reasoning_prompt(rows[0])
    console.print(first.prefix_text + first.own_text, markup=False, highlight=False)
    console.print(_bill_line(price, tokenizer, reason.options.max_cost), highlight=False)
    for row in price.unrendered:
        console.print(f"row {row.row_id} cannot be asked: {row.reason}", markup=False)
    if isinstance(backend, NativeBackend):
        unasked = {row.row_id for row in price.unrendered}
        asked = [row for row in rows if str(row[reason.task.id_field]) not in unasked]
        backend.expect([renderer.reasoning_prompt(row) for row in asked])
    if dry_run:
        return
    summary = generate(
        reason.task, rows, renderer, backend, store, reason.options, prices=prices,
        quarantine=workdir / "quarantine.jsonl", console=console if console.is_terminal else None,
    )  # fmt: skip
    console.print(_summary_line(summary), highlight=False)
    if summary.dropped:
        console.print(f"not taken by the endpoint: {', '.join(summary.dropped)}", highlight=False)
    if summary.interrupted:
        raise Interrupted(summary.before + summary.written, summary.wanted, summary.stopped_by)


def _bill_line(price: Bill, tokenizer: Tokenizer, max_cost: float | None) -> str:
    line = (
        f"{price.requests:,} requests of {price.wanted:,} are not stored in set {price.set_key}: "
        f"{price.prompt_tokens:,} prompt tokens (counted by {tokenizer.source}), at most "
        f"{price.completion_tokens_at_most:,} answer tokens"
    )
    if price.cost_at_most is not None:
        line += f", which cost {money(price.cost_at_most)} at most"
    return line + (f"; not more than {money(max_cost)} will be spent" if max_cost is not None else "")


def _summary_line(summary: Summary) -> str:
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
    return (
        f"set {summary.set_key}: {summary.written:,} written, {summary.before:,} were there, {lost:,} in quarantine"
        f"{_counts('of those written', written)}{_counts('in quarantine', quarantined)}; "
        f"{summary.prompt_tokens:,}{cached} + {summary.completion_tokens:,} tokens{cost}, {summary.seconds:.1f} s"
    )


def _counts(of: str, counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return f"; {of} {shown}" if shown else ""
