"""Which part of the model an operation of the compiled step belongs to, and what it does.

Every operation keeps the path of names (`op_name`) under which it was traced: flax modules and
`jax.named_scope`. The first name of `PARTS` in the path has the operation. A fusion belongs to the
matrix product in it. Operations without a name of their own take it from what is fused into them, from the
operations next to them (the compiler drops the names of products that it turns round), or from the loop that
they are in.
"""

import re
from typing import NamedTuple

from hope_jax.planning import hlo
from hope_jax.planning.counts import product_flops
from hope_jax.planning.hlo import Instruction

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
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")


class Op(NamedTuple):
    """backward, recomputed: in a backward pass; forward work done again there. product_flops: of the matrix
    products in it. source: file:line that traced it."""

    part: str
    backward: bool
    recomputed: bool
    product_flops: float
    source: str


class Ops:
    """The operations of a compiled program by name. text: of `compiled.as_text()`."""

    def __init__(self, text: str) -> None:
        self._computations, self._sources = hlo.parse(text).computations, _sources(text)
        self._home = {name: inside for inside in self._computations.values() for name in inside}
        callers: dict[str, Instruction] = {}
        for name, inside in self._home.items():
            for called in inside[name].called(*_CALLS):
                callers.setdefault(called, inside[name])
        inner = [
            (name, caller)
            for called, caller in callers.items()
            for name in self._computations.get(called, ())
        ]
        self._caller = dict(inner)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def __getitem__(self, name: str) -> Op:
        instruction = self._home[name][name]
        path, frame = self._path(instruction), _FRAME.search(instruction.attributes)
        source = self._sources.get(frame[1], "") if frame else ""
        return Op(part_of(path), "transpose(" in path, "rematted" in path, self._flops(instruction), source)

    def is_control(self, name: str) -> bool:
        """Whether it is a loop, conditional or call."""
        return name in self and self._home[name][name].opcode in _CONTROL

    def _fused(self, instruction: Instruction) -> list[Instruction]:
        """What is fused into an operation."""
        names = instruction.called("calls") if instruction.opcode == "fusion" else ()
        return [each for name in names for each in self._computations[name].values()]

    def _flops(self, instruction: Instruction) -> float:
        own = sum(product_flops(self._home[instruction.name], instruction).values())
        return own + sum(self._flops(each) for each in self._fused(instruction))

    def _path(self, instruction: Instruction) -> str:
        """The op_name that names a part: of a matrix product in it, its own, of what else is fused into it,
        of operations next to it, or of the loop around it."""
        own, fused = _op_name(instruction), self._fused(instruction)
        products = [each for each in fused if product_flops(self._home[each.name], each)]
        beside = [] if own else self._neighbours(instruction)
        around, at = [], instruction
        while at.name in self._caller:
            at = self._caller[at.name]
            around.append(at)
        paths = map(_op_name, (*products, instruction, *fused, *beside, *around))
        return next((path for path in paths if part_of(path) != OTHER), own)

    def _neighbours(self, instruction: Instruction) -> list[Instruction]:
        """What uses the operation and what makes its operands, up to two steps away, nearest first."""
        inside = self._home[instruction.name]
        found, ring = [], [instruction]
        for _ in range(2):
            names = {each.name for each in ring}
            users = [each for each in inside.values() if names.intersection(each.operands)]
            ring = [*users, *(inside[name] for each in ring for name in each.operands)]
            # A loop's tuple is next to everything.
            ring = [each for each in ring if each.opcode not in ("parameter", "tuple", *_CONTROL)]
            found += ring
        return found


def part_of(op_name: str) -> str:
    """The part that a path of names belongs to."""
    words = set(re.findall(r"\w+", op_name))
    return next((part for name, part in PARTS.items() if name in words), OTHER)


def _op_name(instruction: Instruction) -> str:
    found = _OP_NAME.search(instruction.attributes)
    return found[1] if found else ""


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
