"""A generated world: creatures with homes, invented languages that tell of them, and a large model's reasoning.

A row's context says where four creatures live, in one of the languages; its question asks what one of them does in some
weather. Answering takes a lookup (its home) and a step of reasoning (the law of that home and weather). θ_β's reasoning
is in English; it may take another creature's home for the one asked about, and it may slip at the law.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

HOMES = ("marsh", "forest", "desert", "coast", "hills")
WEATHERS = ("frost", "flood", "drought")
LABELS = ("hide", "leave", "feast")
VERBS = {"hide": "hides", "leave": "leaves", "feast": "feasts"}
PER_CONTEXT = 4
SPLITS = ("train", "validation", "test")
STORY = "story"  # whose creatures are met in no split


@dataclass(frozen=True)
class LanguageKind:
    """How a language is built, and how θ_β copes with it.

    Args:
        share: of the training rows; other splits have the same number of rows in every language.
        misreads: how often θ_β takes another creature's home for the one asked about.
    """

    code: str
    share: float
    misreads: float
    onsets: str
    vowels: str
    statement: str
    question: str


KINDS = (
    LanguageKind("talu", 0.55, 0.05, "tlnmk", "aiu", "{name} {lives} {home}.", "{when} {weather} {what} {name}?"),
    LanguageKind("bren", 0.30, 0.10, "brdgv", "eoa", "{home} {in} {name} {lives}.", "{name} {what} {weather} {in}?"),
    LanguageKind("oshi", 0.15, 0.25, "schfw", "oiu", "{lives} {home} {name}.", "{what} {weather} {name}?"),
)
SLIPS = 0.19  # how often θ_β's answer does not follow from the home and weather that it names

FACTS = (  # how English tells of a home and a weather
    "{name} lives in the {home}, and a {weather} comes.",
    "The home of {name} is the {home}. A {weather} comes.",
    "A {weather} comes. {name} is from the {home}.",
)


@dataclass(frozen=True)
class WorldConfig:
    """Which world, how many rows of each split and pages of stories, and how many creatures each of these meets."""

    seed: int = 0
    train: int = 1400
    validation: int = 150
    test: int = 600
    pages: int = 4000
    creatures: int = 300


class World:
    """Laws, words, creatures, rows and stories: each a pure function of the configuration."""

    def __init__(self, config: WorldConfig):
        self.config = config
        draw = self._random("words")
        self.laws = _laws(draw)
        taken: set[str] = set()
        self.words = {kind.code: _words(kind, draw, taken) for kind in KINDS}
        self.creatures: dict[str, dict[str, str]] = {split: {} for split in (*SPLITS, STORY)}
        for creatures in self.creatures.values():
            for _ in range(config.creatures):
                creatures[_name(draw, taken)] = draw.choice(HOMES)

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed} {purpose}")

    def rows(self, split: str) -> list[dict[str, str]]:
        """Return a split's rows, with θ_β's reasoning in `reasoning` and `large_answer`."""
        draw, count = self._random(split), getattr(self.config, split)
        share = {kind: kind.share if split == "train" else 1 / len(KINDS) for kind in KINDS}
        kinds = [kind for kind in KINDS for _ in range(round(count * share[kind]))]
        draw.shuffle(kinds)
        return [self._row(f"{split}-{number}", kind, split, draw) for number, kind in enumerate(kinds)]

    def _row(self, row_id: str, kind: LanguageKind, split: str, draw: random.Random) -> dict[str, str]:
        homes, weather = draw.sample(HOMES, PER_CONTEXT), draw.choice(WEATHERS)
        names = [draw.choice([n for n, h in self.creatures[split].items() if h == home]) for home in homes]
        asked, words = draw.randrange(PER_CONTEXT), self.words[kind.code]
        context = " ".join(self.statement(kind, n, h) for n, h in zip(names, homes, strict=True))
        question = kind.question.format(name=names[asked], weather=words[weather], **words)
        misread = draw.random() < kind.misreads
        read = draw.choice([home for home in homes if home != homes[asked]]) if misread else homes[asked]
        concluded = self.laws[read, weather]
        if draw.random() < SLIPS:
            concluded = draw.choice([label for label in LABELS if label != concluded])
        reasoning = draw.choice(FACTS).format(name=names[asked], home=read, weather=weather)
        return {
            "id": row_id,
            "lang": kind.code,
            "context": context,
            "question": question,
            "answer": self.laws[homes[asked], weather],
            "reasoning": reasoning,
            "large_answer": concluded,
        }

    def statement(self, kind: LanguageKind, name: str, home: str) -> str:
        """Return one language's sentence for where a creature lives."""
        words = self.words[kind.code]
        return kind.statement.format(name=name, home=words[home], **words)

    def stories(self) -> Iterator[str]:
        """Yield the pages that θ_τ is pretrained on: laws, small stories and translations, and no row of the task."""
        draw, creatures = self._random(STORY), list(self.creatures[STORY].items())
        for _ in range(self.config.pages):
            (name, home), weather = draw.choice(creatures), draw.choice(WEATHERS)
            label, kind = self.laws[home, weather], draw.choice(KINDS)
            meaning, word = draw.choice(list(self.words[kind.code].items()))
            facts = draw.choice(FACTS).format(name=name, home=home, weather=weather)
            yield draw.choice(
                (
                    f"When a {weather} comes, creatures of the {home} {label}.",
                    f"{facts} So {name} {VERBS[label]}.",
                    f"{facts} What does {name} do? It may {label}.",
                    f"{self.statement(kind, name, home)} This means: {name} lives in the {home}.",
                    f"In {kind.code}, {word} means: {meaning}.",
                )
            )


def _laws(draw: random.Random) -> dict[tuple[str, str], str]:
    """Return (home, weather) → label. Of five homes three share a label in each weather, another label in each."""
    laws = {}
    for usual, weather in zip(LABELS, WEATHERS, strict=True):
        labels = [usual, usual, *LABELS]
        draw.shuffle(labels)
        laws |= {(home, weather): label for home, label in zip(HOMES, labels, strict=True)}
    return laws


def _words(kind: LanguageKind, draw: random.Random, taken: set[str]) -> dict[str, str]:
    meanings = (*HOMES, *WEATHERS, "lives", "in", "when", "what")
    return {meaning: _word(draw, kind.onsets, kind.vowels, 2, taken) for meaning in meanings}


def _name(draw: random.Random, taken: set[str]) -> str:
    return _word(draw, "bdfgklmnprstvz", "aeiou", 2, taken).capitalize()


def _word(draw: random.Random, onsets: str, vowels: str, syllables: int, taken: set[str]) -> str:
    """Return a word that was never made before."""
    while True:
        word = "".join(draw.choice(onsets) + draw.choice(vowels) for _ in range(syllables))
        if word not in taken:
            taken.add(word)
            return word
