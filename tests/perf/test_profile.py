"""The profile by part: whose time it is, and what an operation of a real step belongs to."""

import pytest

from hope_jax import profile
from hope_jax.perf.op_times import times
from hope_jax.planning.parts import PARTS, operations, part_of
from tests.perf import tiny


def test_an_operation_lasts_until_its_end_event() -> None:
    events = [("a", 0.0, 1.0), ("end: a", 2.9, 3.0), ("a", 5.0, 7.0), ("b", 2.0, 6.0)]
    assert times(events) == {"a": (1.0 + 2.0, 2), "b": (4.0, 1)}, "an end is missing"
    events.append(("end: a", 6.0, 6.5))
    assert times(events)["a"] == (3.0 + 2.0, 2)


def test_only_what_runs_inside_a_loop_counts() -> None:
    text = """ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[4,8]{1,0} negate(%a), metadata={op_name="jit(train)/attn/neg"}
  ROOT %loop = f32[4,8]{1,0} while(%b), condition=%cond, body=%body
}
"""
    found = operations(text, {"b", "loop"})
    assert {name: op.part for name, op in found.items()} == {"b": "attention"}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (
            "jit(train)/while/transpose(jvp(vmap(Lm)))/while/body/blocks/blocks.through_cms/cms/add",
            "CMS read",
        ),
        ("jit(train)/jvp(write)/cond/branch_1_fun/vmap()/while/body/cms_write/mul", "CMS write"),
        ("jit(train)/titan_write/jvp(self_modifier)/dot", "SelfModifier"),
        ("jit(train)/outer_step/mul", "outer optimizer"),
        ("jit(train)/while/body/closed_call", "other"),
    ],
)
def test_the_first_part_named_has_the_operation(path: str, part: str) -> None:
    assert part_of(path) == part


def test_profile_of_a_step_names_its_parts() -> None:
    found = profile.profile(tiny.config(model__num_layers=1), top=5)
    parts = {part["part"]: part for part in found["parts"]}
    assert {"CMS write", "CMS read", "attention", "head and loss", "outer optimizer"} <= set(parts)
    assert set(parts) <= {*PARTS.values(), "other"}
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in found["parts"]))
    assert parts["CMS read"]["gflops"] > 0
    assert found["products"] > found["useful"]
    assert len(found["top"]) == 5 and len(profile.lines(found)) == len(found["parts"]) + 2 + 2 + 5
