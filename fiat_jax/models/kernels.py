"""Which kernel computes attention over a row's own keys: plain products, splash attention on TPU, cuDNN's on GPU."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as name

from fiat_jax.errors import UserError
from fiat_jax.models import splash
from fiat_jax.models.attention import PREFIX_AXES, as_kept, attend, attend_kept
from fiat_jax.models.splash import LANES
from fiat_jax.sharding import ShardingRules, fitting

log = logging.getLogger(__name__)

ASKED = ("auto", "plain", "splash", "cudnn")
NATIVE = {"tpu": "splash", "gpu": "cudnn"}  # what "auto" takes, by platform
ATTENDED = "attended"  # what backward keeps of attention (`stack.REMAT_POLICIES`)
QUERIES = ("batch", None, "kv_heads", "queries", None)
KEYS, MASK, SEGMENTS = ("batch", None, "kv_heads", None), ("batch", None, None), ("batch", None)
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
    shared: tuple | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Return attention outputs (B, T, H, G, K) over the row's own keys and, with one, a prefix that all rows share.

    As `attention.attend` would, or `attention.attend_kept`, where the kernel cannot take these shapes or this mask;
    the log says why. `shared` is the prefix's keys, values and length, the layer's window, and the queries' positions.
    """
    chosen, reason = kernel.name, _unfit(kernel.name, seen, q_BTHGK.shape[1], shared)
    if reason:
        warn(chosen, reason)
        chosen = "plain"
    if chosen == "plain":
        return name(_plain(q_BTHGK, k_BSHK, v_BSHK, seen, shared, scale=scale, cap=cap), ATTENDED)
    factor = q_BTHGK.shape[-1] ** -0.5 if scale is None else scale
    own = [(q_BTHGK, QUERIES), (k_BSHK, KEYS), (v_BSHK, KEYS)]
    if chosen == "cudnn":
        return name(_on_mesh(functools.partial(_cudnn, scale=factor), rules, *own, (seen.mask_BTS, MASK)), ATTENDED)
    own[0] = (q_BTHGK * factor, QUERIES)
    own += [(seen.segments_BT, SEGMENTS)]
    if shared is not None:
        k_HKP, v_HPK, length = shared[0]
        behind = functools.partial(splash.behind, cap=cap, interpret=kernel.interpreted)
        prefix = (k_HKP, PREFIX_AXES[0][1:]), (v_HPK, PREFIX_AXES[1][1:]), (length, ())
        return name(_on_mesh(behind, rules, *own, *prefix), ATTENDED)
    runs = [
        functools.partial(splash.own, window=window, cap=cap, kept=ATTENDED, interpret=kernel.interpreted)
        for window in seen.windows
    ]
    run = runs[0] if len(runs) == 1 else lambda kind, *arrays: jax.lax.switch(kind, runs, *arrays)
    return _on_mesh(run, rules, *([] if len(runs) == 1 else [(jnp.asarray(seen.kind), ())]), *own)


def _unfit(kernel: str, seen: Seen, T: int, shared: tuple | None) -> str:
    """Return why a kernel cannot take these shapes or this mask; "" where it can."""
    if kernel == "splash":
        if seen.segments_BT is None:
            return "queries see branches of a segment, candidates that share their input"
        if T < LANES:
            return f"rows of {T} tokens are shorter than a block of {LANES}"
        if shared is not None and any(window is not None for window in seen.windows):
            return "layers see a window, which ends somewhere in a prefix"
    if kernel == "cudnn":
        if shared is not None:
            return "a prefix is shared by all rows"
        if T % 2:
            return f"rows of {T} tokens are odd"
    return ""


def _plain(q_BTHGK, k_BSHK, v_BSHK, seen: Seen, shared: tuple | None, *, scale: float | None, cap: float | None):
    if shared is None:
        return attend(q_BTHGK, k_BSHK, v_BSHK, seen.mask_BTS, scale=scale, cap=cap, causal=True)
    prefix, window, positions_BT = shared
    kept = (*as_kept(k_BSHK, v_BSHK), seen.mask_BTS)
    return attend_kept(q_BTHGK, kept, prefix, window=window, positions_BT=positions_BT, scale=scale, cap=cap)


def _on_mesh(run, rules: ShardingRules, *given: tuple[Any, tuple]):
    """Run a kernel on each device for its own rows and heads: on arrays with their logical axes, queries among them."""
    mesh, arrays = jax.sharding.get_abstract_mesh(), [array for array, _ in given]
    if mesh.empty or mesh.size == 1:
        return run(*arrays)
    specs = tuple(fitting(mesh, rules, array.shape, axes) for array, axes in given)
    out = next(spec for spec, (_, axes) in zip(specs, given, strict=True) if axes is QUERIES)
    return jax.shard_map(run, in_specs=specs, out_specs=out, check_vma=False)(*arrays)


def _cudnn(q_BTHGK, k_BSHK, v_BSHK, mask_BTS, *, scale: float):
    B, T, H, G, K = q_BTHGK.shape
    options = {"mask": mask_BTS[:, None], "scale": scale, "is_causal": True, "implementation": "cudnn"}
    out_BTNK = jax.nn.dot_product_attention(q_BTHGK.reshape(B, T, H * G, K), k_BSHK, v_BSHK, **options)
    return jnp.asarray(out_BTNK).reshape(B, T, H, G, K)
