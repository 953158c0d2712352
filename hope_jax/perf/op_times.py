"""Wall time of each operation of a compiled program on CPU, from a trace of one run.

XLA:CPU's trace has an event where an operation starts and, as operations may go on in other threads, a second
one, "end: NAME", where it is done. At any moment the operations under way share the time equally, so that all
shares add up to the time that the program took; loops and conditionals count where nothing inside them runs.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from hope_jax.core.errors import UserError

_END = "end: "


class Interval(NamedTuple):
    """One run of an operation, in seconds."""

    name: str
    start: float
    end: float


class OpTime(NamedTuple):
    """seconds: the operation's share of wall time over `runs` runs."""

    seconds: float
    runs: int


def traced(run: Callable[[], Any]) -> list[Interval]:
    """The operations of one call of `run`, which must have been called before (nothing is compiled).

    Raises: UserError if the trace has no operations, as on other platforms than CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        found = [
            interval
            for path in sorted(Path(folder).rglob("*.xplane.pb"))
            for interval in intervals(_events(path))
        ]
    if not found:
        raise UserError("profile: the trace has no operations; this reads traces of XLA:CPU only")
    return found


def _events(path: Path) -> Iterable[tuple[str, float, float, bool]]:
    """(name, start, end, whether an operation starts) of each event of a trace."""
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                starts = not event.name.startswith(_END) and any(key == "hlo_op" for key, _ in event.stats)
                if starts or event.name.startswith(_END):
                    start = event.start_ns * 1e-9
                    yield event.name, start, start + event.duration_ns * 1e-9, starts


def intervals(events: Iterable[tuple[str, float, float, bool]]) -> list[Interval]:
    """Each operation's start, and the end that belongs to it: an operation does not overlap itself."""
    starts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ends: dict[str, list[float]] = defaultdict(list)
    for name, start, end, is_start in events:
        if is_start:
            starts[name].append((start, end))
        else:
            ends[name.removeprefix(_END)].append(end)
    found = []
    for name, own in starts.items():
        own.sort()
        later = sorted(ends.get(name, []))
        if len(later) != len(own):
            later = [end for _, end in own]
        found += [
            Interval(name, start, max(end, done)) for (start, end), done in zip(own, later, strict=True)
        ]
    return found


def wall_times(found: Iterable[Interval], is_container: Callable[[str], bool]) -> Mapping[str, OpTime]:
    """Share of wall time by operation. is_container: loops, conditionals and calls, by name.

    Where only containers are under way, the one that started last has the time; gaps belong to nobody.
    """
    moments: list[tuple[float, bool, int]] = []
    listed = list(found)
    for index, interval in enumerate(listed):
        moments += [(interval.start, True, index), (interval.end, False, index)]
    moments.sort()
    seconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    leaves: set[int] = set()
    containers: dict[int, None] = {}
    before = 0.0
    for moment, starts, index in moments:
        sharing = list(leaves) or list(containers)[-1:]
        for each in sharing:
            seconds[listed[each].name] += (moment - before) / len(sharing)
        before = moment
        name = listed[index].name
        runs[name] += starts
        if is_container(name):
            if starts:
                containers[index] = None
            else:
                containers.pop(index, None)
        elif starts:
            leaves.add(index)
        else:
            leaves.discard(index)
    return {name: OpTime(seconds[name], runs[name]) for name in runs}
