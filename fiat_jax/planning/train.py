"""The plan of training: the step that the loop compiles, on shapes alone."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fiat_jax.data.batches import TrainBatches
from fiat_jax.data.layout import DecoderLayout, EncoderDecoderLayout
from fiat_jax.errors import UserError
from fiat_jax.models.config import DecoderConfig, EncoderDecoderConfig
from fiat_jax.models.experts import BLOCK_LOOP, EXPERT_LOOP, RUN, RUN_LOOP, block_rows, most_blocks
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import Model, ModelConfig
from fiat_jax.planning import cautions
from fiat_jax.planning.compiled import Compiler
from fiat_jax.planning.plan import PlanConfig, Program, examine, model_of, target_json, typical
from fiat_jax.planning.target import Target
from fiat_jax.planning.useful import TRAIN_FORMULA, useful
from fiat_jax.sharding import MeshConfig, axis_size, check_batch
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.program import abstract_batch, abstract_state, jit_step

STEPS = 1000  # of the learning rate's schedule, which is a part of the program


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """What is asked: which model is trained how, on which mesh."""

    plan: PlanConfig
    model: ModelConfig
    lora: LoraConfig
    train: TrainConfig
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is found: the step, and how many tokens a second that could be."""

    asked: TrainPlan
    target: dict[str, Any]
    step: Program
    tokens: int  # of a batch, without padding
    useful_flops: float | None  # of a batch
    attention: str

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens without padding that the slice could train on in a second."""
        return None if self.step.roofline is None else self.tokens / self.step.roofline.seconds

    @property
    def mfu(self) -> float | None:
        """The share of the chips' peak that useful operations take at that rate."""
        if self.step.roofline is None or self.useful_flops is None:
            return None
        peak = self.target["chip"]["flops"] * self.target["devices"]
        return self.useful_flops / (peak * self.step.roofline.seconds)

    def as_json(self) -> dict[str, Any]:
        """Return it for results.json."""
        program = self.step.as_json(self.target["memory"])
        computed = program.get("flops")
        devices = self.target["devices"]
        return {
            "kind": "train",
            "attention": self.attention,
            "model": self.asked.model.path,
            "settings": {**dataclasses.asdict(self.asked.plan), "train": dataclasses.asdict(self.asked.train)},
            "target": self.target,
            "fits": program["fits"],
            "programs": {"step": program},
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "useful_flops": self.useful_flops,
            "computed_over_useful": computed * devices / self.useful_flops if computed and self.useful_flops else None,
            "formula": TRAIN_FORMULA,
        }


def expert_trips(model: Model, rows: int) -> dict[str, float]:
    """Return how often the loops over experts run at most, for so many rows on a device."""
    c, rules = model.config, model.build.rules
    if not isinstance(c, DecoderConfig) or not c.num_experts:
        return {}
    ways = axis_size(model.mesh, rules.experts)
    ways = ways if c.num_experts % ways == 0 else 1
    if ways > 1 and "expert" in (rules.batch or ()):
        rows *= ways  # those of all who hold other experts
    assigned, held = rows * c.experts_per_token, c.num_experts // ways
    experts = min(held, assigned)
    blocks = most_blocks(assigned, held, block_rows(assigned, c.num_experts)) / experts
    runs = blocks // RUN
    return {
        f"{EXPERT_LOOP}/while": experts,
        f"{RUN_LOOP}/while": runs,
        f"{BLOCK_LOOP}/while": blocks - runs * RUN,
    }


def batches_of(asked: TrainPlan, config: Any) -> TrainBatches:
    """Return packed batches of typical examples, as training packs them."""
    plan, train = asked.plan, asked.train
    if plan.input_tokens + plan.target_tokens - 1 > train.row_length:
        raise UserError(
            f"an example of Plan.input_tokens={plan.input_tokens} and target_tokens={plan.target_tokens} does not fit "
            f"a row of Train.row_length={train.row_length}: lower the former, or raise the latter"
        )
    taken = plan.input_tokens + plan.target_tokens - 1
    examples = typical(train.batch_rows * (train.row_length // taken), plan.input_tokens, plan.target_tokens)
    layout: Any = DecoderLayout
    if isinstance(config, EncoderDecoderConfig):
        start_id = config.start_id
        layout = lambda row_length: EncoderDecoderLayout(row_length, start_id)  # noqa: E731
    return TrainBatches(examples, train.row_length, train.batch_rows, train.seed, layout)


def plan_training(asked: TrainPlan, target: Target, compiler: Compiler) -> Trained:
    """Compile the step of a run and count it.

    Raises:
        UserError: the mesh does not fit the target, or the batch not the mesh.
    """
    mesh = target.mesh(asked.mesh)
    lora = asked.lora if asked.plan.tuned == "adapter" else None
    model = model_of(asked.model, mesh, lora, tuned=True)
    check_batch(mesh, model.build.rules, asked.train.batch_rows, asked.train.accumulate)
    batch = batches_of(asked, model.config).batch(0)
    optimizer = asked.train.optimizer.build(STEPS)
    with jax.set_mesh(mesh):
        state = abstract_state(model, optimizer)
        lowered = jit_step(model, asked.train, optimizer).lower(state, model.frozen, abstract_batch(model, batch))
    facts = compiler.facts("step", lowered)
    said = (*cautions.of_arguments((state, model.frozen)), *cautions.of_layout(model))
    rows = (
        asked.train.batch_rows
        * asked.train.row_length
        // asked.train.accumulate
        // axis_size(mesh, model.build.rules.batch)
    )
    trips, passes = expert_trips(model, rows), 2 * asked.train.accumulate
    step = examine(facts, target, model, trips=trips, said=said, passes=passes)
    tokens = int(sum(np.count_nonzero(batch[name]) for name in ("segments", "decoder_segments") if name in batch))
    useful_flops = _useful(model, asked.plan, tokens, batch)
    return Trained(asked, target_json(target, mesh), step, tokens, useful_flops, str(model.build.kernel))


def _useful(model: Model, plan: PlanConfig, tokens: int, batch: Any) -> float | None:
    needed = useful(model)
    if needed is None:
        return None
    keys, targets = (plan.input_tokens + plan.target_tokens) / 2, float(np.sum(batch["weights"])) / tokens
    return tokens * needed.training(keys, targets)
