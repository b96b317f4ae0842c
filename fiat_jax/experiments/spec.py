"""What verbs are asked to do: the sections that gin fills."""

import dataclasses
import re
from collections.abc import Mapping

from fiat_jax.errors import UserError
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig
from fiat_jax.reasoning.native import Native
from fiat_jax.sharding import MeshConfig
from fiat_jax.tasks.task import Task
from fiat_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The instruction file, and how many tokens a rendered example may have.

    Args:
        file: a YAML file as in prompts/.
        max_length: tokens of input and answer together; what is longer is truncated as the file says.
        max_new_tokens: of answers that are generated.
        max_reasoning_tokens: of the reasoning that θ_τ writes itself, in paradigms where it does.
    """

    file: str = ""
    max_length: int = 256
    max_new_tokens: int = 32
    max_reasoning_tokens: int = 128


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """Where θ_β's reasoning lies, and which of it is read.

    Args:
        store: the store's path.
        set: the key of the set to join, or its beginning; empty: the only one there is.
        vote: of several samples of a row, read the first one that has the answer of most; else the first.
        only_agreeing: train only on rows where θ_β's answer is the label. Rows that select or report all stay.
        partial: train on the rows that have reasoning by now. Rows that are reported must have it all the same.
        sets: name → key of another set, for paradigms that read another one: 'samples', 'many-shot', or a name that
            one of `Run.own` gives.
    """

    store: str = "reasoning_store"
    set: str = ""
    vote: bool = False
    only_agreeing: bool = False
    partial: bool = False
    sets: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which rows train, select and are reported.

    Args:
        train_split, report_split: names in Task.splits.
        selection: the share of the training rows that early stopping and search read; they are not trained on.
        group_field: rows that agree in it (a premise, a passage) are not parted by that share.
        cache: where tokenised rows are kept; empty: in the working directory.
        length_normalise: rank labels by the mean instead of the sum of their tokens' log-likelihoods.
    """

    train_split: str = "train"
    report_split: str = "validation"
    selection: float = 0.1
    group_field: str | None = None
    cache: str = ""
    length_normalise: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: `fiat train`.

    Args:
        paradigm: the name of one that is known, or of one of `own`.
        own: name → what a paradigm of the user's own is `like`, and which of its fields differ (`Paradigm`).
        native: θ_β's weights, for paradigms in which it is asked for more than its stored text.
    """

    task: Task
    prompts: Prompts
    reasoning: Reasoning
    data: Data
    model: ModelConfig
    lora: LoraConfig
    train: TrainConfig
    mesh: MeshConfig
    paradigm: str = "fiat"
    own: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    native: Native | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """One training run of a search: its learning rate, the rank of its adapter, and its epochs."""

    learning_rate: float
    rank: int
    epochs: int

    @classmethod
    def of(cls, run: Run) -> "Point":
        """Return what a run's own settings say."""
        return cls(run.train.optimizer.learning_rate, run.lora.rank, run.train.epochs)

    def name(self, run: Run) -> str:
        """Return the name of its directory: the rate, and what else differs from the run's own settings."""
        rank = "" if self.rank == run.lora.rank else f"-r{self.rank}"
        return f"lr-{self.learning_rate:g}{rank}" + ("" if self.epochs == run.train.epochs else f"-e{self.epochs}")

    def applied(self, run: Run) -> Run:
        """Return a run with these settings; the scale of the adapter (α/r) stays."""
        optimizer = dataclasses.replace(run.train.optimizer, learning_rate=self.learning_rate)
        train = dataclasses.replace(run.train, epochs=self.epochs, optimizer=optimizer)
        alpha = run.lora.alpha * self.rank / run.lora.rank if not run.lora.rslora else run.lora.alpha
        return dataclasses.replace(run, train=train, lora=dataclasses.replace(run.lora, rank=self.rank, alpha=alpha))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several tasks that train one adapter: `fiat train` with parts.

    What a part has of its own is set in a file of its own, or under its name: `PART/Task.…`, `PART/Prompts.…`,
    `PART/Reasoning.…`, `PART/Data.…`. What is set without a part's name is for those that do not set it.

    Args:
        rates: part → how often its rows are drawn, against the others (seqio's rates); no parts: one task is trained.
        files: part → gin file with its settings, as it would be given if it were trained alone.
        draws: rows drawn for an epoch; 0: as many as the parts have together.
    """

    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    draws: int = 0

    def __post_init__(self):
        unknown = [part for part in self.files if part not in self.rates]
        if unknown:
            raise UserError(f"Mixture.files names {', '.join(unknown)}, for which Mixture.rates has no rate")
        if len(self.rates) == 1 or any(rate <= 0 for rate in self.rates.values()):
            raise UserError(f"Mixture.rates has two or more parts, each of a rate above 0; got {dict(self.rates)}")
        if self.draws < 0:
            raise UserError(f"Mixture.draws is {self.draws}; it is a number of rows, or 0")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The matrix paradigms × sizes × seeds × models: `fiat experiment`.

    Args:
        paradigms: names, of groups too ('ladder', 'leave-one-out', 'controls').
        sizes: training rows, nested (the 200 are among the 1,000); 0: all of them.
        learning_rates, ranks, epochs: the search that every trained paradigm gets at every size, all combinations;
            none: that of Optimizer, Lora and Train alone. Where all weights are tuned there are no ranks.
        theta_taus: name → directory of several small models, each of which has all cells; none: that of Model alone.
        against: the paradigm that every other is compared with, pair by pair.
        processes: on CPUs, how many cells are made at once, each on its share of the cores.
        underrepresented: languages whose mean is told beside that of all.
    """

    run: Run
    paradigms: tuple[str, ...] = ("icl", "finetune", "finetune-lora", "fiat-no-reasoning", "fiat")
    sizes: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    theta_taus: Mapping[str, str] = dataclasses.field(default_factory=dict)
    against: str = "fiat"
    processes: int = 1
    underrepresented: tuple[str, ...] = ()

    def __post_init__(self):
        if self.processes < 1:
            raise UserError(f"Experiment.processes is {self.processes}; it must be 1 or more")
        for name in ("paradigms", "sizes", "seeds"):
            if not getattr(self, name):
                raise UserError(f"an experiment has at least one of its {name}; Experiment.{name} is empty")
        for name in ("ranks", "epochs"):
            if any(value < 1 for value in getattr(self, name)):
                raise UserError(f"Experiment.{name} is {getattr(self, name)}; each must be 1 or more")
        for name in ("sizes", "seeds"):
            if any(value < 0 for value in getattr(self, name)):
                raise UserError(f"Experiment.{name} is {getattr(self, name)}; each must be 0 or more")
        if any(rate <= 0 for rate in self.learning_rates):
            raise UserError(f"Experiment.learning_rates is {self.learning_rates}; each must be above 0")
        unfit = [name for name in self.theta_taus if not re.fullmatch(r"[\w.+-]+", name)]
        if unfit:
            raise UserError(
                f"Experiment.theta_taus: {unfit[0]!r} becomes the name of files; use letters, digits, . + -"
            )

    @property
    def search(self) -> tuple[Point, ...]:
        """What every trained paradigm tries; the first of equals is kept."""
        train, lora = self.run.train, self.run.lora
        return tuple(
            Point(rate, rank, epochs)
            for rank in self.ranks or (lora.rank,)
            for epochs in self.epochs or (train.epochs,)
            for rate in self.learning_rates or (train.optimizer.learning_rate,)
        )
