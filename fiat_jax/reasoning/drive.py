"""One run against θ_β: a bounded number of requests at a time, each answer stored as it comes, signals obeyed."""

import asyncio
import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.render import Renderer
from fiat_jax.reasoning.backend import FAILED, Backend, Refused, Unavailable
from fiat_jax.reasoning.cost import Prices, Purse, money
from fiat_jax.reasoning.progress import Meter
from fiat_jax.reasoning.wanted import Plan, Quarantined, Wanted, seed_of, to_record
from fiat_jax.store import Record, SetWriter

ENOUGH_TO_JUDGE = 20  # requests that have ended, before their failures may end the run
WAITING = 4  # answers for each request at a time that may be asked for and not be on disk


@dataclass(frozen=True)
class GenerateOptions:
    """How a run asks.

    Args:
        samples: completions a row.
        concurrency: requests at a time, at most.
        max_failures: the share of the requests that have ended which may have failed; more end the run, 1 never does.
        max_cost: money; no request is begun that might pass it.
        grace_seconds: what requests under way are given after a signal.
    """

    samples: int = 1
    concurrency: int = 16
    max_failures: float = 0.5
    max_cost: float | None = None
    grace_seconds: float = 30.0

    def __post_init__(self):
        for name in ("samples", "concurrency"):
            if getattr(self, name) < 1:
                raise UserError(f"Generate.{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.max_failures <= 1:
            raise UserError(f"Generate.max_failures is {self.max_failures}; expected a share from 0 to 1")
        if self.max_cost is not None and self.max_cost <= 0:
            raise UserError(f"Generate.max_cost is {self.max_cost}; expected money, or None for no limit")


class Drive:
    """Runs the requests once; `written`, `quarantined` and `interrupted` say what came of them, also after an error.

    `written` has figures of the new records, `stopped_by` says in words what interrupted it where that was no signal.
    """

    def __init__(
        self,
        plan: Plan,
        renderer: Renderer,
        backend: Backend,
        writer: SetWriter,
        options: GenerateOptions,
        meter: Meter,
        prices: Prices | None = None,
    ):
        self._wanted, self._provenance = plan.missing, plan.provenance
        self._renderer, self._backend, self._writer = renderer, backend, writer
        self._options, self._meter = options, meter
        self._purse, self._stop = Purse(prices, options.max_cost), asyncio.Event()
        self._room = asyncio.Semaphore(WAITING * options.concurrency)  # where the disk is slower than the endpoint
        self._first = asyncio.Event()
        if not backend.first_alone:
            self._first.set()
        self._answered = self._failed = 0
        self.written: Counter[str] = Counter()
        self.quarantined: list[Quarantined] = []
        self.interrupted, self.stopped_by = False, ""

    @property
    def spent(self) -> float:
        """What was paid, 0 without prices."""
        return self._purse.spent

    def run(self) -> None:
        """Block until every request ended, a signal came, or no request can succeed (UserError)."""
        if self._wanted:
            asyncio.run(self._run())

    async def _run(self) -> None:
        work, answers, stop = iter(self._wanted), asyncio.Queue[Record | None](), self._stop
        count = min(self._options.concurrency, len(self._wanted))
        workers = [asyncio.create_task(self._work(work, answers)) for _ in range(count)]
        everyone = asyncio.gather(*workers)
        recorder = asyncio.create_task(self._record(answers))
        stopped = asyncio.create_task(stop.wait())
        with _signals(stop, everyone):
            await asyncio.wait({everyone, recorder, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                grace = self._options.grace_seconds
                await asyncio.wait({everyone, recorder}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            for worker in workers:
                worker.cancel()
            results = await asyncio.gather(everyone, *workers, return_exceptions=True)
            answers.put_nowait(None)  # after the last answer
            results += await asyncio.gather(recorder, return_exceptions=True)
            await self._backend.close()
        ended = self.written["records"] + len(self.quarantined)
        self.interrupted = stop.is_set() and ended < len(self._wanted)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _work(self, work: Iterator[Wanted], answers: "asyncio.Queue[Record | None]") -> None:
        for want in work:
            if want is not self._wanted[0]:
                await self._first.wait()
            await self._room.acquire()
            if self._stop.is_set():
                return
            record = await self._ask(want)
            self._first.set()
            if record is not None:
                answers.put_nowait(record)
            else:
                self._room.release()

    async def _ask(self, want: Wanted) -> Record | None:
        try:
            prompt = self._renderer.reasoning_prompt(want.row)
        except UserError as error:
            return self._quarantine(want, str(error))
        counted = len(prompt.prefix_ids) + len(prompt.own_ids)
        worst = self._purse.worst(counted, int(prompt.decoding.get("max_tokens", 0)))
        if not await self._purse.reserve(worst):
            return self._stop_for_money(worst)
        if self._stop.is_set():  # while money was waited for
            self._purse.settle(worst, counted, None)
            return None
        paid, seed = None, seed_of(want, self._provenance)
        try:
            paid = await self._backend.complete(prompt, seed=seed, sample=want.sample)
            record = to_record(want, paid, self._provenance, self._renderer.instructions)
        except Refused as error:
            paid = error.completion
            return self._fail(want, str(error), error.bucket)
        except Unavailable as error:
            return self._fail(want, str(error), FAILED)
        finally:
            self._meter.spend(self._purse.settle(worst, counted, paid))
        self._answered += 1
        return record

    def _fail(self, want: Wanted, reason: str, bucket: str) -> None:
        self._quarantine(want, reason, bucket)
        self._failed += 1
        ended = self._failed + self._answered
        if ended >= ENOUGH_TO_JUDGE and self._failed > self._options.max_failures * ended:
            raise UserError(
                f"{self._failed} of {ended} requests failed, where Generate.max_failures is a share of "
                f"{self._options.max_failures:g}; the last because of: {reason}. "
                "What was answered is stored; mend the cause and run the same command again"
            ) from None

    def _stop_for_money(self, worst: float) -> None:
        self.stopped_by = (
            f"{money(self.spent)} are spent, and the next request may cost {money(worst)}: more than "
            f"Generate.max_cost, {money(self._options.max_cost or 0)}; raise it"
        )
        self._stop.set()

    async def _record(self, answers: "asyncio.Queue[Record | None]") -> None:
        while True:
            batch = [await answers.get()]
            while not answers.empty():
                batch.append(answers.get_nowait())
            records = [record for record in batch if record is not None]
            await asyncio.to_thread(self._writer.append, *records)  # one fsync for all that came during the last one
            for record in records:  # which themselves are not held: texts of many rows are long
                self.written.update(_figures(record))
                self._room.release()
            self._meter.advance(len(records), sum(record.completion_tokens or 0 for record in records))
            if None in batch:
                return

    def _quarantine(self, want: Wanted, reason: str, bucket: str = FAILED) -> None:
        self.quarantined.append(Quarantined(want.row_id, want.sample, reason, bucket))
        self._meter.advance(1, failed=1)


def _figures(record: Record) -> dict[str, int]:
    return {
        "records": 1,
        "without_answer": record.answer is None,
        "cut_short": record.finish_reason == "length",
        "with_hidden": bool(record.hidden_tokens),
        "prompt_tokens": record.prompt_tokens or 0,
        "cached_tokens": record.cached_tokens or 0,
        "completion_tokens": record.completion_tokens or 0,
    }


@contextlib.contextmanager
def _signals(stop: asyncio.Event, requests: asyncio.Future) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`, and a second one cancels `requests`; the earlier handlers come back at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            requests.cancel()
        stop.set()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
