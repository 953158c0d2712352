"""Counts of compiled programs: against arithmetic, against XLA's own, and on text of other backends."""

import jax
import jax.numpy as jnp
import pytest

from hope_jax.planning import hlo
from hope_jax.planning.counts import count, group_size


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def layers(x, w):
    def inner(x, _):
        return jnp.tanh(x @ w), None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=3)[0], None

    return jax.lax.scan(outer, x, None, length=5)[0]


def test_a_loop_counts_as_often_as_it_runs() -> None:
    program = compiled(layers, (8, 64), (64, 64))
    counts = count(program.as_text())
    assert counts.total_flops == 15 * 2 * 8 * 64 * 64
    assert counts.unknown_loops == 0
    # A loop reads its weights each time around.
    assert counts.bytes >= 15 * 64 * 64 * 4


def test_without_loops_the_count_is_the_compilers() -> None:
    program = compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 32, 16), (4, 16, 64))
    counts, own = count(program.as_text()), program.cost_analysis()
    assert counts.total_flops == own["flops"] == 2 * 4 * 32 * 16 * 64
    assert counts.bytes == pytest.approx(own["bytes accessed"], rel=0.01)


def test_a_slice_of_a_stack_counts_as_the_slice() -> None:
    def read(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.sin(x + w), None), x, stack)[0]

    counts = count(compiled(read, (256,), (100, 256)).as_text())
    stack = 100 * 256 * 4
    assert stack < counts.bytes < 8 * stack


LOOP = """HloModule m

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(6)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.1 = (s32[], f32[4,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p.1), index=1
  %all-reduce.1 = f32[4,8]{1,0} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i.1, %all-reduce.1)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], /*index=1*/f32[4,8]{1,0}) while(%start), condition=%cond, body=%body
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_in_a_loop_and_the_length_from_its_condition() -> None:
    found = count(LOOP).collectives["all-reduce"]
    assert found.times == 6
    assert found.payload == 6 * 4 * 8 * 4
    assert found.sent == pytest.approx(found.payload * 2 * 3 / 4)


def test_a_loop_of_unknown_length_counts_once_and_is_told() -> None:
    counts = count(LOOP.replace("constant(6)", "parameter(1)"))
    assert (counts.unknown_loops, counts.collectives["all-reduce"].times) == (1, 1)


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # A batched product as a convolution with base dilation, as the TPU compiler writes it.
        (
            "f32[2,32,64]{2,1,0} convolution(%a, %b), window={size=2 lhs_dilate=2}, dim_labels=0bf_0io->0bf",
            2 * 2 * 32 * 16 * 64,
        ),
        (
            '(f32[2,32,64]{2,1,0}, s8[4]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
            'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}}',
            2 * 2 * 32 * 16 * 64,
        ),
    ],
)
def test_products_of_other_backends(line: str, flops: float) -> None:
    text = f"""ENTRY %main (a: f32[2,32,16], b: f32[2,16,64]) -> f32[2,32,64] {{
  %a = f32[2,32,16]{{2,1,0}} parameter(0)
  %b = f32[2,16,64]{{2,1,0}} parameter(1)
  ROOT %product = {line}
}}
"""
    assert count(text).flops == {"f32": flops}


def test_what_stays_on_the_chip_is_no_traffic() -> None:
    text = """ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %b = f32[64]{0:T(128)S(1)} negate(%a)
  ROOT %c = f32[64]{0} negate(%b)
}
"""
    assert count(text, on_chip=frozenset({1})).bytes == 2 * 64 * 4
    assert count(text).bytes == 4 * 64 * 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("channel_id=1", None),
    ],
)
def test_group_sizes(text: str, size: int | None) -> None:
    assert group_size(text) == size


def test_text_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")
