"""Every kernel equals plain products, forward and backward; what one cannot take is left to them, with a reason."""

import contextlib
import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from fiat_jax.errors import UserError
from fiat_jax.models import kernels
from fiat_jax.models.attention import attend, visible, within
from fiat_jax.models.kernels import Kernel, Seen, attend_own, choose
from fiat_jax.sharding import DECODE, TRAIN, MeshConfig

B, T, H, G, K = 4, 256, 2, 2, 64
INTERPRETED = Kernel("splash", interpreted=True)


@dataclasses.dataclass(frozen=True)
class Device:
    """What is asked of a device."""

    platform: str
    compute_capability: str = "9.0"


TPU, GPU, OLD_GPU, CPU = Device("tpu"), Device("gpu"), Device("gpu", "8.0"), Device("cpu")


def inputs(dtype=np.float32, heads=H):
    rng = np.random.default_rng(0)
    q, g = (rng.normal(size=(B, T, heads, G, K)).astype(dtype) for _ in range(2))
    k, v = (rng.normal(size=(B, T, heads, K)).astype(dtype) for _ in range(2))
    return (q, k, v), g


def packed() -> tuple[np.ndarray, np.ndarray]:
    """Return segments (B, T) of rows, the ends of two of which are padding, and positions within each."""
    lengths = [[100, 60, 96], [256], [1, 127, 128], [200, 30]]
    ids, places = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row, each in enumerate(lengths):
        begin = 0
        for number, length in enumerate(each, start=1):
            ids[row, begin : begin + length], places[row, begin : begin + length] = number, np.arange(length)
            begin += length
        places[row, begin:] = np.arange(T - begin)
    return ids, places


def seen_by(window: int | None, windows=None, kind=0) -> Seen:
    segments, positions = packed()
    mask = visible(segments)
    mask = mask if window is None else mask & within(window, positions, positions)
    return Seen(jnp.asarray(mask), jnp.asarray(segments), (window,) if windows is None else windows, kind)


