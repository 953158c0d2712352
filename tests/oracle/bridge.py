"""The oracles' settings as production's, and production's states as the oracles'. The only module here that
imports production code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Batch, FrozenMapping
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.teach import Teach
from hope_jax.memory import levels
from hope_jax.memory.cms import Cms, CmsOptions
from hope_jax.memory.cms_nested import NestedCms
from hope_jax.memory.levels import MemoryOptions
from hope_jax.memory.mlp_memory import Trace, normalise
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.state import Taps, WriteSignal, own
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import ModelSpec
from tests.close import assert_close
from tests.oracle.cases import DIM, HIDDEN, LAYERS, VOCAB
from tests.oracle.layers import Arch
from tests.oracle.stream import Example
from tests.oracle.writes import Learning, Level, Write, largest_ratio


def level_of(level: Level) -> levels.Level:
    """One level's constants."""
    return levels.Level(level.period, level.lr, level.optimizer, level.beta, level.beta2, level.eps)


def levels_of(chain: tuple[Level, ...]) -> FrozenMapping[str, levels.Level]:
    """The same of several, by name."""
    return FrozenMapping({level.name: level_of(level) for level in chain})


def memory_options(learning: Learning, scope: str = "example") -> MemoryOptions:
    """Gate and bounds."""
    gate = {"surprise_metric": learning.metric, "surprise_threshold": learning.threshold}
    return MemoryOptions(**gate, write_clip=learning.write_clip, delta_clip=learning.delta_clip, scope=scope)


def rules_of(learning: Learning) -> WriteRules:
    """What the levels of a memory share."""
    return WriteRules(learning.chunk, memory_options(learning), learning.flush)


def cms_of(arch: Arch, learning: Learning) -> Cms:
    """The production CMS of one layer."""
    return (NestedCms if arch.connection == "nested" else Cms)(
        levels_of(learning.levels),
        DIM,
        HIDDEN,
        rules_of(learning),
        own_output=learning.delta_at == "own_output",
        output_clip=arch.read_clip or None,
        activation=arch.act,
        mixed=arch.connection == "independent",
    )


def hope_model(
    arch: Arch, learning: Learning | None = None, conv: int = 0, scope: str = "example"
) -> HopeModel:
    """The production model of an oracle's architecture, in float64."""
    learning = learning or Learning()
    return HopeModel(
        ModelSpec(
            block_variant="hope_attention" if arch.levels else "transformer",
            style=arch.style,
            vocab_size=VOCAB,
            dim=DIM,
            num_layers=LAYERS,
            heads=arch.heads,
            mlp_multiplier=HIDDEN // DIM,
            activation=arch.act,
            qk_norm=arch.qk_norm,
            rope_theta=arch.rope_theta,
            sliding_window=arch.window,
            local_conv_window=conv,
            chunk_size=learning.chunk,
            cms=CmsOptions(
                levels_of(learning.levels),
                hidden_multiplier=HIDDEN // DIM,
                connection=arch.connection,
                norm="layer" if arch.cms_norm else "none",
                delta_at=learning.delta_at,
                flush_partial_at_end=learning.flush,
            ),
            memory=memory_options(learning, scope),
            per_layer=learning.source == "per_layer",
            dtype=jnp.dtype("float64"),
        )
    )


def online_rule(learning: Learning) -> OnlineRule:
    """The production rule of an oracle's learning settings."""
    normalize = "batch_mean" if learning.batch_mean else "token"
    sizes = {"scale": learning.teach_scale, "clip": learning.teach_clip}
    teach = Teach(**sizes, source=learning.source, normalize=normalize)
    return OnlineRule(learning.chunk, learning.truncate or learning.chunk, teach)


def batch_of(rows: list[Example]) -> Batch:
    """Examples as a production batch."""
    fields = ([getattr(row, name) for row in rows] for name in ("tokens", "targets", "segments"))
    return Batch(*(jnp.asarray(field, jnp.int32) for field in fields))


def write_levels(
    cms: Cms, params: Any, fast: Any, chunk: dict[str, Any], position: Any, *, last: bool = False
) -> Any:
    """`Cms.write` of a chunk: inputs `x` and signals `own` by level, `block` [n, D], `surprise` [n]."""
    trace = {name: Trace(normalise(params[name], x)) for name, x in chunk["x"].items()}
    active = (chunk["block"] != 0).any(-1)
    taught = {name: Taps(signal) for name, signal in chunk["own"].items()}
    signal = WriteSignal(chunk["block"], taught, chunk["surprise"], active, active)
    norms = cms.norms(params)
    return cms.write(params, norms, fast, trace, signal, position=position, reduce=own, last=last)


def assert_same_optimizer(level: Level, opt_state: Any, wanted: dict[str, Any], what: str) -> None:
    """First (`v`) and second (`s`) moments of production's inner-optimizer state against the oracle's."""
    names = {"ema": "v", "trace": "v", "nu": "s"}
    parts = jax.tree.leaves(opt_state, is_leaf=lambda t: any(hasattr(t, name) for name in names))
    slots = {slot: getattr(p, name) for p in parts for name, slot in names.items() if hasattr(p, name)}
    keys = {key for by_tensor in wanted.values() for key in by_tensor}
    if level.beta == 0 and level.optimizer != "delta_momentum":
        keys.discard("v")
    assert set(slots) == keys, what
    for key in keys:
        assert_close(dict(slots[key]), {name: slot[key] for name, slot in wanted.items()}, f"{what}.{key}")


def expected_stats(writes: list[Write], layer: int, level: str) -> dict[str, float]:
    """Production's statistics of one level of one layer, from the oracle's writes."""
    mine = [w for w in writes if (w.layer, w.level) == (layer, level)]
    applied = [w for w in mine if w.applied]
    sums = ("grad_norm", "write_clip_hits", "delta_clip_hits", "write_norm")
    return {
        **{name: sum(getattr(w, name) for w in applied) for name in sums},
        "periods": len(mine),
        "chunk_tokens": sum(w.written for w in mine),
        "gate_hit": sum(w.gate_hit for w in mine),
        "updates_applied": len(applied),
        "surprise_value": sum(w.surprise for w in mine),
    }


def assert_delta_norm(got: Any, delta: Any, p: Any, what: str) -> None:
    """The statistic against the oracle's delta at the end, if a period has ended. p: slow weights."""
    wanted = largest_ratio(delta, p) if float(got.periods) else 0.0
    assert_stats(got, {"delta_norm": wanted}, what)


def assert_stats(got: Any, wanted: dict[str, float], what: str) -> None:
    """Float32 statistics against the oracle's."""
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=2e-6, atol=1e-6, err_msg=f"{what}.{name}")
