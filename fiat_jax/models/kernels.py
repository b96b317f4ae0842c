"""Which kernel computes attention over a row's own keys: plain products, splash attention on TPU, cuDNN's on GPU."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as name

from fiat_jax.errors import UserError
from fiat_jax.models.attention import attend
from fiat_jax.sharding import ShardingRules, fitting

log = logging.getLogger(__name__)

ASKED = ("auto", "plain", "splash", "cudnn")
NATIVE = {"tpu": "splash", "gpu": "cudnn"}  # what "auto" takes, by platform
LANES = 128  # of a TPU: the least length of a block
BLOCK = 512  # queries, and keys, that splash attention takes at a time
ATTENDED = "attended"  # what backward keeps of attention (`stack.REMAT_POLICIES`)
CUDNN_WIDTH, HOPPER_WIDTH = 128, 256  # of a head, at most; the latter from compute capability 9.0 on


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What was chosen, and why it is not what the platform has; `interpreted`: splash attention away from a TPU."""

    name: str = "plain"
    reason: str = ""
    interpreted: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


PLAIN = Kernel()


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the queries of a layer see of their own row, of which no later key.

    Args:
        mask_BTS: which keys each query sees.
        segments_BT: where a query sees all earlier keys of its own segment, but for the window, these; else None.
        windows: how far back each kind of layer sees, None: as far as there is.
        kind: which of them the layer is of.
    """

    mask_BTS: jax.Array
    segments_BT: jax.Array | None
    windows: tuple[int | None, ...]
    kind: jax.Array | int


def choose(
    asked: str, device: Any, *, dtype: str, head_dim: int, cap: float | None = None, biased: bool = False
) -> Kernel:
    """Return the kernel for a model on devices like this one; where "auto" takes plain products, with its reason.

    Args:
        asked: one of `ASKED`.
        cap: the soft cap on scores.
        biased: something is added to the scores.

    Raises:
        UserError: the kernel that is asked for by name cannot compute this model there.
    """
    wanted = NATIVE.get(device.platform, "plain") if asked == "auto" else asked
    reason = _refusal(wanted, device, dtype, head_dim, cap, biased)
    if not reason:
        return Kernel(wanted, interpreted=wanted == "splash" and device.platform == "cpu")
    if asked != "auto":
        raise UserError(f"Model.attention is {asked!r}, and {reason}: set it to 'auto', or to 'plain'")
    warn(wanted, reason)
    return Kernel("plain", reason)


def _refusal(wanted: str, device: Any, dtype: str, head_dim: int, cap: float | None, biased: bool) -> str:
    """Return why a kernel cannot compute a model; "" where it can."""
    if wanted == "plain":
        return ""
    if biased:
        return f"{wanted} takes no biases of relative positions"
    if wanted == "splash":
        return "splash is a kernel for TPUs" if device.platform == "gpu" else ""
    if device.platform != "gpu":
        return "cudnn is a kernel for GPUs"
    if dtype not in ("bfloat16", "float16"):
        return f"cudnn computes in bfloat16 and float16, not in {dtype}"
    if cap is not None:
        return "cudnn has no soft cap on scores"
    most = HOPPER_WIDTH if float(getattr(device, "compute_capability", 0)) >= 9 else CUDNN_WIDTH
    if head_dim > most or head_dim % 8:
        return f"cudnn takes heads of up to {most} in steps of 8, not of {head_dim}"
    return ""


@functools.cache
def warn(kernel: str, reason: str) -> None:
    """Say once that attention is left to plain products."""
    log.warning("attention by plain products in place of %s: %s", kernel, reason)


def attend_own(
    kernel: Kernel,
    rules: ShardingRules,
    q_BTHGK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    seen: Seen,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Return attention outputs (B, T, H, G, K) over the row's own keys, as `attention.attend` would.

    Where the kernel cannot take these shapes or this mask, plain products do, and the log says why.
    """
    chosen, T = kernel.name, q_BTHGK.shape[1]
    if chosen == "splash" and seen.segments_BT is None:
        warn(chosen, "queries see branches of a segment, candidates that share their input")
        chosen = "plain"
    if chosen == "splash" and T % LANES:
        warn(chosen, f"rows of {T} tokens are not multiples of {LANES}")
        chosen = "plain"
    if chosen == "cudnn" and T % 2:
        warn(chosen, f"rows of {T} tokens are odd")
        chosen = "plain"
    if chosen == "plain":
        out_BTHGK = attend(q_BTHGK, k_BSHK, v_BSHK, seen.mask_BTS, scale=scale, cap=cap, causal=True)
        return name(out_BTHGK, ATTENDED)
    scale = q_BTHGK.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "cudnn":
        run = functools.partial(_cudnn, scale=scale)
        return name(_on_mesh(run, rules, q_BTHGK, k_BSHK, v_BSHK, seen.mask_BTS), ATTENDED)
    runs = [
        functools.partial(
            _on_mesh, functools.partial(_splash, window=window, cap=cap, interpret=kernel.interpreted), rules
        )
        for window in seen.windows
    ]
    given = q_BTHGK * scale, k_BSHK, v_BSHK, seen.segments_BT
    return runs[0](*given) if len(runs) == 1 else jax.lax.switch(seen.kind, runs, *given)


