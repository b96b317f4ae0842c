import pytest

from fiat_jax.prompts.extract import Reasoning, last_label, last_number, make_extract
from fiat_jax.prompts.schema import Section


def extract(completion, labels=(), **settings):
    return make_extract(Section(settings, "file.yaml: extract"), labels)(completion)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 3 + 4 = 7.", "7"),
        ("it costs $1,234.50", "1234.5"),
        ("from 5-3", "3"),
        ("it is -3.0 degrees", "-3"),
        ("it is −0", "0"),
        ("উত্তর হল ১১।", "11"),
        ("in 2010, 7", "7"),
        ("007", "7"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_found_and_spelled_plainly(text, number):
    assert last_number(text) == number


def test_the_answer_stands_after_the_last_marker_and_ends_with_its_line():
    text = " So: no? Wait.\nSo: 'a long walk'.\n\nReport: more"
    assert extract(text, kind="after", text="So:") == Reasoning("So: no? Wait.", "a long walk")


@pytest.mark.parametrize("text", ["no marker", "So:", "So: .\nyes"])
def test_a_completion_without_an_answer_has_none(text):
    assert extract(text, kind="after", text="So:").answer is None


def test_the_last_label_counts_and_only_as_a_whole_word():
    assert last_label("No, it is not known. Maybe", ("no", "maybe")) == "maybe"
    assert last_label("unknown", ("no", "known")) is None
    assert last_label("a red apple", ("apple", "red apple")) == "red apple"
    assert last_label("Cevap: İLGİLİ", ("ilgili", "ilgisiz")) == "ilgili"
    assert last_label("HAYIR", ("evet", "hayır")) == "hayır"
    assert extract("Yes. No.", ("yes", "no"), kind="label") == Reasoning("Yes. No.", "no")


def test_a_regular_expression_names_its_groups():
    pattern = r"Why: (?P<rationale>.*?)\nAnswer: (?P<answer>\w+)"
    assert extract("Why: a\nb\nAnswer: c d", kind="regex", pattern=pattern) == Reasoning("a\nb", "c")
    assert extract("because x = 4!", kind="regex", pattern=r"= (?P<answer>\d+)") == Reasoning("because x =", "4")
    assert extract("nothing", kind="regex", pattern=pattern) == Reasoning("nothing", None)
