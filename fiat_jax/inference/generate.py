"""Greedy generation: prompts padded to a few shapes, one compiled program a shape, parameters always arguments."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fiat_jax.errors import UserError
from fiat_jax.models.model import Model
from fiat_jax.sharding import axis_size

SHORTEST_BUCKET = 16  # shorter prompts and outputs share one program


class Generator:
    """Greedy generation with one model, on the mesh that holds it.

    Prompts are padded on the right to a power of two, rows to a power of two a share of the mesh. How a model reads and
    extends them is its own affair (`start` and `extend`).
    """

    def __init__(self, model: Model, eos_id: int):
        self.model, self.eos_id = model, eos_id
        everywhere = NamedSharding(model.mesh, PartitionSpec())
        self._run = jax.jit(self._generate, static_argnames="slots", out_shardings=everywhere)

    def __call__(
        self, inputs: Sequence[np.ndarray], max_new_tokens: int, *, trainable: nnx.State | None = None
    ) -> list[list[int]]:
        """Return the new tokens of each prompt: `max_new_tokens` at most, ending before the end-of-text token.

        `trainable` stands in for the model's own, say in the middle of training; the compiled programs stay.

        Raises:
            UserError: an empty prompt, one too long for the model, or a token that the model lacks.
        """
        if not inputs:
            return []
        self._check(inputs, max_new_tokens)
        trainable = self.model.trainable if trainable is None else trainable
        tokens_BT, lengths_B = self._pad(inputs)
        slots = _bucket(max_new_tokens)
        with jax.set_mesh(self.model.mesh):
            out_BS, counts_B = self._run(
                trainable, self.model.frozen, tokens_BT, lengths_B, max_new_tokens, slots=slots
            )
        out_BS, counts_B = np.asarray(out_BS), np.asarray(counts_B)
        return [out_BS[row, : counts_B[row]].tolist() for row in range(len(inputs))]

    def _check(self, inputs: Sequence[np.ndarray], max_new_tokens: int) -> None:
        config = self.model.config
        if max_new_tokens < 1:
            raise UserError(f"expected at least one new token; got {max_new_tokens}")
        longest = max(len(ids) for ids in inputs)
        if config.max_length is not None and longest + max_new_tokens > config.max_length:
            raise UserError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the {config.max_length} that the "
                "model reads; lower the length budget or max_new_tokens"
            )
        for index, ids in enumerate(inputs):
            if len(ids) == 0:
                raise UserError(
                    f"prompt {index} has no tokens, so nothing can follow it; give it text or a start token"
                )
            if (largest := np.max(ids)) >= config.vocab_size:
                raise UserError(
                    f"prompt {index} holds token {largest}, the model knows {config.vocab_size}: "
                    "give the tokenizer that belongs to the checkpoint"
                )

    def _pad(self, inputs: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """Return tokens (B, T) and lengths (B,), 0 for the rows that fill up the batch, split over the mesh by rows."""
        mesh, batch = self.model.mesh, self.model.build.rules.batch
        ways = axis_size(mesh, batch)
        rows, longest = ways * _power_of_two(-(-len(inputs) // ways)), max(len(ids) for ids in inputs)
        tokens_BT, lengths_B = np.zeros((rows, _bucket(longest)), np.int32), np.zeros(rows, np.int32)
        for row, ids in enumerate(inputs):
            tokens_BT[row, : len(ids)], lengths_B[row] = ids, len(ids)
        by_rows = NamedSharding(mesh, PartitionSpec(batch))
        return jax.device_put(tokens_BT, by_rows), jax.device_put(lengths_B, by_rows)

    def _generate(self, trainable, frozen, tokens_BT, lengths_B, limit, *, slots: int):
        """Return new tokens (B, slots) and how many of each row count; `limit` of the slots are used at most."""
        module, B = self.model.module(trainable, frozen), tokens_BT.shape[0]
        logits_BV, writing = module.start(tokens_BT, lengths_B, limit, slots)
        token_B = likeliest(logits_BV)
        running_B = (lengths_B > 0) & (token_B != self.eos_id)
        out_BS = jnp.zeros((B, slots), jnp.int32).at[:, 0].set(token_B)

        def unfinished(state):
            step, _, running_B, *_ = state
            return (step < limit) & running_B.any()

        def advance(state):
            step, token_B, running_B, counts_B, out_BS, writing = state
            logits_BV, writing = module.extend(token_B, writing)
            token_B = likeliest(logits_BV)
            running_B &= token_B != self.eos_id
            return step + 1, token_B, running_B, counts_B + running_B, out_BS.at[:, step].set(token_B), writing

        state = (jnp.int32(1), token_B, running_B, running_B.astype(jnp.int32), out_BS, writing)
        _, _, _, counts_B, out_BS, _ = jax.lax.while_loop(unfinished, advance, state)
        return out_BS, counts_B


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """Return the greedy choice of each row, int32 (B,)."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _bucket(length: int) -> int:
    return max(SHORTEST_BUCKET, _power_of_two(length))