def _on_mesh(run, rules: ShardingRules, q_BTHGK, k_BSHK, v_BSHK, seen_B):
    """Run a kernel on each device for its own rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(q_BTHGK, k_BSHK, v_BSHK, seen_B)
    queries = fitting(mesh, rules, q_BTHGK.shape, ("batch", None, "kv_heads", "queries", None))
    keys = fitting(mesh, rules, k_BSHK.shape, ("batch", None, "kv_heads", None))
    rows = fitting(mesh, rules, seen_B.shape, ("batch", *[None] * (seen_B.ndim - 1)))
    in_specs = (queries, keys, keys, rows)
    return jax.shard_map(run, in_specs=in_specs, out_specs=queries, check_vma=False)(q_BTHGK, k_BSHK, v_BSHK, seen_B)


def _splash(q_BTHGK, k_BSHK, v_BSHK, segments_BT, *, window: int | None, cap: float | None, interpret: bool):
    """Compute one device's rows and heads; queries are scaled already."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # Pallas takes half a second to import

    B, T, H, G, K = q_BTHGK.shape
    shape = (T, T)
    near = window is not None and window < T
    mask = splash.LocalMask(shape, (window - 1, 0), 0) if near else splash.CausalMask(shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * (H * G)),
        block_sizes=_blocks(T),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        residual_checkpoint_name=ATTENDED,  # with the sums of weights: backward runs no forward kernel again
        interpret=interpret,
    )

    def one(q_NTK, k_HSK, v_HSK, segments_T):
        return kernel(q_NTK, k_HSK, v_HSK, segment_ids=splash.SegmentIds(segments_T, segments_T))

    q_BNTK = q_BTHGK.transpose(0, 2, 3, 1, 4).reshape(B, H * G, T, K)
    k_BHSK, v_BHSK = k_BSHK.transpose(0, 2, 1, 3), v_BSHK.transpose(0, 2, 1, 3)
    out_BNTK = jax.vmap(one)(q_BNTK, k_BHSK, v_BHSK, segments_BT)
    return out_BNTK.reshape(B, H, G, T, K).transpose(0, 3, 1, 2, 4)


def _blocks(T: int):
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

    block = next(size for size in (BLOCK, BLOCK // 2, LANES) if T % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return BlockSizes(**dict.fromkeys(names, block))


def _cudnn(q_BTHGK, k_BSHK, v_BSHK, mask_BTS, *, scale: float):
    B, T, H, G, K = q_BTHGK.shape
    options = {"mask": mask_BTS[:, None], "scale": scale, "is_causal": True, "implementation": "cudnn"}
    out_BTNK = jax.nn.dot_product_attention(q_BTHGK.reshape(B, T, H * G, K), k_BSHK, v_BSHK, **options)
    return jnp.asarray(out_BTNK).reshape(B, T, H, G, K)
