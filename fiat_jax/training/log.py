"""The record of a run, one JSON line a step and an evaluation, whole again after a kill."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from fiat_jax.errors import UserError

ROWS_NAMED = 8  # of a batch that diverged
FLUSH_EVERY = 10  # steps; reading a loss waits for its step


class Listener(Protocol):
    """Who wants to be told of a run's events: a progress bar, TensorBoard."""

    def begin(self, step: int, num_steps: int) -> None: ...
    def stepped(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def end(self) -> None: ...


class TrainLog:
    """Collects the metrics of steps without waiting for them, and writes and tells them a few at a time.

    `tokens` and `seconds` are those of all steps of the run, also of the steps before it was interrupted.
    """

    def __init__(self, path: Path | None, listeners: Sequence[Listener], row_ids: Callable[[int], Sequence[str]]):
        self._path, self._listeners, self._row_ids = path, listeners, row_ids
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._since = time.perf_counter()
        self.tokens, self.seconds = 0, 0.0

    def begin(self, step: int, num_steps: int, evaluated: Collection[int] = ()) -> "TrainLog":
        """Begin at `step`, forgetting what a killed run wrote of steps and evaluations that will be done again."""
        if self._path is not None and self._path.exists():
            lines = _whole_lines(self._path)
            kept = [
                line for line in lines if (line["step"] in evaluated if "evaluation" in line else line["step"] < step)
            ]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(self._path)
            self.tokens = sum(line.get("tokens", 0) for line in kept)
            self.seconds = sum(line.get("seconds", 0.0) for line in kept)
        for listener in self._listeners:
            listener.begin(step, num_steps)
        self._since = time.perf_counter()
        return self

    def stepped(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Note a step whose metrics may still be computed."""
        self._pending.append((step, metrics))
        if len(self._pending) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Wait for the noted steps, and write and tell them; a loss that is no number ends the run."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        read = [(step, {name: value.item() for name, value in metrics.items()}) for step, metrics in pending]
        now = time.perf_counter()
        seconds, self._since = (now - self._since) / len(read), now
        for step, metrics in read:
            self._check_finite(step, metrics)
            self.tokens += metrics["tokens"]
            self.seconds += seconds
            self._write({"step": step, **metrics, "seconds": round(seconds, 6)})
            for listener in self._listeners:
                listener.stepped(
                    step, {**metrics, "seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
                )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note an evaluation; the time it took is not that of a step."""
        self._write({"step": step, "evaluation": dict(metrics)})
        for listener in self._listeners:
            listener.evaluated(step, metrics)
        self._since = time.perf_counter()

    def close(self) -> None:
        """Tell everybody that the run ended, well or not."""
        for listener in self._listeners:
            listener.end()

    def _check_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, words in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if not np.isfinite(metrics[name]):
                ids = self._row_ids(step)
                more = f" and {len(ids) - ROWS_NAMED} more" if len(ids) > ROWS_NAMED else ""
                raise UserError(
                    f"the {words} of step {step} is {metrics[name]}: training diverged. Lower the learning rate or "
                    "clip gradients; the checkpoint before it is kept. If it happens again at this step, look at the "
                    f"rows of its batch: {', '.join(ids[:ROWS_NAMED])}{more}"
                )

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}); what was saved before is whole: make room or mend "
                "the permissions, and run the same command to go on"
            ) from error


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a last one that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
