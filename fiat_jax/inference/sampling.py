"""The next token of every row, chosen on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

CUT = -1e30
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
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    sampled = choice.temperature > 0

    def draw():
        logits = logits_BV / jnp.where(sampled, choice.temperature, 1.0)[:, None]
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(choice.key)), places_B)
        return jax.vmap(jax.random.categorical)(keys, _cut(logits, choice)).astype(jnp.int32)

    token_B = jax.lax.cond(sampled.any(), lambda: jnp.where(sampled, draw(), greedy_B), lambda: greedy_B)
    picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    norm_B = jax.nn.logsumexp(logits_BV, axis=-1)
    best_BA, best_log_prob_BA = likeliest(logits_BV, norm_B, alternatives, (choice.alternatives > 0).any())
    return Chosen(token_B, picked_B - norm_B, best_BA, best_log_prob_BA)


def likeliest(logits_BV: jax.Array, norm_B: jax.Array, count: int, wanted) -> tuple[jax.Array, jax.Array]:
    """Return the `count` likeliest tokens (B, A) and their log-probabilities; zeros where none are wanted."""
    B = logits_BV.shape[0]

    def find():
        best, ids = jax.lax.top_k(logits_BV, count)
        return ids.astype(jnp.int32), best - norm_B[:, None]

    return jax.lax.cond(wanted, find, lambda: (jnp.zeros((B, count), jnp.int32), jnp.zeros((B, count))))


def _cut(logits_BV: jax.Array, choice: Choice) -> jax.Array:
    """Return the logits with all but the k likeliest, and all but the fewest that hold a share p, out of reach.

    Tokens as likely as the last one that stays, stay.
    """
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    most_B = jnp.where(choice.top_k > 0, choice.top_k, logits_BV.shape[-1])
    kept_BV = (before_BV < choice.top_p[:, None]) & (jnp.arange(logits_BV.shape[-1])[None] < most_B[:, None])
    last_B = jnp.maximum(kept_BV.sum(-1), 1) - 1
    least_B1 = jnp.take_along_axis(sorted_BV, last_B[:, None], axis=-1)
    return jnp.where(logits_BV >= least_B1, logits_BV, CUT)
