"""What one run of a compiled program does on each device: kernels, products, memory traffic, collectives.

Loops count as often as they run, and of a conditional its costlier branch (so memory writes count as never
skipped); under the scope `logged` its cheaper one, as an ordinary step is not logged.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from hope_jax.planning import hlo
from hope_jax.planning.hlo import Computation, Instruction, Program
from hope_jax.planning.products import fused_flops
from hope_jax.planning.traffic import Traffic

LOGGED = "logged"
"""Named scope of conditionals whose work is done on logged steps alone."""

_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id"),
    *("replica-id", "opt-barrier", "add-dependency", "domain", "iota"),
}
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
_CONTROL = {"while", "conditional", "call", "async-start"}


class Collective(NamedTuple):
    """Collectives of one kind in one run of the program. times: how often they run. payload: bytes
    of the whole arrays. sent: bytes that a device sends in the best ring."""

    times: float = 0.0
    payload: float = 0.0
    sent: float = 0.0


class Kernel(NamedTuple):
    """An instruction that a device is given as one piece of work. runs: in one run of the program. flops, by
    the operands' dtype, and bytes, to and from main memory: of each of them. cause: of the bytes, one of
    `traffic.CAUSES`, or "collectives". inside: the computation that it stands in. group: devices that a
    collective joins, 0 for others; payload: its whole array's bytes."""

    it: Instruction
    inside: str
    runs: float
    flops: dict[str, float]
    bytes: float
    cause: str
    group: int = 0
    payload: float = 0.0

    @property
    def moved(self) -> float:
        """Bytes of all its runs."""
        return self.runs * self.bytes


class Counts(NamedTuple):
    """Of one run, on each device. flops: of matrix products, by the operands' dtype. bytes: to and from main
    memory. unknown_loops: loops that count once, as their length is not known. conditionals, logged: how
    often conditionals run, and those under the scope `logged`. kernels: what is launched."""

    flops: dict[str, float]
    bytes: float
    collectives: dict[str, Collective]
    unknown_loops: int = 0
    conditionals: float = 0.0
    logged: float = 0.0
    kernels: tuple[Kernel, ...] = ()

    @property
    def total_flops(self) -> float:
        """Over all dtypes."""
        return sum(self.flops.values())

    @property
    def launches(self) -> float:
        """How often kernels are launched: also copies, and collectives."""
        return sum(kernel.runs for kernel in self.kernels)


def count(text: str, devices: int = 1, on_chip: frozenset[int] = frozenset()) -> Counts:
    """Counts of the compiled program `text`.

    devices: the size of a collective's group where its text names none. on_chip: memory spaces that are not
    main memory.
    """
    program = hlo.parse(text)
    counter = _Counter(program, devices, on_chip)
    runs: dict[str, float] = defaultdict(float, {program.entry: 1.0})
    kernels: list[Kernel] = []
    unknown, conditionals, logged = 0, 0.0, 0.0
    for name, inside in reversed(program.computations.items()):  # callers stand behind what they call
        if not runs[name]:
            continue
        kernels += (kernel._replace(runs=runs[name]) for kernel in counter.kernels(name))
        for it in inside.values():
            for child, times in counter.called(it):
                runs[child] += runs[name] * times
            if it.opcode == "while":
                unknown += hlo.trip_count(program, it) is None
            if it.opcode == "conditional":
                conditionals += runs[name]
                logged += runs[name] * _is_logged(it)
    flops: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        for dtype, each in kernel.flops.items():
            flops[dtype] += kernel.runs * each
    moved = sum(kernel.moved for kernel in kernels)
    return Counts(dict(flops), moved, _collectives(kernels), unknown, conditionals, logged, tuple(kernels))


def _is_logged(it: Instruction) -> bool:
    return LOGGED in re.split(r"\W+", it.op_name)


def _collectives(kernels: list[Kernel]) -> dict[str, Collective]:
    found: dict[str, Collective] = {}
    for kernel in kernels:
        if kernel.group > 1:
            kind = kernel.it.opcode.removesuffix("-start")
            around = {"all-reduce": 2.0, "collective-permute": kernel.group / (kernel.group - 1)}.get(
                kind, 1.0
            )
            sent = around * kernel.payload * (kernel.group - 1) / kernel.group
            times, payload, before = found.get(kind, Collective())
            found[kind] = Collective(
                times + kernel.runs, payload + kernel.runs * kernel.payload, before + kernel.runs * sent
            )
    return dict(sorted(found.items()))


class _Counter:
    def __init__(self, program: Program, devices: int, on_chip: frozenset[int]) -> None:
        self.program, self.devices = program, devices
        self.traffic = Traffic(program, on_chip)
        self._kernels: dict[str, list[Kernel]] = {}
        self._costs: dict[str, tuple[float, float]] = {}

    def kernels(self, name: str) -> list[Kernel]:
        """Those of a computation, without what it calls."""
        if name not in self._kernels:
            self._kernels[name] = list(self._own(name))
        return self._kernels[name]

    def _own(self, name: str) -> Iterator[Kernel]:
        inside = self.program.computations[name]
        for it in inside.values():
            kind = it.opcode.removesuffix("-start")
            if it.opcode in _FREE or it.opcode in _CONTROL or it.opcode.endswith("-done"):
                continue
            if kind in _COLLECTIVES:
                yield self._collective(name, inside, it, kind)
                continue
            flops, moved = fused_flops(self.program, inside, it), self.traffic.bytes(inside, it)
            yield Kernel(it, name, 1.0, flops, moved, self.traffic.cause(inside, it))

    def called(self, it: Instruction) -> list[tuple[str, float]]:
        """Computations that an instruction runs as programs of their own, and how often."""
        if it.opcode == "while":
            times = hlo.trip_count(self.program, it)
            return [(name, 1.0 if times is None else times) for name in it.called("body", "condition")]
        if it.opcode == "conditional":
            taken = min if _is_logged(it) else max
            return [(taken(it.called(*hlo.BRANCHES), key=self._cost), 1.0)]
        names = it.called("to_apply", "calls") if it.opcode in _CONTROL else ()
        return [(name, 1.0) for name in names]

    def _cost(self, name: str) -> tuple[float, float]:
        """FLOPs and bytes of a computation with all that it calls."""
        if name not in self._costs:
            flops = sum(sum(kernel.flops.values()) for kernel in self.kernels(name))
            moved = sum(kernel.bytes for kernel in self.kernels(name))
            for it in self.program.computations[name].values():
                for child, times in self.called(it):
                    own = self._cost(child)
                    flops, moved = flops + times * own[0], moved + times * own[1]
            self._costs[name] = flops, moved
        return self._costs[name]

    def _collective(self, name: str, inside: Computation, it: Instruction, kind: str) -> Kernel:
        group = group_size(it.attributes) or self.devices
        own = sum(shape.bytes for shape in self.traffic.operands(inside, it))
        whole = own * group if kind == "all-gather" else own
        return Kernel(it, name, 1.0, {}, own + whole, "collectives", group, whole)


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
