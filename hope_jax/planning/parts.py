"""Which part of the model an operation of the compiled step belongs to, and what it does.

Every operation keeps the path of names (`op_name`) under which it was traced, by
`jax.named_scope`. The first name of `PARTS` in the path has the operation. A fusion belongs to the
matrix product in it. Operations without a name of their own take it from what is fused into them, or from
the loop that they are in.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from hope_jax.planning import hlo
from hope_jax.planning.hlo import Computation, Instruction, Program
from hope_jax.planning.products import product_flops

PARTS = {
    "outer_step": "outer optimizer",
    "gradient_sum": "gradients: products, sums",
    "cms_write": "CMS write",
    "self_modifier": "SelfModifier",
    "titan_write": "TITAN write",
    "write": "writes: states in and out",
    "self_mod": "self-modifying Titans",
    "gated_deltanet": "Gated DeltaNet",
    "attn": "attention",
    "mlp": "MLP",
    "swiglu": "MLP",
    "cms": "CMS read",
    "titan": "TITAN read",
    "head": "head and loss",
    "final_norm": "head and loss",
    "teach": "teach signal",
}
"""Name in a path -> part; the first that is in it wins."""

OTHER = "other"
_CONTROL = {"while", "conditional", "call"}
_CALLS = ("calls", "body", "condition", "to_apply", *hlo.BRANCHES)


class Op(NamedTuple):
    """backward, recomputed: in a backward pass; forward work done again there. product_flops: of the matrix
    products in it. op_name: the path that names the part. source: file:line that traced it."""

    part: str
    backward: bool
    recomputed: bool
    product_flops: float
    op_name: str
    source: str


def operations(text: str, wanted: Collection[str]) -> dict[str, Op]:
    """Those of `compiled.as_text()` with these names, without loops, conditionals and calls."""
    program, sources = hlo.parse(text), _sources(text)
    # Of each computation the paths of the loops that it is in, the nearest first.
    around: dict[str, tuple[str, ...]] = {}
    for name, inside in reversed(program.computations.items()):  # callers stand behind what they call
        for it in inside.values():
            for called in it.called(*_CALLS):
                around.setdefault(called, (it.op_name, *around.get(name, ())))
    found = {}
    for name, inside in program.computations.items():
        for it in inside.values():
            if it.name in wanted and it.opcode not in _CONTROL:
                found[it.name] = _op(program, inside, it, around.get(name, ()), sources)
    return found


def _op(
    program: Program, inside: Computation, it: Instruction, around: tuple[str, ...], sources: dict[str, str]
) -> Op:
    fused = list(hlo.fused(program, inside, it))
    flops = {each.name: sum(product_flops(home, each).values()) for home, each in fused}
    products = [each.op_name for _, each in fused if flops[each.name]]
    paths = [*products, *(each.op_name for _, each in fused), *around]
    path = next((path for path in paths if part_of(path) != OTHER), it.op_name)
    frame = re.search(r"stack_frame_id=(\d+)", it.attributes)
    source = sources.get(frame[1], "") if frame else ""
    return Op(part_of(path), "transpose(" in path, "rematted" in path, sum(flops.values()), path, source)


def part_of(op_name: str) -> str:
    """The part that a path of names belongs to."""
    words = set(re.findall(r"\w+", op_name))
    return next((part for name, part in PARTS.items() if name in words), OTHER)


def _sources(text: str) -> dict[str, str]:
    """Stack frame -> folder/file:line, from the tables at the head of a program's text."""

    def table(title: str, pattern: str) -> dict[str, tuple[str, ...]]:
        body = text.partition(f"\n{title}\n")[2].partition("\n\n")[0]
        return {row[0]: row[1:] for row in re.findall(rf"^(\d+) {pattern}", body, re.MULTILINE)}

    files = table("FileNames", r'"([^"]*)"')
    places = table("FileLocations", r"\{file_name_id=(\d+) .*?line=(\d+)")
    found = {}
    for frame, (place,) in table("StackFrames", r"\{file_location_id=(\d+)").items():
        file, line = places.get(place, ("", ""))
        found[frame] = "/".join(files.get(file, ("",))[0].split("/")[-2:]) + f":{line}"
    return found
