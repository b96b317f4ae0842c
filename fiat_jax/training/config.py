"""What a training run is asked to do."""

import dataclasses

from fiat_jax.errors import UserError
from fiat_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        epochs: how often every training example is read.
        min_steps: small training sets are read more often, until a run has at least so many steps.
        batch_rows: packed rows a batch, over all devices.
        row_length: tokens a packed row.
        accumulate: equal parts into which a batch is cut, one forward and backward pass each.
        evaluate_every: steps between evaluations; 0: at the end of every epoch.
        patience: evaluations without a better one after which training stops; 0: never.
        checkpoint_every: steps between checkpoints, besides those at evaluations; 0: none besides.
        seed: of the order of examples, the adapter's initial values and dropout.
    """

    epochs: int = 5
    min_steps: int = 0
    batch_rows: int = 16
    row_length: int = 256
    accumulate: int = 1
    evaluate_every: int = 0
    patience: int = 0
    checkpoint_every: int = 200
    seed: int = 0
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def __post_init__(self):
        for name in ("epochs", "batch_rows", "row_length", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"Train.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("patience", "evaluate_every", "checkpoint_every", "min_steps", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"Train.{name} is {getattr(self, name)}; it must be 0 or more")

    def epochs_of(self, steps_per_epoch: int) -> int:
        """Return how many epochs a run has whose epochs have so many steps."""
        return max(self.epochs, -(-self.min_steps // steps_per_epoch))
