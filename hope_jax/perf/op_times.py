"""Wall time of each operation of a compiled program on CPU, from a trace of one run.

XLA:CPU's trace has an event where an operation starts and, as operations may go on in other threads, a second
one, "end: NAME", where it is done. At any moment the operations under way share the time equally, so that all
shares add up to the time that the program took; loops and conditionals count where nothing inside them runs.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from hope_jax.core.errors import UserError

Interval = tuple[str, float, float]
"""An operation's name, and start and end of one run in seconds."""

_END = "end: "


def traced(run: Callable[[], Any]) -> list[Interval]:
    """The operations of one call of `run`, which must have been called before (nothing is compiled).

    Raises: UserError if the trace has no operations, as on other platforms than CPU.
    """
    events: list[Interval] = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        for path in Path(folder).rglob("*.xplane.pb"):
            for line in (line for plane in ProfileData.from_file(str(path)).planes for line in plane.lines):
                for event in line.events:
                    if event.name.startswith(_END) or any(key == "hlo_op" for key, _ in event.stats):
                        end = event.start_ns + event.duration_ns
                        events.append((event.name, event.start_ns * 1e-9, end * 1e-9))
    if not events:
        raise UserError("profile: the trace has no operations; this reads traces of XLA:CPU only")
    return intervals(events)


def intervals(events: Iterable[Interval]) -> list[Interval]:
    """Each operation's start, with the end that belongs to it: an operation does not overlap itself."""
    starts, ends = defaultdict(list), defaultdict(list)
    for name, start, end in events:
        if name.startswith(_END):
            ends[name.removeprefix(_END)].append(end)
        else:
            starts[name].append((start, end))
    found = []
    for name, own in starts.items():
        later = sorted(ends[name]) if len(ends[name]) == len(own) else [0.0] * len(own)
        pairs = zip(sorted(own), later, strict=True)
        found += [(name, start, max(end, done)) for (start, end), done in pairs]
    return found


def wall_times(
    found: Iterable[Interval], is_container: Callable[[str], bool]
) -> dict[str, tuple[float, int]]:
    """Operation -> its share of wall time in seconds, and how often it ran. is_container: loops, conditionals
    and calls, by name.

    Where only containers are under way, the one that started last has the time; gaps belong to nobody.
    """
    moments = []
    for index, (name, start, end) in enumerate(found):
        moments += [(start, True, index, name), (end, False, index, name)]
    seconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    leaves: dict[int, str] = {}
    containers: dict[int, str] = {}
    before = 0.0
    for moment, starts, index, name in sorted(moments):
        sharing = list(leaves.values()) or list(containers.values())[-1:]
        for each in sharing:
            seconds[each] += (moment - before) / len(sharing)
        before = moment
        runs[name] += starts
        under_way = containers if is_container(name) else leaves
        if starts:
            under_way[index] = name
        else:
            under_way.pop(index, None)
    return {name: (seconds[name], runs[name]) for name in runs}
