"""The report in a real browser: narrow and wide, by day and by night, by keyboard, and with harmful texts."""

import re
from pathlib import Path

import pytest
from support.contrast import CONTRAST
from support.report_run import EVIL, Plan, write_run

from fiat_jax.experiments.report.assemble import write_report
from fiat_jax.experiments.report.training import Rates


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_run(root / "run", Plan(rows=80, seeds=(0, 1)))
    write_report([root / "run"], [root / "report.html"], Rates())
    return root / "report.html"


@pytest.fixture
def opened(chromium, page_file):
    """Open the report; fail where a script did, something was fetched, or the page's policy was broken."""
    contexts, wrong = [], []

    def opened(**options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
        page.goto(page_file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows_and_all_is_readable_on_any_screen(opened, width, scheme):
    page = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    count, contrast = page.evaluate(CONTRAST)
    assert count > 200
    assert contrast >= 4.5
    drawn = page.evaluate(
        "() => [...document.querySelectorAll('svg')].map(svg => [svg.getBoundingClientRect().width, "
        "getComputedStyle(svg.querySelector('text')).fill === getComputedStyle(document.body).color])"
    )
    assert len(drawn) >= 5
    assert all(250 <= wide <= width and colored for wide, colored in drawn)


def test_a_harmful_text_is_shown_and_does_nothing(opened):
    page = opened()
    page.locator("input[name=text]").fill("row-0")
    page.locator(".rows summary").first.click()
    shown = page.locator(".rows dd").all_text_contents()
    assert EVIL.replace("\ud83d", "\ufffd") in [text.replace("\ud83d", "\ufffd") for text in shown]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_rows_are_filtered_by_kind_language_and_text(opened):
    page = opened()
    told = page.locator(".found")
    everything = int(re.search(r"of (\d+)$", told.inner_text())[1])
    assert everything == 80
    counts = []
    for kind in page.locator("select[name=kind] option").all_text_contents()[1:]:
        page.locator("select[name=kind]").select_option(kind)
        found = re.search(r"of (\d+)$", told.inner_text())
        counts.append(int(found[1]) if found else 0)
        assert set(page.locator(".rows .kind").all_text_contents()) <= {kind}
    assert sum(counts) == everything
    page.locator("select[name=kind]").select_option("all")
    page.locator("select[name=language]").select_option("bn")
    assert told.inner_text().endswith("of 20")
    page.locator("input[name=text]").fill("Question 4?")
    assert page.locator(".rows li").count() == 1
    page.locator("input[name=text]").fill("nothing like this")
    assert told.inner_text() == "no such row"


def test_the_keyboard_alone_can_browse(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("input[name=text]").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator(".rows details[open]").count() == 1
    first = page.locator(".rows summary").first.inner_text()
    page.get_by_role("button", name="Later").focus()
    page.keyboard.press("Enter")
    assert page.locator(".rows summary").first.inner_text() != first
    assert page.locator(".found").inner_text().startswith("26 to 50")


def test_every_plot_says_what_it_shows(opened):
    page = opened()
    plots = page.get_by_role("img")
    names = [plots.nth(n).evaluate("svg => svg.querySelector('desc').textContent") for n in range(plots.count())]
    assert len(names) >= 5
    assert all(len(name) > 30 for name in names)
