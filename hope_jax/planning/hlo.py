"""Compiled programs as text: computations, instructions, shapes, and how often a loop runs.

XLA's own cost analysis counts the body of a loop once, and a program compiled for an absent GPU has none at
all; the text has what is missing.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BRANCHES = ("branch_computations", "true_computation", "false_computation")
"""Attributes of a conditional that name computations."""

_WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")


class Shape(NamedTuple):
    """An array of a program. space: memory space that its layout names; 0: main memory."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        """Size without padding."""
        bits = re.search(r"\d+", self.dtype)
        width = _WIDTH.get(self.dtype, int(bits[0]) / 8 if bits else 0.0)
        return math.prod(self.dims) * width


class Instruction(NamedTuple):
    """shapes: the arrays of the result, a tuple's in order. operands: names. attributes: the rest of the
    line; of a parameter or constant, `argument` is what stands in the brackets."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    def called(self, *keys: str) -> tuple[str, ...]:
        """Names of the computations that the attributes `keys` name."""
        found: list[str] = []
        for key in keys:
            for group in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                found += _NAME.findall(group)
        return tuple(found)

    @property
    def op_name(self) -> str:
        """The path of names under which it was traced; empty if it has none."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """computations: name -> instruction name -> instruction, in order. entry: the computation that runs."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
      ValueError: no entry computation was found.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = ""
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif (instruction := _instruction(line)) is not None:
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("compiled program: no ENTRY computation in its text")
    return Program(computations, entry)


def root(computation: Computation) -> Instruction:
    """The result of a computation."""
    return next(instruction for instruction in computation.values() if instruction.root)


def fused(
    program: Program, inside: Computation, it: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """An instruction and all that is fused into it, each with the computation that it stands in."""
    yield inside, it
    for name in it.called("calls") if it.opcode == "fusion" else ():
        for each in program.computations[name].values():
            yield from fused(program, program.computations[name], each)


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None if neither the compiler nor the condition says.

    A loop of `lax.scan` counts from 0 in steps of 1 up to a constant.
    """
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    (condition,) = loop.called("condition")
    return _limit(program, condition)


def _limit(program: Program, condition: str) -> int | None:
    """N of a condition `i < N`, which may be inside a fusion."""
    computation = program.computations[condition]
    test = root(computation)
    values = [computation[name] for name in test.operands]
    limits = [int(v.argument) if v.opcode == "constant" and v.argument.isdigit() else None for v in values]
    if test.opcode == "fusion":
        known = [limit for limit in limits if limit is not None]
        return known[0] if known else _limit(program, test.called("calls")[0])
    return limits[1] if test.opcode == "compare" and "direction=LT" in test.attributes else None


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if not head:
        return None
    at = head.end()
    end = _closing(line, at) if line[at] == "(" else line.index(" ", at)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    start = opcode.end()
    close = _closing(line, start - 1)
    argument = line[start : close - 1]
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        shapes=tuple(_shapes(line[at:end])),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=line[close:],
        root=bool(head[1]),
    )


def _closing(line: str, at: int) -> int:
    """The place after the bracket that closes the one at `at`."""
    depth = 0
    for place in range(at, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return place + 1
    return len(line)


def _shapes(text: str) -> list[Shape]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return found
