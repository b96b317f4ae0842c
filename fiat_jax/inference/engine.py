"""Continuous batching on a mesh: slots refilled between blocks of decoding, a shared prefix read once for all."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from flax import nnx

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.memory import check_memory
from fiat_jax.inference.prefixes import Prefixes, check_tokens
from fiat_jax.inference.programs import compile_programs, empty_admission
from fiat_jax.inference.requests import Completion, End, FinishReason, Request, TextScore
from fiat_jax.inference.sampling import Chosen
from fiat_jax.inference.scheduler import Scheduler
from fiat_jax.inference.scheduler import Sequence as Queued
from fiat_jax.inference.slots import ANY, Admission
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model

T = TypeVar("T")
AHEAD = 2  # blocks that are launched and not read


@dataclasses.dataclass(frozen=True)
class _Launched:
    """What a program will have chosen: for each of some rows of the arrays the sequence that goes on with them.

    `steps`: the tokens of each, in a block of decoding; 0: the first ones, of an admission.
    """

    rows: dict[int, Queued]
    chosen: Chosen
    steps: int = 0


class Engine:
    """Answers requests with one decoder or encoder-decoder, greedily or by sampling.

    What a sequence becomes depends on its own text, seed and sample alone: not on its slot, on what shares its batch,
    or on when it came. All programs are compiled when the engine is made; none is compiled afterwards.

        engine = Engine(model, tokenizer.eos_id, EngineConfig(prefix_length=1024))
        key = engine.add_prefix(prefix_ids)
        completions = engine.generate([Request(tuple(ids), 64, prefix=key) for ids in prompts])

    Every host of a run makes the same engine and the same calls; all of them get all answers.
    """

    def __init__(self, model: Model, end_id: int, config: EngineConfig | None = None):
        self.model, self.end_id, self.config = model, end_id, config or EngineConfig()
        _check_model(model, self.config)
        self._adapters = {"": model.trainable}
        self._programs = compile_programs(model, end_id, self.config)
        self._prefixes = Prefixes(model, self.config.prefix_length, self._programs.prefix)
        self._slots = self._programs.empty()
        self._scheduler = Scheduler(self.config.slots, self.config.order)
        self._ids = 0
        self._done: list[Queued] = []
        self._pending: list[_Launched] = []

    def use(self, trainable: nnx.State) -> None:
        """Answer from now on with these trained parameters, say in the middle of training; prefixes are forgotten.

        Raises:
            UserError: requests are still being answered with the others.
        """
        if not self._scheduler.idle:
            raise UserError("the engine is still at work; take all answers before its parameters are changed")
        self._adapters[""] = trainable
        self._prefixes.use(trainable)

    def add_adapter(self, name: str, trainable: nnx.State) -> None:
        """Let requests name an adapter of the shapes that the model's own has; those of one adapter run together.

        Raises:
            UserError: the name is taken, or the shapes are others.
        """
        if name in self._adapters:
            raise UserError(f"there is an adapter {name!r} already; give this one another name")
        ours, theirs = jax.tree.structure(self.model.trainable), jax.tree.structure(trainable)
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in (self.model.trainable, trainable)]
        if ours != theirs or shapes[0] != shapes[1]:
            raise UserError(f"adapter {name!r} is not of the shapes that this model was made for: load it with `lora=`")
        self._adapters[name] = trainable
        self._prefixes.use(trainable, name)

    def _weights(self) -> tuple:
        return self._adapters[self._scheduler.group[0]], self.model.frozen

    def add_prefix(
        self, tokens: Sequence[int], *, adapter: str = "", tokenizer: str = "", directory: str | Path | None = None
    ) -> str:
        """Read a text that requests may begin with, and return its key: a hash of model, tokenizer and tokens.

        With a `directory`, say one beside a store, it is read from there if it was saved, and saved there if not.

        Raises:
            UserError: more tokens than `prefix_length`, none, or one that the model lacks.
        """
        return self._prefixes.add(tokens, adapter=adapter, tokenizer=tokenizer, directory=directory)

    def drop_prefix(self, key: str) -> None:
        """Forget a prefix, and free its memory.

        Raises:
            UserError: there is none of this key, or requests need it.
        """
        if self._scheduler.any(lambda one: one.request.prefix == key):
            raise UserError(f"prefix {key!r} is needed by requests under way; wait for these, or cancel them")
        self._prefixes.drop(key)

    def submit(self, request: Request) -> int:
        """Let a request wait for slots, and return its number.

        Raises:
            UserError: what is wrong with it; other requests are not touched.
        """
        self._check(request)
        return self._enqueue(request)

    def _enqueue(self, request: Request) -> int:
        expires = None if request.deadline is None else time.monotonic() + request.deadline
        number, self._ids = self._ids, self._ids + 1
        self._scheduler.add(Queued(request, number, sample, expires) for sample in range(request.samples))
        return number

    def cancel(self, number: int, sample: int | None = None) -> None:
        """Give a request up, or one sample of it; what that has come to is its completion."""
        self._end(lambda one: one.request_id == number and sample in (None, one.sample), "cancelled")

    def _end(self, over, reason: FinishReason) -> None:
        ended = self._scheduler.end(over, reason)
        slots = [one.slot for one in ended if one.slot is not None]
        self._done += ended
        if slots:
            kept_B = np.ones(self.config.slots, bool)
            kept_B[slots] = False
            with jax.set_mesh(self.model.mesh):
                self._slots = self._programs.stop(self._slots, kept_B)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the completions of each request, `samples` of each, in the order of the requests.

        Raises:
            UserError: what is wrong with any of them, before any is begun.
        """
        for request in requests:
            self._check(request)
        numbers = [self._enqueue(request) for request in requests]
        found = {(one.request_id, one.sample): one for one in self.run()}
        return [
            [found[number, sample].completion for sample in range(request.samples)]
            for number, request in zip(numbers, requests, strict=True)
        ]

    def run(self) -> Iterator[Queued]:
        """Work until nothing waits; yield every sequence when it is done."""
        while not self._scheduler.idle or self._pending or self._done:
            yield from self.step()

    def step(self) -> list[Queued]:
        """Admit who waits, decode a block, and return the sequences that have come to their end.

        What was chosen before is read while this is computed: the first tokens of an admission by themselves, as soon
        as they are there, else a block. Which of the two depends on what was launched, and not on what is ready: all
        hosts of a run take the same steps.
        """
        now = time.monotonic()
        self._end(lambda one: one.expires is not None and one.expires < now, "deadline")
        ahead = sum(launched.steps > 0 for launched in self._pending)
        with jax.set_mesh(self.model.mesh):
            if ahead < AHEAD:
                self._admit_waiting()
            if ahead < AHEAD and self._scheduler.running:
                prefix = self._prefixes.get(self._scheduler.group[1])
                steps = self._block()
                self._slots, chosen = self._programs.decode(*self._weights(), prefix, self._slots, np.int32(steps))
                self._pending.append(_Launched(dict(self._scheduler.running), chosen, steps))
        self._take_oldest(ahead)
        done, self._done = self._done, []
        return done

    def progress(self) -> list[Queued]:
        """Return every sequence that has a slot; its tokens grow with the next step."""
        return list(self._scheduler.running.values())

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences have a slot, and how many wait for one."""
        return len(self._scheduler.running), self._scheduler.waiting

    def score(self, texts: Sequence[Sequence[int]], *, adapter: str = "", alternatives: int = 0) -> list[TextScore]:
        """Return the log-probabilities of whole texts' own tokens, each given those before it.

        Raises:
            UserError: the engine was made without `score`, or for an encoder-decoder, or what is wrong with a text.
        """
        self._check_scored(texts, adapter, alternatives)
        if not isinstance(self.model.config, DecoderConfig):
            raise UserError("an encoder-decoder has no log-probabilities of what it reads; only of answers, by `rank`")
        scores = []
        for part in _parts(texts, self.config.prefill_rows):
            tokens_RT, lengths_R = self._padded(part, self._bucket(part))
            found = self._run_scoring(adapter, tokens_RT, lengths_R)
            chosen = Chosen(tokens_RT[:, 1:], *(np.asarray(x)[:, :-1] for x in found))
            for n, text in enumerate(part):
                log_probs = np.asarray(chosen.log_prob)[n, : len(text) - 1].tolist()
                best = _alternatives(chosen, n, alternatives)[: len(text) - 1]
                scores.append(TextScore(tuple(log_probs), tuple(best)))
        return scores

    def rank(
        self, text: Sequence[int], answers: Sequence[Sequence[int]], *, adapter: str = ""
    ) -> list[tuple[float, ...]]:
        """Return the log-probabilities of the tokens of each answer that may follow a text.

        Raises:
            UserError: the engine was made without `score`, or what is wrong with the text or an answer.
        """
        if isinstance(self.model.config, DecoderConfig):
            scores = self.score([(*text, *answer) for answer in answers], adapter=adapter)
            pairs = zip(scores, answers, strict=True)
            return [one.log_probs[len(one.log_probs) - len(answer) :] for one, answer in pairs]
        self._check_scored([text, *answers], adapter, 0)
        longest = self.config.shortest_bucket
        if any(len(answer) > longest for answer in answers):
            raise UserError(f"an answer has more than {longest} tokens; raise EngineConfig.shortest_bucket")
        found = []
        for part in _parts(answers, self.config.prefill_rows):
            read = self._padded([text] * len(part), self._bucket([text]))
            log_probs_RT = np.asarray(self._run_scoring(adapter, *read, self._padded(part, longest)[0]))
            found += [tuple(log_probs_RT[n, : len(answer)].tolist()) for n, answer in enumerate(part)]
        return found

    def _run_scoring(self, adapter: str, read_RT: np.ndarray, *more: np.ndarray):
        with jax.set_mesh(self.model.mesh):
            return self._programs.score[read_RT.shape[1]](self._adapters[adapter], self.model.frozen, read_RT, *more)

    def _bucket(self, texts: Sequence[Sequence[int]]) -> int:
        return next(n for n in self.config.text_buckets if max(map(len, texts)) <= n)

    def _padded(self, texts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return texts (R, length), and how long each is (R,)."""
        tokens_RT = np.zeros((self.config.prefill_rows, length), np.int32)
        lengths_R = np.zeros(self.config.prefill_rows, np.int32)
        for n, text in enumerate(texts):
            tokens_RT[n, : len(text)], lengths_R[n] = text, len(text)
        return tokens_RT, lengths_R

    def _block(self) -> int:
        """Return how many tokens the next block has: few where somebody who comes would find a slot."""
        full = len(self._scheduler.running) == self.config.slots
        return self.config.block if full else self.config.short_block or self.config.block

    def _admit_waiting(self) -> None:
        """Fill free slots, prompts of like length together."""
        c = self.config
        while chosen := self._scheduler.admit(c.prefill_rows):
            longest = max(len(one.request.tokens) for one in chosen)
            length = next(bucket for bucket in c.buckets if longest <= bucket)
            prefix = self._prefixes.get(self._scheduler.group[1])
            new = self._admission(chosen, length)
            self._slots, first = self._programs.admit[length](*self._weights(), prefix, self._slots, new)
            self._pending.append(_Launched(dict(enumerate(chosen)), first))

    def _admission(self, chosen: Sequence[Queued], length: int) -> Admission:
        """Return the arrays of an admission; samples of one request have one prompt."""
        new = empty_admission(self.config, length)
        prompts: dict[int, int] = {}
        for n, one in enumerate(chosen):
            request, row = one.request, prompts.setdefault(one.request_id, len(prompts))
            new.tokens[row, : len(request.tokens)], new.lengths[row] = request.tokens, len(request.tokens)
            new.whole[row] = len(request.tokens) + request.max_new_tokens
            new.source[n], new.slot[n], new.limit[n] = row, one.slot, request.max_new_tokens
            choice = new.choice
            choice.temperature[n], choice.top_k[n], choice.top_p[n] = request.temperature, request.top_k, request.top_p
            choice.key[n], choice.alternatives[n] = (request.seed, one.sample), request.alternatives
            for m, sequence in enumerate(request.stop):
                new.stop[n, m] = [ANY] * (self.config.stop_length - len(sequence)) + list(sequence)
        return new

    def _take_oldest(self, ahead: int) -> None:
        """Take in the oldest first tokens, all that stand together, or the oldest block unless it was just launched."""
        if self._pending and self._pending[0].steps and ahead:
            self._take(self._pending.pop(0))
            return
        while self._pending and not self._pending[0].steps:
            self._take(self._pending.pop(0))

    def _take(self, launched: _Launched) -> None:
        """Take in what was chosen, each row's until its sequence ends."""
        chosen = jax.tree.map(np.asarray, launched.chosen)
        if launched.steps:
            chosen = jax.tree.map(lambda x: x[:, : launched.steps], chosen)
        for row, one in launched.rows.items():
            if one.finish_reason is None:
                one.alternatives += _alternatives(chosen, row, one.request.alternatives)
                self._append(one, chosen.token[row].reshape(-1).tolist(), chosen.log_prob[row].reshape(-1).tolist())
                del one.alternatives[len(one.tokens) :]

    def _append(self, one: Queued, tokens: list[int], log_probs: list[float]) -> None:
        for token, log_prob in zip(tokens, log_probs, strict=True):
            one.tokens.append(token)
            one.log_probs.append(log_prob)
            ends = [(self.end_id,), *one.request.stop]
            cut = next((len(end) for end in ends if tuple(one.tokens[-len(end) :]) == end), 0)
            reason: FinishReason | None = "stop" if cut else None
            if len(one.tokens) >= one.request.max_new_tokens and not cut:
                reason = "length"
            if one.tokens[-1] == self.end_id:
                place = len(one.tokens) - 1
                one.end = End(token, log_prob, tuple(one.alternatives[place : place + 1]))
            if reason:
                del one.tokens[len(one.tokens) - cut :], one.log_probs[len(one.log_probs) - cut :]
                self._scheduler.release(one, reason)
                self._done.append(one)
                return

    def _check_scored(self, texts: Sequence[Sequence[int]], adapter: str, alternatives: int) -> None:
        longest = self.config.text_buckets[-1]
        if not self._programs.score:
            raise UserError("this engine scores no given texts: make it with EngineConfig.score")
        for text in texts:
            if not 0 < len(text) <= longest:
                raise UserError(f"a text of {len(text)} tokens is to be scored; this engine takes 1 to {longest}")
            check_tokens(self.model, np.asarray(text, np.int32), "a text")
        self._check_names(adapter, alternatives)

    def _check_names(self, adapter: str, alternatives: int) -> None:
        if adapter not in self._adapters:
            raise UserError(f"no adapter {adapter!r}; there are {sorted(self._adapters)}: add_adapter first")
        if not 0 <= alternatives <= self.config.alternatives:
            raise UserError(
                f"{alternatives} alternatives are asked for; this engine tells {self.config.alternatives}: ask for "
                "fewer, or raise EngineConfig.alternatives"
            )

    def _check(self, request: Request) -> None:
        c = self.config
        ids = np.asarray(request.tokens, np.int32)
        if not len(ids):
            raise UserError("a request without tokens of its own: nothing can follow it; leave one out of the prefix")
        check_tokens(self.model, ids, "a request")
        if request.max_new_tokens < 1 or request.samples < 1:
            raise UserError("a request asks for at least one new token and one sample")
        if len(ids) + request.max_new_tokens > c.slot_length:
            raise UserError(
                f"a request of {len(ids)} tokens and {request.max_new_tokens} new ones; a slot has {c.slot_length}: "
                "lower max_new_tokens, or raise EngineConfig.slot_length"
            )
        self._check_names(request.adapter, request.alternatives)
        if not self._prefixes.fits(request.prefix, request.adapter):
            raise UserError(f"no prefix {request.prefix!r}; it was read for another model, or never: add_prefix first")
        if len(request.stop) > c.stops or any(not 0 < len(s) <= c.stop_length for s in request.stop):
            raise UserError(f"stop has up to {c.stops} sequences of 1 to {c.stop_length} tokens; got {request.stop}")
        if not (request.temperature >= 0 and 0 < request.top_p <= 1 and request.top_k >= 0):
            raise UserError(
                f"temperature is 0 or more, top_p in (0, 1], top_k 0 or more; got {request.temperature}, "
                f"{request.top_p}, {request.top_k}"
            )
        if not 0 <= request.seed < 2**32:
            raise UserError(f"seed is 0 to 2**32 - 1; got {request.seed}")
        if request.deadline is not None and jax.process_count() > 1:
            raise UserError("hosts of one run have no common clock: leave the deadline out, and cancel on all of them")


