"""The least time that a program's work can take on a device, from the device's published peaks."""

from typing import NamedTuple

from hope_jax.planning.counts import Counts
from hope_jax.planning.devices import Peaks


class Bound(NamedTuple):
    """Seconds; no run was timed, and none can be shorter than `seconds` if the counts hold."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The largest, as if the three overlapped perfectly."""
        return max(self)

    @property
    def limit(self) -> str:
        """Which of the three it is."""
        return self._fields[self.index(self.seconds)]


def bound(counts: Counts, peaks: Peaks) -> Bound:
    """Products in 16 bits or less at the bfloat16 peak, all others at that of float32."""
    compute = sum(
        flops / (peaks.bf16 if dtype.startswith(("bf16", "f16", "f8")) else peaks.float32)
        for dtype, flops in counts.flops.items()
    )
    sent = sum(each.sent for each in counts.collectives.values())
    return Bound(compute, counts.bytes / peaks.bandwidth, sent / peaks.link)
