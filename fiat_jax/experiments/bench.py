"""What the cells of an experiment share: rows, reasoning, instructions, and the checks made before any training."""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fiat_jax.data.examples import Examples, content_key
from fiat_jax.errors import UserError
from fiat_jax.evaluation.scores import check_metrics
from fiat_jax.experiments.feed import Feed, Reasons, instruction_file, read_reasons
from fiat_jax.experiments.files import AT
from fiat_jax.experiments.paradigms import Paradigm, find_paradigms
from fiat_jax.experiments.spec import Experiment, Prompts, Run
from fiat_jax.models.checkpoints import open_checkpoint
from fiat_jax.models.lora import resolve
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import TRAIN, check_batch
from fiat_jax.tasks.splits import holdout, nested_subsets
from fiat_jax.tasks.task import Row, Task, read_rows, row_key

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One system: a paradigm, its number of training rows (0: none are used), a seed; of a mixture one of its parts."""

    paradigm: Paradigm
    size: int
    seed: int
    part: str = ""
    tau: str = ""  # the name of its θ_τ, where there are several

    @property
    def system(self) -> str:
        """The paradigm's name, with that of its θ_τ where there are several."""
        return f"{self.paradigm.name}{AT}{self.tau}" if self.tau else self.paradigm.name

    @property
    def name(self) -> str:
        """The cell's name in files and tables."""
        if self.part:
            return f"{self.system}-mixture-seed{self.seed}-{self.part}"
        return self.system if not self.paradigm.trained else f"{self.system}-{self.size}-seed{self.seed}"


