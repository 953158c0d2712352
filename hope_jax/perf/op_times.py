"""Time of each operation of a compiled program, from a trace of one run; tried on CPUs alone.

XLA:CPU's trace has an event where an operation starts and, as operations may go on in other threads, a second
one, "end: NAME", where it is done. Operations that run at once count in full each.
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
"""An event's name, and its start and end in seconds."""

_END = "end: "


def traced(run: Callable[[], Any]) -> dict[str, tuple[float, int]]:
    """The operations of one call of `run`, which must have been called before (nothing is compiled): seconds,
    and how often each ran.

    Raises: UserError if the trace has no operations.
    """
    events: list[Interval] = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        for path in Path(folder).rglob("*.xplane.pb"):
            for line in (line for plane in ProfileData.from_file(str(path)).planes for line in plane.lines):
                for event in line.events:
                    # A GPU's event has the kernel's name.
                    own = next((str(value) for key, value in event.stats if key == "hlo_op"), "")
                    if own or event.name.startswith(_END):
                        end = event.start_ns + event.duration_ns
                        events.append((own or event.name, event.start_ns * 1e-9, end * 1e-9))
    if not events:
        raise UserError("profile: the trace has no operations; traces of XLA:CPU were tried alone")
    return times(events)


def times(events: Iterable[Interval]) -> dict[str, tuple[float, int]]:
    """Of each operation the time from its starts to its ends, and how often it ran; none overlaps itself."""
    starts, ends = defaultdict(list), defaultdict(list)
    for name, start, end in events:
        if name.startswith(_END):
            ends[name.removeprefix(_END)].append(end)
        else:
            starts[name].append((start, end))
    found = {}
    for name, own in starts.items():
        later = sorted(ends[name]) if len(ends[name]) == len(own) else [0.0] * len(own)
        pairs = zip(sorted(own), later, strict=True)
        found[name] = (sum(max(end, done) - start for (start, end), done in pairs), len(own))
    return found
