"""What instructions read of main memory and write to it, where fusions slice, update in place and hold fusions."""

import pytest

from fiat_jax.planning.account import account
from fiat_jax.planning.cautions import of_copies
from fiat_jax.planning.hlo import parse

ONE = {"data": 1}

# A layer's product as a TPU's compiler writes it: the slice of the stack is a fusion within the fusion.
LAYER = """
HloModule m
%slice (w: bf16[32,64,128], i: s32[]) -> bf16[64,128] {
  %w = bf16[32,64,128] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,128] dynamic-slice(%w, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %view = bf16[64,128] bitcast(%one)
}
%norm (x: bf16[16,64]) -> bf16[16,64] {
  %x = bf16[16,64] parameter(0)
  %wide = f32[16,64] convert(%x)
  ROOT %narrow = bf16[16,64] convert(%wide)
}
%product (x.1: bf16[16,64], w.1: bf16[32,64,128], i.1: s32[]) -> bf16[16,128] {
  %x.1 = bf16[16,64] parameter(0)
  %w.1 = bf16[32,64,128] parameter(1)
  %i.1 = s32[] parameter(2)
  %left = bf16[16,64] fusion(%x.1), kind=kLoop, calls=%norm
  %right = bf16[64,128] fusion(%w.1, %i.1), kind=kLoop, calls=%slice
  ROOT %y = bf16[16,128] convolution(%left, %right), dim_labels=bf_io->bf
}
ENTRY %main (a: bf16[16,64], b: bf16[32,64,128], c: s32[]) -> bf16[16,128] {
  %a = bf16[16,64] parameter(0)
  %b = bf16[32,64,128] parameter(1)
  %c = s32[] parameter(2)
  ROOT %f = bf16[16,128] fusion(%a, %b, %c), kind=kOutput, calls=%product
}
"""


def test_of_a_stack_that_a_fusion_within_a_fusion_slices_one_layer_is_read():
    found = account(parse(LAYER), ONE)
    assert found.bytes == 2 * (16 * 64 + 64 * 128 + 16 * 128) + 4
    assert found.flops == 2 * 16 * 64 * 128


# A row of a cache is blended with what lay there and written in place; the whole of it is a result of the loop's body.
UPDATE = """
HloModule m
%rows (v: f32[4], on: pred[]) -> f32[1,4] {{
  %v = f32[4] parameter(0)
  ROOT %row = f32[1,4] bitcast(%v)
}}
%write (held: f32[100,4], at: s32[], v.1: f32[4], on.1: pred[]) -> {result} {{
  %held = f32[100,4] parameter(0)
  %at = s32[] parameter(1)
  %v.1 = f32[4] parameter(2)
  %on.1 = pred[] parameter(3)
  %zero = s32[] constant(0)
  %new = f32[1,4] fusion(%v.1, %on.1), kind=kLoop, calls=%rows
  %old = f32[1,4] dynamic-slice(%held, %at, %zero), dynamic_slice_sizes={{1,4}}
  %every = pred[1,4] broadcast(%on.1), dimensions={{}}
  %blend = f32[1,4] select(%every, %new, %old)
  {root}%all = f32[100,4] dynamic-update-slice(%held, %blend, %at, %zero)
  {behind}
}}
ENTRY %main (a: f32[100,4], b: s32[], c: f32[4], d: pred[]) -> {result} {{
  %a = f32[100,4] parameter(0)
  %b = s32[] parameter(1)
  %c = f32[4] parameter(2)
  %d = pred[] parameter(3)
  ROOT %f = {result} fusion(%a, %b, %c, %d), kind=kLoop, calls=%write
}}
"""
ROW, INDICES = 4 * 4, 4 + 1


def test_what_is_written_in_place_costs_its_row_and_not_the_cache():
    text = UPDATE.format(result="f32[100,4]", root="ROOT ", behind="")
    assert account(parse(text), ONE).bytes == 3 * ROW + INDICES  # what lay there, what comes, what is written


def test_another_view_of_what_is_written_in_place_is_no_copy():
    behind = "ROOT %view = f32[4,100] bitcast(%all)"
    text = UPDATE.format(result="f32[4,100]", root="", behind=behind)
    assert account(parse(text), ONE).bytes == 3 * ROW + INDICES


def test_what_is_computed_of_an_updated_array_reads_and_writes_all_of_it():
    text = UPDATE.format(result="f32[100,4]", root="", behind="ROOT %minus = f32[100,4] negate(%all)")
    assert account(parse(text), ONE).bytes == 100 * ROW + ROW + 100 * ROW + INDICES  # the row of %held and %blend are 1


