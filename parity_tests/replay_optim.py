"""Replays the outer optimizers (`optim_*`): parameters after each step under the recorded gradients."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax.optim.m3 import M3Rule, M3State, scale_by_m3
from parity_tests.golden_file import TOLERANCE, Golden

BFLOAT16 = 1.6e-3
"""What torch's Newton-Schulz in bfloat16 may change in a trajectory, as the recorded files state it."""


def replay(g: Golden) -> None:
    """By the file's optimizer. Raises ValueError for one that the format does not have."""
    kinds = {"adamw": _adamw, "m3": _m3, "muon": _muon}
    kind = g.config["optimizer"]
    if kind not in kinds:
        raise ValueError(f"config.optimizer={kind!r}: want one of {', '.join(kinds)}")
    kinds[kind](g, dict(g.config["hyper"]))


def params_of(g: Golden) -> list[jax.Array]:
    """The parameters before the first step."""
    return [jnp.asarray(g.inputs[f"param.{i}"]) for i in range(len(g.config["shapes"]))]


def run(g: Golden, optimizer: optax.GradientTransformation) -> tuple[list[np.ndarray], Any]:
    """Parameters after every step [steps, ...], and the optimizer's last state."""
    params = params_of(g)
    update, state, steps = jax.jit(optimizer.update), optimizer.init(params), []
    for step in range(g.config["steps"]):
        grads = [jnp.asarray(g.inputs[f"grad.{i}"][step]) for i in range(len(params))]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        steps.append(params)
    return [np.stack([np.asarray(p[i]) for p in steps]) for i in range(len(params))], state


def adamw(hyper: Mapping[str, Any]) -> optax.GradientTransformation:
    """AdamW with torch's names and defaults."""
    b1, b2 = hyper.get("betas", (0.9, 0.999))
    decay = hyper.get("weight_decay", 0.01)
    return optax.adamw(hyper.get("lr", 1e-3), b1, b2, hyper.get("eps", 1e-8), weight_decay=decay)


def m3(hyper: Mapping[str, Any]) -> optax.GradientTransformation:
    """The published M3: its decay is coupled, part of the gradient that the momenta gather."""
    rule = {key: value for key, value in hyper.items() if key not in ("lr", "weight_decay", "type")}
    chain = optax.chain(
        optax.add_decayed_weights(hyper.get("weight_decay", 0.0)),
        scale_by_m3(M3Rule(**rule)),
        optax.scale_by_learning_rate(hyper.get("lr", 1e-3)),
    )
    return _as_matrices(chain)


def _as_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on tensors reshaped to [rows, rest], as the published M3 takes them; ours takes stacks."""

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda t: t.reshape(t.shape[0], -1) if t.ndim > 2 else t, tree)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(flat(grads), state, flat(params))
        return jax.tree.map(lambda u, g: u.reshape(g.shape), updates, grads), state

    return optax.GradientTransformation(lambda params: inner.init(flat(params)), update)


def _adamw(g: Golden, hyper: Mapping[str, Any]) -> None:
    for i, trajectory in enumerate(run(g, adamw(hyper))[0]):
        g.compare(f"trajectory.{i}", trajectory)


M3_STATE = {
    "m1": "fast",
    "m2": "slow",
    "o2": "slow_direction",
    "slow_buffer": "gathered",
    "v": "second_moment",
}


def _m3(g: Golden, hyper: Mapping[str, Any]) -> None:
    trajectories, (_, state, _) = run(g, m3(hyper))
    assert isinstance(state, M3State)
    for i, trajectory in enumerate(trajectories):
        g.compare(f"trajectory.{i}", trajectory)
        for name, recorded in g.under(f"state.{i}").items():
            value = state.steps if name == "step" else getattr(state, M3_STATE[name])[i]
            g.compare(f"state.{i}.{name}", value.reshape(recorded.shape))


TINY = 1e-30
"""Added to a norm without changing it, unless it is 0."""


class TorchMuon:
    """Torch's Muon out of optax's parts, in full precision, for parameters [rows, columns].

    Torch orthogonalises (1 - mu) g + mu buf with buf <- mu buf + (1 - mu) g: 1 - mu times what
    `optax.trace` makes, and Newton-Schulz divides by the norm (torch bounds it below; here 0 stays 0).
    """

    def __init__(self, hyper: Mapping[str, Any], params: Any) -> None:
        self.momentum, nesterov = hyper.get("momentum", 0.95), hyper.get("nesterov", True)
        coefficients = tuple(hyper.get("ns_coefficients", (3.4445, -4.775, 2.0315)))
        rms = 0.2 if hyper.get("adjust_lr_fn") == "match_rms_adamw" else None
        shared: dict[str, Any] = {"ns_coeffs": coefficients, "ns_steps": hyper.get("ns_steps", 5)}
        lr, decay = hyper.get("lr", 1e-3), hyper.get("weight_decay", 0.1)
        axes = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-1, -2), params)
        self.direction = optax.chain(
            optax.trace(self.momentum, nesterov),
            optax.contrib.scale_by_muon(
                beta=0.0, eps=TINY, nesterov=False, weight_dimension_numbers=axes, **shared
            ),
        )
        self.whole = optax.chain(
            self.direction,
            optax.stateless(lambda u, _: jax.tree.map(lambda d: _scale(d.shape, rms) * d, u)),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(lr),
        )
        # With which we train: it corrects both terms for their bias before it adds them.
        self.ours = optax.contrib.muon(
            lr,
            beta=self.momentum,
            nesterov=nesterov,
            weight_decay=decay,
            muon_weight_dimension_numbers=axes,
            consistent_rms=rms,
            **shared,
        )


def _scale(shape: tuple[int, ...], rms: float | None) -> float:
    """Torch's factor on a direction [rows, columns]: that of `match_rms_adamw`, or the original one."""
    rows, columns = shape
    return rms * max(rows, columns) ** 0.5 if rms else max(1.0, rows / columns) ** 0.5


def _muon(g: Golden, hyper: Mapping[str, Any]) -> None:
    muon, params = TorchMuon(hyper, params_of(g)), params_of(g)
    trajectories, state = run(g, muon.whole)
    first_grads = [jnp.asarray(g.inputs[f"grad.{i}"][0]) for i in range(len(params))]
    first, _ = muon.direction.update(first_grads, muon.direction.init(params))
    ours, _ = run(g, muon.ours)
    # What the file states of its last step holds, within a factor, at the steps before.
    bound = max(BFLOAT16, 2.0 * float(g.outputs["max_abs_gap_bf16_vs_float64"]))
    size, last_gap = 0.0, 0.0
    for i, trajectory in enumerate(trajectories):
        g.compare(f"trajectory_float64_no_bf16.{i}", trajectory)
        g.compare(f"first_direction_float64_no_bf16.{i}", first[i])
        g.compare(f"momentum_buffer.{i}", (1 - muon.momentum) * state[0][0].trace[i])
        g.compare(f"trajectory.{i}", trajectory, absolute=bound)
        g.compare(f"trajectory_float32_params.{i}", trajectory, absolute=bound)
        size = max(size, float(np.abs(ours[i] - trajectory).max()))
        last_gap = max(last_gap, float(np.abs(g.outputs[f"trajectory.{i}"][-1] - trajectory[-1]).max()))
    g.compare("max_abs_gap_bf16_vs_float64", last_gap)
    if size > TOLERANCE:
        g.differ("muon_bias_correction", size)
