"""What the cells of an experiment share: rows, reasoning, instructions, and the checks made before any training."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fiat_jax.data.examples import Examples, content_key
from fiat_jax.errors import UserError
from fiat_jax.evaluation.scores import check_metrics
from fiat_jax.experiments.feed import Feed, Reasons, instruction_file, read_reasons
from fiat_jax.experiments.paradigms import Paradigm
from fiat_jax.experiments.spec import Run
from fiat_jax.models.checkpoints import open_checkpoint
from fiat_jax.models.lora import resolve
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.sharding import TRAIN, check_batch
from fiat_jax.tasks.splits import holdout, nested_subsets
from fiat_jax.tasks.task import Row, read_rows, row_key

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One system: a paradigm, its number of training rows (0: none are used), a seed; of a mixture one of its parts."""

    paradigm: Paradigm
    size: int
    seed: int
    part: str = ""

    @property
    def name(self) -> str:
        """The cell's name in files and tables."""
        if self.part:
            return f"{self.paradigm.name}-mixture-seed{self.seed}-{self.part}"
        return self.paradigm.name if not self.paradigm.trained else f"{self.paradigm.name}-{self.size}-seed{self.seed}"


class Bench:
    """Everything is read and checked when it is made, so that a mistake shows before any compilation."""

    def __init__(self, run: Run, sizes: Sequence[int], paradigms: Sequence[Paradigm]):
        self.run, self.task = run, run.task
        self.instructions = load_instructions(instruction_file(run.prompts))
        self.tokenizer, self.theta_tau_fingerprint = _check_theta_tau(run)
        check_batch(run.mesh.build(), TRAIN, run.train.batch_rows, run.train.accumulate)
        self.train_rows = read_rows(run.task, run.data.train_split)
        self.report_rows = read_rows(run.task, run.data.report_split)
        check_metrics(run.task, self.report_rows)
        self.reasons = Reasons({})
        if any(paradigm.needs_reasoning for paradigm in paradigms):
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
        known = {row_key(run.task, row) for row in self.train_rows}
        self.repeated = sum(row_key(run.task, row) in known for row in self.report_rows)
        too_many = [size for size in sizes if size > len(self.train_rows)]
        if too_many:
            raise UserError(f"sizes {too_many} exceed the {len(self.train_rows)} training rows there are; 0 means all")

    def cells(self, paradigms: Sequence[Paradigm], sizes: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
        """Return the matrix; a paradigm without training has one cell."""
        real = list(dict.fromkeys(size or len(self.train_rows) for size in sizes))
        untrained = [Cell(paradigm, 0, 0) for paradigm in paradigms if not paradigm.trained]
        trained = [p for p in paradigms if p.trained]
        return untrained + [Cell(p, size, seed) for seed in seeds for size in real for p in trained]

    def split(self, cell: Cell) -> tuple[list[Row], list[Row]]:
        """Return a cell's rows to train on and those that selection reads, the same for every paradigm.

        The rows of a smaller size are among those of a larger one.
        """
        task, data = self.task, self.run.data
        stratify = (task.language_field, task.answer_field if task.kind == "label" else None)
        by = tuple(name for name in stratify if name)
        rows = nested_subsets(self.train_rows, [cell.size], cell.seed, stratify=by)[cell.size]
        kept, held = holdout(rows, data.selection, cell.seed, stratify=by, group_field=data.group_field)
        check_metrics(task, held)
        if self.run.reasoning.only_agreeing and self.reasons.by_id:
            kept = self.reasons.agreeing(task, kept)  # never those held: choosing them by their label is a leak
            if not kept:
                raise UserError(
                    f"Reasoning.only_agreeing leaves none of {cell.size:,} rows to train on: θ_β's answers of set "
                    f"{self.reasons.set_key} are never the label"
                )
        return kept, held

    def feed(self, cell: Cell) -> Feed:
        """Return how rows are rendered for a cell."""
        return Feed(self.task, self.instructions, self.tokenizer, self.run.prompts, cell.paradigm)

    def reasons_for(self, cell: Cell, rows: Sequence[Row]) -> Reasons:
        """Return the ŷ_β that a cell's rows of one split are given."""
        if not cell.paradigm.needs_reasoning:
            return Reasons({})
        return self.reasons.shuffled(rows, self.task, cell.seed) if cell.paradigm.shuffled else self.reasons

    def examples(self, feed: Feed, cell: Cell, rows: Sequence[Row], cache: Path) -> Examples:
        """Return training rows as examples; all rows are tokenised once for the cells of all sizes."""
        everything = feed.training_examples(self.train_rows, self.reasons_for(cell, self.train_rows), cache)
        place = {row_id: index for index, row_id in enumerate(everything.row_ids)}
        return everything.take(place[row[self.task.id_field]] for row in rows)

    def identity(self, cell: Cell) -> Mapping[str, str]:
        """Return all that a cell's training depends on, by the name to complain about; no paths, and not the mesh."""
        run = self.run
        optimizer = dataclasses.replace(run.train.optimizer, learning_rate=1.0)  # every run of the search has its own
        train = dataclasses.replace(run.train, seed=cell.seed, optimizer=optimizer)
        rows = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in (*self.train_rows, *self.report_rows)]
        return {
            "Run.paradigm, size and seed": repr(cell),
            "Task": repr(dataclasses.replace(run.task, splits={})),
            "Data": repr(dataclasses.replace(run.data, cache="")),
            "the rows": content_key(len(self.train_rows), rows),
            "the instruction file": self.instructions.answer_hash,
            "Prompts": repr(dataclasses.replace(run.prompts, file="")),
            "the reasoning set": self.reasons.set_key,
            **self._chosen_reasoning(),
            "Model": repr(dataclasses.replace(run.model, path="")),
            "the base model": self.theta_tau_fingerprint,
            "the tokenizer": self.feed(cell).renderer.identity,
            "Lora": repr(run.lora) if cell.paradigm.lora else "",
            "Train": repr(train),
        }

    def _chosen_reasoning(self) -> Mapping[str, str]:
        """Return what besides the set determines the reasoning of rows: nothing by default."""
        where = self.run.reasoning
        if not (self.reasons.by_id and (where.vote or where.only_agreeing)):
            return {}
        votes = sorted(self.reasons.by_id.items()) if where.vote else []  # further samples change what a row is given
        return {"Reasoning": content_key(where.vote, where.only_agreeing, repr(votes))}


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
