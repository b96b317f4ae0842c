"""AdamW or Muon with warm-up and decay, clipping, LoRA+'s faster B, and an average of what was trained."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from fiat_jax.errors import UserError, did_you_mean

ALGORITHMS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "constant")
ADAM_RMS = 0.2  # of an update by AdamW, to which Muon's are scaled (arXiv 2502.16982)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How the trained parameters move.

    Args:
        algorithm: "adamw" (arXiv 1711.05101); "muon" makes the updates of the layers' matrices orthogonal (Jordan
            2024), at the size that AdamW's would have; all else is left to AdamW, with Nesterov's momentum. It is for
            training from nothing.
        learning_rate: its peak.
        schedule: what follows warm-up until the last step: cosine or linear to zero, or constant.
        warmup: the share of all steps over which the rate rises from zero.
        weight_decay: decoupled, on matrices alone; under "muon" on those alone that it moves.
        clip_norm: the largest global norm of a gradient (per target token); 0: no clipping.
        lora_plus_ratio: how many times faster B learns than A (LoRA+, arXiv 2402.12354).
        average: the decay of the moving average of the trained parameters, which is then what is evaluated, kept and
            exported; 0.998 remembers some 500 steps. 0: the parameters themselves. One more copy of them is held.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    lora_plus_ratio: float = 1.0
    average: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    algorithm: str = "adamw"

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            hint = did_you_mean(self.algorithm, ALGORITHMS)
            raise UserError(f"algorithm is {self.algorithm!r}; known are {', '.join(ALGORITHMS)}.{hint}")
        if self.schedule not in SCHEDULES:
            hint = did_you_mean(self.schedule, SCHEDULES)
            raise UserError(f"schedule is {self.schedule!r}; known are {', '.join(SCHEDULES)}.{hint}")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is a share of all steps, at least 0 and less than 1; got {self.warmup}")
        if not 0 <= self.average < 1:
            raise UserError(f"average is the decay of a moving average, at least 0 and less than 1; got {self.average}")

    def learning_rates(self, num_steps: int) -> optax.Schedule:
        """Return step → learning rate."""
        warmup, peak = round(self.warmup * num_steps), self.learning_rate
        rest = max(num_steps - warmup, 1)
        after = {
            "cosine": optax.cosine_decay_schedule(peak, rest),
            "linear": optax.linear_schedule(peak, 0.0, rest),
            "constant": optax.constant_schedule(peak),
        }[self.schedule]
        return optax.join_schedules(
            [optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)), after], [warmup]
        )

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Return the optimizer of a run of `num_steps` steps: one object, so that runs may share what it is part of."""
        return _built(self, num_steps)

    def algorithm_of(self, num_steps: int) -> optax.GradientTransformation:
        """Return what makes updates of gradients, without clipping and averages."""
        rates = self.learning_rates(num_steps)
        if self.algorithm == "muon":
            return contrib.muon(
                rates,
                weight_decay=self.weight_decay,
                eps=self.eps,
                adam_b1=self.b1,
                adam_b2=self.b2,
                muon_weight_dimension_numbers=_products,
                consistent_rms=ADAM_RMS,
            )
        return optax.adamw(
            rates,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=lambda tree: _by_name(tree, lambda name: name not in ("gain", "bias")),
        )


@functools.lru_cache(maxsize=64)
def _built(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        config.algorithm_of(num_steps),
        optax.masked(optax.scale(config.lora_plus_ratio), lambda tree: _by_name(tree, lambda name: name == "b")),
        averaging(config.average) if config.average else optax.identity(),
    )


class Average(NamedTuple):
    """The state of `averaging`."""

    count: jax.Array
    average: Any


def averaging(decay: float) -> optax.GradientTransformation:
    """Hand updates on, and keep the moving average of the parameters they lead to (Polyak and Juditsky 1992).

    After n steps the decay is at most (1 + n) / (10 + n), so that the initial values are soon forgotten.
    """

    def init(params):
        return Average(jnp.int32(0), jax.tree.map(jnp.copy, params))  # copied: the step is given its state to overwrite

    def update(updates, state, params=None):
        assert params is not None
        count = state.count + 1
        kept = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
        reached = optax.apply_updates(params, updates)
        move = lambda old, new: (kept * old + (1 - kept) * new).astype(old.dtype)  # noqa: E731
        average = jax.tree.map(move, state.average, reached)
        return updates, Average(count, average)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any, trainable: Any) -> Any:
    """Return the average that an optimizer keeps of the trained parameters, or themselves where it keeps none."""
    return optax.tree.get(opt_state, "Average", Average(jnp.int32(0), trainable)).average


def _products(tree: Any) -> Any:
    """Return which axes of each layer's matrices are its inputs and its outputs; None for all other parameters."""

    def of(parameter: Any) -> contrib.MuonDimensionNumbers | None:
        names = getattr(parameter, "axes", ())
        one = "rank" if "rank" in names else "embed"
        axes = [axis for axis, name in enumerate(names) if name not in ("layers", "experts")]
        if "layers" not in names or one not in names or len(axes) == 1:
            return None
        cut = 1 if names[axes[0]] == one else len(axes) - 1  # the residual stream, or the rank, is alone on one side
        return contrib.MuonDimensionNumbers(tuple(axes[:cut]), tuple(axes[cut:]))

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _by_name(tree: Any, test) -> Any:
    """Return the tree with `test` of each parameter's own name in place of the parameter."""

    def of(path, _):
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        return test(next(name for name in reversed(names) if name != "value"))

    return jax.tree_util.tree_map_with_path(of, tree)
