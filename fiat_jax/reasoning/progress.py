"""How far the bulk generator is: a bar on a terminal, plain log lines elsewhere."""

import logging
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fiat_jax.reasoning.cost import money

logger = logging.getLogger(__name__)
LOG_SECONDS = 15.0


class Meter:
    """Counts requests that ended; as a context manager it shows them with their rate, cost and time left."""

    def __init__(self, total: int, console: Console | None = None):
        self._total, self._done, self._failed, self._tokens, self._spent = total, 0, 0, 0, 0.0
        self._began = self._logged = time.monotonic()
        console = console or Console(stderr=True)
        columns = (
            "reason",
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self._bar.add_task("reason", total=total, rate="") if self._bar else None

    def advance(self, done: int, tokens: int = 0, failed: int = 0) -> None:
        """Add requests that ended, the tokens that came with them, and how many of them failed."""
        self._done, self._tokens, self._failed = self._done + done, self._tokens + tokens, self._failed + failed
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif time.monotonic() - self._logged >= LOG_SECONDS:
            self._log()

    def spend(self, amount: float) -> None:
        """Add money; it is shown with what comes next."""
        self._spent += amount

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc_info):
        if self._bar is not None:
            self._bar.stop()
        else:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        logger.info("reason: %d of %d, %s, %s left", self._done, self._total, self._rate(), self._time_left())

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        tokens = f", {self._tokens / seconds:.0f} tokens/s" if self._tokens else ""
        failed = f", {self._failed} failed" if self._failed else ""
        spent = f", {money(self._spent)} spent" if self._spent else ""
        return f"{self._done / seconds:.1f} rows/s{tokens}{failed}{spent}"

    def _time_left(self) -> str:
        if not self._done:
            return "unknown"
        seconds = (time.monotonic() - self._began) * (self._total - self._done) / self._done
        return str(timedelta(seconds=round(seconds)))
