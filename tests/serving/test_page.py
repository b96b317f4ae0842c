"""The page at `/` in a real browser: asked with mouse and keyboard, on narrow and wide screens, by day and by night."""

import json
import re

import pytest
from support.contrast import CONTRAST

REPORT = "It is sunny on hill 3!"
EVIL = "<img src=x onerror='window.hacked = true'><b>bold</b>"


@pytest.fixture
def opened(chromium, server):
    """Open the page, and fail where a script did."""
    contexts, errors = [], []

    def opened(answers=(), **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error))
        for path, answer in answers:
            page.route(f"**{path}", answer)
        page.goto(server.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


def ask(page, report=REPORT):
    page.get_by_label("report").fill(report)
    page.get_by_role("button", name="Ask").click()


def finished(page):
    page.locator("#status").filter(has_text=re.compile(r"\d s$")).wait_for()


def test_a_pair_shows_its_reasoning_then_its_answer_and_what_speaks_for_each_label(opened, client):
    page = opened()
    ask(page)
    finished(page)
    found = client.chat.completions.create(model="fiat", messages=[{"role": "user", "content": REPORT}])
    assert page.locator("#reasoning").text_content() == found.choices[0].message.reasoning_content
    assert page.locator("#answer").text_content() == found.choices[0].message.content
    scores = sorted(found.model_extra["fiat"]["scores"].items(), key=lambda one: -one[1])
    assert page.locator("#scores tbody tr").all_inner_texts() == [f"{name}\t{score:.3f}" for name, score in scores]
    ask(page, "It is grey on hill 4!")
    finished(page)
    assert page.locator("#scores tbody tr").count() == len(scores)


def test_a_model_by_itself_goes_on_with_a_text(opened, client):
    page = opened()
    page.get_by_label("Model").select_option("large")
    assert page.get_by_text("Reasoning of the large model").is_hidden()
    page.get_by_label("prompt").fill("It is")
    page.get_by_role("button", name="Ask").click()
    finished(page)
    found = client.completions.create(model="large", prompt="It is", max_tokens=64, temperature=0)
    assert page.locator("#answer").text_content() == found.choices[0].text
    assert page.locator("#scores").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows_and_all_is_readable_on_any_screen(opened, width, scheme):
    long = {"good" * 30: -1.25, "bad": -2.5}
    parts = [{"delta": {"reasoning_content": "reasons" * 60}}, {"delta": {"content": "good" * 30}}]
    chunks = [{"choices": [part]} for part in parts] + [{"choices": [], "fiat": {"scores": long}}]
    page = opened(
        [("/v1/chat/completions", lambda route: route.fulfill(status=200, body=events(chunks)))],
        viewport={"width": width, "height": 800}, color_scheme=scheme,
    )  # fmt: skip
    ask(page, REPORT * 20)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    count, contrast = page.evaluate(CONTRAST)
    assert count > 10
    assert contrast >= 4.5
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")


def test_the_keyboard_alone_can_ask_and_stop(opened):
    def slowly(route):
        if "slow" not in route.request.post_data:
            route.continue_()  # the other is never answered

    page = opened([("/v1/chat/completions", slowly)])
    page.get_by_label("report").wait_for()
    for key in ("Tab", "Tab"):
        page.keyboard.press(key)
    page.keyboard.type("slow")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Enter")
    page.get_by_text("stopped").wait_for()
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(REPORT)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator("#answer").text_content() in ("good", "bad")


def test_an_error_is_shown(opened, server):
    page = opened()
    ask(page, "It is sunny on hill 3! " * 200)
    page.locator("#status[data-bad]").filter(has_text="tokens").wait_for()
    broken = [{"choices": [{"delta": {"reasoning_content": "so"}}]}, {"error": {"message": "the engine broke"}}]
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=events(broken)))
    ask(page)
    page.locator("#status[data-bad]").filter(has_text="the engine broke").wait_for()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    page.locator("#status[data-bad]").filter(has_text="TypeError").wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()


def test_a_page_that_is_opened_while_models_are_loaded_waits_for_them(opened):
    asked = []

    def loading(route):
        asked.append(route)
        error = {"error": {"message": "the server is starting"}}
        route.fulfill(status=503, json=error) if len(asked) == 1 else route.continue_()

    page = opened([("/v1/models", loading)])
    page.get_by_text("the server is starting").wait_for()
    page.get_by_label("report").wait_for()
    assert page.locator("#status").text_content() == ""


def test_text_is_text_wherever_it_comes_from(opened):
    chunks = [
        {"choices": [{"delta": {"reasoning_content": EVIL}}]},
        {"choices": [{"delta": {"content": EVIL}}], "fiat": {"scores": {EVIL: -1.0}}},
        {"choices": [], "error": {"message": EVIL}},
    ]
    models = {"data": [{"id": EVIL, "fields": [EVIL]}]}
    page = opened(
        [
            ("/v1/models", lambda route: route.fulfill(json=models)),
            ("/v1/chat/completions", lambda route: route.fulfill(status=200, body=events(chunks))),
        ]
    )
    page.locator("textarea").fill(EVIL)
    page.get_by_role("button", name="Ask").click()
    page.locator("#status[data-bad]").wait_for()
    for place in ("#reasoning", "#answer", "#scores th", "#status", "#fields label", "#model option"):
        assert page.locator(place).text_content() == EVIL
    assert page.locator("img, b").count() == 0
    assert page.evaluate("window.hacked") is None


def events(chunks):
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
