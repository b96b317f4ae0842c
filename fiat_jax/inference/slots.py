"""The engine's state on the device, and the three programs that change it: read a prefix, admit, decode."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.inference.sampling import Array, Choice, choose
from fiat_jax.models.attention import PREFIX_BLOCK, KVCache, Prefix
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.stack import next_logits
from fiat_jax.sharding import constrain

PREFIX_AXES = ("layers", "kv_heads", None, "head_dim")
ANY = -1  # fills up the front of a stop sequence: it matches every token
NONE = -2  # in place of a stop sequence or of tokens that were not chosen: it matches no token


@struct.dataclass
class Slots:
    """B sequences on their way, each in a slot of S positions for its own tokens.

    Args:
        cache: keys and values of own tokens.
        token: the last token (B,), chosen and not yet read.
        length: own tokens (B,) that were read; count: how many new ones there are, token included; limit: at most.
        running: which of the slots (B,) go on.
        stop: stop sequences (B, M, W), filled up in front with ANY; all NONE where there is none.
        tail: the last W tokens (B, W) that were chosen.
    """

    cache: KVCache
    token: jax.Array
    length: jax.Array
    count: jax.Array
    limit: jax.Array
    running: jax.Array
    choice: Choice
    stop: jax.Array
    tail: jax.Array


@struct.dataclass
class Admission:
    """Prompts (R, T) of lengths (R,), and C sequences: of which prompt each is (`source`), for which slot (`slot`).

    A slot behind the last one is none: it fills up an admission to its shape.
    """

    tokens: Array
    lengths: Array
    source: Array
    slot: Array
    limit: Array
    choice: Choice
    stop: Array


def empty_slots(c: DecoderConfig, rules, slots: int, length: int, stops: tuple[int, int], dtype) -> Slots:
    """Return slots none of which runs."""
    dims = (c.num_layers, slots, length, c.num_kv_heads, c.head_dim)
    ints = jnp.zeros(slots, jnp.int32)
    choice = Choice(jnp.zeros(slots), ints, jnp.ones(slots), jnp.zeros((slots, 2), jnp.uint32))
    return Slots(
        cache=KVCache.zeros(*dims, dtype=dtype, rules=rules),
        token=ints,
        length=ints,
        count=ints,
        limit=ints,
        running=jnp.zeros(slots, bool),
        choice=choice,
        stop=jnp.full((slots, *stops), NONE, jnp.int32),
        tail=jnp.full((slots, stops[1]), NONE, jnp.int32),
    )


def empty_prefix(c: DecoderConfig, rules, capacity: int, dtype) -> Prefix:
    """Return a prefix of no tokens, with room for some."""
    kv = jnp.zeros((c.num_layers, c.num_kv_heads, capacity, c.head_dim), dtype)
    return Prefix(constrain(kv, rules, *PREFIX_AXES), constrain(kv, rules, *PREFIX_AXES), jnp.int32(0))


def read_prefix(module: Decoder, prefix: Prefix, tokens_1T: jax.Array, count: jax.Array) -> Prefix:
    """Return a prefix with `count` more tokens, the first of PREFIX_BLOCK; all calls but the last fill a block."""
    assert tokens_1T.shape == (1, PREFIX_BLOCK)
    _, cache = _read(module, prefix, tokens_1T, jnp.zeros(1, jnp.int32), None)

    def grown(held_LHPK, own_LBSHK):
        return jax.lax.dynamic_update_slice_in_dim(
            held_LHPK, own_LBSHK[:, 0].transpose(0, 2, 1, 3), prefix.length, axis=2
        )

    k, v = grown(prefix.k_LHPK, cache.k_LBSHK), grown(prefix.v_LHPK, cache.v_LBSHK)
    return Prefix(k, v, prefix.length + count)


def _read(
    module: Decoder, prefix: Prefix | None, tokens_BT, slots_B, cache: KVCache | None
) -> tuple[jax.Array, KVCache]:
    """Read tokens behind a prefix, each row's from a position of its slot on; return hidden states and the cache."""
    (B, T), c = tokens_BT.shape, module.config
    if cache is None:
        dims = (c.num_layers, B, T, c.num_kv_heads, c.head_dim)
        cache = KVCache.zeros(*dims, dtype=jnp.dtype(module.build.dtype), rules=module.build.rules)
    assert cache is not None
    slots_BT = slots_B[:, None] + jnp.arange(T)[None]
    mask_BTS = jnp.arange(cache.k_LBSHK.shape[2])[None, None] <= slots_BT[:, :, None]
    positions_BT = slots_BT if prefix is None else slots_BT + prefix.length
    lengths_BT = jnp.zeros_like(positions_BT)  # a model that reads them is refused where they could matter
    options = {"lengths_BT": lengths_BT, "cache": cache, "slots_BT": slots_BT, "prefix": prefix}
    x_BTD, written = module(tokens_BT, positions_BT, mask_BTS, **options)
    assert written is not None
    return x_BTD, written


