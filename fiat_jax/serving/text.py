"""A model that goes on with texts: what the engine writes, as pieces of text with their tokens."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fiat_jax.errors import UserError
from fiat_jax.inference.driver import EngineClosed
from fiat_jax.inference.requests import Progress, Request, TextScore
from fiat_jax.inference.worker import Worker
from fiat_jax.prompts.conversation import conversation_ids
from fiat_jax.prompts.detokenize import TextStream
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.serving.config import Serve
from fiat_jax.serving.errors import ApiError, refused
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.streams import Flow

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ask:
    """What one prompt asks: its ids, how its completions are drawn, and what ends them.

    `prompt` is the text that the ids were made of, if they were; with `echo` it is told again.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    alternatives: int = 0
    log_probs: bool = False
    echo: bool = False
    prompt: str | None = None


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a completion: its text, log-probability and place, and the likeliest ones there."""

    text: str
    log_prob: float | None
    offset: int
    alternatives: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is new of a sample; `count` is how many tokens came with it, `tokens` are told where they were asked for."""

    sample: int
    text: str
    count: int = 0
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None

    def shifted(self, characters: int) -> "Piece":
        """Return the piece as it stands behind a text of so many characters."""
        tokens = tuple(dataclasses.replace(token, offset=token.offset + characters) for token in self.tokens)
        return dataclasses.replace(self, tokens=tokens)


@dataclasses.dataclass
class HeldPrefix:
    """A text that many prompts begin with, and the key by which the engine knows it."""

    ids: tuple[int, ...]
    key: str
    used: int = 0
    pinned: bool = False


