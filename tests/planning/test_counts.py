"""Counts of compiled programs: against arithmetic, against XLA's own, and on text of other backends."""

import jax
import jax.numpy as jnp
import pytest

from hope_jax.planning import hlo
from hope_jax.planning.counts import Counts, count, group_size
from hope_jax.planning.traffic import CAUSES


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
    assert {kernel.runs for kernel in counts.kernels if kernel.flops} == {15}
    assert counts.launches >= 15 * 2


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
        # cuDNN's attention under a causal mask.
        (
            "(f32[2,32,16]{2,1,0}, u8[0]{0}) custom-call(%a, %b, %b), "
            'custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": '
            '{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "1", "32", "32"], '
            '"tuple_shapes": []}, "mask_type": "CAUSAL"}}',
            2 * 2 * 32 * 32 * 16 * 2 / 2,
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


def test_causes_are_what_a_kernel_does_besides_indices() -> None:
    text = """HloModule m

%moved (p: f32[4,8], q: f32[8], i: s32[]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %i = s32[] parameter(2)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %row = f32[1,8]{1,0} bitcast(%q)
  ROOT %put = f32[4,8]{1,0} dynamic-update-slice(%p, %row, %next, %one)
}

%narrowed (p.1: f32[4,8]) -> bf16[4,8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %c = f32[4,8]{1,0} copy(%p.1)
  ROOT %n = bf16[4,8]{1,0} convert(%c)
}

%added (p.2: f32[4,8]) -> bf16[4,8] {
  %p.2 = f32[4,8]{1,0} parameter(0)
  %a = f32[4,8]{1,0} add(%p.2, %p.2)
  ROOT %n.1 = bf16[4,8]{1,0} convert(%a)
}

ENTRY %main (a: f32[4,8], b: f32[8], i: s32[]) -> f32[8,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %i.1 = s32[] parameter(2)
  %copied = f32[4,8]{0,1} copy(%a)
  %put.1 = f32[4,8]{1,0} fusion(%copied, %b, %i.1), kind=kLoop, calls=%moved
  %cast = bf16[4,8]{1,0} fusion(%put.1), kind=kLoop, calls=%narrowed
  %sum = bf16[4,8]{1,0} fusion(%put.1), kind=kLoop, calls=%added
  %kernel = (f32[4,8]{1,0}, f32[4,8]{1,0}) custom-call(%put.1, %sum), custom_call_target="__gpu$xla.gpu.triton", output_to_operand_aliasing={{0}: (0, {})}
  %attention = (bf16[4,8]{1,0}, u8[999]{0}) custom-call(%sum, %cast), custom_call_target="__cudnn$fmhaSoftmax"
  %left = f32[4,8]{1,0} get-tuple-element(%kernel), index=0
  ROOT %joined = f32[8,8]{1,0} concatenate(%left, %copied), dimensions={0}
}
"""  # noqa: E501
    counts, array = count(text), 4 * 8 * 4
    found = {kernel.it.name: (kernel.cause, kernel.bytes) for kernel in counts.kernels}
    assert found == {
        "copied": ("copies", 2 * array),
        "put.1": ("slices", 4 * 8 + 4 * 8 + 4),
        "cast": ("casts", 1.5 * array),
        "sum": ("other", 1.5 * array),
        "kernel": ("Pallas kernels", 3.5 * array),
        "attention": ("attention kernels", 1.5 * array),
        "joined": ("concatenations", 4 * array),
    }
    assert counts.launches == 7 and set(CAUSES) >= {cause for cause, _ in found.values()}


def test_a_conditional_counts_its_costlier_branch_and_on_logged_steps_its_cheaper() -> None:
    def step(x: jax.Array, due: jax.Array) -> jax.Array:
        return jax.lax.cond(due, lambda x: x @ x, lambda x: x, x)

    def loop(scope: str) -> Counts:
        def body(x: jax.Array, due: jax.Array) -> tuple[jax.Array, None]:
            with jax.named_scope(scope):
                return step(x, due), None

        def run(x: jax.Array) -> jax.Array:
            return jax.lax.scan(body, x, x[:5, 0] > 0)[0]

        return count(compiled(run, (16, 16)).as_text())

    always, logged = loop("write"), loop("logged")
    assert (always.total_flops, logged.total_flops) == (5 * 2 * 16**3, 0)
    assert (always.conditionals, always.logged) == (5, 0)
    assert (logged.conditionals, logged.logged) == (5, 5)
    assert logged.launches < always.launches
