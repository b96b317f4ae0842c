"""The one Linear, and the embedding: a shape, logical axes, and the low-rank path that follows from them."""

import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from fiat_jax.sharding import ShardingRules, constrain

WEIGHT_STD = 0.02
EMBED_AXES = ("vocab", "embed")
EMBEDDING = "embed"  # the slot of the embedding; the others are stacks of linear layers
Weight = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))  # a filter: LoRAParam is a subclass of Param


@dataclasses.dataclass(frozen=True)
class LoraSlot:
    """The adapter of one stack of linear layers: rank and scale of each layer (rank 0: that layer has none)."""

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropout: float = 0.0


class LoraScale(nnx.Variable):
    """α/r, or α/√r, of each layer of a stack: read in the forward pass, never trained."""


@jax.custom_vjp
def low_rank(x_NI: jax.Array, a_IR: jax.Array, bs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Return (x a) b for adapters that read the same x; a holds the columns of all of them, each b has its rows.

    One product reads x for all of them. The backward pass transposes thin factors alone, never a full activation.
    """
    return _low_rank_forward(x_NI, a_IR, bs)[0]


def _split(h_NR, bs):
    ends = list(itertools.accumulate(b_RO.shape[0] for b_RO in bs))
    return jnp.split(h_NR, ends[:-1], axis=1)


def _low_rank_forward(x_NI, a_IR, bs):
    h_NR = checkpoint_name(x_NI @ a_IR, "low_rank")
    return tuple(h @ b for h, b in zip(_split(h_NR, bs), bs, strict=True)), (x_NI, h_NR, a_IR, bs)


def _low_rank_backward(residuals, grads):
    x_NI, h_NR, a_IR, bs = residuals
    grad_NR = jnp.concatenate([grad_NO @ b_RO.T for grad_NO, b_RO in zip(grads, bs, strict=True)], axis=1)
    b_grads = tuple(h.T @ grad_NO for h, grad_NO in zip(_split(h_NR, bs), grads, strict=True))
    return grad_NR @ a_IR.T, (grad_NR.T @ x_NI).T, b_grads


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def drop(x_NI: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Return x with a share `rate` of its elements zero and the others scaled up, by 16 random bits an element."""
    N, I = x_NI.shape
    words = jax.random.bits(key, (N, -(-I // 2)), jnp.uint32)
    halves_NI = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(N, -1)[:, :I]
    kept = round((1 - rate) * 2**16)
    return jnp.where(halves_NI < kept, x_NI * (2**16 / kept), 0).astype(x_NI.dtype)


class Linear(nnx.Module):
    """`einsum(equation, x, w) (+ bias)` for a stack of layers, plus `scale · (x a) b` where the stack is adapted.

    The equation names N rows, then the inputs that x and w share, then the outputs: "NHGK,HGKD->ND". `w` has the shape
    (layers, *inputs, *outputs), `a` (layers, *inputs, R) and `b` (layers, R, *outputs). Where ranks differ by layer
    both are zero beyond a layer's rank, a fixed point of the gradient. LoRA: arXiv 2106.09685, rsLoRA: 2312.03732.
    Call it on one layer's slice of the stack, as `jax.lax.scan` hands them out.
    """

    def __init__(
        self,
        name: str,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        num_layers: int,
        slot: LoraSlot | None,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike,
        bias: bool = False,
    ):
        x_dims, w_dims, y_dims = re.split(",|->", equation)
        inputs = len(x_dims) - 1
        assert (x_dims[1:], y_dims) == (w_dims[:inputs], x_dims[0] + w_dims[inputs:]), equation
        self.in_shape, self.out_shape = shape[:inputs], shape[inputs:]
        self.salt = zlib.crc32(name.encode())
        self.dropout = slot.dropout if slot else 0.0
        self.adapted = slot is not None
        w = WEIGHT_STD * jax.random.normal(rngs.params(), (num_layers, *shape), dtype)
        self.w = nnx.Param(w, axes=("layers", *axes))
        self.biased = bias
        if bias:
            zeros = jnp.zeros((num_layers, *self.out_shape), dtype)
            self.bias = nnx.Param(zeros, axes=("layers", *axes[inputs:]))
        if slot is not None:
            rank = max(slot.ranks)
            in_use = jnp.arange(rank)[None] < jnp.array(slot.ranks)[:, None]
            bound = 1 / math.sqrt(math.prod(self.in_shape))  # peft's: kaiming_uniform_(a=√5)
            a = jax.random.uniform(rngs.lora(), (num_layers, *self.in_shape, rank), jnp.float32, -bound, bound)
            a = jnp.where(jnp.expand_dims(in_use, range(1, a.ndim - 1)), a, 0.0)
            b = jnp.zeros((num_layers, rank, *self.out_shape), jnp.float32)
            self.a = nnx.LoRAParam(a, axes=("layers", *axes[:inputs], "rank"))
            self.b = nnx.LoRAParam(b, axes=("layers", "rank", *axes[inputs:]))
            self.scale = LoraScale(jnp.array(slot.scales, jnp.float32), axes=("layers",))

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Apply one layer; without a key there is no dropout."""
        return apply((self,), x, dropout_key)[0]

    def delta(self) -> jax.Array:
        """Return the weight change of the whole stack's adapters in float32, of w's shape."""
        layers, rank = self.scale.shape[0], self.b.shape[1]
        a_LIR = self.a[...].reshape(layers, -1, rank)
        b_LRO = self.b[...].reshape(layers, rank, -1) * self.scale[...][:, None, None]
        return jnp.einsum("LIR,LRO->LIO", a_LIR, b_LRO, precision="highest").reshape(self.w.shape)


class Embedding(nnx.Module):
    """A row of `w` (V, D) for every token, plus `scale · a[token] b` where it is adapted.

    As in peft, `a` (V, R) is zero in a fresh adapter and `b` (R, D) is drawn, and there is no dropout. A head that is
    tied to `w` does not read the adapter.
    """

    def __init__(self, vocab_size: int, width: int, *, slot: LoraSlot | None, rngs: nnx.Rngs, dtype):
        self.w = nnx.Param(WEIGHT_STD * jax.random.normal(rngs.params(), (vocab_size, width), dtype), axes=EMBED_AXES)
        self.adapted = slot is not None
        if slot is not None:
            (rank,), (scale,) = slot.ranks, slot.scales
            self.a = nnx.LoRAParam(jnp.zeros((vocab_size, rank), jnp.float32), axes=("vocab", "rank"))
            self.b = nnx.LoRAParam(jax.random.normal(rngs.lora(), (rank, width), jnp.float32), axes=("rank", "embed"))
            self.scale = LoraScale(jnp.float32(scale), axes=())

    def __call__(self, tokens_N: jax.Array, rules: ShardingRules) -> jax.Array:
        """Return one row a token, (N, D); a lookup needs whole rows of what it reads."""
        x_ND = constrain(self.w[...], rules, "vocab", None)[tokens_N]
        if self.adapted:
            a_VR = constrain(self.a[...].astype(x_ND.dtype), rules, "vocab", None)
            x_ND += a_VR[tokens_N] @ (self.b[...] * self.scale[...]).astype(x_ND.dtype)
        return x_ND

    def delta(self) -> jax.Array:
        """Return the adapter's change of w in float32."""
        return jnp.matmul(self.a[...], self.b[...] * self.scale[...], precision="highest")


def apply(layers: Sequence[Linear], x: jax.Array, dropout_key: jax.Array | None = None) -> list[jax.Array]:
    """Apply layers that read the same x. Adapters are kept in float32 and computed in x's dtype.

    Their adapters share one product with x, and what dropout leaves of it. Inputs and outputs are flattened to one
    dimension each: XLA's CPU backend multiplies plain matrices fastest.
    """
    inputs = math.prod(layers[0].in_shape)
    x_NI = x.reshape(-1, inputs)
    ys = [x_NI @ layer.w[...].reshape(inputs, -1) for layer in layers]
    ys = [y + layer.bias[...].reshape(1, -1) if layer.biased else y for y, layer in zip(ys, layers, strict=True)]
    adapted = [index for index, layer in enumerate(layers) if layer.adapted]
    if adapted:
        first = layers[adapted[0]]
        if first.dropout and dropout_key is not None:
            x_NI = drop(x_NI, first.dropout, jax.random.fold_in(dropout_key, first.salt))
        a_IR = jnp.concatenate([layers[i].a[...].reshape(inputs, -1) for i in adapted], axis=1)
        scaled = [layers[i].b[...].reshape(layers[i].b.shape[0], -1) * layers[i].scale[...] for i in adapted]
        deltas = low_rank(x_NI, a_IR.astype(x.dtype), tuple(b_RO.astype(x.dtype) for b_RO in scaled))
        for i, delta_NO in zip(adapted, deltas, strict=True):
            ys[i] += delta_NO
    return [y_NO.reshape(-1, *layer.out_shape) for y_NO, layer in zip(ys, layers, strict=True)]