class Bench:
    """Everything is read and checked when it is made, so that a mistake shows before any compilation.

    What another bench of the experiment has read, one of another θ_τ named `tau`, is taken from it.
    """

    def __init__(
        self, run: Run, sizes: Sequence[int], paradigms: Sequence[Paradigm], tau: str = "", other: "Bench | None" = None
    ):
        self.run, self.task, self.tau = run, run.task, tau
        self.instructions = load_instructions(instruction_file(run.prompts))
        self.tokenizer, self.theta_tau_fingerprint = _check_theta_tau(run)
        check_batch(run.mesh.build(), TRAIN, run.train.batch_rows, run.train.accumulate)
        if other is None:
            self._read(paradigms)
        else:
            self.train_rows, self.report_rows = other.train_rows, other.report_rows
            self.reasons, self.others, self.rows_key = other.reasons, other.others, other.rows_key
        _check_native(run, paradigms)
        for paradigm in paradigms:
            self.feed(Cell(paradigm, 0, 0))
        self.repeated = self._count_repeated() if other is None else other.repeated
        too_many = [size for size in sizes if size > len(self.train_rows)]
        if too_many:
            raise UserError(f"sizes {too_many} exceed the {len(self.train_rows)} training rows there are; 0 means all")

    def _read(self, paradigms: Sequence[Paradigm]) -> None:
        """Read the rows and the ŷ_β that paradigms need; rows that lack it, or are exemplars of it, are left out."""
        run = self.run
        self.train_rows = read_rows(run.task, run.data.train_split)
        self.report_rows = read_rows(run.task, run.data.report_split)
        check_metrics(run.task, self.report_rows)
        self.reasons, self.others = Reasons({}), {}
        others = {paradigm.of: paradigm for paradigm in paradigms if paradigm.of}
        if any(paradigm.needs_reasoning and not paradigm.of for paradigm in paradigms):
            self.reasons = read_reasons(run.task, self.report_rows, run.reasoning, self.train_rows)
            self.train_rows = self.reasons.without_excluded(run.task, self.train_rows)
            asked = self.reasons.without_missing(run.task, self.train_rows)
            if len(asked) < len(self.train_rows):
                logger.warning(
                    "%d of %d rows of %s have no reasoning by now, and are not trained on",
                    len(self.train_rows) - len(asked), len(self.train_rows), run.data.train_split,
                )  # fmt: skip
            self.train_rows = asked
            self.report_rows = self.reasons.without_excluded(run.task, self.report_rows)
        for name, paradigm in others.items():
            self.others[name] = self._read_other(paradigm)
            if paradigm.trained:
                self.train_rows = self.others[name].without_excluded(run.task, self.train_rows)
            self.report_rows = self.others[name].without_excluded(run.task, self.report_rows)

    def _count_repeated(self) -> int:
        """Return how many reported rows have the inputs of a training row."""
        known = {row_key(self.task, row) for row in self.train_rows}
        return sum(row_key(self.task, row) in known for row in self.report_rows)

    def _read_other(self, paradigm: Paradigm) -> Reasons:
        """Return ŷ_β of the set that a paradigm reads instead, of training rows too where it is trained."""
        where, name = self.run.reasoning, paradigm.of
        if name not in where.sets and not paradigm.vote:
            raise UserError(
                f"{paradigm.name} reads another set of reasoning, and Reasoning.sets does not name it: give "
                f"--gin.Reasoning.sets=\"{{'{name}': 'KEY'}}\" (docs/experiment.md says how it is made)"
            )
        where = dataclasses.replace(where, set=where.sets.get(name, where.set), vote=paradigm.vote)
        found = read_reasons(self.task, self.report_rows, where, self.train_rows if paradigm.trained else ())
        if paradigm.vote and not found.several:
            raise UserError(
                f"{paradigm.name} votes over samples of each row, and set {found.set_key} has one: make more with "
                "decoding.temperature above 0 and --gin.Generate.samples=8, and name their set in Reasoning.sets"
            )
        return found

    def cells(self, paradigms: Sequence[Paradigm], sizes: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
        """Return the matrix; a paradigm without training has one cell, and one of θ_β alone names no θ_τ."""
        real = list(dict.fromkeys(size or len(self.train_rows) for size in sizes))
        untrained = [
            Cell(one, 0, 0, tau=self.tau if one.answers == "tau" else "") for one in paradigms if not one.trained
        ]
        trained = [p for p in paradigms if p.trained]
        return untrained + [Cell(p, size, seed, tau=self.tau) for seed in seeds for size in real for p in trained]

    def split(self, cell: Cell) -> tuple[list[Row], list[Row]]:
        """Return a cell's rows to train on and those that selection reads, the same for every paradigm.

        The rows of a smaller size are among those of a larger one. A paradigm that learns ŷ_β trains on those of them
        alone that have something to learn.
        """
        task, data = self.task, self.run.data
        stratify = (task.language_field, task.answer_field if task.kind == "label" else None)
        by = tuple(name for name in stratify if name)
        rows = nested_subsets(self.train_rows, [cell.size], cell.seed, stratify=by)[cell.size]
        kept, held = holdout(rows, data.selection, cell.seed, stratify=by, group_field=data.group_field)
        check_metrics(dataclasses.replace(task, metrics=task.metrics[:1]), held)
        return self._learnable(cell, kept), held  # never fewer held: choosing them by their label is a leak

    def _learnable(self, cell: Cell, rows: list[Row]) -> list[Row]:
        """Return the rows that a cell may train on."""
        reasons = self.reasons_of(cell.paradigm)
        kept = rows
        if reasons.by_id and (cell.paradigm.agreeing or self.run.reasoning.only_agreeing):
            kept = reasons.agreeing(self.task, kept)
        if cell.paradigm.writes == "cot":
            kept = reasons.with_rationale(self.task, kept)
        if rows and not kept:
            raise UserError(
                f"{cell.paradigm.name} is trained on rows where θ_β's answer is the label: of {len(rows):,} rows, set "
                f"{reasons.set_key} has none"
            )
        return kept

    def reasons_of(self, paradigm: Paradigm) -> Reasons:
        """Return the ŷ_β of the set that a paradigm reads."""
        return self.others[paradigm.of] if paradigm.of else self.reasons

    def feed(self, cell: Cell) -> Feed:
        """Return how rows are rendered for a cell."""
        return Feed(self.task, self.instructions, self.tokenizer, self.run.prompts, cell.paradigm)

    def reasons_for(self, cell: Cell, rows: Sequence[Row]) -> Reasons:
        """Return the ŷ_β that a cell's rows of one split are given."""
        if not cell.paradigm.needs_reasoning:
            return Reasons({})
        reasons = self.reasons_of(cell.paradigm)
        return reasons.shuffled(rows, self.task, cell.seed) if cell.paradigm.shuffled else reasons

    def examples(self, feed: Feed, cell: Cell, rows: Sequence[Row], cache: Path) -> Examples:
        """Return training rows as examples; all rows are tokenised once for the cells of all sizes.

        Where reasoning is learnt beside the answers, its tokens together weigh as much as theirs together
        (arXiv 2305.02301, with λ = 1).
        """
        paradigm, task = cell.paradigm, self.task
        reasons = self.reasons_for(cell, self.train_rows)
        every = self._learnable(cell, self.train_rows) if paradigm.writes == "cot" else self.train_rows
        answers = _of_rows(task, feed.training_examples(every, reasons, cache), rows)
        if paradigm.writes != "both":
            return answers
        every, rows = (reasons.with_rationale(task, some) for some in (self.train_rows, rows))
        told = _of_rows(task, feed.rationale_examples(every, reasons, cache), rows)
        return answers.joined(told.weighted(len(answers.targets.values) / max(len(told.targets.values), 1)))

    def bare_examples(self, feed: Feed, cell: Cell, rows: Sequence[Row], cache: Path) -> Examples | None:
        """Return training rows without their ŷ_β, for a paradigm that reads some of them so; else None."""
        if not cell.paradigm.dropout:
            return None
        return _of_rows(self.task, feed.training_examples(self.train_rows, Reasons({}), cache), rows)

    def identity(self, cell: Cell) -> Mapping[str, str]:
        """Return all that a cell's training depends on, by the name to complain about; no paths, and not the mesh."""
        run = self.run
        optimizer = dataclasses.replace(run.train.optimizer, learning_rate=1.0)  # every run of the search has its own
        train = dataclasses.replace(run.train, seed=cell.seed, optimizer=optimizer)
        paradigm = cell.paradigm
        read = self.instructions.answer_hash_of(paradigm.use_instructions, paradigm.needs_reasoning)
        found = {
            "Run.paradigm, size and seed": repr(cell),
            "Task": repr(dataclasses.replace(run.task, splits={})),
            "Data": repr(dataclasses.replace(run.data, cache="")),
            "the rows": self.rows_key,
            "the reasoning set": self.reasons_of(paradigm).set_key if paradigm.needs_reasoning else "",
            **self._chosen_reasoning(paradigm),
        }
        if paradigm.answers == "tau":
            found |= {
                "the instruction file": read,
                "Prompts": repr(_prompts_for(run.prompts, paradigm)),
                "Model": repr(dataclasses.replace(run.model, path="")),
                "the base model": self.theta_tau_fingerprint,
                "the tokenizer": self.feed(cell).renderer.identity,
            }
        if paradigm.trained:
            found |= {"Lora": repr(run.lora) if paradigm.lora else "", "Train": repr(train)}
        return found

    @functools.cached_property
    def rows_key(self) -> str:
        """Hash of the training and report rows."""
        rows = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in (*self.train_rows, *self.report_rows)]
        return content_key(len(self.train_rows), rows)

    def _chosen_reasoning(self, paradigm: Paradigm) -> Mapping[str, str]:
        """Return what besides the set's name determines the reasoning of rows: its texts may be brought in anew."""
        reasons, agreeing = self.reasons_of(paradigm), self.run.reasoning.only_agreeing
        if not reasons.by_id or not (agreeing or paradigm.needs_reasoning):
            return {}
        return {"Reasoning": content_key(agreeing, reasons.texts_key)}


