"""The nested connection of the CMS (Eq. 72): slower levels learn where faster ones start.

Reads are those of the chain. Ordered by falling period, level s + 1 has beside its weights an `init`, under
the name NAME.init, which level s's optimizer writes every C_s tokens with level s + 1's own gradients; there
level s + 1 restarts from it, with cleared optimizer state, and faster levels return to theta.
"""

from dataclasses import replace

from torch import Tensor

from parity_tests.torch_reference import periods
from parity_tests.torch_reference.cms import with_delta
from parity_tests.torch_reference.layers import Params
from parity_tests.torch_reference.periods import LevelState, Signal, Write
from parity_tests.torch_reference.settings import Level, Rules

States = dict[str, LevelState]


def init_name(level: Level) -> str:
    """Name of a level's init."""
    return f"{level.name}.init"


def slow_to_fast(levels: tuple[Level, ...]) -> list[Level]:
    """By falling period, whatever their order in the chain."""
    return sorted(levels, key=lambda level: -level.period)


def writers(levels: tuple[Level, ...]) -> dict[str, tuple[Level, Level]]:
    """By name of what is written: the level whose weights it stands for, and the level whose period and
    optimizer write it. An init is written by the next slower level."""
    ordered = slow_to_fast(levels)
    found = {level.name: (level, level) for level in levels}
    for slow, fast in zip(ordered[:-1], ordered[1:], strict=True):
        found[init_name(fast)] = (fast, replace(slow, name=init_name(fast)))
    return found


def fresh(levels: tuple[Level, ...], p: dict[str, Params]) -> States:
    """The states of a context that has written nothing."""
    return {name: periods.fresh(by, p[of.name]) for name, (of, by) in writers(levels).items()}


def write_chunk(
    states: States,
    levels: tuple[Level, ...],
    p: dict[str, Params],
    inputs: dict[str, Tensor],
    signals: dict[str, Signal],
    rules: Rules,
    clip: float,
    *,
    position: int,
    layer: int,
    last: bool,
) -> tuple[States, list[Write]]:
    """One chunk's writes of all levels, token by token; every gradient at the weights that read the chunk.

    inputs, signals: by level.
    """
    states, writes = dict(states), []
    read_with = {level.name: with_delta(p[level.name], states[level.name].delta) for level in levels}
    tokens = len(next(iter(inputs.values())))
    for t in range(tokens):
        for name, (of, by) in writers(levels).items():
            token = signals[of.name].part(t, t + 1)
            weights, x = read_with[of.name], inputs[of.name][t : t + 1]
            gathered = periods.gather(states[name].gathered, by, periods.CMS, weights, x, token, rules, clip)
            states[name] = replace(states[name], gathered=gathered)
        writes += end_of_token(states, levels, p, rules, layer, position + t + 1)
    if last:
        for name, (of, by) in writers(levels).items():
            states[name], more = periods.end_of_stream(states[name], by, p[of.name], rules, layer)
            writes += more
    return states, writes


def end_of_token(
    states: States, levels: tuple[Level, ...], p: dict[str, Params], rules: Rules, layer: int, count: int
) -> list[Write]:
    """What happens at token count `count`, from the fastest level to the slowest: its own write; the move of
    the next faster level's init; that level's restart; the return of still faster ones to theta."""
    writes, ordered, fresh_states = [], slow_to_fast(levels), fresh(levels, p)
    for s in reversed(range(len(ordered))):
        level, faster = ordered[s], ordered[s + 1 :]
        if count % level.period:
            continue
        names = [level.name, *(init_name(fast) for fast in faster[:1])]
        for name in names:
            of, by = writers(levels)[name]
            states[name], write = periods.close(states[name], by, p[of.name], rules, layer)
            writes.append(write)
        for fast in faster[:1]:
            start = states[init_name(fast)].delta
            states[fast.name] = replace(fresh_states[fast.name], delta=start)
        for fast in faster[1:]:
            for name in (fast.name, init_name(fast)):
                states[name] = fresh_states[name]
    return writes