@pytest.mark.parametrize(
    ("kernel", "grid", "flops"),
    [
        ("fwd", (4, 4), 2 * 2 * 10 / 16),
        ("dq", (4, 4), 2 * 3 * 10 / 16),
        ("dkv", (4, 4), 2 * 4 * 10 / 16),
        ("fwd", (4, 2), 2 * 2 * 8 / 16),  # a window of less than a block: the last block and that before
        ("fwd", (1, 1), 2 * 2),
        ("fwd", None, 2 * 2),
    ],
)
def test_splash_attention_counts_the_pairs_of_blocks_that_its_mask_leaves(kernel, grid, flops):
    where = f'metadata={{op_name="jit(f)/splash_mha_{kernel}_segmented/pallas_call"}}'
    blocks = "" if grid is None else f"  %blocks = s8[1,{grid[0]},{grid[1]}] constant({{...}})\n"
    operands = "%q, %k, %v" if grid is None else "%blocks, %blocks, %q, %k, %v"
    text = (
        "ENTRY %main (q: bf16[2,4,2048,128], k: bf16[2,2,2048,128], v: bf16[2,2,2048,128]) -> bf16[2,4,2048,128] {\n"
        "  %q = bf16[2,4,2048,128] parameter(0)\n  %k = bf16[2,2,2048,128] parameter(1)\n"
        f"  %v = bf16[2,2,2048,128] parameter(2)\n{blocks}"
        f'  %o = bf16[2,4,2048,128] custom-call({operands}), custom_call_target="tpu_custom_call", '
        f'frontend_attributes={{kernel_metadata={{\n"xprof_metadata":"{{}}"\n}}}}, {where}\n'
        "  ROOT %p = bf16[2,4,2048,128] negate(%o)\n}"
    )
    found = account(parse(text), ONE)
    assert found.flops == flops * 2 * 4 * 2048 * 2048 * 128
    operands = 2 * 2048 * 128 * 2 * (4 + 2 + 2) + (0 if grid is None else 2 * grid[0] * grid[1])
    assert found.bytes == operands + 3 * 2 * 4 * 2048 * 128 * 2  # its result is written, and read and written again
    assert found.uncounted == ()


# An embedding's lookup as the compiler for a TPU with SparseCores writes it.
LOOKUP = """
%lookup (w: bf16[256000,2304], i: s32[2048]) -> bf16[2048,2304] {
  %w = bf16[256000,2304] parameter(0)
  %i = s32[2048] parameter(1)
  ROOT %rows = bf16[2048,2304] gather(%w, %i), offset_dims={1}
}
%called (w.1: bf16[256000,2304], i.1: s32[2048]) -> bf16[2048,2304] {
  %w.1 = bf16[256000,2304] parameter(0)
  %i.1 = s32[2048] parameter(1)
  %begun = ((bf16[256000,2304], s32[2048]), bf16[2048,2304]) async-start(%w.1, %i.1), calls=%lookup
  ROOT %done = bf16[2048,2304] async-done(%begun)
}
ENTRY %main (a: bf16[256000,2304], b: s32[2048]) -> bf16[2048,2304] {
  %a = bf16[256000,2304] parameter(0)
  %b = s32[2048] parameter(1)
  ROOT %x = bf16[2048,2304] custom-call(%a, %b), custom_call_target="TODO(b/522284627)", called_computations={%called}
}
"""


def test_a_lookup_on_other_cores_of_the_chip_reads_its_rows_alone():
    found = account(parse(LOOKUP), ONE)
    assert found.bytes == 2 * 2048 * 2304 * 2
    assert (found.flops, found.uncounted) == (0, ())


def test_large_arrays_that_are_copied_in_main_memory_are_told_of():
    text = (
        "ENTRY %main (a: bf16[64,1024,1024]) -> bf16[64,1024,1024] {{\n  %a = bf16[64,1024,1024] parameter(0)\n"
        "  ROOT %b = bf16[64,1024,1024]{{{layout}}} copy(%a)\n}}"
    )
    told = of_copies(parse(text.format(layout="0,1,2")))
    assert told == [
        "0.12 GiB a device are copied within its memory, once or in each trip of a loop: bf16[64, 1024, 1024]"
    ]
    assert of_copies(parse(text.format(layout="0,1,2:S(1)"))) == []  # on chip


def test_a_program_that_makes_several_runs_at_a_time_counts_the_share_of_one():
    found = account(parse(LAYER), ONE)
    assert found.over(4).bytes == found.bytes / 4
    assert found.over(4).flops == found.flops / 4


# A slice of something computed of all elements: what is fused is computed only where it is wanted.
CUT = """
HloModule m
%cut (w: f32[32,64], i: s32[]) -> f32[{rows},64] {{
  %w = f32[32,64] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %e = f32[32,64] {first}(%w)
  ROOT %one = f32[{rows},64] dynamic-slice(%e, %i, %zero), dynamic_slice_sizes={{{rows},64}}
}}
ENTRY %main (a: f32[32,64], b: s32[]) -> f32[{rows},64] {{
  %a = f32[32,64] parameter(0)
  %b = s32[] parameter(1)
  ROOT %f = f32[{rows},64] fusion(%a, %b), kind=kLoop, calls=%cut
}}
"""


@pytest.mark.parametrize("first", ["exponential", "bitcast", "convert"])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_fused_is_read_only_where_it_is_wanted(first, rows):
    assert account(parse(CUT.format(first=first, rows=rows)), ONE).bytes == 2 * 4 * rows * 64 + 4
