"""From rows and their reasoning to what θ_τ reads: the examples of training, and the inputs that are scored."""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiat_jax.data.examples import Example, ExampleCache, Examples, content_key
from fiat_jax.data.layout import DecoderLayout, EncoderDecoderLayout, Layout
from fiat_jax.data.seqio_tasks import make_seqio_task, tokenise
from fiat_jax.errors import UserError
from fiat_jax.evaluation.metrics import find_metrics
from fiat_jax.experiments.paradigms import Paradigm
from fiat_jax.experiments.spec import Prompts, Reasoning
from fiat_jax.prompts.extract import Reasoning as RowReasoning
from fiat_jax.prompts.instructions import Instructions, load_instructions
from fiat_jax.prompts.render import Rendered, Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.join import join
from fiat_jax.store import Provenance, ReasoningStore
from fiat_jax.tasks.task import Row, Task, read_rows, row_key


@dataclasses.dataclass(frozen=True)
class Reasons:
    """ŷ_β of rows by id, where it is from, and the rows that θ_β saw the answer of, or was not asked about by now.

    `asked` says where θ_β was when it was last asked.
    """

    by_id: Mapping[str, RowReasoning]
    set_key: str = ""
    model: str = ""
    excluded: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    provenance: Provenance | None = None
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    several: bool = False  # some row has more than one sample

    @functools.cached_property
    def texts_key(self) -> str:
        """Hash of the ŷ_β of all rows."""
        return content_key(repr(sorted(self.by_id.items())))

    def shuffled(self, rows: Sequence[Row], task: Task, seed: int) -> "Reasons":
        """Give each row the ŷ_β of another one of these rows: the control for what reasoning says about its own row."""
        ids = [row[task.id_field] for row in rows if row[task.id_field] in self.by_id]
        if len(ids) < 2:
            raise UserError(f"reasoning of {len(ids)} rows cannot be shuffled")
        order = np.random.default_rng([seed, len(ids)]).permutation(len(ids))
        other = dict(zip((ids[i] for i in order), (ids[i] for i in np.roll(order, 1)), strict=True))
        return dataclasses.replace(self, by_id={row_id: self.by_id[other[row_id]] for row_id in ids})

    def without_excluded(self, task: Task, rows: Sequence[Row]) -> list[Row]:
        """Return the rows whose answer θ_β did not see."""
        return [row for row in rows if row[task.id_field] not in self.excluded]

    def without_missing(self, task: Task, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that θ_β was asked about."""
        return [row for row in rows if row[task.id_field] not in self.missing]

    def agreeing(self, task: Task, rows: Sequence[Row]) -> list[Row]:
        """Return the rows for which θ_β's answer is the label; for training alone: it looks at labels."""
        answers = [self.by_id[row[task.id_field]].answer for row in rows]
        right = agreement(task, [row[task.answer_field] for row in rows], answers)
        return [row for row, value in zip(rows, right, strict=True) if value == 1.0]

    def with_rationale(self, task: Task, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that θ_β gave a rationale for."""
        return [row for row in rows if self.by_id[row[task.id_field]].rationale.strip()]


def agreement(task: Task, gold: Sequence[str], answers: Sequence[str | None]) -> np.ndarray:
    """Return each answer's value in 0..1 by the task's first metric that is a mean over rows, else its accuracy."""
    metrics = [metric for metric in find_metrics((*task.metrics, "accuracy")) if metric.per_row is not None]
    score = metrics[0].per_row
    assert score is not None
    return score(gold, answers)


def unranked(task: Task) -> Task:
    """Return a task with the metrics of answers that were not ranked against others, accuracy where it has no other."""
    kept = tuple(metric.name for metric in find_metrics(task.metrics) if metric.per_row is not None)
    return dataclasses.replace(task, metrics=kept or ("accuracy",))


def read_reasons(
    task: Task, rows: Sequence[Row], where: Reasoning, training: Sequence[Row] = (), *, answered_without: bool = False
) -> Reasons:
    """Join rows, those of `training` too, with their reasoning in the store.

    Raises:
        UserError: rows without reasoning, with the command that makes it; where `where` is partial, those of `training`
            alone may lack it, and all where they are `answered_without`.
    """
    store, count = ReasoningStore(where.store), len(rows) + len(training)
    if not store.sets():
        raise UserError(
            f"{where.store}: the store holds no reasoning, and {count:,} rows of task {task.name} need it; make it "
            f"with `fiat reason --backend=openai --gin.Reasoning.store={where.store} ...`, or bring in what a file has "
            f"with `fiat reason --import FILE --gin.Reasoning.store={where.store} ...` (... the task's settings)"
        )
    key = store.resolve(where.set)
    provenance = store.provenance(key)
    needed = {row[task.id_field] for row in rows}
    optional = {row[task.id_field] for row in training} - needed if where.partial else set()
    optional |= needed if answered_without else set()
    joined = join(
        task, [*training, *rows], store, key,
        vote=where.vote, optional=optional, command=_command(task, where, provenance),
    )  # fmt: skip
    name = " ".join(str(provenance.model[part]) for part in ("name", "revision") if provenance.model.get(part))
    gone = frozenset(joined.excluded), frozenset(joined.missing)
    return Reasons(joined.reasoning, key, name, *gone, provenance, store.backend(key) or {}, joined.several)


def _command(task: Task, where: Reasoning, provenance: Provenance) -> str:
    """Return the command that adds a task's rows to a set."""
    settings: dict[str, object] = {"Reasoning.store": where.store, "Task.splits": dict(task.splits)}
    if provenance.source == "generated":
        flags = [f"--gin.{name}={shlex.quote(str(value))}" for name, value in settings.items()]
        return " ".join(["fiat reason --backend=openai", *flags, "--gin_file=..."])
    settings |= {"Import.model": provenance.model.get("name")}
    settings |= {"Import.revision": provenance.model.get("revision")}
    settings |= {f"Import.{field}": provenance.mapping.get(field) for field in ("rationale", "answer")}
    flags = [f"--gin.{name}={shlex.quote(str(value))}" for name, value in settings.items() if value]
    return " ".join(["fiat reason --import FILE", *flags, "--gin_file=..."])


def instruction_file(prompts: Prompts) -> str:
    """Return the path of the instruction file, or say how to name one."""
    if not prompts.file:
        raise UserError("no instruction file: give one with --gin.Prompts.file=FILE.yaml (`fiat init` drafts it)")
    return prompts.file


def read_instructions(prompts: Prompts, task: Task) -> Instructions:
    """Load the instruction file; exemplars named by row id are looked up in the task's splits."""
    return load_instructions(instruction_file(prompts), rows_by_id(task))


def rows_by_id(task: Task) -> Callable[[str], Mapping[str, Row]]:
    """Return a function from a split's name to its rows by their id."""
    return lambda split: {row[task.id_field]: row for row in read_rows(task, split)}


class Feed:
    """Renders rows of a task for one paradigm."""

    def __init__(
        self,
        task: Task,
        instructions: Instructions,
        tokenizer: Tokenizer,
        prompts: Prompts,
        paradigm: Paradigm,
    ):
        self.paradigm, self.tokenizer = paradigm, tokenizer
        self.task = unranked(task) if paradigm.writes == "cot" else task
        self.renderer = Renderer(
            instructions,
            tokenizer,
            prompts.max_length,
            use_instructions=paradigm.use_instructions,
            reasoning_use=paradigm.reasoning_use,
        )
        self._prompts = prompts
        self._reserve = 0 if task.kind in ("label", "choice") else prompts.max_new_tokens
        if paradigm.writes != "answer":
            _ = self.renderer.words  # refused before anything runs where the file lacks them

    @property
    def layout(self) -> Callable[[int], Layout]:
        """How examples are laid out for the kind of model whose tokenizer this is."""
        start_id = self.tokenizer.start_id
        return DecoderLayout if start_id is None else functools.partial(EncoderDecoderLayout, start_id=start_id)

    def render(self, row: Row, reasons: Reasons, *, with_target: bool) -> Rendered:
        """Render one row, with its answer for training."""
        target = row[self.task.answer_field] if with_target else None
        if self.paradigm.writes == "cot":
            rationale = reasons.by_id[row[self.task.id_field]].rationale if with_target else None
            return self._reasoned(row, rationale, target)
        reasoning = reasons.by_id.get(row[self.task.id_field]) if self.paradigm.reads_reasoning else None
        reserve = self._reserve
        if self.task.kind == "choice":  # whatever the right answer is, and in training as in evaluation
            reserve = max(map(len, self.candidates(row)))
        return self.renderer.answer(row, reasoning, target, reserve=reserve)

    def render_rationale(self, row: Row, reasons: Reasons) -> Rendered:
        """Render one row with its rationale as what is learnt."""
        return self._reasoned(row, reasons.by_id[row[self.task.id_field]].rationale, None)

    def _reasoned(self, row: Row, rationale: str | None, answer: str | None) -> Rendered:
        reserve = self._prompts.max_reasoning_tokens + self._prompts.max_new_tokens
        return self.renderer.reasoned(row, rationale, answer, most=self._prompts.max_reasoning_tokens, reserve=reserve)

    @property
    def ranks(self) -> bool:
        """Whether answers are candidates that are ranked; else they are generated."""
        return self.task.kind in ("label", "choice") and self.paradigm.writes != "cot"

    @property
    def new_tokens(self) -> int:
        """How many tokens a generated answer may have, with the reasoning before it."""
        own = self._prompts.max_reasoning_tokens if self.paradigm.writes == "cot" else 0
        return own + self._prompts.max_new_tokens

    def answer_in(self, completion: str) -> str:
        """Return what of a generated text is the answer."""
        return self.renderer.words.answer_in(completion) if self.paradigm.writes == "cot" else completion

    def candidates(self, row: Row) -> list[np.ndarray]:
        """Return the ids of every answer a row may have; empty where answers are generated."""
        labels = self.task.candidates(row)
        return self.renderer.candidates(labels) if labels else []

    def inputs(self, rows: Sequence[Row], reasons: Reasons) -> Examples:
        """Return rendered rows without their answers."""
        rendered = ((row, self.render(row, reasons, with_target=False)) for row in rows)
        return Examples.of(
            Example(row[self.task.id_field], self.task.language(row), r.inputs, r.target, r.dropped)
            for row, r in rendered
        )

    def training_examples(self, rows: Sequence[Row], reasons: Reasons, cache: str | Path) -> Examples:
        """Return rendered rows with their answers: a seqio Task's, kept in the cache under all that determines them."""
        key = self.content(rows, reasons)
        return ExampleCache(Path(cache)).get(key, lambda: tokenise(self.seqio_task(rows, reasons), "train"))

    def rationale_examples(self, rows: Sequence[Row], reasons: Reasons, cache: str | Path) -> Examples:
        """Return rows with their rationales as what is learnt."""
        key = content_key("rationales", self.content(rows, reasons))

        def build():
            return tokenise(self._seqio_task(rows, lambda row: self.render_rationale(row, reasons)), "train")

        return ExampleCache(Path(cache)).get(key, build)

    def content(self, rows: Sequence[Row], reasons: Reasons) -> str:
        """Return the hash of all that the training examples of rows depend on."""
        ids = self.task.id_field
        content = [
            (row[ids], row_key(self.task, row), row[self.task.answer_field], reasons.by_id.get(row[ids]))
            for row in rows
        ]
        used: tuple[Any, ...] = (
            self.paradigm.needs_reasoning, self._reserve, self.task.kind, self.task.language_field,
        )  # fmt: skip
        if self.paradigm.writes != "answer":
            used += (self.paradigm.writes, self._prompts.max_reasoning_tokens, self._prompts.max_new_tokens)
        return content_key("training", self.renderer.fingerprint, used, repr(content))

    def seqio_task(self, rows: Sequence[Row], reasons: Reasons) -> Any:
        """Return a seqio Task whose split "train" holds rendered rows with their answers."""
        return self._seqio_task(rows, lambda row: self.render(row, reasons, with_target=True))

    def _seqio_task(self, rows: Sequence[Row], render: Callable[[Row], Rendered]) -> Any:
        return make_seqio_task(
            self.task,
            {"train": rows},
            render,
            self.tokenizer,
            {metric.name: metric.per_row for metric in find_metrics(self.task.metrics) if metric.per_row},
        )
