"""Replays the chain of CMS levels (`cms_forward_*`) and the writes of one level (`cms_update_*`).

The published write descends the squared distance to P - G, so it is fed here as the signal 2 G (over the
number of active tokens where it is averaged), and all parameters of the level are fast, LayerNorm's included.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.memory import mlp_memory
from hope_jax.memory.cms import Cms
from hope_jax.memory.levels import Level
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.rules import make_inner_optimizer, project_out_context
from hope_jax.models.spec import READ_CLIP
from parity_tests import convert
from parity_tests.golden_file import Golden
from parity_tests.published import context_axes, inner_level
from parity_tests.quick import quick_jit
from parity_tests.reference_style import activation_of, offered

LAYER_NORM = ("ln_scale", "ln_bias")


def replay_forward(g: Golden) -> None:
    """Every level's input and output, evaluating and training, and the gradients while training."""
    if not offered(g.config):
        g.leave_rest("not_offered")
        return
    levels = {c["name"]: Level(c["update_period"], 0.1) for c in g.config["cms_levels"]}
    names = list(levels)
    params = jax.tree.map(jnp.asarray, convert.cms(g.weights, names))
    clip, activation = g.config["grad_clip"] or None, activation_of(g.config)
    hidden = max((level["w_up"].shape[1] for level in params.values()), default=0)

    def read(params: Any, x: Any, clip: float | None) -> list[Any]:
        """The outputs of no level, of the first, of the first two, and so on to y."""
        sizes, how = (x.shape[-1], hidden, WriteRules(4)), {"output_clip": clip, "activation": activation}
        chains = [
            Cms({name: levels[name] for name in names[:count]}, *sizes, **how)
            for count in range(len(levels) + 1)
        ]
        return [jax.vmap(lambda row, cms=cms: cms.read(params, None, row, {})[0])(x) for cms in chains]

    @quick_jit
    def results(params: Any, x: Any, cotangent: Any) -> Any:
        def paired(params: Any, x: Any) -> Any:
            outputs = read(params, x, clip)
            return jnp.sum(outputs[-1] * cotangent), outputs

        grads, train = jax.grad(paired, argnums=(0, 1), has_aux=True)(params, x)
        return {"eval": read(params, x, None), "train": train}, grads

    modes, (by_level, by_x) = results(params, g.inputs["x"], g.inputs["train_grad_cotangent"])
    for mode, outputs in modes.items():
        g.compare(f"{mode}.y", outputs[-1])
        for i, name in enumerate(names):
            g.compare(f"{mode}.level_in.{name}", outputs[i])
            g.compare(f"{mode}.level_out.{name}", outputs[i + 1])
    g.compare("train_grad.x", by_x)
    for name in names:
        for torch_name, value in convert.torch_level(by_level[name]).items():
            g.compare(f"train_grad.blocks.{name}.{torch_name}", value)


def gradient(
    params: Any, delta: Any, x: Any, teach: Any, clip: float | None, activation: str
) -> dict[str, Any]:
    """Gradient of sum_t <teach_t, y_t> at params + delta, of LayerNorm's parameters too; rows are tokens."""
    norm = {name: params[name] + delta[name] for name in LAYER_NORM if name in params}
    fast, at = mlp_memory.fast_weights(delta), {**params, **norm}
    how: Any = {"output_clip": clip, "activation": activation}
    factors = mlp_memory.write_factors(at, fast, mlp_memory.normalise(at, x), teach, **how)
    _, pull_back = jax.vjp(lambda n: mlp_memory.read({**at, **n}, fast, x, **how)[0], norm)
    return {**mlp_memory.write_gradient(factors, mlp_memory.fast_weights(params)), **pull_back(teach)[0]}


def replay_update(g: Golden) -> None:
    """Gradients, deltas and moments of a few writes in a row."""
    if not offered(g.config):
        g.leave_rest("not_offered")
        return
    width, tokens = g.config["dim"], g.inputs["x.0"].shape[1]
    params = jax.tree.map(jnp.asarray, convert.level(g.weights))
    defaults = {
        key: g.config[f"{key}_default"] for key in ("beta", "beta2", "eps") if f"{key}_default" in g.config
    }
    spec = inner_level(g, g.config["optimizer"], g.config.get("self_mod_lr", 1e-3), tokens, **defaults)
    optimizer = make_inner_optimizer(spec, context_axes(params, width))
    clip = (g.config.get("grad_clip", READ_CLIP) or None) if g.config["train_mode"] else None

    @quick_jit
    def write(delta: Any, state: Any, x: Any, teach: Any) -> Any:
        grads = gradient(params, delta, x, teach, clip, activation_of(g.config))
        update, state = optimizer.update(grads, state, context=x.mean(0))
        return grads, jax.tree.map(lambda d, u: d - spec.lr * u, delta, update), state

    for reduction in ("sum", "mean"):
        if not g.under(reduction):
            continue
        delta, state = jax.tree.map(jnp.zeros_like, params), optimizer.init(params)
        for i in range(g.config["n_updates"]):
            teach = g.inputs[f"teach.{i}"].reshape(-1, width)
            active = max(int((np.abs(teach).sum(-1) > 0).sum()), 1) if reduction == "mean" else 1
            x = g.inputs[f"x.{i}"].reshape(-1, width)
            grads, delta, state = write(delta, state, x, 2.0 * teach / active)
            step = f"{reduction}.step.{i}"
            _compare_trees(g, f"{step}.grad", grads)
            _compare_trees(g, f"{step}.delta", delta)
            g.compare(f"{step}.loss", np.square(teach).sum() / active)
            g.compare(f"{step}.magnitude", sum(np.linalg.norm(leaf) for leaf in grads.values()))
            g.compare(f"{step}.stats_metrics", _statistics(spec, x.mean(0), grads["b_down"]))
        if g.under(f"{reduction}.optimizer_state"):
            _compare_moments(g, f"{reduction}.optimizer_state", state)


def _statistics(spec: Level, context: Any, last_grad: Any) -> dict[str, float]:
    """What the published projection reports: of its last parameter, b_down."""
    if spec.optimizer != "nl_l2_precond":
        return {}
    project = project_out_context(spec.eps, {"last": 0})
    projected, _ = project.update({"last": last_grad}, project.init({}), context=jnp.asarray(context))
    length = np.linalg.norm(context)
    return {
        "ctx_norm": length,
        "proj_norm": jnp.linalg.norm(projected["last"]),
        "proj_skipped": float(length == 0),
    }


def _compare_trees(g: Golden, prefix: str, tree: dict[str, Any]) -> None:
    for torch_name, value in convert.torch_level(tree).items():
        g.compare(f"{prefix}.{torch_name}", value)


def _compare_moments(g: Golden, prefix: str, state: Any) -> None:
    """The averages in an inner optimizer's state: of the updates, and of the squared gradients."""
    for slot, field in (("grad_avg", "ema"), ("sq_avg", "nu")):
        for part in state:
            if hasattr(part, field):
                for torch_name, value in convert.torch_level(getattr(part, field)).items():
                    g.compare(f"{prefix}.{torch_name}.{slot}", value)
