"""Goodput: the share of a run's wall time that went into steps which count, and what the rest went into."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

COMPILATION = "/jax/core/compile/backend_compile_duration"  # an event of jax.monitoring
WRITE_EVERY = 10.0  # seconds: what a kill may take of an attempt's account


class Goodput:
    """The account of one attempt at a run, in a file of its own; whatever is spent on no named cause went into steps.

    What the host spends on data while the devices compute is counted as data all the same.
    """

    def __init__(self, directory: Path | None, step: int, clock: Callable[[], float] = time.time):
        self._clock, self._begun, self._first = clock, clock(), step
        self._seconds: dict[str, float] = {}
        self._within: list[str] = []
        self._written = self._begun
        self._path, self._earlier = None, 0
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._earlier = len(list(directory.glob("attempt-*.json")))
            self._path = directory / f"attempt-{self._earlier:04d}.json"
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    @contextlib.contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """Count what is done in context as spent on a cause: data, evaluation, checkpoint."""
        begun = self._clock()
        self._within.append(cause)
        try:
            yield
        finally:
            self._within.pop()
            self._add(cause, self._clock() - begun)

    def write(self, step: int, at_once: bool = False) -> None:
        """Write the account after so many steps of the run, now and then; one that adds no step is not kept."""
        now = self._clock()
        if step == self._first and self._earlier:
            return
        if self._path is None or not (at_once or now - self._written >= WRITE_EVERY):
            return
        self._written = now
        account = {"begun": self._begun, "wall": now - self._begun, "from": self._first, "to": step}
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**account, "seconds": self._seconds}))
        temporary.replace(self._path)

    def close(self) -> None:
        """Count no longer."""
        jax.monitoring.unregister_event_duration_listener(self._compiled)

    def _compiled(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILATION:
            self._add("compilation", duration_secs)
            if self._within:
                self._add(self._within[-1], -duration_secs)

    def _add(self, cause: str, seconds: float) -> None:
        self._seconds[cause] = self._seconds.get(cause, 0.0) + seconds


def goodput(directory: Path) -> dict[str, Any]:
    """Return {goodput, wall, attempts, seconds by cause} of all attempts at a run.

    Besides the causes of each attempt, `between` is the time from one attempt's last word to the next one's first, and
    `lost` that of steps which a later attempt had to do again. `goodput` is what is left over the whole wall time.
    """
    attempts = [json.loads(path.read_text()) for path in sorted(directory.glob("attempt-*.json"))]
    seconds: dict[str, float] = {}

    def add(cause: str, more: float) -> None:
        seconds[cause] = seconds.get(cause, 0.0) + more

    for index, one in enumerate(attempts):
        for cause, spent in one["seconds"].items():
            add(cause, spent)
        steps = max(one["wall"] - sum(one["seconds"].values()), 0.0)
        if index + 1 < len(attempts):
            after: Mapping[str, Any] = attempts[index + 1]
            add("between", max(after["begun"] - one["begun"] - one["wall"], 0.0))
            done, again = one["to"] - one["from"], max(one["to"] - after["from"], 0)
            lost = steps * min(again / done, 1.0) if done else 0.0
            add("lost", lost)
            steps -= lost
        add("steps", steps)
    last = attempts[-1]
    wall = last["begun"] + last["wall"] - attempts[0]["begun"]
    return {
        "goodput": round(seconds["steps"] / wall, 4) if wall else 1.0,
        "wall": round(wall, 3),
        "attempts": len(attempts),
        "seconds": {cause: round(spent, 3) for cause, spent in seconds.items()},
    }
