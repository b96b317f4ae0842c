"""All programs of an engine, compiled for the shapes of its configuration: from arrays, or from shapes alone."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import PartitionSpec

from fiat_jax.errors import UserError
from fiat_jax.inference import slots as on_device
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.sampling import Choice
from fiat_jax.inference.slots import NONE, Admission
from fiat_jax.models.attention import PREFIX_BLOCK, Prefix
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.decoder import Decoder
from fiat_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class PrefixPrograms:
    """`empty()` → a prefix of no tokens; `read(trainable, frozen, prefix, tokens_P, count)` → a longer one."""

    empty: Any
    read: Any


@dataclasses.dataclass(frozen=True)
class Programs:
    """What an engine runs: see the functions of the same names in `slots`; `admit` by the length of its prompts.

    `score` by the length of what is read: `Model.text_log_probs`, of an encoder-decoder `Model.answer_log_probs`.
    """

    prefix: PrefixPrograms | None
    empty: Any
    admit: dict[int, Any]
    decode: Any
    stop: Any
    score: dict[int, Any]


Build = Callable[[str, jax.stages.Lowered], Any]


def plainly(name: str, lowered: jax.stages.Lowered) -> Any:
    """Compile a program."""
    return lowered.compile()


def compile_programs(model: Model, end_id: int, c: EngineConfig, build: Build = plainly) -> Programs:
    """Compile every program for every shape that an engine will meet.

    The model's arrays may be `jax.ShapeDtypeStruct`s with shardings, say on a topology without devices. `build` is
    what compiles the larger ones: whoever wants to know more about them hands in another.
    """
    weights = model.trainable, model.frozen
    with jax.set_mesh(model.mesh):
        prefix = compile_prefix_programs(model, c.prefix_length, build) if c.prefix_length else None
        no_prefix = None if prefix is None else _results(prefix.empty)

        def empty():
            skeleton = model.skeleton()
            return on_device.empty_slots(skeleton, c.slots, c.slot_length, (c.stops, c.stop_length))

        def admit(trainable, frozen, prefix, slots, new):
            return on_device.admit(model.module(trainable, frozen), prefix, slots, new, end_id, c.alternatives)

        def decode(trainable, frozen, prefix, slots, steps):
            module = model.module(trainable, frozen)
            return on_device.decode(module, prefix, slots, steps, end_id, c.block, c.alternatives)

        shardings = jax.tree.map(lambda x: x.sharding, _results(jax.jit(empty).lower().compile()))
        free = jax.tree.map(lambda sharding: Format(Layout.AUTO, sharding), shardings)
        decoding = _jit(decode, kept_at=3, layout=free)
        slots = jax.eval_shape(empty)
        state = slots, np.int32(0)
        compiled_decode = build("decode", decoding.lower(*weights, no_prefix, *state))
        # Programs hand slots to each other in the layout that decoding likes best: in any other one it would copy them.
        layout = compiled_decode.input_formats[0][3]
        if layout != compiled_decode.output_formats[0]:
            again = _jit(decode, kept_at=3, layout=layout).lower(*weights, no_prefix, *state)
            compiled_decode = build("decode", again)
        admitting = _jit(admit, kept_at=3, layout=layout)
        in_shardings = layout, PartitionSpec()
        stopping = jax.jit(on_device.stop_running, donate_argnums=0, in_shardings=in_shardings, out_shardings=layout)
        return Programs(
            prefix=prefix,
            empty=jax.jit(empty, out_shardings=layout).lower().compile(),
            admit={
                length: build(
                    f"admit_{length}", admitting.lower(*weights, no_prefix, slots, empty_admission(c, length))
                )
                for length in c.buckets
            },
            decode=compiled_decode,
            stop=stopping.lower(slots, np.ones(c.slots, bool)).compile(),
            score=_compile_scoring(model, c) if c.score else {},
        )


def _compile_scoring(model: Model, c: EngineConfig) -> dict[int, Any]:
    ints = lambda *shape: np.zeros((c.prefill_rows, *shape), np.int32)  # noqa: E731

    def texts(trainable, frozen, tokens_BT, lengths_B):
        found = model.text_log_probs(trainable, frozen, tokens_BT, lengths_B, c.alternatives)
        return jax.tree.map(on_device.everywhere, found)

    def answers(trainable, frozen, read_BS, lengths_B, answers_BT):
        return on_device.everywhere(model.answer_log_probs(trainable, frozen, read_BS, lengths_B, answers_BT))

    decoder = isinstance(model.config, DecoderConfig)
    given = {n: (ints(n), ints()) if decoder else (ints(n), ints(), ints(c.shortest_bucket)) for n in c.text_buckets}
    shardings = [PartitionSpec()] * (2 if decoder else 3)
    scoring = jax.jit(texts if decoder else answers, in_shardings=(None, None, *shardings))
    return {n: scoring.lower(model.trainable, model.frozen, *arrays).compile() for n, arrays in given.items()}


def _jit(program: Any, *, kept_at: int, layout: Any) -> Any:
    """Return a program that updates its argument number `kept_at`, of this layout, in place, and returns it first.

    The arguments before it are as they are; those behind come from the host, every host's the same.
    """
    behind = len(inspect.signature(program).parameters) - kept_at - 1
    in_shardings = (*[None] * kept_at, layout, *[PartitionSpec()] * behind)
    return jax.jit(program, donate_argnums=kept_at, in_shardings=in_shardings, out_shardings=(layout, None))


def compile_prefix_programs(model: Model, longest: int, build: Build = plainly) -> PrefixPrograms:
    """Compile what reads prefixes of up to `longest` tokens.

    Raises:
        UserError: the model is an encoder-decoder.
    """
    config = model.config
    if not isinstance(config, DecoderConfig):
        raise UserError("an encoder reads each text whole: texts of an encoder-decoder can share no prefix")
    dims = (config.num_layers, config.num_kv_heads, Prefix.capacity(longest), config.head_dim)
    zeros = functools.partial(Prefix.zeros, *dims, dtype=jnp.dtype(model.build.dtype), rules=model.build.rules)

    def read(trainable, frozen, prefix, tokens_P, count):
        module = model.module(trainable, frozen)
        assert isinstance(module, Decoder)
        return module.read_prefix(prefix, tokens_P, count)

    with jax.set_mesh(model.mesh):
        empty = jax.jit(zeros).lower().compile()
        prefix = _results(empty)
        layout = jax.tree.map(lambda x: x.sharding, prefix)
        in_shardings = None, None, layout, PartitionSpec(), PartitionSpec()
        reading = jax.jit(read, donate_argnums=2, in_shardings=in_shardings, out_shardings=layout)
        part = np.zeros(PREFIX_BLOCK, np.int32)
        lowered = reading.lower(model.trainable, model.frozen, prefix, part, np.int32(0))
        return PrefixPrograms(empty, build("read_prefix", lowered))


def empty_admission(c: EngineConfig, length: int) -> Admission:
    """Return an admission of nobody, as NumPy arrays to be filled in."""
    R = c.prefill_rows
    ints = lambda *shape: np.zeros(shape, np.int32)  # noqa: E731
    return Admission(
        tokens=ints(R, length),
        lengths=ints(R),
        whole=ints(R),
        source=ints(R),
        slot=np.full(R, c.slots, np.int32),
        limit=np.ones(R, np.int32),
        choice=Choice(np.zeros(R, np.float32), ints(R), np.ones(R, np.float32), np.zeros((R, 2), np.uint32), ints(R)),
        stop=np.full((R, c.stops, c.stop_length), NONE, np.int32),
    )


def _results(compiled: Any) -> Any:
    """Return the shapes and shardings of what a compiled program without arguments returns."""
    return jax.tree.map(
        lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding),
        compiled.out_info,
        compiled.output_shardings,
    )