def _parts(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _alternatives(chosen: Chosen, row: int, count: int) -> list[dict[int, float]]:
    """Return the likeliest tokens of a row, place by place, with their log-probabilities; none unless wanted."""
    if not count:
        return []
    ids, log_probs = (x[row].reshape(-1, x.shape[-1])[:, :count].tolist() for x in (chosen.best, chosen.best_log_prob))
    return [dict(zip(*place, strict=True)) for place in zip(ids, log_probs, strict=True)]


def _check_model(model: Model, c: EngineConfig) -> None:
    config = model.config
    longest = c.prefix_length + c.slot_length
    if config.max_length is not None and longest > config.max_length:
        raise UserError(
            f"EngineConfig.prefix_length and slot_length come to {longest} tokens; the model reads {config.max_length}"
        )
    if c.prefix_length and isinstance(config, DecoderConfig):
        for reach in config.reaches:
            if reach.rope.kind in ("dynamic", "longrope") and longest > reach.rope.original_length:
                raise UserError(
                    f"beyond {reach.rope.original_length} tokens this model turns positions by the length of the "
                    f"whole text, and texts of two lengths share no prefix; EngineConfig.prefix_length and slot_length "
                    f"come to {longest}: lower them, or give no prefix"
                )
    check_memory(model, c.slots, c.slot_length, c.prefix_length)
