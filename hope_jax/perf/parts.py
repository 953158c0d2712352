"""Which part of the model an operation of the compiled step belongs to, and what it does.

Every operation keeps the path of names (`op_name`) under which it was traced: flax modules and
`jax.named_scope`. The first of `PARTS` with a name in the path has the operation. A fusion belongs to the
matrix product in it. Operations without a name of their own take it from what is fused into them, from the
operations next to them (the compiler drops the names of products that it turns round), or from the loop that
they are in.
"""

import re
from typing import NamedTuple

from hope_jax.planning import hlo
from hope_jax.planning.counts import product_flops
from hope_jax.planning.hlo import Instruction

PARTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("outer optimizer", frozenset({"outer_step"})),
    ("gradients: products, sums", frozenset({"gradient_sum"})),
    ("CMS write", frozenset({"cms_write"})),
    ("SelfModifier", frozenset({"self_modifier"})),
    ("TITAN write", frozenset({"titan_write"})),
    ("writes: states in and out", frozenset({"write"})),
    ("self-modifying Titans", frozenset({"self_mod"})),
    ("Gated DeltaNet", frozenset({"gated_deltanet"})),
    ("attention", frozenset({"attn"})),
    ("MLP", frozenset({"mlp"})),
    ("CMS read", frozenset({"cms"})),
    ("TITAN read", frozenset({"titan"})),
    ("head and loss", frozenset({"head", "final_norm"})),
    ("teach signal", frozenset({"teach"})),
)
"""Part -> names that it is recognised by; the first match wins."""

OTHER = "other"
_CONTROL = {"while", "conditional", "call"}
_CALLS = ("calls", "body", "condition", "to_apply", "branch_computations", "true_computation")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")


class Op(NamedTuple):
    """control: a loop, conditional or call. backward, recomputed: in a backward pass; forward work done again
    there. product_flops: of the matrix products in it. source: file:line that traced it."""

    part: str
    control: bool
    backward: bool
    recomputed: bool
    product_flops: float
    source: str


class Ops:
    """The operations of a compiled program by name. text: of `compiled.as_text()`."""

    def __init__(self, text: str) -> None:
        self._program = hlo.parse(text)
        self._sources = _sources(text)
        self._home: dict[str, str] = {}
        self._caller: dict[str, Instruction] = {}
        for name, inside in self._program.computations.items():
            for instruction in inside.values():
                self._home[instruction.name] = name
                for called in instruction.called(*_CALLS, "false_computation"):
                    self._caller.setdefault(called, instruction)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def __getitem__(self, name: str) -> Op:
        instruction = self._program.computations[self._home[name]][name]
        path = self._path(instruction)
        frame = _FRAME.search(instruction.attributes)
        return Op(
            part=part_of(path),
            control=instruction.opcode in _CONTROL,
            backward="transpose(" in path,
            recomputed="rematted" in path,
            product_flops=self._flops(instruction),
            source=self._sources.get(frame[1], "") if frame else "",
        )

    def is_control(self, name: str) -> bool:
        """Whether it is a loop, conditional or call."""
        return name in self and self._program.computations[self._home[name]][name].opcode in _CONTROL

    def _path(self, instruction: Instruction) -> str:
        """The op_name that names a part: of a matrix product in it, its own, of what else is fused into it,
        of operations next to it, or of the loop around it."""
        own = _op_name(instruction)
        products: list[str] = []
        inside: list[str] = []
        for name in instruction.called("calls") if instruction.opcode == "fusion" else ():
            fused = self._program.computations[name]
            for each in fused.values():
                (products if product_flops(fused, each) else inside).append(_op_name(each))
        beside = [] if own else [_op_name(each) for each in self._neighbours(instruction)]
        around, at = [], instruction
        while (caller := self._caller.get(self._home[at.name])) is not None:
            around.append(_op_name(caller))
            at = caller
        named = (path for path in (*products, own, *inside, *beside, *around) if part_of(path) != OTHER)
        return next(named, own)

    def _neighbours(self, instruction: Instruction) -> list[Instruction]:
        """What uses the operation and what makes its operands, up to two steps away, nearest first."""
        computation = self._program.computations[self._home[instruction.name]]
        found, ring = [], [instruction]
        for _ in range(2):
            names = {each.name for each in ring}
            users = [each for each in computation.values() if names.intersection(each.operands)]
            ring = [*users, *(computation[name] for each in ring for name in each.operands)]
            # A loop's tuple is next to everything.
            ring = [each for each in ring if each.opcode not in ("parameter", "tuple", *_CONTROL)]
            found += ring
        return found

    def _flops(self, instruction: Instruction) -> float:
        inside = self._program.computations[self._home[instruction.name]]
        own = sum(product_flops(inside, instruction).values())
        for name in instruction.called("calls") if instruction.opcode == "fusion" else ():
            own += sum(self._flops(each) for each in self._program.computations[name].values())
        return own


def part_of(op_name: str) -> str:
    """The part that a path of names belongs to."""
    words = set(re.findall(r"\w+", op_name))
    return next((part for part, names in PARTS if names & words), OTHER)


def _op_name(instruction: Instruction) -> str:
    found = _OP_NAME.search(instruction.attributes)
    return found[1] if found else ""


def _sources(text: str) -> dict[str, str]:
    """Stack frame -> folder/file:line, from the tables at the head of a program's text."""

    def table(title: str, pattern: str) -> dict[str, tuple[str, ...]]:
        body = re.search(rf"^{title}\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
        rows = re.findall(rf"^(\d+) {pattern}", body[1] if body else "", re.MULTILINE)
        return {row[0]: row[1:] for row in rows}

    files = table("FileNames", r'"([^"]*)"')
    places = table("FileLocations", r"\{file_name_id=(\d+) .*?line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+)")
    found = {}
    for frame, (place,) in frames.items():
        file, line = places.get(place, ("", ""))
        name = "/".join(files.get(file, ("",))[0].split("/")[-2:])
        found[frame] = f"{name}:{line}"
    return found
