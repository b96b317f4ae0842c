"""The record of a run, one JSON line a step and an evaluation, whole again after a kill."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from fiat_jax.errors import UserError

FLUSH_EVERY = 10  # steps; reading a loss waits for its step


class Listener(Protocol):
    """Who wants to be told of a run's events: a progress bar, TensorBoard."""

    def begin(self, step: int, num_steps: int) -> None: ...
    def stepped(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def end(self) -> None: ...


class TrainLog:
    """Collects the metrics of steps without waiting for them, and writes and tells them a few at a time."""

    def __init__(self, path: Path | None, listeners: Sequence[Listener]):
        self._path, self._listeners = path, listeners
        self._pending: list[tuple[int, int, Mapping[str, jax.Array]]] = []
        self._started = time.perf_counter()
        self.tokens, self.seconds = 0, 0.0

    def begin(self, step: int, num_steps: int) -> None:
        """Forget what a killed run wrote of steps that are now run again."""
        if self._path is not None and self._path.exists():
            kept = [line for line in _whole_lines(self._path) if line["step"] < step or "evaluation" in line]
            kept = [line for line in kept if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(self._path)
        for listener in self._listeners:
            listener.begin(step, num_steps)
        self._started = time.perf_counter()

    def stepped(self, step: int, batch: Mapping[str, np.ndarray], metrics: Mapping[str, jax.Array]) -> None:
        """Note a step whose metrics may still be computed."""
        self._pending.append((step, int(np.count_nonzero(batch["segments"])), metrics))
        if len(self._pending) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Wait for the noted steps, and write and tell them; a loss that is no number ends the run."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        read = [(step, tokens, {k: float(v) for k, v in metrics.items()}) for step, tokens, metrics in pending]
        now = time.perf_counter()
        seconds, self._started = (now - self._started) / len(read), now
        for step, tokens, metrics in read:
            if not np.isfinite(metrics["loss"]):
                raise UserError(
                    f"the loss of step {step} is {metrics['loss']}: training diverged. Lower the learning rate or clip "
                    "gradients; the checkpoint before it is kept"
                )
            self.tokens += tokens
            self.seconds += seconds
            told = {**metrics, "tokens_per_second": tokens / seconds}
            self._write({"step": step, **metrics, "tokens": tokens})
            for listener in self._listeners:
                listener.stepped(step, told)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note an evaluation; the time it took is not that of a step."""
        self._write({"step": step, "evaluation": dict(metrics)})
        for listener in self._listeners:
            listener.evaluated(step, metrics)
        self._started = time.perf_counter()

    def end(self) -> None:
        """Tell everybody that the run ended."""
        for listener in self._listeners:
            listener.end()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a last one that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
