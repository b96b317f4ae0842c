import io

import pytest
from rich.console import Console

from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.lint import Finding, Lengths, LintReport
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.show import show_lint, show_rendered, show_request


@pytest.fixture
def render(write, rows, plain):
    return Renderer(load_instructions(write(), rows), plain, 300)


def shown(show, *things, **settings):
    console = Console(file=io.StringIO(), width=100, **settings)
    show(*things, console)
    return console.file.getvalue()


def test_a_rendered_row_shows_its_text_and_which_tokens_are_learnt(render, rows, plain):
    text = shown(show_rendered, render.answer(rows["w3"] | {"report": "[red]fog[/red]"}, None, "bad"), plain)
    assert "Report: [red]fog[/red]" in text
    assert "\x1b" not in text
    learnt = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.split()[1:2] in (["0"], ["1"])}
    assert learnt == {"instructions": "0", "literal": "0", "field:report": "0", "answer": "1", "eos": "1"}
    assert f"'n':{plain.encode('n')[0]}" in text


def test_colour_appears_on_a_terminal(render, rows, plain):
    assert "\x1b[" in shown(show_rendered, render.answer(rows["w3"], None, "bad"), plain, force_terminal=True)


def test_a_request_is_shown_as_it_is_sent(render, rows):
    prompt = render.reasoning_prompt(rows["w3"])
    text = shown(show_request, prompt)
    assert text.startswith(prompt.prefix_text + prompt.own_text)
    assert "'max_tokens': 32" in text


def test_findings_and_counts_are_listed():
    report = LintReport((Finding("error", "no [slot]"),), (Lengths("fi", 3, 7.25, 9, 1, 2, 0),))
    text = shown(show_lint, report)
    assert "error: no [slot]" in text
    assert text.splitlines()[-1].split() == ["fi", "3", "7.2", "9", "1", "2", "0"]
    assert shown(show_lint, LintReport((), ())) == "nothing to mend\n"
