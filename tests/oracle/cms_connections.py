"""Nested CMS levels (Eq. 72): each level but the slowest starts from an init that the next slower one learns.

The memory of a level's init stands beside its own under `init_name(level)`: its delta is init - theta, its
optimizer state that of the next slower level, its accumulator the unfinished move.
"""

from dataclasses import replace

import numpy as np

from tests.oracle.inner import FAST, Arrays, Level, fresh_state
from tests.oracle.periods import Learning, Memory, Token, Write, accumulate, close_period

Memories = dict[str, Memory]
"""Of one layer, by level, inits included."""


def init_name(level: Level) -> str:
    """Name of a level's init."""
    return f"{level.name}.init"


def slow_to_fast(levels: tuple[Level, ...]) -> list[Level]:
    """The levels by falling period, whatever their order in the chain."""
    return sorted(levels, key=lambda level: -level.period)


def zero_memory(level: Level, p: Arrays) -> Memory:
    """A level (or an init) at the slow weights p, with its optimizer state and accumulator empty."""
    shapes = {n: np.shape(p[n]) for n in FAST if n in p}
    memory = Memory({n: np.zeros(s) for n, s in shapes.items()}, fresh_state(level, shapes))
    memory.clear()
    return memory


def fresh_nested(levels: tuple[Level, ...], p: dict[str, Arrays]) -> Memories:
    """Memories of a context that has written nothing. p: slow weights by level."""
    owner = {init_name(level): level.name for level in levels}
    return {name: zero_memory(level, p[owner.get(name, name)]) for name, level in writers(levels).items()}


def writers(levels: tuple[Level, ...]) -> dict[str, Level]:
    """Whose inner optimizer writes each memory: a level its own, an init that of the next slower level."""
    ordered = slow_to_fast(levels)
    by_name = {level.name: level for level in levels}
    for slow, fast in zip(ordered, ordered[1:], strict=False):
        by_name[init_name(fast)] = replace(slow, name=init_name(fast))
    return by_name


def gather(
    memories: Memories,
    level: Level,
    p: Arrays,
    read_delta: Arrays,
    token: Token,
    learning: Learning,
    read_clip: float,
) -> None:
    """Add one token to the level's unfinished period, and to the unfinished move of its init."""
    by_name = writers(learning.levels)
    for name in (level.name, init_name(level)):
        if name in memories:
            accumulate(memories[name], by_name[name], p, read_delta, token, learning, read_clip)


def end_of_token(
    memories: Memories, p: dict[str, Arrays], learning: Learning, layer: int, end: int
) -> list[Write]:
    """Everything that happens at token count `end`, from the fastest level to the slowest: its own write, the
    move of the next faster level's init, that level's restart, the return of still faster ones to p."""
    events, ordered, by_name = [], slow_to_fast(learning.levels), writers(learning.levels)
    for s in reversed(range(len(ordered))):
        slow, faster = ordered[s], ordered[s + 1 :]
        if end % slow.period != 0:
            continue
        events.append(close_period(memories[slow.name], p[slow.name], slow, learning, layer, end))
        if not faster:
            continue
        fast, init = faster[0], init_name(faster[0])
        events.append(close_period(memories[init], p[fast.name], by_name[init], learning, layer, end))
        memories[fast.name] = zero_memory(fast, p[fast.name])
        memories[fast.name].delta = dict(memories[init].delta)
        for level in faster[1:]:
            memories[level.name] = zero_memory(level, p[level.name])
            memories[init_name(level)] = zero_memory(by_name[init_name(level)], p[level.name])
    return events


def end_of_stream(
    memories: Memories, p: dict[str, Arrays], learning: Learning, layer: int, end: int
) -> list[Write]:
    """Flush or drop what is unfinished, without a restart."""
    events, by_name = [], writers(learning.levels)
    for level in learning.levels:
        for name in (level.name, init_name(level)):
            if name in memories and memories[name].tokens and learning.flush:
                events.append(
                    close_period(memories[name], p[level.name], by_name[name], learning, layer, end)
                )
            if name in memories:
                memories[name].clear()
    return events