class TextModel:
    """One name that clients may ask for: an engine's model with one of its adapters.

    Prompts that begin with a prefix that the engine has read are asked behind it; the longest one counts.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        tokenizer: Tokenizer,
        serve: Serve,
        gate: Gate,
        adapter: str = "",
        identity: Mapping[str, Any] | None = None,
    ):
        self.name, self.worker, self.tokenizer, self.adapter = name, worker, tokenizer, adapter
        self.identity = dict(identity or {})
        self._serve, self._gate = serve, gate
        self.prefixes: dict[str, HeldPrefix] = {}
        self._adding = asyncio.Lock()

    def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Return the ids of a prompt, with the token that texts begin with."""
        if not isinstance(prompt, str):
            return tuple(prompt)
        start = () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)
        ends = () if self.tokenizer.start_id is None else (self.tokenizer.eos_id,)  # as encoders read texts
        return (*start, *self.tokenizer.encode(prompt, start=True), *ends)

    def encode_chat(self, messages: Sequence[tuple[str, str]], variables: Mapping[str, Any] | None) -> tuple[int, ...]:
        """Return the ids of a conversation in the model's chat template."""
        return tuple(conversation_ids(self.tokenizer, messages, variables))

    def prefix_of(self, ids: Sequence[int]) -> HeldPrefix | None:
        """Return the longest prefix that a prompt begins with and is more than."""
        fitting = (p for p in self.prefixes.values() if len(p.ids) < len(ids) and tuple(ids[: len(p.ids)]) == p.ids)
        return max(fitting, key=lambda prefix: len(prefix.ids), default=None)

    def cached(self, ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt need not be read again."""
        prefix = self.prefix_of(ids)
        return 0 if prefix is None else len(prefix.ids)

    def room(self, ids: Sequence[int]) -> int:
        """Return how many tokens may follow a prompt."""
        return self.worker.engine.config.slot_length - (len(ids) - self.cached(ids))

    async def add_prefix(self, ids: Sequence[int]) -> HeldPrefix:
        """Have a prefix read.

        Raises:
            ApiError: as many are held as may be.
            UserError: what is wrong with it.
        """
        about = {"adapter": self.adapter, "tokenizer": self.tokenizer.fingerprint}
        async with self._adding:  # one by one, so that they can be counted
            held = [prefix.ids for prefix in self.prefixes.values() if not prefix.pinned]
            if len(held) >= self._serve.prefixes and tuple(ids) not in held:
                raise ApiError(409, f"{len(held)} prefixes are held, which is all there may be: delete one first")
            key = await self._done(lambda: self.worker.add_prefix(ids, **about))
            return self.prefixes.setdefault(key, HeldPrefix(tuple(ids), key))

    def pin_prefix(self, ids: Sequence[int], directory: str | None = None) -> None:
        """Have a prefix read that is never forgotten; before the engine is driven."""
        where = {"tokenizer": self.tokenizer.fingerprint, "directory": directory}
        key = self.worker.engine.add_prefix(ids, adapter=self.adapter, **where)
        self.prefixes[key] = HeldPrefix(tuple(ids), key, pinned=True)

    async def drop_prefix(self, key: str) -> None:
        """Forget a prefix.

        Raises:
            UserError: requests need it, or the pair does.
        """
        if self.prefixes[key].pinned:
            raise UserError(f"prefix {key!r} is the pair's own I_β, and is kept")
        held = self.prefixes.pop(key)  # at once: nobody may count on it from now on
        try:
            await self._done(lambda: self.worker.drop_prefix(key))
        except UserError:
            self.prefixes[key] = held
            raise

    async def score(self, texts: Sequence[Sequence[int]], alternatives: int = 0) -> list[TextScore]:
        """Return the log-probabilities of whole texts' own tokens.

        Raises:
            ApiError: there is no room for them, or they took too long.
            UserError: what is wrong with them.
        """
        self._gate.enter(len(texts))
        try:
            about = {"adapter": self.adapter, "alternatives": alternatives}
            return await self._done(lambda: self.worker.score(texts, **about))
        finally:
            self._gate.leave(len(texts))

    async def rank(self, text: Sequence[int], answers: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Return the log-probabilities of each answer's tokens behind a text."""
        return await self._done(lambda: self.worker.rank(text, answers, adapter=self.adapter))

    async def _done(self, ask: "Callable[[], Future[T]]") -> T:
        """Return what the engine's thread makes of something."""
        try:
            async with asyncio.timeout(self._serve.request_seconds):
                return await asyncio.wrap_future(ask())
        except EngineClosed as error:
            raise ApiError(503, str(error), retry_after=5) from None
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> ApiError:
        return ApiError(504, f"not answered within {self._serve.request_seconds:g} s; ask for less")

    async def stream(self, ask: Ask, *, admitted: bool = False) -> Flow[Piece]:
        """Yield the completions of a prompt as they are written; closing it frees their slots.

        `admitted` says that whoever asks has been through the gate.

        Raises:
            ApiError: what is wrong with the request, or that there is no room for it, or that it took too long.
        """
        prefix = self.prefix_of(ask.ids)
        request = Request(
            ask.ids[len(prefix.ids) if prefix else 0 :],
            ask.max_new_tokens,
            prefix=prefix.key if prefix else "",
            adapter=self.adapter,
            samples=ask.samples,
            temperature=ask.temperature,
            top_k=max(ask.top_k, 0),
            top_p=ask.top_p,
            seed=secrets.randbits(32) if ask.seed is None else ask.seed % (1 << 32),
            alternatives=ask.alternatives,
        )
        count = 0 if admitted else ask.samples
        self._gate.enter(count)
        loop = asyncio.get_running_loop()
        try:
            news = self.worker.stream(request)
        except EngineClosed as error:
            self._gate.leave(count)
            raise ApiError(503, str(error), retry_after=5) from None
        # counted out when the engine is done with it, however slowly the client reads
        news.future.add_done_callback(lambda _: _call(loop, self._gate.leave, count))
        if prefix:
            prefix.used += 1
        texts = [SampleText(self.tokenizer, ask) for _ in range(ask.samples)]
        try:
            async with news:
                ends = loop.time() + self._serve.request_seconds
                while True:
                    # not wait_for: it may take what comes just then in place of being cancelled (until Python 3.12)
                    async with asyncio.timeout_at(ends):
                        new = await anext(news, None)
                    if new is None:
                        return
                    if texts[new.sample].stopped:
                        continue
                    piece = texts[new.sample].take(new)
                    if texts[new.sample].stopped and not new.finish_reason:
                        news.end(new.sample)
                    yield piece
        except EngineClosed as error:
            raise ApiError(503, str(error), retry_after=5) from None
        except UserError as error:
            raise refused(error) from None
        except TimeoutError:
            raise self._late() from None


class SampleText:
    """The text of one sample as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, ask: Ask):
        self._tokenizer, self._ask = tokenizer, ask
        self._stream = TextStream(tokenizer, ask.stop)

    @property
    def stopped(self) -> bool:
        """Whether one of the strings has come that end the text."""
        return self._stream.stopped

    def take(self, new: Progress) -> Piece:
        """Return what a client is told of what is new."""
        text, tokens, count = "", [], len(new.tokens)
        if self._ask.log_probs or self._ask.stop:
            for n, token in enumerate(new.tokens):
                offset = self._stream.length
                text += self._stream.push([token])
                # a token that begins what ends the text is none of the text's
                if self._ask.log_probs and not (self.stopped and self._stream.length <= offset):
                    tokens.append(self._told(token, new.log_probs[n], new.alternatives[n : n + 1], offset))
                if self.stopped:
                    count = n + 1
                    break
        else:
            text = self._stream.push(new.tokens)
        finish_reason = new.finish_reason
        if finish_reason:
            text += self._stream.finish()
        if self.stopped:
            finish_reason = "stop"
        elif self._ask.log_probs and new.end:
            end = new.end.token, new.end.log_prob, new.end.alternatives
            tokens.append(self._told(*end, self._stream.length))
        return Piece(new.sample, text, count, tuple(tokens), finish_reason)

    def _told(self, token: int, log_prob: float, places: Sequence[Mapping[int, float]], offset: int) -> Token:
        best = {spelled(self._tokenizer, other): value for place in places for other, value in place.items()}
        return Token(spelled(self._tokenizer, token), log_prob, offset, best)


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token, or how the vocabulary spells it where that is no text by itself."""
    text = tokenizer.decode([token])
    return text if text and "\ufffd" not in text else tokenizer.token(token)


def echoed(
    tokenizer: Tokenizer, ids: Sequence[int], prompt: str | None, score: TextScore | None
) -> tuple[str, tuple[Token, ...]]:
    """Return a prompt's text, and its tokens with their log-probabilities where it was scored; the first has none.

    `prompt` is the text that the ids were made of, if they were: the space that a tokenizer puts before it is left out.
    """
    text = tokenizer.decode(ids)
    put_before = int(prompt is not None and text.startswith(" ") and not prompt.startswith(" "))
    if score is None:
        return text[put_before:], ()
    stream, tokens = TextStream(tokenizer), []
    for n, token in enumerate(ids):
        offset = max(stream.length - put_before, 0)
        stream.push([token])
        best = score.alternatives[n - 1] if n and score.alternatives else {}
        alternatives = {spelled(tokenizer, other): value for other, value in best.items()}
        tokens.append(Token(spelled(tokenizer, token), score.log_probs[n - 1] if n else None, offset, alternatives))
    return text[put_before:], tuple(tokens)


def _call(loop: asyncio.AbstractEventLoop, function: Any, *values: Any) -> None:
    """Call a function in a loop, from any thread; not at all once the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *values)
