"""What probably made a run diverge, judged from the telemetry before it, and the key that mends it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.config.experiment import ExperimentConfig

_GROWTH = 5.0
"""A signal is suspect when it reached this many times its median before the bad step."""
_RECENT = 8


class _Suspect(NamedTuple):
    growth: float
    cause: str
    remedy: str


def _growth(values: Sequence[float]) -> tuple[float, float, float]:
    """(recent peak / earlier median, that median, that peak) over the finite values; growth 0 if too few."""
    finite = [float(v) for v in values if math.isfinite(v)]
    earlier, recent = finite[:-_RECENT] or finite[:-1], finite[-_RECENT:]
    if not earlier:
        return 0.0, 0.0, 0.0
    median, peak = float(np.median(earlier)), max(recent)
    return peak / max(median, 1e-30), median, peak


def rate_key(level: str, config: ExperimentConfig) -> str:
    """The key of the inner rate with which a level writes."""
    name = level.removesuffix(".init")
    if name in config.cms.levels:
        return f"cms.levels.{name}.lr"
    return {"titan": "titan.level.lr"}.get(name, "self_modifying_titans.eta_scale")


def _write_suspects(telemetry: Sequence[dict[str, Any]], config: ExperimentConfig) -> list[_Suspect]:
    out = []
    levels = {level for row in telemetry for level in row.get("writes", {})}
    for level in sorted(levels):
        norms = [row["writes"][level]["grad_norm"] for row in telemetry if level in row.get("writes", {})]
        by_layer = [_growth([float(n[layer]) for n in norms]) for layer in range(len(norms[0]))]
        layer = int(np.argmax([g for g, _, _ in by_layer]))
        growth, median, peak = by_layer[layer]
        key = rate_key(level, config)
        cause = f"the writes of {level} blew up (gradient norm in layer {layer}: {median:.3g} -> {peak:.3g})"
        remedy = f"lower {key} or memory.write_clip (now {config.memory.write_clip:g})"
        out.append(_Suspect(growth, cause, remedy))
    return out


def _suspects(telemetry: Sequence[dict[str, Any]], config: ExperimentConfig) -> list[_Suspect]:
    """All signals, in the order in which one drives the next."""
    remedies = {
        "teach_signal_norm": f"lower teach.scale (now {config.teach.scale:g}) or set "
        f"teach.clip (now {config.teach.clip:g}; 0 is off)",
        "grad_norm": f"lower optim.lr (now {config.optim.lr:g}) or optim.grad_clip "
        f"(now {config.optim.grad_clip:g}; 0 is off)",
        "loss": f"lower optim.lr (now {config.optim.lr:g}) or lengthen optim.warmup_steps "
        f"(now {config.optim.warmup_steps})",
    }
    out = _write_suspects(telemetry, config)
    for name, remedy in remedies.items():
        growth, median, peak = _growth([float(row[name]) for row in telemetry if name in row])
        out.append(_Suspect(growth, f"{name} grew from {median:.3g} to {peak:.3g}", remedy))
    return out


def explain_divergence(
    step: int, telemetry: Sequence[dict[str, Any]], config: ExperimentConfig, checkpoint: Path | None
) -> str:
    """The message of a `DivergenceError`.

    Args:
        step: first step whose loss or gradient norm is not finite.
        telemetry: rows up to that step, oldest first (`loss`, `grad_norm`, `lr`, `writes`, ...).
        checkpoint: the last good checkpoint, if any.
    """
    bad = telemetry[-1]
    head = f"step {step}: loss {float(bad['loss']):g}, gradient norm {float(bad['grad_norm']):g}."
    kept = f"Last good checkpoint: {checkpoint}." if checkpoint else "No checkpoint had been written yet."
    suspect = next((s for s in _suspects(telemetry, config) if s.growth >= _GROWTH), None)
    if suspect:
        cause, remedy = suspect.cause, suspect.remedy
    elif len(telemetry) == 1:
        cause = "it was so from the first step, so the initial weights or the batch are at fault"
        remedy = "try train.compute_dtype=float32, and check the data"
    else:
        cause = f"nothing grew before it (learning rate {float(bad['lr']):.3g})"
        remedy = (
            f"lower optim.lr (now {config.optim.lr:g}), or try train.compute_dtype=float32 "
            f"(now {config.train.compute_dtype})"
        )
    again = "The same command then goes on from the checkpoint." if checkpoint else ""
    return f"training diverged at {head} {kept} Likely cause: {cause}. Remedy: {remedy}. {again}".strip()
