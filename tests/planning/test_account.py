"""Operations, bytes and collectives of compiled programs, against what is counted by hand and what XLA counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fiat_jax.planning.account import account
from fiat_jax.planning.groups import axes_of, groups_of
from fiat_jax.planning.hlo import Instruction, parse, walk
from fiat_jax.planning.products import product_flops
from fiat_jax.sharding import MeshConfig

N, D, LAYERS = 64, 256, 5
PRODUCT = 2 * N * D * D
ONE = {"data": 1}


def shape(*dims, sharding=None, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def counted(function, *arguments, mesh=None, trips=None):
    compiled = jax.jit(function).lower(*arguments).compile()
    return account(parse(compiled.as_text()), mesh or ONE, trips), compiled.cost_analysis()


def test_a_product_counts_as_xla_counts_it():
    found, xla = counted(jnp.matmul, shape(N, D), shape(D, D))
    assert found.flops == PRODUCT == xla["flops"]
    assert found.bytes == 4 * (2 * N * D + D * D)


def scanned(x, ws, steps=None):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws, length=steps)[0]


def test_the_body_of_a_scan_counts_once_for_each_trip():
    found, xla = counted(scanned, shape(N, D), shape(LAYERS, D, D))
    assert found.flops == LAYERS * PRODUCT
    assert xla["flops"] < 2 * PRODUCT  # which is why we count ourselves
    assert found.unknown == ()


def test_of_a_stack_that_a_scan_slices_every_layer_is_read_once():
    weight, rows = 4 * D * D, 4 * N * D
    found, _ = counted(scanned, shape(N, D), shape(LAYERS, D, D))
    by_hand = LAYERS * (3 * weight + 4 * rows) + 2 * rows  # sliced out and read; product and tanh; the first copy
    assert by_hand <= found.bytes < 1.01 * by_hand


def test_scans_within_scans_multiply_and_gradients_count_both_products():
    def twice(x, ws):
        return jax.lax.scan(lambda x, _: (scanned(x, ws), None), x, None, length=3)[0]

    assert counted(twice, shape(N, D), shape(LAYERS, D, D))[0].flops == 3 * LAYERS * PRODUCT
    frozen = jax.grad(lambda x, ws: scanned(x, ws).sum())
    assert counted(frozen, shape(N, D), shape(LAYERS, D, D))[0].flops == 2 * LAYERS * PRODUCT
    tuned = jax.grad(lambda x, ws: scanned(x, ws).sum(), argnums=(0, 1))
    assert counted(tuned, shape(N, D), shape(LAYERS, D, D))[0].flops == 3 * LAYERS * PRODUCT


def test_a_loop_whose_length_data_decide_is_named_and_takes_the_trips_that_are_said():
    def until(x, w, n):
        with jax.named_scope("as_often_as_n"):
            return jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ w), x)

    arguments = shape(N, D), shape(D, D), shape(dtype=jnp.int32)
    once, _ = counted(until, *arguments)
    assert once.flops == PRODUCT
    assert [name.endswith("as_often_as_n/while") for name in once.unknown] == [True]
    said, _ = counted(until, *arguments, trips={"as_often_as_n/while": 7})
    assert said.flops == 7 * PRODUCT
    assert said.unknown == ()
    assert list(said.assumed.values()) == [7]


COUNTER = """
HloModule m
%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %s = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,8] get-tuple-element(%s), index=1
  %by = s32[] constant({step})
  %next = s32[] add(%i, %by)
  %y = f32[8,8] dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %t = (s32[], f32[8,8]) tuple(%next, %y)
}}
%cond (s.1: (s32[], f32[8,8])) -> pred[] {{
  %s.1 = (s32[], f32[8,8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %stop = s32[] constant({stop})
  ROOT %go = pred[] compare(%i.1, %stop), direction={direction}
}}
ENTRY %main (x: f32[8,8]) -> f32[8,8] {{
  %x.1 = f32[8,8] parameter(0)
  %start = s32[] constant({start})
  %t.1 = (s32[], f32[8,8]) tuple(%start, %x.1)
  %loop = (s32[], f32[8,8]) while(%t.1), condition=%cond, body=%body
  ROOT %out = f32[8,8] get-tuple-element(%loop), index=1
}}
"""


@pytest.mark.parametrize(
    ("start", "stop", "step", "direction", "trips"),
    [(0, 32, 1, "LT", 32), (0, 8, 2, "LT", 4), (1, 8, 3, "LT", 3), (5, 0, -1, "GT", 5), (4, 2, 1, "LT", 0)],
)
def test_a_counter_says_how_often_a_loop_runs_where_xla_does_not(start, stop, step, direction, trips):
    text = COUNTER.format(start=start, stop=stop, step=step, direction=direction)
    found = account(parse(text), ONE)
    assert (found.flops, found.unknown) == (trips * 2 * 8**3, ())


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "VALID"},
        {"padding": "SAME"},
        {"padding": [(2, 1), (0, 3)], "window_strides": (2, 1)},
        {"padding": [(0, 1), (1, 1)], "lhs_dilation": (2, 3)},
        {"padding": "SAME", "rhs_dilation": (2, 1)},
        {"padding": "SAME", "feature_group_count": 2},
    ],
    ids=str,
)
def test_convolutions_count_as_xla_counts_them(options):
    groups = options.get("feature_group_count", 1)
    given = {"window_strides": (1, 1), **options}
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **given)
    lowered = jax.jit(convolve).lower(shape(2, 9, 8, 4), shape(3, 2, 4 // groups, 6))
    module = parse(lowered.as_text(dialect="hlo"))
    flops = sum(product_flops(where, one) for where, one in walk(module))
    assert flops == lowered.cost_analysis()["flops"]


def test_a_batched_product_that_a_tpu_writes_as_a_dilated_convolution_counts_its_products_alone():
    line = (
        "ENTRY %m (a: f32[8,1024,128], b: f32[8,256,128]) -> f32[8,1024,256] {\n"
        "  %a = f32[8,1024,128]{2,1,0} parameter(0)\n  %b = f32[8,256,128]{2,1,0} parameter(1)\n"
        "  ROOT %c = f32[8,1024,256]{1,2,0:T(8,128)} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8},"
        " dim_labels=0bf_0oi->0bf\n}"
    )
    assert account(parse(line), ONE).flops == 2 * 8 * 1024 * 256 * 128


def test_collectives_have_their_axis_their_bytes_and_the_trips_of_their_loop():
    mesh = MeshConfig(2, 2, 2).build()
    at = functools.partial(NamedSharding, mesh)
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}

    def step(x, up, down):  # weights gathered along fsdp, sums added up over tensor
        def layer(x, weights):
            up, down = (jax.lax.with_sharding_constraint(w, at(s)) for w, s in zip(weights, ups, strict=True))
            return jax.lax.with_sharding_constraint(x @ up @ down, at(P(("data", "fsdp"), None))), None

        ups = P(None, "tensor"), P("tensor", None)
        return jax.lax.scan(layer, x, (up, down))[0]

    arguments = (
        shape(N, D, sharding=at(P(("data", "fsdp"), None))),
        shape(LAYERS, D, 2 * D, sharding=at(P(None, "fsdp", "tensor"))),
        shape(LAYERS, 2 * D, D, sharding=at(P(None, "tensor", "fsdp"))),
    )
    found, _ = counted(step, *arguments, mesh=sizes)
    by_kind = {(one.kind, one.axes): 0.0 for one in found.collectives}
    for one in found.collectives:
        by_kind[one.kind, one.axes] += one.bytes
    half = 4 * D * D  # of each of a layer's two matrices, split over tensor
    assert by_kind.pop(("all-gather", ("fsdp",))) == LAYERS * 2 * half * (2 - 1) / 2
    assert by_kind.pop(("all-reduce", ("tensor",))) == LAYERS * 2 * (4 * N * D // 4) * (2 - 1) / 2
    assert by_kind == {}
    assert found.flops == LAYERS * 2 * 2 * (N // 4) * D * D


def groups(text: str) -> list[list[int]]:
    return groups_of(Instruction("c", "f32[8]", "all-gather", (), "", f", replica_groups={text}, dim=0", False), 8)


MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[4,2]T(0,1)", ("tensor",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("fsdp", "tensor")),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",)),
        ("mesh['axis_0'=8] {'axis_0':(2)2}", ("fsdp",)),
        ("mesh['axis_0'=8] {'axis_0':(4)2}", ("tensor",)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(2)2}", ("data", "tensor")),
    ],
)
def test_groups_are_read_in_every_form_in_which_xla_writes_them(text, axes):
    found = groups(text)
    assert axes_of(found, MESH) == axes
    assert sorted(device for group in found for device in group) == list(range(8))
    assert {len(group) for group in found} == {int(np.prod([MESH[axis] for axis in axes]))}


def test_a_ring_of_permutes_lies_along_its_axis():
    pairs = ", source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}, x={}"
    found = groups_of(Instruction("p", "f32[8]", "collective-permute", (), "", pairs, False), 8)
    assert sorted(found) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert axes_of(found, MESH) == ("tensor",)


def test_what_lies_on_chip_costs_no_bytes_and_tiles_are_filled_up():
    text = (
        "ENTRY %m (a: bf16[100,100]) -> bf16[100,100] {\n"
        "  %a = bf16[100,100]{1,0:T(8,128)(2,1)} parameter(0)\n"
        "  %near = bf16[100,100]{1,0:T(8,128)(2,1)S(1)} negate(%a)\n"
        "  ROOT %far = bf16[100,100]{1,0:T(8,128)(2,1)} negate(%near)\n}"
    )
    module = parse(text)
    assert account(module, ONE).bytes == 2 * 2 * 100 * 100
    assert module.entry.parameters[0].arrays[0].padded_bytes == 2 * 104 * 128


STEPS = """
HloModule m
%start (p: bf16[64,8]) -> (bf16[64,8], bf16[64,128]) {
  %p = bf16[64,8] parameter(0)
  %g = bf16[64,128] all-gather(%p), channel_id=7, replica_groups={{0,1}}, dimensions={1}, backend_config={"async_collective_fusion_config":{}}
  ROOT %s = (bf16[64,8], bf16[64,128]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}
%step (p.1: bf16[64,8], q: bf16[64,128], x: f32[16]) -> (f32[16], bf16[64,8], bf16[64,128]) {
  %p.1 = bf16[64,8] parameter(0)
  %q = bf16[64,128] parameter(1)
  %x = f32[16] parameter(2)
  %g.1 = bf16[64,128] all-gather(%p.1), channel_id=7, replica_groups={{0,1}}, dimensions={1}, backend_config={"async_collective_fusion_config":{}}
  %y = f32[16] negate(%x)
  ROOT %r = (f32[16], bf16[64,8], bf16[64,128]) tuple(%y, %p.1, %q)
}
ENTRY %main (a: bf16[64,8], b: f32[16]) -> f32[16] {
  %a = bf16[64,8] parameter(0)
  %b = f32[16] parameter(1)
  %f = (bf16[64,8], bf16[64,128]) fusion(%a), kind=kCustom, calls=%start
  %w = bf16[64,128] get-tuple-element(%f), index=1
  %h = (f32[16], bf16[64,8], bf16[64,128]) fusion(%a, %w, %b), kind=kCustom, calls=%step
  ROOT %o = f32[16] get-tuple-element(%h), index=0
}
"""  # noqa: E501


def test_an_exchange_that_is_cut_into_steps_counts_once():
    found = account(parse(STEPS), {"fsdp": 2})
    (gathered,) = found.collectives
    assert (gathered.count, gathered.bytes) == (1, 2 * 64 * 8)
    begun = 2 * 64 * 8 + 2 * (64 * 8 + 64 * 128)
    assert found.bytes == begun + 2 * 4 * 16  # the step reads and writes x alone
