"""Ten invented languages: their words, their word order, and how a question or a statement reads in them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from fiat_jax.demo.world import RELATIONS, Fact, Question

ASKING = ("who", "what", "where", "when")
SYNONYMS = 3  # of every noun


@dataclass(frozen=True)
class Kind:
    """How a language is built.

    Args:
        share: of the texts in invented languages that models are pretrained on.
        family: languages of one family have words from one root, with sounds changed; "" has roots of its own.
        asks_first: whether the asking word opens a question; else it closes it.
        head_first: "ruler of Karvel", not "Karvel's ruler".
        joined: the word for "of" is joined to the owner's end.
    """

    code: str
    share: float
    family: str
    shift: Mapping[str, str]
    asks_first: bool
    head_first: bool
    joined: bool


def _shift(before: str, after: str) -> dict[str, str]:
    return dict(zip(before, after, strict=True))


KINDS = (
    Kind("talu", 0.3, "east", {}, True, True, False),
    Kind("bren", 0.22, "west", {}, False, True, False),
    Kind("talo", 0.15, "east", _shift("aiu", "oea"), True, True, True),
    Kind("oshi", 0.11, "", {}, True, False, False),
    Kind("breq", 0.08, "west", _shift("bdg", "ptk"), False, False, False),
    Kind("kemi", 0.055, "", {}, False, False, True),
    Kind("dalu", 0.035, "east", _shift("tnk", "drg"), False, True, False),
    Kind("vren", 0.025, "west", _shift("bveoa", "vbaie"), True, False, True),
    Kind("zuma", 0.015, "", {}, True, False, True),
    Kind("quil", 0.01, "", {}, False, True, True),
)
SOUNDS = {"east": ("tnklms", "aiu"), "west": ("bdgrv", "eoa"), "oshi": ("shcf", "oiu")}
SOUNDS |= {"kemi": ("kmpw", "ei"), "zuma": ("zmjl", "ua"), "quil": ("qlnr", "iue")}


class Language:
    """The words of a language, and what is said with them."""

    def __init__(self, kind: Kind):
        self.kind = kind
        draw = random.Random(kind.family or kind.code)  # of one family: the same roots
        onsets, vowels = SOUNDS[kind.family or kind.code]
        taken: set[str] = set()

        def word(syllables: int) -> str:
            while True:
                root = "".join(draw.choice(onsets) + draw.choice(vowels) for _ in range(syllables))
                if root not in taken:
                    taken.add(root)
                    return "".join(kind.shift.get(sound, sound) for sound in root)

        self.nouns = {r.noun: tuple(word(3) for _ in range(SYNONYMS)) for r in RELATIONS}
        self.asking = {ask: word(2) for ask in ASKING}
        self.of, self.is_ = word(1), word(2)

    def owned(self, noun: str, owner: str) -> str:
        """Return "NOUN of OWNER"."""
        of = f"{owner}-{self.of}" if self.kind.joined else f"{self.of} {owner}"
        if not self.kind.head_first and not self.kind.joined:
            of = f"{owner} {self.of}"
        return f"{noun} {of}" if self.kind.head_first else f"{of} {noun}"

    def question(self, question: Question, draw: random.Random) -> str:
        """Return a question; which of several words of one meaning it has is drawn."""
        said = question.subject
        for relation in question.chain:
            said = self.owned(draw.choice(self.nouns[relation.noun]), said)
        ask = self.asking[question.chain[-1].ask]
        return f"{ask} {said}?" if self.kind.asks_first else f"{said} {ask}?"

    def statement(self, fact: Fact, draw: random.Random) -> str:
        """Return a fact."""
        said = self.owned(draw.choice(self.nouns[fact.relation.noun]), fact.subject)
        return f"{said} {self.is_} {fact.value}." if self.kind.head_first else f"{fact.value} {said} {self.is_}."


def languages() -> list[Language]:
    """Return all ten, the frequent ones first."""
    return [Language(kind) for kind in KINDS]
