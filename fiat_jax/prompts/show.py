"""Rendered examples, requests and lint reports for a person to read; in colour on a terminal alone."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiat_jax.prompts.diff import PromptDiff
from fiat_jax.prompts.lint import LintReport
from fiat_jax.prompts.render import TARGET, ReasoningPrompt, Rendered, Segment
from fiat_jax.prompts.tokenizer import Tokenizer

STYLES = {"bos": "dim", "chat": "dim", "end": "dim", "eos": "dim", "instructions": "cyan", "reasoning": "yellow"}
STYLES |= {"large_answer": "bold yellow", "answer": "bold green", "literal": "", "field": "blue"}


def show_rendered(rendered: Rendered, tokenizer: Tokenizer, console: Console) -> None:
    """Print the text, then each segment's loss mask (1: learnt), number of tokens and tokens."""
    text = Text.assemble(*((segment.text, _style(segment)) for segment in rendered.segments))
    console.print(text, highlight=False, soft_wrap=True)
    table = Table("segment", "loss", "tokens", "", title_justify="left", box=None, pad_edge=False)
    for segment in rendered.segments:
        pieces = " ".join(f"{tokenizer.token(i)!r}:{i}" for i in segment.ids)
        loss = str(int(segment.kind in TARGET))
        table.add_row(*(Text(cell, _style(segment)) for cell in (segment.kind, loss, str(len(segment.ids)), pieces)))
    console.print()
    console.print(table)
    cut = "".join(f"; {count} of {kind} cut" for kind, count in rendered.dropped.items())
    console.print(f"\n{len(rendered.inputs)} input tokens, {len(rendered.target)} target tokens{cut}", highlight=False)


def show_request(prompt: ReasoningPrompt, console: Console) -> None:
    """Print what the large model is asked: the shared prefix, then the row's own part."""
    text = Text.assemble((prompt.prefix_text, STYLES["instructions"]), (prompt.own_text, STYLES["field"]))
    console.print(text, highlight=False, soft_wrap=True)
    console.print(
        f"\n{len(prompt.prefix_ids)} tokens in the shared prefix, {len(prompt.own_ids)} of the row's own; "
        f"stop at {list(prompt.stop)}; {dict(prompt.decoding)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def show_lint(report: LintReport, console: Console) -> None:
    """Print findings, one a line, and the token counts by language."""
    for finding in report.findings:
        style = "bold red" if finding.severity == "error" else "yellow"
        line = Text.assemble((finding.severity, style), f": {finding.message}")
        console.print(line, highlight=False, soft_wrap=True)
    if report.lengths:
        table = Table("language", box=None, pad_edge=False)
        for name in ("rows", "mean tokens", "longest", "rows cut", "tokens cut", "do not fit"):
            table.add_column(name, justify="right")
        for row in report.lengths:
            counts = (row.rows, f"{row.mean:.1f}", row.longest, row.cut, row.cut_tokens, row.unfit)
            table.add_row(row.language, *map(str, counts))
        console.print(table)
    if not report.findings:
        console.print("nothing to mend")


def _style(segment: Segment) -> str:
    return STYLES[segment.kind.partition(":")[0]]


def show_diff(found: PromptDiff, console: Console) -> None:
    """Print each part that differs, and what the differences cost."""
    for name, lines in found.parts.items():
        console.rule(name)
        for line in lines[2:]:
            style = {"+": "green", "-": "red"}.get(line[:1])
            console.print(line, style=style, markup=False, highlight=False)
    reasoning = (
        "needs a reasoning set of its own: every row is asked about again" if found.reasoning else "the same set"
    )
    answer = "another one: what was trained with one refuses the other" if found.answer else "the same"
    console.print(f"I_β: {reasoning}. I_τ: {answer}.", highlight=False)
