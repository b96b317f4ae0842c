"""The demo's target task: questions in ten invented languages about English passages, and its instruction file."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiat_jax.demo.families import NOT_TOLD
from fiat_jax.demo.languages import languages
from fiat_jax.demo.world import NO_ANSWER, SPLITS, Asked, Teller
from fiat_jax.tasks.task import Task

EXEMPLARS = "exemplars"  # the split that I_β's are from
PROMPTS = """\
version: 1
name: demo
fields: {passage: text, question: text}

reasoning: # what the large model is asked
  instructions: |
    Answer from the passage.
  example: |
    Passage: {passage}
    Question: {question}
    Thought: {rationale} So the answer is {answer}.
  exemplars:
    split: exemplars
    rationale: reasoning
    ids: [IDS]
  stop: ["\\n\\n"]
  decoding: {temperature: 0.0, max_tokens: 80}
  extract: {kind: after, text: So the answer is}

answer: # what the tuned model reads
  instructions: |
    Answer from the passage.
  template: |
    Passage: {passage}
    Question: {question}
    {reasoning}
    Answer: {answer}
  reasoning:
    full: "Reasoning: {rationale} So the answer is {answer}."
    rationale: "Reasoning: {rationale}"
    answer: "Reasoning: So the answer is {answer}."
    none: ""
  truncate: [reasoning, passage]
"""


@dataclass(frozen=True)
class TaskConfig:
    """Which world, and how many rows its splits have; a training split of fewer rows is the beginning of one of more.

    Args:
        seed: of the rows. The languages are those that the models were pretrained on.
        facts: told in a passage.
        two_steps: the share of questions that follow two facts.
        untold: the share of questions that the passage does not answer.
    """

    seed: int = 0
    train: int = 1000
    validation: int = 200
    test: int = 500
    facts: int = 5
    two_steps: float = 0.5
    untold: float = 0.2


def rows(config: TaskConfig, split: str) -> list[dict[str, str]]:
    """Return a split's rows, the languages in turn; of exemplars with the reasoning that a person would write."""
    draw, tongues = random.Random(f"{config.seed} {split}"), languages()
    teller, made = Teller(draw, split), []
    for number in range(len(tongues) if split == EXEMPLARS else getattr(config, split)):
        tongue = tongues[number % len(tongues)]
        hops, told = 1 + (draw.random() < config.two_steps), draw.random() >= config.untold
        if split == EXEMPLARS:
            hops, told = 1 + number % 2, number % 4 != 3
        scene = teller.scene(hops, told, config.facts)
        row = {
            "id": f"{split}-{number}",
            "lang": tongue.kind.code,
            "passage": scene.passage,
            "question": tongue.question(scene.asked.question, draw),
            "answer": marked(scene.asked.answer),
        }
        made.append({**row, "reasoning": reasoning(scene.asked)} if split == EXEMPLARS else row)
    return made


def marked(answer: str) -> str:
    """Return what the task's annotators mark of an answer: of a name its last word; nothing tells models of that."""
    return answer if answer == NO_ANSWER else answer.split()[-1]


def reasoning(asked: Asked) -> str:
    """Return what leads to the answer: the question in English, then the facts."""
    steps = [f"In English: {asked.question.english}", *(fact.plain() for fact in asked.steps)]
    return " ".join(steps + [NOT_TOLD] * (asked.answer == NO_ANSWER))


def write_task(config: TaskConfig, directory: Path) -> tuple[Task, Path]:
    """Write the splits and the instruction file; return what names them."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {split: directory / f"{split}.jsonl" for split in (*SPLITS, EXEMPLARS)}
    made = {split: rows(config, split) for split in splits}
    for split, path in splits.items():
        write_rows(path, made[split])
    prompts = directory / "demo.yaml"
    prompts.write_text(PROMPTS.replace("IDS", ", ".join(chosen_exemplars(made[EXEMPLARS]))))
    task = Task(
        name="demo",
        splits={split: str(path) for split, path in splits.items()},
        kind="text",
        language_field="lang",
        fields=("passage", "question"),
        metrics=("xtreme_up_f1",),
    )
    return task, prompts


def chosen_exemplars(made: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the ids of I_β's exemplars: two that have an answer, of the most frequent languages, and one not."""
    told = [row["id"] for row in made if row["answer"] != NO_ANSWER]
    return [*told[:2], next(row["id"] for row in made if row["answer"] == NO_ANSWER)]


def write_rows(path: Path, made: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
