"""The loop: the ordered list of what happens in a run, and all its side effects."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax import remote
from fiat_jax.checkpoint import open_checkpoints
from fiat_jax.distributed import any_process, check_shared, from_main, is_main
from fiat_jax.errors import Interrupted, UserError
from fiat_jax.models.model import Model
from fiat_jax.sharding import check_batch, divided
from fiat_jax.training.config import TrainConfig
from fiat_jax.training.goodput import Goodput, goodput
from fiat_jax.training.interrupt import Signals
from fiat_jax.training.log import Listener, TrainLog
from fiat_jax.training.optimizer import averaged
from fiat_jax.training.program import abstract_state, jit_step
from fiat_jax.training.step import TrainState
from fiat_jax.training.watch import stepping

# trained parameters → metric → value; the loop does not know what is measured
Evaluator = Callable[[Any], Mapping[str, float]]

GOODPUT = "goodput"  # where the accounts of a run's attempts lie, in its working directory
ASK_EVERY = 10  # steps after which several processes ask each other for signals; asking waits for the devices


class Batches(Protocol):
    """Global batches by position, as `data.TrainBatches` gives them."""

    def num_steps(self, epochs: int) -> int: ...
    def batch(self, step: int) -> Mapping[str, np.ndarray]: ...
    def row_ids(self, step: int) -> Sequence[str]: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of one evaluation, and after how many steps it was."""

    step: int
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class History:
    """What was evaluated so far, and which metric decides; the larger the better, the earlier of equals."""

    select: str
    evaluations: tuple[Evaluation, ...] = ()

    def add(self, evaluation: Evaluation) -> "History":
        """Return the history with one more evaluation."""
        if self.select not in evaluation.metrics:
            raise UserError(f"selection by {self.select!r}, but measured are {', '.join(evaluation.metrics)}")
        return dataclasses.replace(self, evaluations=(*self.evaluations, evaluation))

    @property
    def best(self) -> Evaluation:
        """The evaluation to keep; that before the first step counts only where there is no other."""
        trained = [e for e in self.evaluations if e.step > 0] or list(self.evaluations)
        return max(trained, key=lambda e: e.metrics[self.select])

    def evaluated(self, step: int) -> bool:
        """Whether there was an evaluation after so many steps."""
        return any(e.step == step for e in self.evaluations)

    def stale(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        since = [e for e in self.evaluations if e.step > self.best.step]
        return bool(patience) and len(since) >= patience


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: the trained parameters of its best evaluation, and how it went."""

    trainable: Any
    history: History
    num_steps: int
    tokens: int
    seconds: float
    goodput: Mapping[str, Any]


def train(
    model: Model,
    batches: Batches,
    config: TrainConfig,
    workdir: str | Path,
    *,
    evaluate: Evaluator,
    select: str,
    facts: Mapping[str, Any] | None = None,
    listeners: Sequence[Listener] = (),
) -> Trained:
    """Train until the last epoch, or until `patience` ends, and return the parameters that `evaluate` liked best.

    Run again after it was killed, it goes on from its last checkpoint, and every later loss is that of a run that was
    never killed. Of the frozen base a checkpoint holds its fingerprint alone.

    Args:
        evaluate: called before the first step, then after every epoch, or every `evaluate_every` steps.
        select: the metric to choose the best parameters by, the larger the better.
        facts: what a checkpoint must agree on besides the base and `config` (hashes of data and prompts, ...).

    Raises:
        UserError: a batch that the mesh does not divide, a checkpoint of another run, a loss that is no number.
        Interrupted: SIGINT or SIGTERM came; all is saved.
    """
    check_batch(model.mesh, model.build.rules, config.batch_rows, config.accumulate)
    epochs = config.epochs_of(batches.num_steps(1))
    num_steps = batches.num_steps(epochs)
    evaluate_at = _evaluation_steps(batches, config.evaluate_every, epochs)
    if remote.url_of(workdir) is None:
        check_shared(Path(workdir))
    known = {**(facts or {}), "Train": repr(config), "the base model": model.fingerprint}
    run = _Run(model, config, num_steps, Path(workdir), known)
    step, history = run.restore(History(select))
    log = TrainLog(run.workdir / "train_log.jsonl" if is_main() else None, listeners, batches.row_ids)
    begun = log.begin(step, num_steps, [e.step for e in history.evaluations])
    account = Goodput(run.workdir / GOODPUT if is_main() else None, step)
    with contextlib.ExitStack() as stack:
        for what in (run, begun, account):
            stack.enter_context(contextlib.closing(what))
        signals, watch = stack.enter_context(Signals()), stack.enter_context(stepping("training"))
        watch.begin(step)
        while not history.stale(config.patience):
            if step in evaluate_at and not history.evaluated(step):
                log.flush()
                watch.rest()
                with account.spent("evaluation"):
                    history = history.add(Evaluation(step, dict(evaluate(run.evaluated))))
                log.evaluated(step, history.evaluations[-1].metrics)
                with account.spent("checkpoint"):
                    if history.best.step == step:
                        run.save_best(step)
                    run.save(step, history)
                continue
            if step == num_steps:
                break
            stop = _asked_to_stop(signals, step)
            if stop or (config.checkpoint_every and step % config.checkpoint_every == 0):
                log.flush()
                watch.rest()
                with account.spent("checkpoint"):
                    run.save(step, history)
            if stop:
                account.write(step, at_once=True)
                raise Interrupted(step, num_steps)
            with account.spent("data"):
                batch = divided(model.mesh, model.build.rules, batches.batch(step))
            run.state, metrics = run.step(run.state, model.frozen, batch)
            log.stepped(step, metrics)
            step += 1
            watch.reached(step)
            account.write(step)
        log.flush()
        watch.rest()
        with account.spent("checkpoint"):
            best = run.restore_best(history.best.step)
        account.write(step, at_once=True)
        if any_process(signals.received):  # it came too late for this run, and the caller may have others to do
            raise Interrupted(step, num_steps)
    told = from_main(goodput(run.workdir / GOODPUT) if is_main() else None)
    return Trained(best, history, step, log.tokens, log.seconds, told)


def _asked_to_stop(signals: Signals, step: int) -> bool:
    if jax.process_count() == 1:
        return signals.received
    return step % ASK_EVERY == 0 and any_process(signals.received)


def _evaluation_steps(batches: Batches, every: int, epochs: int) -> frozenset[int]:
    num_steps = batches.num_steps(epochs)
    if every:
        return frozenset((*range(0, num_steps, every), num_steps))
    return frozenset(batches.num_steps(epoch) for epoch in range(epochs + 1))


class _Run:
    """The compiled step, the state, and where both are saved."""

    def __init__(self, model: Model, config: TrainConfig, num_steps: int, workdir: Path, facts: Mapping[str, Any]):
        self.workdir, self._facts = workdir, dict(facts)
        self._latest = open_checkpoints(workdir / "checkpoints" / "latest")
        # two: a kill may come after a better one is saved, and before the history that calls it so
        self._best = open_checkpoints(workdir / "checkpoints" / "best", keep=2)
        self._saved = -1
        self._model = model
        self._optimizer = config.optimizer.build(num_steps)
        self.step = jit_step(model, config, self._optimizer)
        self.state: TrainState

    def _initial(self) -> TrainState:
        # Copied, because the step is given its state to overwrite, and the model may be trained again.
        model, trainable = self._model, jax.tree.map(jnp.copy, self._model.trainable)
        opt_state = self._optimizer.init(trainable)
        whole = NamedSharding(model.mesh, PartitionSpec())
        place = lambda x: x if len(x.sharding.device_set) == model.mesh.size else jax.device_put(x, whole)  # noqa: E731
        return TrainState(jax.device_put(jnp.int32(0), whole), trainable, jax.tree.map(place, opt_state))

    @property
    def evaluated(self) -> Any:
        """What is evaluated and kept: the trained parameters, or their average where one is asked for."""
        return averaged(self.state.opt_state, self.state.trainable)

    def save(self, step: int, history: History) -> None:
        """Save what a later process needs to go on from here, unless that is done."""
        if step == self._saved:
            return
        self._saved = step
        self._best.wait()  # the best of this history must be there before it is called so
        evaluations = [[e.step, dict(e.metrics)] for e in history.evaluations]
        self._latest.save(step, self.state, {"run": self._facts, "evaluations": evaluations})
        remote.push(self.workdir)  # the log of the steps until here

    def save_best(self, step: int) -> None:
        """Save what was evaluated, alone."""
        self._latest.wait()  # barriers between processes have one name in all of Orbax's managers: one save at a time
        self._best.save(step, self.evaluated, {"run": self._facts})

    def restore(self, history: History) -> tuple[int, History]:
        """Take up the newest checkpoint, or begin where there is none; return its step and history."""
        step = self._latest.latest()
        if step is None:
            self._best.delete_after(-1)
            self.state = self._initial()
            return 0, history
        facts = self._latest.facts(step)
        differ = [_difference(k, facts["run"].get(k), v) for k, v in self._facts.items() if facts["run"].get(k) != v]
        if differ:
            raise UserError(
                f"{self.workdir} holds a checkpoint of another run: {'; '.join(differ)}. "
                "Use another working directory, or remove this one to start anew"
            )
        like = abstract_state(self._model, self._optimizer)  # shapes, for there is no room for two states
        self.state, self._saved = self._latest.restore(step, like), step
        history = dataclasses.replace(history, evaluations=tuple(Evaluation(s, m) for s, m in facts["evaluations"]))
        self._best.delete_after(step)
        return step, history

    def restore_best(self, step: int) -> Any:
        """Return the trained parameters of the best evaluation."""
        self._latest.wait()
        return self._best.restore(step, self.state.trainable)

    def close(self) -> None:
        """Finish what is being saved."""
        self._latest.close()
        self._best.close()


def _difference(name: str, held: object, asked: object) -> str:
    """Say how two facts of a run differ: by the settings of which they are made, where they are such texts."""
    if not (isinstance(held, str) and isinstance(asked, str) and "=" in held):
        return f"{name} differs"
    here, there = (text.rstrip(")").partition("(")[2].split(", ") for text in (asked, held))
    changed = [f"{b} there, {a} here" for a, b in zip(here, there, strict=False) if a != b]
    if not changed:
        return f"{name} differs"
    return f"{name} differs ({'; '.join(changed[:3])})"