def admit(module: Decoder, prefix: Prefix | None, slots: Slots, new: Admission, end_id: int):
    """Read prompts and put sequences into slots; return these, and each one's first token and its log-probability."""
    x_RTD, own = _read(module, prefix, new.tokens, jnp.zeros_like(new.lengths), None)
    x_R1D = jnp.take_along_axis(x_RTD, jnp.maximum(new.lengths - 1, 0)[:, None, None], axis=1)
    logits_CV = next_logits(module, x_R1D)[new.source]
    token_C, log_prob_C = choose(logits_CV, new.choice, jnp.zeros_like(new.source))
    T = new.tokens.shape[1]

    def put(held, value):
        return held.at[new.slot].set(value, mode="drop")

    cache = KVCache(
        slots.cache.k_LBSHK.at[:, new.slot, :T].set(own.k_LBSHK[:, new.source], mode="drop"),
        slots.cache.v_LBSHK.at[:, new.slot, :T].set(own.v_LBSHK[:, new.source], mode="drop"),
    )
    tail_CW = jnp.full((token_C.shape[0], slots.tail.shape[1]), NONE).at[:, -1].set(token_C)
    count_C = jnp.ones_like(token_C)
    running_C = ~_ended(token_C, tail_CW, new.stop, count_C, new.limit, end_id)
    held = Slots(
        cache=cache.constrained(module.build.rules),
        token=put(slots.token, token_C),
        length=put(slots.length, new.lengths[new.source]),
        count=put(slots.count, count_C),
        limit=put(slots.limit, new.limit),
        running=put(slots.running, running_C),
        choice=jax.tree.map(put, slots.choice, new.choice),
        stop=put(slots.stop, new.stop),
        tail=put(slots.tail, tail_CW),
    )
    return held, everywhere(token_C), everywhere(log_prob_C)


def decode(module: Decoder, prefix: Prefix | None, slots: Slots, end_id: int, steps: int):
    """Go on by at most so many tokens, less where no slot runs; return slots, tokens and log-probabilities (B, steps).

    Those of a row count from the first on, until its sequence ends.
    """
    B, S = slots.cache.k_LBSHK.shape[1:3]

    def unfinished(state):
        step, slots, *_ = state
        return (step < steps) & slots.running.any()

    def one(state):
        step, slots, tokens_BN, log_probs_BN = state
        places_B = jnp.where(slots.running, slots.length, S)  # what does not run writes nothing
        x_B1D, cache = _read(module, prefix, slots.token[:, None], places_B, slots.cache)
        token_B, log_prob_B = choose(next_logits(module, x_B1D), slots.choice, slots.count)
        tail_BW = jnp.concatenate([slots.tail[:, 1:], token_B[:, None]], axis=1)
        count_B = slots.count + 1
        ended_B = _ended(token_B, tail_BW, slots.stop, count_B, slots.limit, end_id)
        new = dataclasses.replace(
            slots,
            cache=cache,
            token=token_B,
            length=slots.length + slots.running,
            count=count_B,
            running=slots.running & ~ended_B,
            tail=tail_BW,
        )
        return step + 1, new, tokens_BN.at[:, step].set(token_B), log_probs_BN.at[:, step].set(log_prob_B)

    state = (jnp.int32(0), slots, jnp.zeros((B, steps), jnp.int32), jnp.zeros((B, steps)))
    _, slots, tokens_BN, log_probs_BN = jax.lax.while_loop(unfinished, one, state)
    return slots, everywhere(tokens_BN), everywhere(log_probs_BN)


def stop_running(slots: Slots, kept_B: jax.Array) -> Slots:
    """Return the slots with only these of them running on."""
    return dataclasses.replace(slots, running=slots.running & kept_B)


def _ended(token, tail, stop, count, limit, end_id: int) -> jax.Array:
    """Return which rows are done with their last token (B,)."""
    stopped = ((stop == ANY) | (stop == tail[:, None])).all(-1).any(-1)
    return (token == end_id) | stopped | (count >= limit)


def everywhere(x: jax.Array) -> jax.Array:
    """Return an array that every host can read."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))
