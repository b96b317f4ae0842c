"""One run against θ_β: a bounded number of requests at a time, each answer stored as it comes, signals obeyed."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fiat_jax.errors import UserError
from fiat_jax.prompts.render import Renderer
from fiat_jax.reasoning.backend import Backend, Completion, Refused, Unavailable
from fiat_jax.reasoning.progress import Meter
from fiat_jax.store import Provenance, Record, SetWriter, sampling_seed
from fiat_jax.tasks.task import Row


@dataclass(frozen=True)
class GenerateOptions:
    """`concurrency` requests at a time; `failures_in_a_row` requests that fail one after another end the run."""

    samples: int = 1
    concurrency: int = 16
    failures_in_a_row: int = 20
    grace_seconds: float = 30.0

    def __post_init__(self):
        for name in ("samples", "concurrency", "failures_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"GenerateOptions.{name} is {getattr(self, name)}; expected 1 or more")


@dataclass(frozen=True)
class Wanted:
    """A request: the row, its content hash, which sample of it, and its id for people."""

    key: str
    sample: int
    row: Row
    row_id: str


@dataclass(frozen=True)
class Quarantined:
    """A request that got no usable answer, and why."""

    row_id: str
    sample: int
    reason: str


class Drive:
    """Runs the requests once; `written`, `quarantined` and `interrupted` say what came of them, also after an error."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        renderer: Renderer,
        backend: Backend,
        writer: SetWriter,
        provenance: Provenance,
        options: GenerateOptions,
        meter: Meter,
    ):
        self._wanted, self._renderer, self._backend, self._writer = wanted, renderer, backend, writer
        self._provenance, self._options, self._meter = provenance, options, meter
        self._failures = 0
        self.written: list[Record] = []
        self.quarantined: list[Quarantined] = []
        self.interrupted = False

    def run(self) -> None:
        """Block until every request ended, a signal came, or no request can succeed (UserError)."""
        if self._wanted:
            asyncio.run(self._run())

    async def _run(self) -> None:
        work, answers, stop = iter(self._wanted), asyncio.Queue[Record | None](), asyncio.Event()
        count = min(self._options.concurrency, len(self._wanted))
        workers = [asyncio.create_task(self._work(work, answers, stop)) for _ in range(count)]
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
        ended = len(self.written) + len(self.quarantined)
        self.interrupted = stop.is_set() and ended < len(self._wanted)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _work(self, work: Iterator[Wanted], answers: "asyncio.Queue[Record | None]", stop: asyncio.Event) -> None:
        for want in work:
            if stop.is_set():
                return
            record = await self._ask(want)
            if record is not None:
                answers.put_nowait(record)

    async def _ask(self, want: Wanted) -> Record | None:
        try:
            prompt = self._renderer.reasoning_prompt(want.row)
        except UserError as error:
            return self._quarantine(want, str(error))
        seed = self._seed(want)
        try:
            completion = await self._backend.complete(prompt, seed=seed, sample=want.sample)
            if not completion.text.strip():
                raise Refused(f"the completion is empty (finish reason {completion.finish_reason})")
        except (Refused, Unavailable) as error:
            self._failures += 1
            self._quarantine(want, str(error))
            if self._failures >= self._options.failures_in_a_row:
                raise UserError(
                    f"{self._failures} requests failed one after another, the last because of: {error}. "
                    "What was answered is stored; mend the cause and run the same command again"
                ) from None
            return None
        self._failures = 0
        return self._to_record(want, completion, seed)

    def _to_record(self, want: Wanted, completion: Completion, seed: int | None) -> Record:
        found = self._renderer.instructions.extract(completion.text)
        return Record(
            set=self._provenance.set_key,
            row=want.key,
            sample=want.sample,
            row_id=want.row_id,
            text=completion.text,
            rationale=found.rationale,
            answer=found.answer,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            seed=seed,
            served_by=completion.served_by,
        )

    async def _record(self, answers: "asyncio.Queue[Record | None]") -> None:
        while True:
            batch = [await answers.get()]
            while not answers.empty():
                batch.append(answers.get_nowait())
            records = [record for record in batch if record is not None]
            await asyncio.to_thread(self._writer.append, *records)  # one fsync for all that came during the last one
            self.written += records
            self._meter.advance(len(records), sum(record.completion_tokens or 0 for record in records))
            if None in batch:
                return

    def _quarantine(self, want: Wanted, reason: str) -> None:
        self.quarantined.append(Quarantined(want.row_id, want.sample, reason))
        self._meter.advance(1, failed=1)

    def _seed(self, want: Wanted) -> int | None:
        """A seed from the record's key, so that a row's sample is the same in every order; None for greedy decoding."""
        if not self._provenance.decoding.get("temperature"):
            return None
        return sampling_seed(self._provenance.set_key, want.key, want.sample)


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
