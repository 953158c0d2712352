"""What one run of a compiled program does on each device: matrix products, memory traffic, collectives.

Loops count as often as they run, and of a conditional its costlier branch (so memory writes count as never
skipped). Memory traffic is that of every kernel's operands and results in main memory, as if no cache held
any of them over from the kernel before; a kernel that reads or writes a slice of an array counts the slice.
"""

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from hope_jax.planning import hlo
from hope_jax.planning.hlo import Instruction, Program, Shape

Computation = dict[str, Instruction]

_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id"),
    *("replica-id", "opt-barrier", "add-dependency", "domain", "iota"),
}
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
_NO_TRAFFIC_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
_THROUGH = {"bitcast", "reshape"}
_SLICES = {"dynamic-slice", "slice", "gather"}


Tally = dict[tuple[str, ...], float]
"""Sums that instructions add to: ("flops", dtype), ("bytes",), ("unknown_loops",), and of a kind of
collective (kind, "times" | "payload" | "sent")."""


class Collective(NamedTuple):
    """Collectives of one kind in one run of the program. times: how often they run. payload: bytes
    of the whole arrays. sent: bytes that a device sends in the best ring."""

    times: float = 0.0
    payload: float = 0.0
    sent: float = 0.0


class Counts(NamedTuple):
    """Of one run, on each device. flops: of matrix products, by the operands' dtype. bytes: to and from main
    memory. unknown_loops: loops that count once, as their length is not known."""

    flops: dict[str, float]
    bytes: float
    collectives: dict[str, Collective]
    unknown_loops: int = 0

    @property
    def total_flops(self) -> float:
        """Over all dtypes."""
        return sum(self.flops.values())


def count(text: str, devices: int = 1, on_chip: frozenset[int] = frozenset()) -> Counts:
    """Counts of the compiled program `text`.

    devices: the size of a collective's group where its text names none. on_chip: memory spaces that are not
    main memory.
    """
    program = hlo.parse(text)
    tally = _Counter(program, devices, on_chip).computation(program.entry)
    kinds = sorted({key[0] for key in tally} & _COLLECTIVES)
    return Counts(
        flops=_flops(tally),
        bytes=tally.get(("bytes",), 0.0),
        collectives={kind: Collective(*(tally[kind, name] for name in Collective._fields)) for kind in kinds},
        unknown_loops=int(tally.get(("unknown_loops",), 0)),
    )


def _flops(tally: Tally) -> dict[str, float]:
    return {key[1]: value for key, value in tally.items() if key[0] == "flops"}


def _sum(tallies: Iterable[Tally]) -> Tally:
    total: Tally = {}
    for tally in tallies:
        for key, value in tally.items():
            total[key] = total.get(key, 0.0) + value
    return total


