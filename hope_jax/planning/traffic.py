"""Main memory traffic of one instruction of a compiled program, and what causes it.

An instruction reads its operands and writes its results once, as if no cache held any of them over from the
one before; one that reads or writes a slice of an array counts the slice.
"""

import re
from collections.abc import Iterable
from functools import cache

from hope_jax.planning import hlo
from hope_jax.planning.hlo import Computation, Instruction, Program, Shape
from hope_jax.planning.products import fused_flops

_NO_TRAFFIC_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
_LIBRARIES = ("__cublas", "__cudnn")
_KERNELS = ("__gpu$xla.gpu.triton", "mosaic_gpu", "tpu_custom_call")
_THROUGH = {"bitcast", "reshape"}
_SLICES = {"dynamic-slice", "slice", "gather"}

_IDLE = {"parameter", "constant", "bitcast", "reshape", "broadcast", "tuple", "get-tuple-element", "iota"}
_MOVES = (
    ("copies", {"copy", "transpose", "copy-start"}),
    ("slices", {*_SLICES, "dynamic-update-slice", "scatter", "pad", "slice-start"}),
    ("concatenations", {"concatenate"}),
    ("casts", {"convert", "bitcast-convert"}),
)
"""Cause -> opcodes that move or rewrite values and compute nothing. The last of them that an instruction has
names it, where it has no others."""

CAUSES = ("products", "attention kernels", "Pallas kernels", *(cause for cause, _ in _MOVES), "other")
"""products: matrix products and what is fused into them. attention kernels: of a library. copies: of whole
arrays. slices: into and out of larger arrays. other: all that computes, element by element or in sums."""


def target(it: Instruction) -> str:
    """What a custom call calls; empty for other instructions."""
    found = re.search(r'custom_call_target="([^"]*)"', it.attributes)
    return found[1] if found and it.opcode == "custom-call" else ""


def is_kernel(it: Instruction) -> bool:
    """Whether it calls a library or a Pallas kernel, not what the compiler makes itself."""
    return target(it).startswith((*_LIBRARIES, *_KERNELS))


class Traffic:
    """Of the instructions of one program. on_chip: memory spaces that are not main memory."""

    def __init__(self, program: Program, on_chip: frozenset[int]) -> None:
        self.program, self.on_chip = program, on_chip

    def cause(self, inside: Computation, it: Instruction) -> str:
        """One of `CAUSES`."""
        called = target(it)
        if "fmha" in called:
            return "attention kernels"
        if called.startswith(_KERNELS):
            return "Pallas kernels"
        if fused_flops(self.program, inside, it):
            return "products"
        # Scalars are indices.
        done = {
            each.opcode
            for _, each in hlo.fused(self.program, inside, it)
            if any(shape.dims for shape in each.shapes) and each.opcode != "fusion"
        } - _IDLE
        allowed: set[str] = set()
        for cause, opcodes in _MOVES:
            allowed |= opcodes
            if done and done <= allowed:
                return cause
        return "other"

    def size(self, shapes: Iterable[Shape]) -> float:
        """Bytes in main memory."""
        return sum(shape.bytes for shape in shapes if shape.space not in self.on_chip)

    def operands(self, inside: Computation, it: Instruction) -> list[Shape]:
        """Arrays that an instruction is given."""
        return [shape for name in it.operands for shape in inside[name].shapes]

    def bytes(self, inside: Computation, it: Instruction) -> float:
        """Read and written by an instruction that is neither control nor a collective."""
        if it.opcode == "custom-call":
            return self._call(inside, it)
        if it.opcode in ("copy-start", "slice-start"):
            # (source, destination, context), or ((source), destination, context); no more than a slice moves.
            source, to = it.shapes[:2]
            return sum(to.bytes for end in (source, to) if end.space not in self.on_chip)
        if it.opcode in _SLICES:
            return 2 * self.size(it.shapes)
        if it.opcode == "dynamic-update-slice":
            return 2 * self.size(inside[it.operands[1]].shapes)
        if it.opcode == "scatter":
            return 3 * self.size(inside[it.operands[-1]].shapes)
        if it.opcode == "fusion":
            return self._fusion(inside, it)
        return self.size(self.operands(inside, it)) + self.size(it.shapes)

    def _call(self, inside: Computation, it: Instruction) -> float:
        """Operands and results. A result in an operand's place counts too: it is read there, and written."""
        called, results = target(it), it.shapes
        if called in _NO_TRAFFIC_CALLS:
            return 0.0
        if called.startswith(_LIBRARIES) and len(results) > 1 and results[-1].dtype in ("s8", "u8"):
            results = results[:-1]  # the library's workspace
        return self.size(self.operands(inside, it)) + self.size(results)

    def _fusion(self, inside: Computation, it: Instruction) -> float:
        (name,) = it.called("calls")
        fused = self.program.computations[name]
        reads = 0.0
        for index, operand in enumerate(it.operands):
            size = self.size(inside[operand].shapes)
            reads += min(size, self._read(name, index)) if size else 0.0
        end = hlo.root(fused)
        results = [fused[each] for each in end.operands] if end.opcode == "tuple" else [end]
        if len(results) != len(it.shapes):
            return reads + self.size(it.shapes)
        return reads + sum(
            min(shape.bytes, self._written(fused, result))
            for shape, result in zip(it.shapes, results, strict=True)
            if shape.space not in self.on_chip
        )

    @cache  # noqa: B019  (this lives for one program)
    def _read(self, computation: str, index: int) -> float:
        """Bytes that a fusion reads of its parameter `index`."""
        fused = self.program.computations[computation]
        return self._used(
            fused, next(i for i in fused.values() if (i.opcode, i.argument) == ("parameter", str(index)))
        )

    def _used(self, fused: Computation, it: Instruction) -> float:
        whole, total = sum(shape.bytes for shape in it.shapes), 0.0
        for user in fused.values():
            for place, operand in enumerate(user.operands):
                if operand != it.name:
                    continue
                if user.opcode == "dynamic-update-slice" and place == 0:
                    continue  # written in place
                if user.opcode in _SLICES and place == 0:
                    total += sum(shape.bytes for shape in user.shapes)
                elif user.opcode in _THROUGH and not user.root:
                    total += self._used(fused, user)
                elif user.opcode == "fusion":
                    total += self._read(user.called("calls")[0], place)
                else:
                    return whole
        return min(total, whole)

    def _written(self, fused: Computation, it: Instruction) -> float:
        """Bytes that a fusion writes for its result `it`: of an update in place, the update."""
        while it.opcode in _THROUGH:
            it = fused[it.operands[0]]
        if it.opcode == "dynamic-update-slice":
            return sum(shape.bytes for shape in fused[it.operands[1]].shapes)
        return sum(shape.bytes for shape in it.shapes)
