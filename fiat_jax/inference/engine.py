"""Continuous batching on a mesh: slots refilled between blocks of decoding, a shared prefix read once for all."""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fiat_jax.errors import UserError
from fiat_jax.inference import slots as programs
from fiat_jax.inference.requests import Completion, FinishReason, Request
from fiat_jax.inference.sampling import Choice, row_key
from fiat_jax.inference.scheduler import Order, Scheduler
from fiat_jax.inference.scheduler import Sequence as Queued
from fiat_jax.inference.slots import ANY, NONE, Admission, Slots
from fiat_jax.models.attention import PREFIX_BLOCK, Prefix
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """The shapes that an engine compiles, once.

    Args:
        slots: sequences at once.
        slot_length: own tokens of a sequence, its prompt's and its new ones.
        prefix_length: the longest shared prefix; 0: there are none.
        block: tokens that are decoded between two looks at who is done and who waits.
        prefill_rows: prompts that are read at once.
        shortest_bucket: prompts are padded to this length or to a power of two times it.
        stops, stop_length: stop sequences a request, and tokens in each, at most.
        order: "longest" first, for bulk work, or "arrival".
    """

    slots: int = 64
    slot_length: int = 512
    prefix_length: int = 0
    block: int = 16
    prefill_rows: int = 8
    shortest_bucket: int = 32
    stops: int = 4
    stop_length: int = 16
    order: Order = "longest"

    def __post_init__(self):
        for name in ("slots", "slot_length", "block", "prefill_rows", "shortest_bucket", "stops", "stop_length"):
            if getattr(self, name) < 1:
                raise UserError(f"EngineConfig.{name} is {getattr(self, name)}; it must be 1 or more")

    @property
    def buckets(self) -> list[int]:
        """The lengths to which prompts are padded."""
        doubled = [self.shortest_bucket << n for n in range(32) if self.shortest_bucket << n < self.slot_length]
        return [*doubled, self.slot_length]


