"""The recorded cases: toy configurations that together reach every mechanism of the core, and their rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.values import resolve
from hope_jax.core.types import NO_TARGET, Batch

VOCAB, EXAMPLES, STEPS = 11, 2, 3

LEVELS = {"fast": {"update_period": 2, "lr": 0.2}, "slow": {"update_period": 8, "lr": 0.1, "beta": 0.5}}
THREE = {
    "slow": {"update_period": 16, "lr": 0.1, "beta": 0.5},
    "mid": {"update_period": 8, "lr": 0.1},
    "fast": {"update_period": 2, "lr": 0.2},
}
BASE: dict[str, Any] = {
    "model.vocab_size": VOCAB,
    "model.dim": 8,
    "model.num_layers": 2,
    "model.heads": 2,
    "model.mlp_multiplier": 2,
    "cms.hidden_multiplier": 2,
    "titan.hidden_multiplier": 2,
    "cms.levels": LEVELS,
    "titan.level": {"update_period": 8, "lr": 0.2},
    "self_modifying_titans.eta_scale": 0.1,
    "self_modifying_titans.chunk_size": 2,
    "self_modifying_titans.chunk_size_memory": 8,
    "self_modifying_titans.local_conv_window": 2,
    "teach.scale": 0.5,
    "memory.write_clip": 0.05,
    "memory.delta_clip": 0.2,
    "train.compute_dtype": "float64",
    "train.steps": 10,
    "optim.name": "adamw",
    "optim.lr": 0.01,
    # Quotients of the gradient's smallest elements would be rounding.
    "optim.eps": 1e-3,
    "data.seq_len": 24,
    "data.batch_size": EXAMPLES,
}
MODES: dict[str, dict[str, Any]] = {
    "online": {"train.online_chunk_size": 4, "train.truncate_tokens": 4},
    "cut": {"train.online_chunk_size": 4, "train.truncate_tokens": 8},
    "writes": {"train.algorithm_mode": "through_writes", "train.online_chunk_size": 4},
    "two_pass": {"train.algorithm_mode": "two_pass"},
}
# Two periods of M_memory lie between two cuts.
SELFMOD_MODES: dict[str, dict[str, Any]] = {
    **MODES,
    "online": {
        "train.online_chunk_size": 8,
        "train.truncate_tokens": 8,
        "self_modifying_titans.chunk_size_memory": 4,
    },
    "cut": {"train.online_chunk_size": 4, "train.truncate_tokens": 16},
    "writes": {**MODES["writes"], "train.truncate_tokens": 16},
}
BATCH = {"memory.scope": "batch"}
BLOCK = {"cms.delta_at": "block_output"}
RAGGED = {"data.seq_len": 27}
FLUSH = {**RAGGED, "cms.flush_partial_at_end": True}
NESTED = {"cms.connection": "nested", "cms.levels": THREE, "data.seq_len": 32}
INDEPENDENT = {"cms.connection": "independent", "cms.levels": THREE, "data.seq_len": 32}
RESET = {"memory.reset_at_document": True, "data.seq_len": 32}
PERSISTENT = {**BATCH, "memory.lifetime": "persistent"}
LONG = {"cms.levels": {**LEVELS, "slow": {"update_period": 48, "lr": 0.1}}}
REFERENCE = {"model.style": "reference"}
TITANS = {"titan.level": {"update_period": 8, "lr": 0.2, "optimizer": "titans"}}
TIGHT = {"memory.write_clip": 0.002, "memory.delta_clip": 0.003}
UNBOUNDED = {"memory.write_clip": 0.0, "memory.delta_clip": 0.0}
RULES = ("sgd", "preconditioned", "muon", "l2_objective", "dmgd", "nl_l2_precond", "delta_momentum", "dgd")
OWN = "self_modifying_titans."
EVALUATED = ("", "batch", "gate-l2", "global", "independent", "nested", "persistent", "titans")
"""Whose evaluations are recorded: all modes that stream have the same, and compiling is what takes long."""


@dataclass(frozen=True)
class Case:
    """name: VARIANT/MODE/WHAT. streams: a `Streamer` is recorded too. evaluates: and an evaluation."""

    name: str
    changes: Mapping[str, Any]
    streams: bool
    evaluates: bool

    @property
    def config(self) -> ExperimentConfig:
        """The whole configuration, valid."""
        nested: dict[str, Any] = {}
        for path, value in {**BASE, **self.changes}.items():
            *groups, key = path.split(".")
            at = nested
            for group in groups:
                at = at.setdefault(group, {})
            at[key] = value
        config = resolve(nested)
        validate(config)
        return config

    def batches(self) -> list[Batch]:
        """The rows of each outer step."""
        config = self.config
        grid = config.train.online_chunk_size if config.memory.reset_at_document else 0
        return [_batch(step, config.data.seq_len, grid) for step in range(STEPS)]


def _batch(step: int, tokens: int, grid: int) -> Batch:
    """int32 [B, T]: packed documents of random tokens with padding between and after them, and a few tokens
    without a target. grid: documents begin at multiples of it; 0: anywhere."""
    rng = np.random.default_rng(step)
    ids = rng.integers(0, VOCAB, (EXAMPLES, tokens))
    segments = np.zeros_like(ids)
    for row in segments:
        at, document = 0, 0
        while at < tokens:
            end, document = at + int(rng.integers(tokens // 4, tokens // 2)), document + 1
            row[at:end] = document
            at = -(-end // grid) * grid if grid else end + int(rng.integers(0, 3))
        row[tokens - 1 - int(rng.integers(0, 2)) :] = 0
    targets = np.full_like(ids, NO_TARGET)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    valid = same & (rng.random(same.shape) > 0.1)
    targets[:, :-1] = np.where(valid, ids[:, 1:], NO_TARGET)
    return Batch(*(t.astype(np.int32) for t in (ids, targets, segments)))


def case(variant: str, mode: str, what: str = "", *changes: Mapping[str, Any], streams: bool = False) -> Case:
    """One case; of several changes the last counts."""
    modes = SELFMOD_MODES if variant == "hope_selfmod" else MODES
    together: dict[str, Any] = {"model.block_variant": variant, **modes[mode]}
    for change in changes:
        together |= change
    evaluates = streams or (mode in ("online", "two_pass") and what in EVALUATED)
    return Case("/".join(filter(None, (variant, mode, what))), together, streams, evaluates)


def _grid() -> list[Case]:
    """Variants x modes x scope x place of delta."""
    found = [case("transformer", mode) for mode in MODES] + [case("transformer_pp", "writes")]
    corners = {"": (), "batch": (BATCH,), "block": (BLOCK,), "batch-block": (BATCH, BLOCK)}
    for variant in ("hope_attention", "hope_hybrid", "hope_selfmod", "titan"):
        for mode in MODES:
            for what, changes in corners.items():
                every = variant == "hope_attention" and mode in ("online", "writes")
                if every or what in ("", "batch-block"):
                    found.append(case(variant, mode, what, *changes))
    return found


def _inner(rule: str) -> dict[str, Any]:
    """Both levels under one rule, whose divisors stay away from rounding."""
    lr = {"preconditioned": 0.01, "muon": 0.01, "dmgd": 0.1}.get(rule, 0.2)
    level = {"optimizer": rule, "lr": lr, "eps": 1e-3, "beta": 0.5}
    return {"cms.levels": {name: {**of, **level} for name, of in LEVELS.items()}}


def _gate(metric: str, threshold: float) -> dict[str, Any]:
    return {"memory.surprise_metric": metric, "memory.surprise_threshold": threshold}


GATES = {"l2": 0.5, "loss": 3.3, "logit_entropy": 1.67}


def _contexts() -> list[Case]:
    """What a context is and where it ends."""
    attention, hybrid, selfmod, titan = "hope_attention", "hope_hybrid", "hope_selfmod", "titan"
    return [
        case(attention, "online", "reset", RESET, streams=True),
        case(attention, "cut", "reset", RESET),
        case(titan, "writes", "reset", RESET),
        case(selfmod, "cut", "reset", RESET, streams=True),
        case(attention, "online", "ragged", RAGGED),
        case(attention, "cut", "ragged", RAGGED),
        case(attention, "writes", "ragged", RAGGED),
        case(selfmod, "cut", "ragged", RAGGED),
        case(attention, "online", "flush", FLUSH, streams=True),
        case(attention, "writes", "flush", FLUSH),
        case(hybrid, "cut", "flush-batch", FLUSH, BATCH, streams=True),
        case(hybrid, "online", "flush-titans", FLUSH, TITANS),
        case(attention, "online", "nested-flush", NESTED, FLUSH, streams=True),
        case(attention, "two_pass", "persistent-nested", PERSISTENT, NESTED),
        case(hybrid, "two_pass", "persistent", PERSISTENT, LONG),
        case(selfmod, "two_pass", "persistent", PERSISTENT, LONG),
        case(titan, "two_pass", "persistent-titans", PERSISTENT, TITANS),
        case("transformer", "cut", "conv", {"model.local_conv_window": 3}),
        case(attention, "cut", "window", {"model.sliding_window": 5}, streams=True),
        case(attention, "writes", "window", {"model.sliding_window": 5}),
        case("transformer_pp", "online", "window", {"model.sliding_window": 5}),
    ]


def _levels() -> list[Case]:
    """How levels are connected, bounded, gated and taught."""
    attention, hybrid, titan = "hope_attention", "hope_hybrid", "titan"
    found = [
        case(attention, "online", "nested", NESTED),
        case(attention, "cut", "nested-batch", NESTED, BATCH),
        case(attention, "writes", "nested", NESTED),
        case(attention, "online", "independent", INDEPENDENT),
        case(attention, "writes", "independent", INDEPENDENT),
        case(hybrid, "online", "unbounded", UNBOUNDED),
        case(hybrid, "online", "tight", TIGHT),
        case(attention, "writes", "tight", TIGHT),
        case(attention, "writes", "gate-l2", _gate("l2", GATES["l2"])),
        case(attention, "online", "gate-loss-batch", _gate("loss", GATES["loss"]), BATCH),
        case(hybrid, "online", "global", {"teach.source": "global"}),
        case(attention, "online", "mean", {"teach.normalize": "batch_mean", "teach.scale": 4.0}),
        case(hybrid, "cut", "mean-batch", {"teach.normalize": "batch_mean", "teach.scale": 4.0}, BATCH),
        case(hybrid, "online", "clip", {"teach.clip": 0.3}),
        case(attention, "online", "schedule", {"teach.schedule": {"warmup_steps": 2}}),
        case(attention, "online", "no-norm", {"cms.norm": "none"}),
        case(attention, "online", "no-levels", {"cms.levels": {}}),
        case(hybrid, "online", "relu", {"model.activation": "relu"}),
        case(attention, "writes", "silu", {"model.activation": "silu"}),
        case(titan, "online", "unmodified", {"titan.self_modifier.enabled": False}),
        case(titan, "online", "correction-clip", {"titan.self_modifier.clip": 0.05}),
        case(titan, "writes", "correction-clip", {"titan.self_modifier.clip": 0.05}),
    ]
    gates = GATES.items()
    return found + [case(hybrid, "online", f"gate-{name}", _gate(name, at)) for name, at in gates]


def _rules() -> list[Case]:
    """Inner rules, each alone and through its writes, and Titans' own."""
    modes = ("online", "writes")
    found = [case("hope_attention", mode, rule, _inner(rule)) for rule in RULES for mode in modes]
    return [
        *found,
        case("hope_attention", "cut", "muon-batch", _inner("muon"), BATCH),
        case("hope_attention", "online", "dgd-nested", NESTED, {"cms.levels": _dgd(THREE)}),
        case("titan", "online", "titans", TITANS),
        case("titan", "writes", "titans", TITANS),
    ]


def _dgd(levels: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {**level, "optimizer": "dgd"} for name, level in levels.items()}


def _styles() -> list[Case]:
    """The reference style, self-modifying options and outer optimizers."""
    found = [
        case("hope_attention", "online", "reference", REFERENCE),
        case("hope_hybrid", "online", "reference", REFERENCE, streams=True),
        case("hope_hybrid", "online", "muon_hybrid", {"optim.name": "muon_hybrid"}),
    ]  # fmt: skip
    options = {"momentum": 0.5, "adaptive_q": True}
    return found + [
        case("hope_selfmod", "cut", key, {OWN + key: value, "cms.levels": {}})
        for key, value in options.items()
    ]


CASES = {each.name: each for each in (*_grid(), *_contexts(), *_levels(), *_rules(), *_styles())}

QUICK = (
    "transformer_pp/online/window",
    "hope_hybrid/online/tight",
    "hope_hybrid/two_pass/persistent",
    "titan/writes/titans",
)
"""Compared on every run."""