class _Counter:
    def __init__(self, program: Program, devices: int, on_chip: frozenset[int]) -> None:
        self.program, self.devices, self.on_chip = program, devices, on_chip
        self._done: dict[str, Tally] = {}

    def computation(self, name: str) -> Tally:
        if name not in self._done:
            inside = self.program.computations[name]
            self._done[name] = _sum(self.instruction(inside, each) for each in inside.values())
        return self._done[name]

    def instruction(self, inside: Computation, it: Instruction) -> Tally:
        if it.opcode in _FREE or it.opcode.endswith("-done"):
            return {}
        if it.opcode == "while":
            return self._loop(it)
        if it.opcode == "conditional":
            taken = [self.computation(name) for name in it.called(*hlo.BRANCHES)]
            return max(taken, key=lambda tally: (sum(_flops(tally).values()), tally.get(("bytes",), 0.0)))
        if it.opcode in ("call", "async-start"):
            return _sum(self.computation(name) for name in it.called("to_apply", "calls"))
        kind = it.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            return self._collective(inside, it, kind)
        return {("bytes",): self._traffic(inside, it), **self._products(inside, it)}

    def _loop(self, it: Instruction) -> Tally:
        times = hlo.trip_count(self.program, it)
        body = _sum(self.computation(name) for name in it.called("body", "condition"))
        unknown = body.pop(("unknown_loops",), 0) + (times is None)
        runs = 1 if times is None else times
        return {**{key: runs * value for key, value in body.items()}, ("unknown_loops",): unknown}

    def _products(self, inside: Computation, it: Instruction) -> Tally:
        """FLOPs of an instruction and of what is fused into it."""
        if it.opcode != "fusion":
            return {("flops", dtype): flops for dtype, flops in product_flops(inside, it).items()}
        computations = (self.program.computations[name] for name in it.called("calls"))
        return _sum(self._products(fused, each) for fused in computations for each in fused.values())

    def _collective(self, inside: Computation, it: Instruction, kind: str) -> Tally:
        group = group_size(it.attributes) or self.devices
        own = sum(shape.bytes for shape in self._operand_shapes(inside, it))
        whole = own * group if kind == "all-gather" else own
        traffic: Tally = {("bytes",): own + whole}
        if group == 1:
            return traffic
        around = {"all-reduce": 2.0, "collective-permute": group / (group - 1)}.get(kind, 1.0)
        sent = around * whole * (group - 1) / group
        return {**traffic, (kind, "times"): 1.0, (kind, "payload"): whole, (kind, "sent"): sent}

    def _operand_shapes(self, inside: Computation, it: Instruction) -> list[Shape]:
        return [shape for name in it.operands for shape in inside[name].shapes]

    def _size(self, shapes: Iterable[Shape]) -> float:
        """Bytes in main memory."""
        return sum(shape.bytes for shape in shapes if shape.space not in self.on_chip)

    def _traffic(self, inside: Computation, it: Instruction) -> float:
        if it.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', it.attributes)
            if target and target[1] in _NO_TRAFFIC_CALLS:
                return 0.0
            # The second result of a library's product is its workspace.
            results = it.shapes[:1] if target and "matmul" in target[1] else it.shapes
            return self._size(self._operand_shapes(inside, it)) + self._size(results)
        if it.opcode in ("copy-start", "slice-start"):
            # (source, destination, context), or ((source), destination, context); no more than a slice moves.
            source, to = it.shapes[:2]
            return sum(to.bytes for end in (source, to) if end.space not in self.on_chip)
        if it.opcode in _SLICES:
            return 2 * self._size(it.shapes)
        if it.opcode == "dynamic-update-slice":
            return 2 * self._size(inside[it.operands[1]].shapes)
        if it.opcode == "scatter":
            return 3 * self._size(inside[it.operands[-1]].shapes)
        if it.opcode == "fusion":
            return self._fusion_traffic(inside, it)
        return self._size(self._operand_shapes(inside, it)) + self._size(it.shapes)

    def _fusion_traffic(self, inside: Computation, it: Instruction) -> float:
        (name,) = it.called("calls")
        fused = self.program.computations[name]
        reads = 0.0
        for index, operand in enumerate(it.operands):
            size = self._size(inside[operand].shapes)
            reads += min(size, self._read(name, index)) if size else 0.0
        end = hlo.root(fused)
        results = [fused[each] for each in end.operands] if end.opcode == "tuple" else [end]
        if len(results) != len(it.shapes):
            return reads + self._size(it.shapes)
        return reads + sum(
            min(shape.bytes, self._written(fused, result))
            for shape, result in zip(it.shapes, results, strict=True)
            if shape.space not in self.on_chip
        )

    @cache  # noqa: B019  (a counter lives for one program)
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


def product_flops(inside: Computation, it: Instruction) -> dict[str, float]:
    """FLOPs of a matrix product or convolution by its operands' dtype; nothing for other instructions."""
    if it.opcode == "dot":
        contracted = _dims(it.attributes, r"lhs_contracting_dims=\{([\d,]*)\}")
    elif it.opcode == "convolution":
        return {inside[it.operands[0]].shapes[0].dtype: _convolution_flops(inside, it)}
    elif it.opcode == "custom-call" and '"dot_dimension_numbers"' in it.attributes:
        contracted = _dims(it.attributes, r'"lhs_contracting_dimensions":\[([\d,"]*)\]')
    else:
        return {}
    left = inside[it.operands[0]].shapes[0]
    depth = math.prod(left.dims[d] for d in contracted)
    return {left.dtype: 2.0 * math.prod(it.shapes[0].dims) * depth}


def _dims(attributes: str, pattern: str) -> list[int]:
    found = re.search(pattern, attributes)
    return [int(d) for d in re.findall(r"\d+", found[1])] if found else []


def _convolution_flops(inside: Computation, it: Instruction) -> float:
    """Padding and the holes of dilation, which TPU programs use for batched products, are not counted."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", it.attributes)
    assert labels is not None
    image, kernel = (inside[name].shapes[0].dims for name in it.operands[:2])
    left, right, result = labels[1], labels[2], labels[3]
    out = it.shapes[0].dims
    flops = 2.0 * out[result.index("b")] * out[result.index("f")] * kernel[right.index("i")]
    for axis, label in enumerate(sorted(c for c in result if c.isdigit())):
        stride, dilation = (_window(it.attributes, key, axis, 1) for key in ("stride", "rhs_dilate"))
        holes, pad = _window(it.attributes, "lhs_dilate", axis, 1), _window(it.attributes, "pad", axis, 0)
        size = image[left.index(label)]
        # Pairs of an output position and a kernel position that meet an element of the image.
        places = (
            o * stride + k * dilation - pad
            for k in range(kernel[right.index(label)])
            for o in range(out[result.index(label)])
        )
        flops *= sum(place % holes == 0 and 0 <= place // holes < size for place in places)
    return flops


def _window(attributes: str, key: str, axis: int, default: int) -> int:
    found = re.search(rf"window=\{{[^}}]*\b{key}=([\d_x\-]+)", attributes)
    values = found[1].split("x") if found else []
    return int(values[axis].split("_")[0]) if axis < len(values) else default


def group_size(attributes: str) -> int | None:
    """Devices that take part in a collective together; None if its text does not say."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", attributes)
    return len(listed[1].split(",")) if listed else None
