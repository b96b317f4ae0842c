"""The next token of every row, chosen on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fiat_jax.models.head import largest, likeliest

CUT = -1e30
SIGN = np.uint32(1 << 31)
Array = jax.Array | np.ndarray


@struct.dataclass
class Choice:
    """How each of B rows chooses: float32 `temperature`, `top_p`, int32 `top_k`, and `key`, raw bits (B, 2) uint32.

    `alternatives`, int32: how many of the likeliest tokens are told besides.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    key: Array
    alternatives: Array

    def only(self, running_B: Array) -> "Choice":
        """Return the choice of these rows, and of others the cheapest: what they get is not read."""
        kept = lambda value, otherwise: jnp.where(running_B, value, otherwise)  # noqa: E731
        return Choice(
            temperature=kept(self.temperature, 0.0),
            top_k=kept(self.top_k, 0),
            top_p=kept(self.top_p, 1.0),
            key=self.key,
            alternatives=kept(self.alternatives, 0),
        )


@struct.dataclass
class Chosen:
    """Tokens (...) with their log-probabilities, and the A likeliest in their place (..., A) with theirs.

    Log-probabilities are float32, of the model's own distribution: before temperature and cuts.
    """

    token: Array
    log_prob: Array
    best: Array
    best_log_prob: Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...], alternatives: int) -> "Chosen":
        """Return room for so many."""
        more = (*shape, alternatives)
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(more, jnp.int32), jnp.zeros(more))


def row_key(seed: Array, sample: Array) -> jax.Array:
    """Return the bits of a sample's key, uint32 (2,); a token's own is folded from it by its place in the text."""
    return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), sample))


def choose(logits_BV: jax.Array, choice: Choice, places_B: jax.Array, alternatives: int = 0) -> Chosen:
    """Return each row's next token (B,), and so many alternatives where any row wants some.

    places_B is the index of the token within its completion: nothing else of the batch decides what is drawn.
    """
    _, greedy_B = largest(logits_BV)
    sampled = choice.temperature > 0

    def draw():
        logits = logits_BV / jnp.where(sampled, choice.temperature, 1.0)[:, None]
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(choice.key)), places_B)
        return jax.vmap(jax.random.categorical)(keys, _cut(logits, choice)).astype(jnp.int32)

    token_B = jax.lax.cond(sampled.any(), lambda: jnp.where(sampled, draw(), greedy_B), lambda: greedy_B)
    picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    norm_B = jax.nn.logsumexp(logits_BV, axis=-1)
    best_BA, best_log_prob_BA = _alternatives(logits_BV, norm_B, alternatives, (choice.alternatives > 0).any())
    return Chosen(token_B, picked_B - norm_B, best_BA, best_log_prob_BA)


def _alternatives(logits_BV: jax.Array, norm_B: jax.Array, count: int, wanted) -> tuple[jax.Array, jax.Array]:
    """Return the `count` likeliest tokens (B, A) and their log-probabilities; zeros where none are wanted."""
    B = logits_BV.shape[0]

    def find():
        best_BA, ids_BA = likeliest(logits_BV, count)
        return ids_BA, best_BA - norm_B[:, None]

    return jax.lax.cond(wanted, find, lambda: (jnp.zeros((B, count), jnp.int32), jnp.zeros((B, count))))


def _cut(logits_BV: jax.Array, choice: Choice) -> jax.Array:
    """Return the logits with all but the k likeliest, and all but the fewest that hold a share p, out of reach.

    Tokens as likely as the last one that stays, stay.
    """

    def cut():
        return jnp.where(logits_BV >= _least(logits_BV, choice)[:, None], logits_BV, CUT)

    return jax.lax.cond(((choice.top_k > 0) | (choice.top_p < 1)).any(), cut, lambda: logits_BV)


def _least(logits_BV: jax.Array, choice: Choice) -> jax.Array:
    """Return the least logit of each row that stays, float32 (B,): the least with fewer than k and a share p above it.

    It is found by halving the floats between -inf and the largest logit, which takes one pass over the logits for each
    of a float's bits. Sorting a vocabulary takes more, and takes it whole: here each device looks at its part.
    """
    largest_B1 = logits_BV.max(-1, keepdims=True)
    weights_BV = jnp.exp(logits_BV - largest_B1)
    share_B = jnp.where(choice.top_p < 1, choice.top_p * weights_BV.sum(-1), jnp.inf)
    most_B = jnp.where(choice.top_k > 0, choice.top_k, logits_BV.shape[-1])

    def halve(_, ends):
        low_B, high_B = ends
        middle_B = low_B + (high_B - low_B) // 2
        above_BV = logits_BV > _at(middle_B)[:, None]
        stays_B = (jnp.where(above_BV, weights_BV, 0).sum(-1) < share_B) & (above_BV.sum(-1) < most_B)
        return jnp.where(stays_B, low_B, middle_B + 1), jnp.where(stays_B, middle_B, high_B)

    high_B = _place(largest_B1[:, 0])
    low_B = jnp.full_like(high_B, _place(jnp.float32(-jnp.inf)))
    return _at(jax.lax.fori_loop(0, 32, halve, (low_B, high_B))[1])


def _place(x: jax.Array) -> jax.Array:
    """Return where float32 numbers stand among all of them in order, uint32."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >= SIGN, ~bits, bits | SIGN)


def _at(place: jax.Array) -> jax.Array:
    """Return the float32 numbers that stand there."""
    return jax.lax.bitcast_convert_type(jnp.where(place >= SIGN, place & ~SIGN, ~place), jnp.float32)
