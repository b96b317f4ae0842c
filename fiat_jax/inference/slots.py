"""The engine's state on the device, and the programs that change it: admit, decode, stop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.inference.sampling import Array, Choice, Chosen, choose, row_key
from fiat_jax.models.attention import Prefix
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.encoder_decoder import EncoderDecoder
from fiat_jax.models.stack import next_logits

ANY = -1  # fills up the front of a stop sequence: it matches every token
NONE = -2  # in place of a stop sequence or of tokens that were not chosen: it matches no token
NOWHERE = 1 << 30  # the place of a token that is not kept
Module = Decoder | EncoderDecoder


@struct.dataclass
class Slots:
    """B sequences on their way, each in a slot with places for its own tokens.

    Args:
        kept: what the model keeps of them (`room`, `begin` and `extend` of a decoder or an encoder-decoder).
        token: the last token (B,), chosen and not yet read; place: where it will be.
        whole: how long each text will be at most (B,), with its prefix.
        count: how many new tokens there are (B,), `token` included; limit: at most.
        running: which of the slots (B,) go on.
        stop: stop sequences (B, M, W), filled up in front with ANY; all NONE where there is none.
        tail: the last W tokens (B, W) that were chosen.
    """

    kept: Any
    token: jax.Array
    place: jax.Array
    whole: jax.Array
    count: jax.Array
    limit: jax.Array
    running: jax.Array
    choice: Choice
    stop: jax.Array
    tail: jax.Array


@struct.dataclass
class Admission:
    """Prompts (R, T) of lengths (R,) and `whole` ones, and C sequences, each of the prompt `source`, for a `slot`.

    A slot behind the last one is none: it fills up an admission to its shape. In place of the bits of keys, `choice`
    has the seeds and samples that they are made from (C, 2).
    """

    tokens: Array
    lengths: Array
    whole: Array
    source: Array
    slot: Array
    limit: Array
    choice: Choice
    stop: Array


def empty_slots(module: Module, slots: int, length: int, stops: tuple[int, int]) -> Slots:
    """Return slots none of which runs."""
    ints = jnp.zeros(slots, jnp.int32)
    return Slots(
        kept=module.room(slots, length),
        token=ints,
        place=ints,
        whole=ints,
        count=ints,
        limit=ints,
        running=jnp.zeros(slots, bool),
        choice=Choice(jnp.zeros(slots), ints, jnp.ones(slots), jnp.zeros((slots, 2), jnp.uint32), ints),
        stop=jnp.full((slots, *stops), NONE, jnp.int32),
        tail=jnp.full((slots, stops[1]), NONE, jnp.int32),
    )


def admit(module: Module, prefix: Prefix | None, slots: Slots, new: Admission, end_id: int, alternatives: int):
    """Read prompts and put sequences into slots; return these, and what was chosen first for each (C,).

    Nothing of what a slot held before is left in it.
    """
    keys_C2 = jax.vmap(row_key)(new.choice.key[:, 0], new.choice.key[:, 1])
    choice = dataclasses.replace(new.choice, key=keys_C2)
    x_RD, place_R, own = module.begin(new.tokens, new.lengths, new.whole, prefix)  # pyright: ignore
    chosen = choose(next_logits(module, x_RD)[new.source], choice, jnp.zeros_like(new.source), alternatives)
    token_C = chosen.token
    tail_CW = jnp.full((token_C.shape[0], slots.tail.shape[1]), NONE).at[:, -1].set(token_C)
    count_C = jnp.ones_like(token_C)
    running_C = ~_ended(token_C, tail_CW, new.stop, count_C, new.limit, end_id)

    def put(held, value):
        return held.at[new.slot].set(value, mode="drop")

    held = Slots(
        kept=slots.kept.put_rows(new.slot, own, new.source).constrained(module.build.rules),
        token=put(slots.token, token_C),
        place=put(slots.place, place_R[new.source]),
        whole=put(slots.whole, new.whole[new.source]),
        count=put(slots.count, count_C),
        limit=put(slots.limit, new.limit),
        running=put(slots.running, running_C),
        choice=jax.tree.map(put, slots.choice, choice),
        stop=put(slots.stop, new.stop),
        tail=put(slots.tail, tail_CW),
    )
    return held, jax.tree.map(everywhere, chosen)


def decode(
    module: Module, prefix: Prefix | None, slots: Slots, steps: jax.Array, end_id: int, most: int, alternatives: int
):
    """Go on by so many tokens, at `most`, less where no slot runs; return slots and what was chosen (B, most).

    Those of a row count from the first on, until its sequence ends or there are `steps` of them.
    """
    B = slots.token.shape[0]

    def unfinished(state):
        step, slots, *_ = state
        return (step < steps) & slots.running.any()

    def one(state):
        step, slots, written = state
        place_B = jnp.where(slots.running, slots.place, NOWHERE)
        x_BD, kept = module.extend(slots.token, place_B, slots.whole, slots.kept, prefix)  # pyright: ignore
        choice = slots.choice.only(slots.running)
        chosen = choose(next_logits(module, x_BD), choice, slots.count, alternatives)
        token_B = chosen.token
        tail_BW = jnp.concatenate([slots.tail[:, 1:], token_B[:, None]], axis=1)
        count_B = slots.count + 1
        ended_B = _ended(token_B, tail_BW, slots.stop, count_B, slots.limit, end_id)
        new = dataclasses.replace(
            slots,
            kept=kept,
            token=token_B,
            place=slots.place + slots.running,
            count=count_B,
            running=slots.running & ~ended_B,
            tail=tail_BW,
        )
        return step + 1, new, jax.tree.map(lambda all_BN, now_B: all_BN.at[:, step].set(now_B), written, chosen)

    state = (jnp.int32(0), slots, Chosen.zeros((B, most), alternatives))
    _, slots, written = jax.lax.while_loop(unfinished, one, state)
    return slots, jax.tree.map(everywhere, written)


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
