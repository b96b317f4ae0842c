"""How θ_β itself ranks the labels of a task, after the rationale that it wrote."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from fiat_jax.data.examples import Example, Examples
from fiat_jax.data.layout import DecoderLayout
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.experiments.bench import Bench
from fiat_jax.experiments.feed import Reasons, read_instructions
from fiat_jax.experiments.fit import scoring_rows
from fiat_jax.experiments.scorer import Scorer
from fiat_jax.models.checkpoints import open_checkpoint
from fiat_jax.models.model import ModelConfig, load_model
from fiat_jax.prompts.continued import Continued
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.native import Native
from fiat_jax.tasks.task import Row, Task

ROOM = 64  # rows are a multiple of so many tokens


@dataclasses.dataclass(frozen=True)
class LargeFeed:
    """Renders rows for θ_β, as a `Feed` does for θ_τ: I_β, the row, its rationale, and what leads to the answer."""

    task: Task
    continued: Continued
    tokenizer: Tokenizer
    ranks: bool = True

    @property
    def layout(self):
        """How examples are laid out for the kind of model that θ_β is."""
        return DecoderLayout

    def inputs(self, rows: Sequence[Row], reasons: Reasons) -> Examples:
        """Return everything that stands before an answer."""
        nothing = np.zeros(0, np.int32)
        return Examples.of(
            Example(row[self.task.id_field], self.task.language(row), self._ids(row, reasons), nothing) for row in rows
        )

    def _ids(self, row: Row, reasons: Reasons) -> np.ndarray:
        return self.continued.inputs(row, reasons.by_id[row[self.task.id_field]].rationale)

    def candidates(self, row: Row) -> list[np.ndarray]:
        """Return the ids of every answer that a row may have."""
        return self.continued.candidates(self.task.candidates(row))


def rank_by_large(bench: Bench) -> list[Prediction]:
    """Return the labels of the reported rows that θ_β finds likeliest, with log P of each of them."""
    run, native = bench.run, bench.run.native
    assert native is not None
    mesh, feed, reasons = run.mesh.build(), large_feed(bench, native), bench.reasons
    examples = feed.inputs(bench.report_rows, reasons)
    answers = [sum(map(len, feed.candidates(row))) for row in bench.report_rows]
    longest = int((examples.inputs.lengths + np.array(answers)).max())
    with jax.set_mesh(mesh):
        model = load_model(ModelConfig(native.path, native.dtype), mesh, tuned=False)
        limit = model.config.max_length
        if limit is not None and longest > limit:
            raise UserError(
                f"I_β with a row, its rationale and answers has up to {longest} tokens; {native.path} reads {limit}: "
                "use fewer exemplars"
            )
        rows = scoring_rows(run.train.batch_rows, model)
        length = -(-longest // ROOM) * ROOM
        scorer = Scorer(model, feed, length, rows, run.data.length_normalise)  # pyright: ignore  # it ranks alone
        return scorer.prepare(bench.report_rows, reasons).predict(model.trainable)


def large_feed(bench: Bench, native: Native) -> LargeFeed:
    """Return how rows are rendered for θ_β, whose weights are here."""
    instructions = read_instructions(bench.run.prompts, bench.task)
    tokenizer = Tokenizer.from_directory(native.path)
    return LargeFeed(bench.task, Continued(Renderer(instructions, tokenizer, bench.run.prompts.max_length)), tokenizer)


def identity_of_large(bench: Bench) -> dict[str, str]:
    """Return what a ranking by θ_β depends on besides the rows and their rationales.

    Raises:
        UserError: the rationales are another model's.
    """
    native = bench.run.native
    assert native is not None
    fingerprint, provenance = open_checkpoint(native.path).files.fingerprint(), bench.reasons.provenance
    wrote = provenance.model.get("fingerprint") if provenance else None
    if wrote not in (None, fingerprint):
        raise UserError(
            f"set {bench.reasons.set_key} was written by {bench.reasons.model}, and {native.path} holds other weights: "
            "give those of the model that wrote it, or name a set of this one with --gin.Reasoning.set=KEY"
        )
    prompt = read_instructions(bench.run.prompts, bench.task).reasoning_hash
    return {"θ_β": repr((fingerprint, native.dtype, prompt))}