class Engine:
    """Answers requests with one decoder, greedily or by sampling.

    What a sequence becomes depends on its own text, seed and sample alone: not on its slot, on what shares its batch,
    or on when it came. All programs are compiled when the engine is made; none is compiled afterwards.

        engine = Engine(model, tokenizer.eos_id, EngineConfig(prefix_length=1024))
        key = engine.add_prefix(prefix_ids)
        completions = engine.generate([Request(tuple(ids), 64, prefix=key) for ids in prompts])
    """

    def __init__(self, model: Model, end_id: int, config: EngineConfig | None = None):
        self.model, self.end_id, self.config = model, end_id, config or EngineConfig()
        _check_model(model, self.config)
        self._capacity = -(-self.config.prefix_length // PREFIX_BLOCK) * PREFIX_BLOCK
        self._prefixes: dict[str, Prefix] = {}
        self._scheduler = Scheduler(self.config.slots, self.config.order)
        self._ids = 0
        self._done: list[Queued] = []
        self._pending: tuple[dict[int, Queued], jax.Array, jax.Array] | None = None
        with jax.set_mesh(model.mesh):
            self._slots: Slots = jax.jit(self._empty)()
            self._compile()

    def _empty(self) -> Slots:
        c = self.config
        stops = (c.stops, c.stop_length)
        return programs.empty_slots(self._decoder, self.model.build.rules, c.slots, c.slot_length, stops, self._dtype)

    @property
    def _decoder(self) -> DecoderConfig:
        assert isinstance(self.model.config, DecoderConfig)
        return self.model.config

    def _module(self, trainable, frozen) -> Decoder:
        module = self.model.module(trainable, frozen)
        assert isinstance(module, Decoder)
        return module

    @property
    def _weights(self) -> tuple:
        return self.model.trainable, self.model.frozen

    @property
    def _dtype(self):
        return jnp.dtype(self.model.build.dtype)

    def _compile(self) -> None:
        """Compile every program for every shape that it will meet."""
        model, c = self.model, self.config
        prefix = None
        if self._capacity:
            make = functools.partial(
                programs.empty_prefix, self._decoder, model.build.rules, self._capacity, self._dtype
            )
            self._no_prefix = jax.jit(make).lower().compile()
            prefix = self._no_prefix()
            tokens = np.zeros((1, PREFIX_BLOCK), np.int32)

            def read(trainable, frozen, prefix, tokens_1T, count):
                return programs.read_prefix(self._module(trainable, frozen), prefix, tokens_1T, count)

            layout = jax.tree.map(lambda x: x.sharding, prefix)
            reading = jax.jit(read, donate_argnums=2, out_shardings=layout)
            self._read_prefix = reading.lower(*self._weights, prefix, tokens, np.int32(0)).compile()
            self._prefixes[""] = prefix

        def admit(trainable, frozen, prefix, slots, new):
            return programs.admit(self._module(trainable, frozen), prefix, slots, new, self.end_id)

        def decode(trainable, frozen, prefix, slots):
            return programs.decode(self._module(trainable, frozen), prefix, slots, self.end_id, c.block)

        kept = jax.tree.map(lambda x: x.sharding, self._slots)  # programs hand slots to each other: one layout
        admitting = jax.jit(admit, donate_argnums=3, out_shardings=(kept, None, None))
        self._admit = {
            length: admitting.lower(*self._weights, prefix, self._slots, self._admission([], length)).compile()
            for length in c.buckets
        }
        decoding = jax.jit(decode, donate_argnums=3, out_shardings=(kept, None, None))
        self._decode = decoding.lower(*self._weights, prefix, self._slots).compile()
        stopping = jax.jit(programs.stop_running, donate_argnums=0, out_shardings=kept)
        self._stop = stopping.lower(self._slots, np.ones(c.slots, bool)).compile()

    def add_prefix(self, tokens: Sequence[int]) -> str:
        """Read a text that requests may begin with, and return its key: a hash of model, tokens and layout.

        Raises:
            UserError: more tokens than `prefix_length`, none, or one that the model lacks.
        """
        ids = np.asarray(tokens, np.int32)
        if not 0 < len(ids) <= self.config.prefix_length:
            raise UserError(
                f"a prefix of {len(ids)} tokens; this engine takes 1 to {self.config.prefix_length} "
                "(EngineConfig.prefix_length)"
            )
        self._check_tokens(ids, "the prefix")
        identity = [self.model.fingerprint, self.model.build.dtype, ids.tolist()]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        if key not in self._prefixes:
            with jax.set_mesh(self.model.mesh):
                prefix = self._no_prefix()
                for start in range(0, len(ids), PREFIX_BLOCK):
                    part = np.zeros((1, PREFIX_BLOCK), np.int32)
                    count = min(PREFIX_BLOCK, len(ids) - start)
                    part[0, :count] = ids[start : start + count]
                    prefix = self._read_prefix(*self._weights, prefix, part, np.int32(count))
            self._prefixes[key] = prefix
        return key

    def submit(self, request: Request) -> int:
        """Let a request wait for slots, and return its number.

        Raises:
            UserError: what is wrong with it; other requests are not touched.
        """
        self._check(request)
        expires = None if request.deadline is None else time.monotonic() + request.deadline
        number, self._ids = self._ids, self._ids + 1
        self._scheduler.add(Queued(request, number, sample, expires) for sample in range(request.samples))
        return number

    def cancel(self, number: int) -> None:
        """Give a request up; what it has come to is its completion."""
        self._end(lambda one: one.request_id == number, "cancelled")

    def _end(self, over, reason: FinishReason) -> None:
        ended = self._scheduler.end(over, reason)
        slots = [one.slot for one in ended if one.slot is not None]
        self._done += ended
        if slots:
            kept_B = np.ones(self.config.slots, bool)
            kept_B[slots] = False
            with jax.set_mesh(self.model.mesh):
                self._slots = self._stop(self._slots, kept_B)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the completions of each request, `samples` of each, in the order of the requests.

        Raises:
            UserError: what is wrong with any of them, before any is begun.
        """
        for request in requests:
            self._check(request)
        numbers = [self.submit(request) for request in requests]
        found = {(one.request_id, one.sample): one for one in self.run()}
        return [
            [_completion(found[number, sample]) for sample in range(request.samples)]
            for number, request in zip(numbers, requests, strict=True)
        ]

    def run(self) -> Iterator[Queued]:
        """Work until nothing waits; yield every sequence when it is done."""
        while not self._scheduler.idle or self._pending or self._done:
            yield from self.step()

    def step(self) -> list[Queued]:
        """Admit who waits, decode a block, and return the sequences that have come to their end.

        The block before is read while this one is computed.
        """
        now = time.monotonic()
        self._end(lambda one: one.expires is not None and one.expires < now, "deadline")
        with jax.set_mesh(self.model.mesh):
            self._admit_waiting()
            launched = None
            if self._scheduler.running:
                prefix = self._prefixes.get(self._scheduler.prefix)
                self._slots, tokens_BN, log_probs_BN = self._decode(*self._weights, prefix, self._slots)
                launched = (dict(self._scheduler.running), tokens_BN, log_probs_BN)
        self._collect(self._pending)
        self._pending = launched
        done, self._done = self._done, []
        return done

    def _admit_waiting(self) -> None:
        """Fill free slots, prompts of like length together, and read each sequence's first token."""
        c = self.config
        while chosen := self._scheduler.admit(c.prefill_rows):
            longest = max(len(one.request.tokens) for one in chosen)
            length = next(bucket for bucket in c.buckets if longest <= bucket)
            prefix = self._prefixes.get(self._scheduler.prefix)
            new = self._admission(chosen, length)
            self._slots, tokens_C, log_probs_C = self._admit[length](*self._weights, prefix, self._slots, new)
            for one, token, log_prob in zip(chosen, np.asarray(tokens_C), np.asarray(log_probs_C), strict=False):
                self._append(one, [int(token)], [float(log_prob)])

    def _admission(self, chosen: Sequence[Queued], length: int) -> Admission:
        """Return the arrays of an admission; samples of one request have one prompt."""
        c, R = self.config, self.config.prefill_rows
        tokens, lengths = np.zeros((R, length), np.int32), np.zeros(R, np.int32)
        source, slot = np.zeros(R, np.int32), np.full(R, c.slots, np.int32)
        limit, stop = np.ones(R, np.int32), np.full((R, c.stops, c.stop_length), NONE, np.int32)
        temperature, top_k, top_p = np.zeros(R, np.float32), np.zeros(R, np.int32), np.ones(R, np.float32)
        key = np.zeros((R, 2), np.uint32)
        prompts: dict[int, int] = {}
        for n, one in enumerate(chosen):
            request = one.request
            row = prompts.setdefault(one.request_id, len(prompts))
            tokens[row, : len(request.tokens)], lengths[row] = request.tokens, len(request.tokens)
            assert one.slot is not None
            source[n], slot[n], limit[n] = row, one.slot, request.max_new_tokens
            temperature[n], top_k[n], top_p[n] = request.temperature, request.top_k, request.top_p
            key[n] = _key_bits(request.seed, one.sample)
            for m, sequence in enumerate(request.stop):
                stop[n, m] = [ANY] * (c.stop_length - len(sequence)) + list(sequence)
        return Admission(tokens, lengths, source, slot, limit, Choice(temperature, top_k, top_p, key), stop)

    def _collect(self, block) -> None:
        """Take the tokens of a block in, each slot's until its sequence ends."""
        if block is None:
            return
        running, tokens_BN, log_probs_BN = block
        tokens, log_probs = np.asarray(tokens_BN), np.asarray(log_probs_BN)
        for slot, one in running.items():
            if one.finish_reason is None:
                self._append(one, tokens[slot].tolist(), log_probs[slot].tolist())

    def _append(self, one: Queued, tokens: list[int], log_probs: list[float]) -> None:
        for token, log_prob in zip(tokens, log_probs, strict=True):
            one.tokens.append(token)
            one.log_probs.append(log_prob)
            ends = [(self.end_id,), *one.request.stop]
            cut = next((len(end) for end in ends if tuple(one.tokens[-len(end) :]) == end), 0)
            reason: FinishReason | None = "stop" if cut else None
            if len(one.tokens) >= one.request.max_new_tokens and not cut:
                reason = "length"
            if reason:
                del one.tokens[len(one.tokens) - cut :], one.log_probs[len(one.log_probs) - cut :]
                self._scheduler.release(one, reason)
                self._done.append(one)
                return

    def _check(self, request: Request) -> None:
        c = self.config
        ids = np.asarray(request.tokens, np.int32)
        if not len(ids):
            raise UserError("a request without tokens of its own: nothing can follow it; leave one out of the prefix")
        self._check_tokens(ids, "a request")
        if request.max_new_tokens < 1 or request.samples < 1:
            raise UserError("a request asks for at least one new token and one sample")
        if len(ids) + request.max_new_tokens > c.slot_length:
            raise UserError(
                f"a request of {len(ids)} tokens and {request.max_new_tokens} new ones; a slot has {c.slot_length}: "
                "lower max_new_tokens, or raise EngineConfig.slot_length"
            )
        if request.prefix and request.prefix not in self._prefixes:
            raise UserError(f"no prefix {request.prefix!r}; it was read for another model, or never: add_prefix first")
        if len(request.stop) > c.stops or any(not 0 < len(s) <= c.stop_length for s in request.stop):
            raise UserError(f"stop has up to {c.stops} sequences of 1 to {c.stop_length} tokens; got {request.stop}")
        if not (request.temperature >= 0 and 0 < request.top_p <= 1 and request.top_k >= 0):
            raise UserError(
                f"temperature is 0 or more, top_p in (0, 1], top_k 0 or more; got {request.temperature}, "
                f"{request.top_p}, {request.top_k}"
            )

    def _check_tokens(self, ids: np.ndarray, what: str) -> None:
        V = self._decoder.vocab_size
        if ids.min() < 0 or ids.max() >= V:
            raise UserError(
                f"{what} holds token {ids.max() if ids.max() >= V else ids.min()}, the model knows {V}: give the "
                "tokenizer that belongs to the checkpoint"
            )


def _completion(one: Queued) -> Completion:
    assert one.finish_reason is not None
    return Completion(tuple(one.tokens), tuple(one.log_probs), one.finish_reason)


@functools.lru_cache(4096)
def _key_bits(seed: int, sample: int) -> np.ndarray:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(row_key(seed, sample))


def _check_model(model: Model, c: EngineConfig) -> None:
    if not isinstance(model.config, DecoderConfig):
        raise UserError("the engine runs decoders; this model is an encoder-decoder")
    longest = c.prefix_length + c.slot_length
    if longest > model.config.max_length:
        raise UserError(
            f"EngineConfig.prefix_length and slot_length come to {longest} tokens; the model reads "
            f"{model.config.max_length}"
        )
    for reach in model.config.reaches:
        if reach.rope.kind in ("dynamic", "longrope") and longest > reach.rope.original_length:
            raise UserError(
                f"this model turns positions by the length of the whole text beyond {reach.rope.original_length} "
                f"tokens; EngineConfig.prefix_length and slot_length come to {longest}: lower them"
            )
    _check_memory(model, c)


def _check_memory(model: Model, c: EngineConfig) -> None:
    """Compare what slots and prefixes take with what a device has, before anything is compiled."""
    config, device = model.config, model.mesh.local_devices[0]
    assert isinstance(config, DecoderConfig)
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    if not stats:
        return
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(model.build.dtype).itemsize
    needed = token * (c.slots * c.slot_length + 2 * c.prefix_length) / math.prod(model.mesh.devices.shape)
    if needed > free:
        raise UserError(
            f"{c.slots} slots of {c.slot_length} tokens and a prefix of {c.prefix_length} take "
            f"{needed / 2**30:.1f} GiB a device, which has {free / 2**30:.1f} free; lower EngineConfig.slots"
        )
