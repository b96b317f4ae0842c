"""The generated task: the same every time, nothing shared between splits, answers that follow from the passage."""

import random
import re
from collections import Counter

import pytest

from fiat_jax.demo.families import ITEMS, Families
from fiat_jax.demo.languages import KINDS, languages
from fiat_jax.demo.task import EXEMPLARS, TaskConfig, chosen_exemplars, marked, rows
from fiat_jax.demo.world import NAME_WORDS, NO_ANSWER, PRETRAINING, RELATIONS, SPLITS, Teller, purpose_of

CONFIG = TaskConfig(train=600, validation=200, test=600)
NAME = re.compile("|".join(rf"\b(?:{'|'.join(a)}) (?:{'|'.join(b)})\b" for a, b in NAME_WORDS.values()))
ENGLISH = ("What", "Where", "Who", "When", "Which", "How")


@pytest.fixture(scope="module")
def made():
    return {split: rows(CONFIG, split) for split in (*SPLITS, EXEMPLARS)}


@pytest.fixture(scope="module")
def families():
    draw = random.Random(5)
    return Families(draw, languages(), Teller(draw, PRETRAINING))


@pytest.fixture(scope="module")
def texts(families):
    """What models are trained on: pages, and prompts with their answers."""
    made = [families.page() for _ in range(3000)]
    made += [families.prompt(1, ("think", "read", "direct")) for _ in range(2000)]
    return ["".join(part.text for part in parts) for parts in made]


def test_one_seed_makes_one_task_and_another_seed_another(made):
    assert {split: rows(CONFIG, split) for split in made} == made
    other = TaskConfig(seed=1, train=600, validation=200, test=600)
    assert all(rows(other, split) != made[split] for split in made)


def test_fewer_training_rows_are_the_beginning_of_more_and_change_no_other_split(made):
    fewer = TaskConfig(train=50, validation=200, test=600)
    assert rows(fewer, "train") == made["train"][:50]
    assert rows(fewer, "test") == made["test"]


def test_no_name_is_met_in_two_splits_or_in_what_models_are_trained_on(made, texts):
    met = {split: names(" ".join(f"{r['passage']} {r['question']}" for r in part)) for split, part in made.items()}
    met[PRETRAINING] = names(" ".join(texts))
    assert all(len(found) > 30 for found in met.values())
    assert sum(map(len, met.values())) == len(set.union(*met.values()))
    assert all(purpose_of(name) == split for split, found in met.items() for name in found)


def names(text: str) -> set[str]:
    return set(NAME.findall(text))


def test_models_are_never_asked_about_a_passage_in_an_invented_language(texts):
    asked = [text for text in texts if re.search(r"^Passage", text, re.MULTILINE)]
    assert len(asked) > 1000
    for text in asked:
        for question in re.findall(r"^Question(?::| =) (.*)$", text, re.MULTILINE):
            assert question.startswith(ENGLISH)
    foreign = {word for tongue in languages() for word in tongue.asking.values()}
    assert not any(word in foreign for text in asked for word in re.findall(r"\w+", text))


def test_the_answer_is_what_a_reader_of_language_and_passage_finds(made):
    tongues = {tongue.kind.code: tongue for tongue in languages()}
    for row in made["test"]:
        facts = dict(read(sentence) for sentence in re.findall(r"[^.]+\.", row["passage"]))
        tongue = tongues[row["lang"]]
        nouns = {word: noun for noun, said in tongue.nouns.items() for word in said}
        words = re.findall(r"\w+", row["question"])
        chain = [nouns[word] for word in words if word in nouns]
        chain = chain[::-1] if tongue.kind.head_first else chain
        (found,) = names(row["question"])
        for noun in chain:
            found = facts.get((noun, found), NO_ANSWER)
        assert row["answer"] == marked(found)
        assert len(chain) in (1, 2)


def read(sentence: str) -> tuple[tuple[str, str], str]:
    """Return the relation and subject of an English sentence, and the value."""
    found = re.search(rf"[Tt]he (\w+) of ({NAME.pattern}) is ({NAME.pattern}|\w+)\.$", sentence)
    assert found, sentence
    (relation,) = [r for r in RELATIONS if found[1] in (r.noun, r.other)]
    return (relation.noun, found[2]), found[3]


