"""A generated world: people, towns and ships, what English texts tell of them, and questions about it.

A question follows one fact ("Who is the ruler of X?") or two ("Where is the birthplace of the ruler of X?"); its
passage holds these facts among others like them, or lacks the last of them. Entities of different splits share no name,
with each other or with those of pretraining.
"""

import collections
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NO_ANSWER = "No Answer"
PERSON, TOWN, SHIP = "person", "town", "ship"
SPLITS = ("train", "validation", "test")
PRETRAINING = "pretraining"  # whose entities are met in no split


@dataclass(frozen=True)
class Relation:
    """What may be said of an entity: English has two words for it, `noun` and `other`.

    Args:
        of: the kind of entity that it is said of.
        values: what it leads to: a kind of entity, or one of these words.
        ask: the word that asks for it.
    """

    noun: str
    other: str
    of: str
    values: str | tuple[str, ...]
    ask: str

    @property
    def leads_on(self) -> bool:
        """Whether more can be asked about the answer."""
        return isinstance(self.values, str)


YEARS = tuple(f"{year}" for year in range(1201, 1900, 7))
RELATIONS = (
    Relation("birthplace", "cradle", PERSON, TOWN, "where"),
    Relation("partner", "spouse", PERSON, PERSON, "who"),
    Relation("trade", "craft", PERSON, ("baking", "mining", "weaving", "milling", "fishing", "dyeing"), "what"),
    Relation("drink", "cup", PERSON, ("ale", "wine", "milk", "tea", "cider", "mead", "water", "juice"), "what"),
    Relation("game", "sport", PERSON, ("chess", "dice", "cards", "darts", "bowls", "tennis", "quoits"), "what"),
    Relation("ruler", "lord", TOWN, PERSON, "who"),
    Relation("pride", "fame", TOWN, ("cheese", "glass", "salt", "honey", "rope", "paper", "silk", "beer"), "what"),
    Relation("market", "fair", TOWN, ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"), "when"),
    Relation("year", "founding", TOWN, YEARS, "when"),
    Relation("captain", "master", SHIP, PERSON, "who"),
    Relation("harbour", "port", SHIP, TOWN, "where"),
    Relation("wood", "timber", SHIP, ("oak", "pine", "cedar", "elm", "teak", "larch", "beech", "ash"), "what"),
    Relation("colour", "paint", SHIP, ("red", "green", "black", "white", "blue", "yellow", "grey", "brown"), "what"),
)
LEADS = ("The", "Now the", "Today the", "Here the")  # how a sentence may begin


class Fact(NamedTuple):
    """That `value` is the `relation` of `subject`."""

    relation: Relation
    subject: str
    value: str

    def plain(self) -> str:
        """Return it in English, in the simplest way."""
        return f"The {self.relation.noun} of {self.subject} is {self.value}."

    def told(self, draw: random.Random) -> str:
        """Return it in English, in one of several ways."""
        noun = draw.choice((self.relation.noun, self.relation.other))
        return f"{draw.choice(LEADS)} {noun} of {self.subject} is {self.value}."


class Question(NamedTuple):
    """What is asked about a subject: the last of one or two relations, the first ones leading to it."""

    subject: str
    chain: tuple[Relation, ...]

    @property
    def english(self) -> str:
        """The question in English."""
        said = self.subject
        for relation in self.chain:
            said = f"the {relation.noun} of {said}"
        return f"{self.chain[-1].ask.capitalize()} is {said}?"


class Scene(NamedTuple):
    """Facts, the passage that tells them, and a question about it."""

    facts: tuple[Fact, ...]
    passage: str
    asked: "Asked"


SHARES = {"test": 2, "validation": 1, "exemplars": 1, "train": 4}  # of 16 names; the others are for pretraining


class Names:
    """Names of entities, of two words each; those of different purposes differ by their hash."""

    def __init__(self, draw: random.Random, purpose: str):
        self._draw, self._purpose = draw, purpose
        self._recent = collections.deque[str](maxlen=100)  # so that no passage has two entities of one name

    def new(self, kind: str) -> str:
        """Return a name, whose words show its kind."""
        while True:
            name = " ".join(self._draw.choice(words) for words in NAME_WORDS[kind])
            if purpose_of(name) == self._purpose and name not in self._recent:
                self._recent.append(name)
                return name


def _name_words(draw: random.Random) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the first and the second words of every kind's names; no word stands in two places."""
    taken: set[str] = set()

    def words(endings: Sequence[str]) -> tuple[str, ...]:
        made: list[str] = []
        while len(made) < NAMES:
            word = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") + draw.choice(endings)).capitalize()
            if word not in taken:
                taken.add(word)
                made.append(word)
        return tuple(made)

    return {kind: (words(first), words(second)) for kind, (first, second) in ENDINGS.items()}


ENDINGS = {
    PERSON: (("na", "ro", "lia"), ("sen", "tov", "ris")),
    TOWN: (("ld", "rn", "st"), ("burg", "vik", "ham")),
    SHIP: (("x", "z", "q"), ("mis", "dax", "lys")),
}
NAMES = 96  # first words of a kind's names, and second ones
NAME_WORDS = _name_words(random.Random("names"))


def purpose_of(name: str) -> str:
    """Return the split that a name may occur in, or that it is for pretraining."""
    place = hashlib.sha256(name.encode()).digest()[0] % 16
    for purpose, share in SHARES.items():
        if place < share:
            return purpose
        place -= share
    return PRETRAINING


def of_kind(kind: str) -> list[Relation]:
    """Return the relations of a kind of entity."""
    return [relation for relation in RELATIONS if relation.of == kind]


class Asked(NamedTuple):
    """A question, the facts that lead to its answer as far as they are told, and the answer."""

    question: Question
    steps: tuple[Fact, ...]
    answer: str


class Teller:
    """Makes passages and questions from random numbers, each consistent in itself; every entity is a new one."""

    def __init__(self, draw: random.Random, purpose: str):
        self._draw, self._names = draw, Names(draw, purpose)

    def value(self, relation: Relation) -> str:
        """Return something that may be the value of a relation."""
        values = relation.values
        return self._names.new(values) if isinstance(values, str) else self._draw.choice(values)

    def fact(self, relation: Relation, subject: str = "") -> Fact:
        """Return a fact of a subject, or of a new one."""
        return Fact(relation, subject or self._names.new(relation.of), self.value(relation))

    def chain(self, hops: int) -> tuple[Relation, ...]:
        """Return one or two relations, the second said of what the first leads to."""
        draw = self._draw
        if hops == 1:
            return (draw.choice(RELATIONS),)
        first = draw.choice([relation for relation in RELATIONS if relation.leads_on])
        return first, draw.choice([r for r in of_kind(str(first.values)) if r is not first])

    def question(self, hops: int) -> Question:
        """Return a question about a new entity."""
        chain = self.chain(hops)
        return Question(self._names.new(chain[0].of), chain)

    def tell(self, facts: Sequence[Fact]) -> str:
        """Return facts in English, each in one of several ways."""
        return " ".join(fact.told(self._draw) for fact in facts)

    def scene(self, hops: int, told: bool = True, length: int = 6) -> Scene:
        """Return a passage with a question; unless `told` it lacks the fact that has the answer."""
        draw, chain = self._draw, self.chain(hops)
        steps = self._steps(chain)
        facts = list(steps) if told else list(steps[:-1])
        rival = self._steps(chain)  # the same relations of somebody else
        others = [step for step in rival if draw.random() < 0.8] or [rival[-1]]
        for step in steps:  # other relations of the same entities
            others += [self.fact(r, step.subject) for r in draw.sample(of_kind(step.relation.of), 2) if r not in chain]
        draw.shuffle(others)
        facts += others[: max(0, length - len(facts))]
        while len(facts) < length:  # what has nothing to do with it
            facts.append(self.fact(draw.choice([relation for relation in RELATIONS if relation not in chain])))
        draw.shuffle(facts)
        asked = Asked(
            Question(steps[0].subject, chain),
            steps if told else steps[:-1],
            steps[-1].value if told else NO_ANSWER,
        )
        return Scene(tuple(facts), self.tell(facts), asked)

    def ask(self, facts: Sequence[Fact], untold: float = 0.2) -> Asked:
        """Return a question about any facts: one that they answer in one or two steps, or do not answer."""
        draw, first = self._draw, self._draw.choice(facts)
        seconds = [fact for fact in facts if fact.subject == first.value]
        steps = (first, draw.choice(seconds)) if seconds and draw.random() < 0.7 else (first,)
        if draw.random() >= untold:
            return Asked(Question(first.subject, tuple(s.relation for s in steps)), steps, steps[-1].value)
        known = {fact.relation for fact in facts if fact.subject == first.subject}
        unknown = [relation for relation in of_kind(first.relation.of) if relation not in known]
        if first.relation.leads_on and (draw.random() < 0.5 or not unknown):
            more = {fact.relation for fact in seconds}
            beyond = [r for r in of_kind(str(first.relation.values)) if r not in more and r is not first.relation]
            return Asked(Question(first.subject, (first.relation, draw.choice(beyond))), (first,), NO_ANSWER)
        if not unknown:
            return self.ask(facts, untold)
        return Asked(Question(first.subject, (draw.choice(unknown),)), (), NO_ANSWER)

    def _steps(self, chain: Sequence[Relation]) -> tuple[Fact, ...]:
        steps: list[Fact] = []
        for relation in chain:
            steps.append(self.fact(relation, steps[-1].value if steps else ""))
        return tuple(steps)
