"""Rotary positions (RoFormer, arXiv 2104.09864) and the ways in which checkpoints stretch them over longer texts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclasses.dataclass(frozen=True)
class Rope:
    """How the dimensions of a head are turned: the terms of `rope_parameters` in config.json.

    Args:
        kind: "default"; "linear" divides positions by `factor`; "llama3" and "yarn" (arXiv 2309.00071) divide those of
            long wavelengths alone; "dynamic" and "longrope" (arXiv 2402.13753) depend on a sequence's length.
        theta: the base of the wavelengths.
        share: of a head's dimensions, its first ones, that are turned.
        factor: by how much longer texts may be than `original_length`.
        original_length: the longest text before stretching; under "dynamic", the longest that needs none.
        low_frequency, high_frequency: "llama3": wavelengths original_length / low and / high bound the transition.
        beta_fast, beta_slow, truncate: "yarn": turns over original_length that bound the transition.
        magnitude: what cosines and sines are multiplied by.
        short_factors, long_factors: "longrope": one divisor a pair of dimensions, up to original_length and beyond.
    """

    kind: str = "default"
    theta: float = 10_000.0
    share: float = 1.0
    factor: float = 1.0
    original_length: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    magnitude: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def turned(self, head_dim: int) -> int:
        """Return how many of a head's dimensions are turned."""
        return int(head_dim * self.share)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Return radians a position of each turned pair of dimensions, of sequences up to the original length."""
        turned = self.turned(head_dim)
        exponents_K = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
        plain_K = (1 / np.float32(self.theta) ** exponents_K).astype(np.float32)
        match self.kind:
            case "linear":
                return plain_K / np.float32(self.factor)
            case "llama3":
                return self._llama3(plain_K)
            case "yarn":
                return self._yarn(plain_K, turned)
            case "longrope":
                return plain_K / np.array(self.short_factors, np.float32)
        return plain_K

    def _llama3(self, plain_K: np.ndarray) -> np.ndarray:
        turns_K = self.original_length * plain_K / (2 * math.pi)
        kept_K = (turns_K - self.low_frequency) / (self.high_frequency - self.low_frequency)
        kept_K = np.clip(kept_K, 0, 1)
        return ((1 - kept_K) * plain_K / self.factor + kept_K * plain_K).astype(np.float32)

    def _yarn(self, plain_K: np.ndarray, turned: int) -> np.ndarray:
        def dimension(turns: float) -> float:  # the pair that turns as often over the original length
            return turned * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        stretched_K = np.clip((np.arange(turned // 2) - low) / (high - low or 0.001), 0, 1)
        return (plain_K / self.factor * stretched_K + plain_K * (1 - stretched_K)).astype(np.float32)

    def tables(self, positions_BT: jax.Array, lengths_BT: jax.Array, head_dim: int) -> jax.Array:
        """Return cosines and sines (2, B, T, turned / 2) in float32.

        lengths_BT is the length of the sequence that each token is part of; most kinds do not read it.
        """
        frequencies = jnp.asarray(self.frequencies(head_dim))[None, None]
        if self.kind == "longrope":
            ratio_K = np.array(self.short_factors, np.float32) / np.array(self.long_factors, np.float32)
            long = frequencies * ratio_K[None, None]
            frequencies = jnp.where(lengths_BT[..., None] > self.original_length, long, frequencies)
        if self.kind == "dynamic":
            turned = self.turned(head_dim)
            over_BT = jnp.maximum(lengths_BT, self.original_length) / self.original_length
            growth_BT1 = (self.factor * over_BT - (self.factor - 1))[..., None] ** (1 / (turned - 2))
            frequencies = frequencies * growth_BT1 ** -np.arange(0, turned, 2, dtype=np.float32)[None, None]
        angle_BTK = positions_BT[..., None].astype(jnp.float32) * frequencies
        return jnp.stack([jnp.cos(angle_BTK), jnp.sin(angle_BTK)]) * self.magnitude


def turn(x: jax.Array, tables: jax.Array) -> jax.Array:
    """Rotate the halves of the turned dimensions of x (B, T, ..., K) against each other."""
    cos, sin = (jnp.expand_dims(table, range(2, x.ndim - 1)) for table in tables.astype(x.dtype))
    turned = 2 * tables.shape[-1]
    x1, x2 = jnp.split(x[..., :turned], 2, axis=-1)
    parts = [x1 * cos - x2 * sin, x2 * cos + x1 * sin]
    return jnp.concatenate(parts if turned == x.shape[-1] else [*parts, x[..., turned:]], axis=-1)


def sequence_lengths(segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Return the length of the sequence that each token of packed rows is part of."""

    def of_row(segments_T, positions_T):
        longest = jax.ops.segment_max(positions_T, segments_T, num_segments=segments_T.shape[0] + 1)
        return longest[segments_T] + 1

    return jax.vmap(of_row)(segments_BT, positions_BT)