def with_gradients(run, arrays, weights):
    """Return outputs, and the gradients of their weighted sum."""
    out, pull = jax.vjp(run, *arrays)
    return out, *pull(jnp.asarray(weights))


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 40])
def test_splash_attention_equals_plain_products_forward_and_backward(window, cap):
    arrays, weights = inputs()
    seen, options = seen_by(window), {"scale": 0.2, "cap": cap}
    plain = with_gradients(lambda q, k, v: attend(q, k, v, seen.mask_BTS, causal=True, **options), arrays, weights)
    splash = with_gradients(lambda *a: attend_own(INTERPRETED, TRAIN, *a, seen, **options), arrays, weights)
    for expected, found in zip(plain, splash, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("length", [0, 300])
@pytest.mark.parametrize("sizes", [None, (2, 2, 2)], ids=["one device", "a mesh"])
def test_behind_a_prefix_splash_attention_equals_plain_products(length, sizes):
    short, prefix = 192, 512  # not a multiple of a block, and padded to one
    rng = np.random.default_rng(1)
    (q, k, v), _ = inputs()
    own = tuple(jnp.asarray(x[:, :short]) for x in (q, k, v))
    k_HKP, v_HPK = (rng.normal(size=shape).astype(np.float32) for shape in ((H, K, prefix), (H, prefix, K)))
    segments = jnp.asarray(packed()[0][:, :short])
    shared = (jnp.asarray(k_HKP), jnp.asarray(v_HPK), jnp.int32(length)), None, None
    seen = Seen(visible(segments), segments, (None,), 0)
    mesh = contextlib.nullcontext() if sizes is None else jax.set_mesh(MeshConfig(*sizes).build())
    with mesh:
        run = jax.jit(lambda kernel, own, shared: attend_own(kernel, DECODE, *own, seen, shared), static_argnums=0)
        plain, splash = (np.asarray(run(kernel, own, shared)) for kernel in (kernels.PLAIN, INTERPRETED))
    np.testing.assert_allclose(splash, plain, atol=2e-5)


def test_each_device_computes_its_own_rows_and_heads_in_a_scan_over_layers_of_two_kinds_that_backward_recomputes():
    arrays, weights = inputs()
    mesh = MeshConfig(2, 2, 2).build()

    def stacked(kernel, q, k, v):
        def layer(x, kind):
            mask = jnp.stack([seen_by(window).mask_BTS for window in (None, 40)])[kind]
            seen = dataclasses.replace(seen_by(None, (None, 40), kind), mask_BTS=mask)
            return x + attend_own(kernel, TRAIN, x, k, v, seen), None

        kept = jax.checkpoint_policies.save_only_these_names(kernels.ATTENDED)
        layer = jax.checkpoint(layer, policy=kept, prevent_cse=False)
        return jax.lax.scan(layer, q, jnp.array([0, 1, 1]))[0]

    with jax.set_mesh(mesh):
        plain, splash = (
            jax.jit(lambda q, k, v, g, kernel=kernel: with_gradients(lambda *a: stacked(kernel, *a), (q, k, v), g))(
                *arrays, weights
            )
            for kernel in (kernels.PLAIN, INTERPRETED)
        )
    for expected, found in zip(plain, splash, strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-4)


def test_where_splash_attention_cannot_say_what_a_query_sees_plain_products_do_and_the_log_says_so(caplog):
    arrays, _ = inputs()
    kernels.warn.cache_clear()
    seen = dataclasses.replace(seen_by(None), segments_BT=None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = attend_own(INTERPRETED, TRAIN, *arrays, seen)
    np.testing.assert_array_equal(found, attend(*arrays, seen.mask_BTS, causal=True))
    assert [record.getMessage() for record in caplog.records] == [
        "attention by plain products in place of splash: queries see branches of a segment, candidates that share "
        "their input"
    ]


@pytest.mark.parametrize(
    ("device", "settings", "kernel"),
    [
        (CPU, {}, "plain"),
        (TPU, {}, "splash"),
        (TPU, {"cap": 50.0}, "splash"),
        (TPU, {"biased": True}, "plain (splash takes no biases of relative positions)"),
        (GPU, {}, "cudnn"),
        (GPU, {"cap": 50.0}, "plain (cudnn has no soft cap on scores)"),
        (GPU, {"dtype": "float32"}, "plain (cudnn computes in bfloat16 and float16, not in float32)"),
        (GPU, {"head_dim": 256}, "cudnn"),
        (OLD_GPU, {"head_dim": 256}, "plain (cudnn takes heads of up to 128 in steps of 8, not of 256)"),
    ],
)
def test_auto_takes_what_the_platform_has_or_says_why_not(device, settings, kernel):
    assert str(choose("auto", device, **{"dtype": "bfloat16", "head_dim": 64, **settings})) == kernel


def test_a_kernel_that_is_asked_for_by_name_and_cannot_be_is_an_error():
    with pytest.raises(UserError, match="cudnn is a kernel for GPUs"):
        choose("cudnn", TPU, dtype="bfloat16", head_dim=64)
    assert choose("splash", CPU, dtype="float32", head_dim=64) == INTERPRETED


@pytest.fixture
def lowered_for_gpu(monkeypatch):
    """Return what lowers for a Hopper GPU that need not be there."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    return lambda run, *arrays: jax.jit(run).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


def test_the_mask_of_segments_and_windows_reaches_cudnn(lowered_for_gpu):
    arrays, weights = inputs(jnp.bfloat16)
    seen = seen_by(40)

    def both(q, k, v, g):
        return with_gradients(lambda *a: attend_own(Kernel("cudnn"), TRAIN, *a, seen), (q, k, v), g)

    text = lowered_for_gpu(both, *arrays, jnp.asarray(weights))
    assert "__cudnn$fmhaScaleBiasSoftmax" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
    assert f"tensor<{B}x1x{T}x{T}xbf16>" in text  # the mask, one for all heads of a row


@pytest.mark.gpu
@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="no GPU; where there is one: JAX_PLATFORMS=cuda pytest -m gpu"
)
def test_cudnn_equals_plain_products_forward_and_backward():
    arrays, weights = inputs(jnp.bfloat16)
    seen = seen_by(40)
    plain, fused = (
        with_gradients(lambda *a, kernel=kernel: attend_own(kernel, TRAIN, *a, seen), arrays, weights)
        for kernel in (kernels.PLAIN, Kernel("cudnn"))
    )
    for expected, found in zip(plain, fused, strict=True):
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=0.05)
