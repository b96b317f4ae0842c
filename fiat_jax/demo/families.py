"""What the demo's models are pretrained and tuned on: tasks over the world, the target task never among them.

The target task asks in an invented language about an English passage. Nothing here does: questions about passages are
in English, and questions in invented languages are translated, without a passage.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fiat_jax.demo.languages import Language
from fiat_jax.demo.world import NO_ANSWER, RELATIONS, TOWN, Fact, Relation, Scene, Teller, of_kind

NOT_TOLD = "The passage does not say more."
INSTRUCTIONS = {
    "translate": ("Translate.", "Say it in the other language.", "Turn one language into the other."),
    "lookup": ("Answer from the passage.", "Read the passage and answer the question.", "What does the passage say?"),
    "verify": ("Is the claim true?", "Check the claim against the passage.", "Does the passage say so?"),
    "compare": ("Compare the two.", "Which of the two is it?", "Decide between them."),
    "count": ("Count.", "How many are there in the passage?", "Count them in the passage."),
    "language": ("Name the language.", "Which language is this?", "Say which language the text is in."),
}
ITEMS = {"translate": 0.14, "lookup": 0.54, "verify": 0.18, "compare": 0.05, "count": 0.06, "language": 0.03}
PAGES = {"repeat": 0.08, "retell": 0.3, "text": 0.03, "words": 0.03, "translate": 0.13, "lookup": 0.28, "verify": 0.09}
PAGES |= {"compare": 0.03, "count": 0.03}
TOGETHER = 3  # items of a page
MISREAD = 0.3  # the share of thoughts shown that are about another question of the same passage


class Part(NamedTuple):
    """A piece of a text that models are trained on; unless `learnt` it is only read."""

    text: str
    learnt: bool


class Item(NamedTuple):
    """A task's example: named texts, what is asked in English, the facts that lead to the answer, and the answer.

    `misread` is what a reader who took it for another question would think and answer.
    """

    given: tuple[tuple[str, str], ...]
    asked: str
    facts: str
    answer: str
    misread: "Item | None" = None


class Style(NamedTuple):
    """How items are written: one of these for all that stand together.

    `again` is before what is asked, said again in English at the beginning of a thought; "": it is not said again.
    """

    colon: str
    thought: str
    again: str
    so: str

    def think(self, item: Item) -> str:
        """Return the thought that leads to an answer, if there is any."""
        return f"{self.again} {item.asked} {item.facts}" if self.again and item.asked else item.facts

    def asked(self, item: Item, mode: str = "think") -> str:
        """Return an item up to where what answers it begins; "read" shows a thought, "think" asks for it."""
        lines = [f"{name}{self.colon}{text}" for name, text in item.given]
        if item.facts and mode == "read":
            shown = item.misread or item
            lines.append(f"Reasoning{self.colon}{self.think(shown)} {self.so} {shown.answer}.")
        asks = self.thought if item.facts and mode == "think" else "Answer"
        return "\n".join([*lines, f"{asks}{self.colon.rstrip()}"])

    def answered(self, item: Item, mode: str = "think") -> str:
        """Return what comes behind that."""
        return f" {self.think(item)} {self.so} {item.answer}." if item.facts and mode == "think" else f" {item.answer}"


STYLES = [
    Style(colon, thought, again, so)
    for colon in (": ", " = ")
    for thought in ("Thought", "Reasoning", "Steps")
    for again in ("In English:", "That is:", "Asked:", "")
    for so in ("So the answer is", "The answer:", "Thus:")
]


class Families:
    """Draws items, prompts and pages of every family.

    Args:
        facts: at least and at most so many are told in a passage.
    """

    def __init__(
        self, draw: random.Random, languages: Sequence[Language], teller: Teller, facts: tuple[int, int] = (2, 7)
    ):
        self._draw, self._languages, self._teller, self._facts = draw, languages, teller, facts
        self._shares = [language.kind.share for language in languages]
        self._items: dict[str, Callable[[], Item]] = {
            "translate": self._translate,
            "lookup": self._lookup,
            "verify": self._verify,
            "compare": self._compare,
            "count": self._count,
            "language": self._language,
        }

    def prompt(self, shots: int, modes: Sequence[str]) -> list[Part]:
        """Return an instruction and one more item of a family than `shots`; the answers of all are learnt."""
        draw = self._draw
        family, style, mode = _chosen(draw, ITEMS), draw.choice(STYLES), draw.choice(modes)
        items = [self._items[family]() for _ in range(shots + 1)]
        if mode == "read" and family == "lookup":
            items = [self._perhaps_misread() for _ in items]
        blocks = [(style.asked(item, mode), style.answered(item, mode)) for item in items]
        return [Part(draw.choice(INSTRUCTIONS[family]), False), *_alternating(blocks, "\n\n", "\n\n")]

    def page(self) -> list[Part]:
        """Return a text without an instruction: of tasks the answers are learnt, of plain texts all."""
        draw = self._draw
        kind, style = _chosen(draw, PAGES), draw.choice(STYLES)
        if kind == "text":
            return [Part(self._text(), True)]
        if kind == "words":
            return [Part("\n".join(self._word() for _ in range(4)), True)]
        if kind == "repeat":
            text = self._text()
            return [Part(f"Text{style.colon}{text}\nAgain{style.colon.rstrip()}", False), Part(f" {text}", True)]
        if kind == "retell":
            return self._retold(style)
        if kind in ("lookup", "verify"):
            return self._about_one_passage(kind, style)
        items = [self._items[kind]() for _ in range(TOGETHER if kind == "translate" else 2)]
        return _alternating([(style.asked(item), style.answered(item)) for item in items], "\n\n")

    def _retold(self, style: Style) -> list[Part]:
        """A passage, and its facts twice more in other orders and in plain words; what the passage tells is learnt."""
        draw = self._draw
        scene = self._teller.scene(draw.choice((1, 2)), length=draw.randint(3, 7))
        parts = [Part(f"Text{style.colon}{scene.passage}\nIn short{style.colon.rstrip()}", False)]
        for fact in draw.sample(scene.facts * 2, 2 * len(scene.facts)):
            first, second = fact.subject.split()
            parts += [Part(f" The {fact.relation.noun} of {first}", False), Part(f" {second}", True)]
            parts += [Part(" is", False), Part(f" {fact.value}.", True)]
        return parts

    def _about_one_passage(self, kind: str, style: Style) -> list[Part]:
        scene = self._scene(self._draw.choice((1, 2)))
        make = self._question_about if kind == "lookup" else self._claim_about
        items = dict.fromkeys(make(scene) for _ in range(TOGETHER))  # each once
        blocks = [(style.asked(item).split("\n", 1)[1], style.answered(item)) for item in items]
        return [Part(f"Passage{style.colon}{scene.passage}", False), *_alternating(blocks, "\n", "\n")]

    def _scene(self, hops: int) -> Scene:
        return self._teller.scene(hops, length=self._draw.randint(*self._facts))

    def _some_language(self) -> Language:
        return self._draw.choices(self._languages, self._shares)[0]

    def _translate(self) -> Item:
        """A question or a statement, from an invented language into English or back."""
        draw, language = self._draw, self._some_language()
        if draw.random() < 0.7:
            question = self._teller.question(draw.choice((1, 2)))
            pair = language.question(question, draw), question.english
        else:
            fact = self._teller.fact(draw.choice(RELATIONS))
            pair = language.statement(fact, draw), fact.plain()
        names = language.kind.code, "English"
        if draw.random() < 0.3:
            pair, names = pair[::-1], names[::-1]
        return Item(((names[0].capitalize(), pair[0]),), "", "", f"In {names[1]}: {pair[1]}")

    def _lookup(self) -> Item:
        """An English question about an English passage."""
        return self._question_about(self._scene(self._draw.choice((1, 2))))

    def _perhaps_misread(self) -> Item:
        """A lookup where the thought that is shown may be about another question."""
        scene = self._scene(self._draw.choice((1, 2)))
        item, other = self._question_about(scene), self._question_about(scene)
        return item._replace(misread=other) if self._draw.random() < MISREAD else item

    def _question_about(self, scene: Scene) -> Item:
        asked = self._teller.ask(scene.facts)
        thought = [fact.plain() for fact in asked.steps] + [NOT_TOLD] * (asked.answer == NO_ANSWER)
        given = (("Passage", scene.passage), ("Question", asked.question.english))
        return Item(given, asked.question.english, " ".join(thought), asked.answer)

    def _verify(self) -> Item:
        """A claim in an invented language, and an English passage: true, false, or unknown."""
        return self._claim_about(self._scene(1))

    def _claim_about(self, scene: Scene) -> Item:
        draw, fact = self._draw, self._draw.choice(scene.facts)
        if draw.random() < 0.25:
            told = {f.relation for f in scene.facts if f.subject == fact.subject}
            untold = draw.choice([r for r in of_kind(fact.relation.of) if r not in told] or [fact.relation])
            fact = Fact(untold, fact.subject, self._teller.value(untold))
        known = next((f for f in scene.facts if (f.relation, f.subject) == (fact.relation, fact.subject)), None)
        if known is not None and draw.random() < 0.5:
            fact = fact._replace(value=self._another(fact.relation, fact.value))
        answer = "unknown" if known is None else str(known.value == fact.value).lower()
        told = NOT_TOLD if known is None else known.plain()
        claim = self._some_language().statement(fact, draw)
        return Item((("Passage", scene.passage), ("Claim", claim)), fact.plain(), told, answer)

    def _compare(self) -> Item:
        """Which of two towns was founded first, or which of two holds its market on a day."""
        draw = self._draw
        relation = draw.choice([r for r in RELATIONS if r.noun in ("year", "market")])
        facts = [self._teller.fact(relation) for _ in range(2)]
        while facts[0].value == facts[1].value:
            facts[1] = self._teller.fact(relation)
        others = [self._teller.fact(r, draw.choice(facts).subject) for r in draw.sample(of_kind(TOWN), 2)]
        told = [*facts, *(fact for fact in others if fact.relation is not relation)]
        draw.shuffle(told)
        asked = draw.choice(facts)
        if relation.noun == "year":
            question, answer = "Which town is older?", min(facts, key=lambda fact: int(fact.value)).subject
        else:
            question, answer = f"Which town has its market on {asked.value}?", asked.subject
        given = (("Passage", self._teller.tell(told)), ("Question", question))
        return Item(given, question, " ".join(fact.plain() for fact in facts), answer)

    def _count(self) -> Item:
        """How many of a passage have a property."""
        draw = self._draw
        relation = draw.choice([r for r in RELATIONS if not r.leads_on and r.noun != "year"])
        value, many = draw.choice(relation.values), draw.randint(0, 4)
        facts = [self._teller.fact(relation)._replace(value=value) for _ in range(many)]
        others = [self._teller.fact(relation) for _ in range(draw.randint(1, 5 - many))]
        told = [*facts, *(fact._replace(value=self._another(relation, value)) for fact in others)]
        draw.shuffle(told)
        question = f"How many have this {relation.noun}: {value}?"
        thought = " ".join(fact.plain() for fact in told if fact.value == value) or "None."
        return Item((("Passage", self._teller.tell(told)), ("Question", question)), question, thought, str(many))

    def _language(self) -> Item:
        """The language of a text."""
        draw, language = self._draw, self._some_language()
        text = language.statement(self._teller.fact(draw.choice(RELATIONS)), draw)
        return Item((("Text", text),), "", "", language.kind.code)

    def _text(self) -> str:
        """Plain text: a passage, or statements in an invented language."""
        draw = self._draw
        if draw.random() < 0.5:
            return self._teller.scene(draw.choice((1, 2)), length=draw.randint(1, 5)).passage
        language = self._some_language()
        facts = [self._teller.fact(draw.choice(RELATIONS)) for _ in range(draw.randint(1, 3))]
        return " ".join(language.statement(fact, draw) for fact in facts)

    def _word(self) -> str:
        """What a word means."""
        draw, language = self._draw, self._some_language()
        relation = draw.choice(RELATIONS)
        return f"{language.kind.code}: {draw.choice(language.nouns[relation.noun])} = {relation.noun}"

    def _another(self, relation: Relation, value: str) -> str:
        while (found := self._teller.value(relation)) == value:
            pass
        return found


def _alternating(blocks: Iterable[tuple[str, str]], between: str, before: str = "") -> list[Part]:
    """Return what is asked and what is answered in turn."""
    parts: list[Part] = []
    for asked, answered in blocks:
        parts += [Part((between if parts else before) + asked, False), Part(answered, True)]
    return parts


def _chosen(draw: random.Random, shares: dict[str, float]) -> str:
    return draw.choices(list(shares), list(shares.values()))[0]