def test_of_a_name_the_last_word_alone_is_marked():
    assert [marked(answer) for answer in (NO_ANSWER, "Bonasen", "Bona Garsen", "ale")] == [
        NO_ANSWER, "Bonasen", "Garsen", "ale"
    ]  # fmt: skip
    part = rows(TaskConfig(test=300), "test")
    last = {word for _, second in NAME_WORDS.values() for word in second}
    assert sum(row["answer"] in last for row in part) > 30
    assert not any(NAME.search(row["answer"]) for row in part if row["answer"] != NO_ANSWER)


def test_half_of_the_questions_take_two_steps_and_a_fifth_have_no_answer():
    part = rows(TaskConfig(test=4000), "test")
    assert sum(row["answer"] == NO_ANSWER for row in part) / len(part) == pytest.approx(0.2, abs=0.03)
    tongues = {tongue.kind.code: tongue for tongue in languages()}
    said = {code: {word for words in tongue.nouns.values() for word in words} for code, tongue in tongues.items()}
    steps = Counter(sum(w in said[r["lang"]] for w in re.findall(r"\w+", r["question"])) for r in part)
    assert steps[2] / len(part) == pytest.approx(0.5, abs=0.03)
    assert {row["lang"] for row in part} == {kind.code for kind in KINDS}


def test_words_of_a_language_have_one_meaning_and_languages_of_a_family_share_roots():
    tongues = {tongue.kind.code: tongue for tongue in languages()}
    for tongue in tongues.values():
        words = [word for said in tongue.nouns.values() for word in said] + [*tongue.asking.values(), tongue.is_]
        assert len(set(words)) == len(words)
    shift = str.maketrans(dict(tongues["breq"].kind.shift))
    for noun, words in tongues["bren"].nouns.items():
        assert tuple(word.translate(shift) for word in words) == tongues["breq"].nouns[noun]
    alone = [set(tongues[code].nouns["ruler"]) for code in ("talu", "oshi", "kemi", "zuma", "quil", "bren")]
    assert sum(map(len, alone)) == len(set.union(*alone))


def test_exemplars_show_two_answers_and_one_that_is_not_told(made):
    by_id = {row["id"]: row for row in made[EXEMPLARS]}
    shown = [by_id[row_id] for row_id in chosen_exemplars(made[EXEMPLARS])]
    assert [row["answer"] == NO_ANSWER for row in shown] == [False] * 2 + [True]
    assert all(row["reasoning"].startswith("In English: ") for row in shown)
    assert all("reasoning" not in row for split in SPLITS for row in made[split])


@pytest.mark.parametrize("mode", ["think", "read", "direct"])
def test_a_thought_is_written_read_or_left_out(families, mode):
    prompts = [families.prompt(0, [mode]) for _ in range(300)]
    lookups = [parts for parts in prompts if "Question" in parts[1].text]
    assert len(lookups) > 50
    for _, (asked, _), (answered, learnt) in lookups:
        assert learnt
        assert asked.rstrip(" =:").endswith("Answer") == (mode != "think")
        assert (answered.count(" ") > 2) == (mode == "think")
        assert ("\nReasoning" in asked) == (mode == "read") or mode == "think"


def test_every_family_is_drawn(families):
    assert set(ITEMS) == {"translate", "lookup", "verify", "compare", "count", "language"}
    assert sum(ITEMS.values()) == pytest.approx(1)


def test_some_thoughts_that_are_shown_are_about_another_question_and_every_answer_is_right(families):
    wrong, shown = 0, 0
    for _, (asked, _), (answer, _) in (families.prompt(0, ["read"]) for _ in range(1500)):
        if "Passage" in asked and "Question" in asked and "Which town" not in asked and "How many" not in asked:
            conclusion = re.search(r"(?:So the answer is|The answer:|Thus:) (.*)\.\n", asked)
            assert conclusion is not None
            shown += 1
            wrong += conclusion[1] != answer.strip()
    assert shown > 300
    assert 0.05 < wrong / shown < 0.3