def bench_of(experiment: Experiment, tau: str = "", other: Bench | None = None) -> Bench:
    """Return the bench of one θ_τ of an experiment, for all its paradigms, so that all have the same rows.

    `other` is the bench of another θ_τ of it, where there is one already.
    """
    run = experiment.run
    model = dataclasses.replace(run.model, path=experiment.theta_taus[tau]) if tau else run.model
    paradigms = find_paradigms(experiment.paradigms, run.own)
    return Bench(dataclasses.replace(run, model=model), experiment.sizes, paradigms, tau, other)


def _of_rows(task: Task, everything: Examples, rows: Sequence[Row]) -> Examples:
    place = {row_id: index for index, row_id in enumerate(everything.row_ids)}
    return everything.take(place[row[task.id_field]] for row in rows)


def _prompts_for(prompts: Prompts, paradigm: Paradigm) -> Prompts:
    """Return what of the settings of prompts concerns a paradigm."""
    own = prompts.max_reasoning_tokens if paradigm.writes != "answer" else 0
    return dataclasses.replace(prompts, file="", max_reasoning_tokens=own)


def _check_native(run: Run, paradigms: Sequence[Paradigm]) -> None:
    """Refuse to rank by θ_β's likelihood where its weights are not here, or labels are none."""
    wanted = [paradigm.name for paradigm in paradigms if paradigm.scores]
    if wanted and run.native is None:
        raise UserError(
            f"{wanted[0]} asks θ_β for the likelihood of labels: give its weights, --gin.Native.path=DIRECTORY"
        )
    if wanted and run.task.kind not in ("label", "choice"):
        raise UserError(f"{wanted[0]} ranks labels or choices; task {run.task.name} has kind {run.task.kind!r}")


def _check_theta_tau(run: Run) -> tuple[Tokenizer, str]:
    """Return the tokenizer and the fingerprint of θ_τ, whose files are complete and go together."""
    path = run.model.path
    if not path:
        raise UserError("no model to tune: give one with --gin.Model.path=DIRECTORY (Hugging Face layout)")
    checkpoint, tokenizer = open_checkpoint(path), Tokenizer.from_directory(path)
    config = checkpoint.config
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer in {path} has ids up to {tokenizer.vocab_size - 1}, but the model embeds "
            f"{config.vocab_size} tokens: they are not of one checkpoint"
        )
    if getattr(config, "start_id", None) != tokenizer.start_id:
        raise UserError(f"{path}/config.json does not say is_encoder_decoder of the architecture it names; correct it")
    resolve(run.lora, checkpoint.family.modules(config))
    if config.max_length is not None and run.prompts.max_length > config.max_length:
        raise UserError(
            f"Prompts.max_length is {run.prompts.max_length}, but the model in {path} reads {config.max_length} "
            f"tokens at most (max_position_embeddings): give --gin.Prompts.max_length={config.max_length} or less"
        )
    return tokenizer, checkpoint.files.fingerprint()
