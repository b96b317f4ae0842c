"""`fiat prompt lint | render | try`: an instruction file seen with its task's rows."""

import asyncio
import dataclasses

from rich.console import Console

from fiat_jax.errors import UserError
from fiat_jax.experiments.feed import Feed, Reasons, read_instructions, read_reasons
from fiat_jax.experiments.paradigms import find_paradigm
from fiat_jax.experiments.spec import Prompts, Reasoning
from fiat_jax.prompts.instructions import Instructions, load_instructions
from fiat_jax.prompts.lint import lint
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.show import show_lint, show_rendered, show_request
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.backend import complete_all
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.store import ReasoningStore
from fiat_jax.tasks.task import Row, Task, read_rows


@dataclasses.dataclass(frozen=True)
class PromptLook:
    """What `fiat prompt` looks at.

    Args:
        tokenizer: a directory with a tokenizer; empty: lint counts no tokens.
        split: whose rows are rendered and tried.
    """

    task: Task
    prompts: Prompts
    reasoning: Reasoning
    tokenizer: str = ""
    split: str = "train"
    training_splits: tuple[str, ...] = ("train",)
    paradigm: str = "fiat"

    def read_tokenizer(self) -> Tokenizer:
        """Return the tokenizer, or say how to name one."""
        if not self.tokenizer:
            raise UserError("which tokenizer? Give --tokenizer DIRECTORY of the model that is to be tuned")
        return Tokenizer.from_directory(self.tokenizer)


def _stored(look: PromptLook, rows: list[Row], console: Console) -> Reasons:
    """Return the stored ŷ_β of rows, or none, said aloud, where the store has no set."""
    if not ReasoningStore(look.reasoning.store).sets():
        console.print(f"(no reasoning in {look.reasoning.store}: rendered without it)")
        return Reasons({})
    return read_reasons(look.task, rows, look.reasoning)


def run_lint(look: PromptLook, console: Console) -> bool:
    """Print the findings; return whether the file can serve its task."""
    splits = {split: read_rows(look.task, split) for split in look.task.splits}
    instructions: Instructions = read_instructions(look.prompts, look.task)
    renderer = None
    if look.tokenizer:
        renderer = Renderer(instructions, look.read_tokenizer(), look.prompts.max_length)
    reasons = _stored(look, [row for rows in splits.values() for row in rows], console) if renderer else Reasons({})
    report = lint(
        instructions, look.task, splits,
        renderer=renderer, reasoning=reasons.by_id or None, training_splits=look.training_splits,
    )  # fmt: skip
    show_lint(report, console)
    return report.clean


def run_render(look: PromptLook, row: int, console: Console) -> None:
    """Show one row as θ_τ reads it, with its loss mask, and as θ_β is asked it."""
    rows = read_rows(look.task, look.split)
    if not 0 <= row < len(rows):
        raise UserError(f"--row {row}: split {look.split!r} has rows 0 to {len(rows) - 1}")
    tokenizer = look.read_tokenizer()
    unresolved = load_instructions(look.prompts.file)
    feed = Feed(look.task, unresolved, tokenizer, look.prompts, find_paradigm(look.paradigm))
    reasons = _stored(look, [rows[row]], console)
    show_rendered(feed.render(rows[row], reasons, with_target=True), tokenizer, console)
    if unresolved.reasoning_side is not None:
        console.rule("what θ_β is asked")
        resolved = read_instructions(look.prompts, look.task)
        renderer = Renderer(resolved, tokenizer, look.prompts.max_length)
        show_request(renderer.reasoning_prompt(rows[row]), console)


def run_try(look: PromptLook, endpoint: Endpoint, count: int, console: Console) -> None:
    """Ask θ_β about the first rows, storing nothing: request, reasoning, extracted answer, gold."""
    if count < 1:
        raise UserError(f"--rows {count}: ask about one row at least")
    rows = read_rows(look.task, look.split)[:count]
    instructions = read_instructions(look.prompts, look.task)
    renderer = Renderer(instructions, look.read_tokenizer(), look.prompts.max_length)
    backend = OpenAIBackend(endpoint)
    prompts, right = [renderer.reasoning_prompt(row) for row in rows], 0
    show_request(prompts[0], console)
    for row, prompt, completion in zip(rows, prompts, asyncio.run(complete_all(backend, prompts)), strict=True):
        if isinstance(completion, Exception):
            console.print(f"row {row[look.task.id_field]}: no answer ({completion})", markup=False, highlight=False)
            continue
        found, gold = instructions.extract(completion.text), row[look.task.answer_field]
        right += found.answer == gold
        console.rule(str(row[look.task.id_field]))
        console.print(prompt.own_text, markup=False, highlight=False)
        console.print(completion.text, style="yellow", markup=False, highlight=False)
        console.print(f"answer {found.answer!r}, gold {gold!r}, ended by {completion.finish_reason}", highlight=False)
    console.print(f"{right} of {len(rows)} right")
