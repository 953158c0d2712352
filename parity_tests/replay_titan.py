"""Replays the TITAN memory (`titan_memory*`) and the model that has no other (`model_titan_only*`).

The published target of a write lacks the '+ value' of ours and, in the titan model, has the other sign of
the signal; its loss is averaged over active tokens and its LayerNorm learns. So the gradient is taken here
at the published target, and the pieces that make it and apply it are ours.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.memory import mlp_memory
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.rules import make_inner_optimizer
from hope_jax.memory.state import WriteSignal, own
from hope_jax.memory.titan import SelfModifierOptions, Titan, self_modifier_read
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import READ_CLIP
from parity_tests import convert, replay_cms
from parity_tests.golden_file import Golden
from parity_tests.published import block_signal, context_axes, due, inner_level
from parity_tests.quick import quick_jit
from parity_tests.reference_style import activation_of, model_of, offered


def replay_memory(g: Golden) -> None:
    """Reads in both modes, the SelfModifier, and one plain step on either of two losses."""
    if not offered(g.config) or g.config.get("layers", 2) != 2:
        g.leave_rest("not_offered")
        return
    params = jax.tree.map(jnp.asarray, convert.titan(convert.under(g.weights, "titan")))
    modifier = jax.tree.map(jnp.asarray, convert.self_modifier(convert.under(g.weights, "self_modifier")))
    x, value, error = (jnp.asarray(g.inputs[name]) for name in ("x", "value", "error_signal"))
    rows, width = x.reshape(-1, x.shape[-1]), x.shape[-1]
    memory = Titan(
        Level(len(rows), g.config["update_lr"], "sgd"),
        *params["w_up"].shape,
        WriteRules(len(rows), MemoryOptions(write_clip=0.0, delta_clip=0.0)),
        own_output=False,
        activation=activation_of(g.config),
        self_modifier=SelfModifierOptions(enabled=False),
    )
    training = replace(memory, output_clip=READ_CLIP)

    def read(memory: Titan) -> Any:
        return memory.read(params, None, rows, {})[0]

    g.compare("eval", read(memory).reshape(x.shape))
    g.compare("train", read(training).reshape(x.shape))
    corrected = self_modifier_read(modifier, rows, value.reshape(-1, width), error.reshape(-1, width))
    g.compare("self_modifier", corrected.reshape(x.shape))
    cotangents = {
        "update_mse": 2.0 * (read(memory) - value.reshape(-1, width)) / x.size,
        "update_error_signal": error.reshape(-1, width) / x.size,
    }
    for name, cotangent in cotangents.items():
        written = {**params, **_plain_write(memory, params, rows, cotangent)}
        for torch_name, weight in convert.torch_titan(written).items():
            g.compare(f"{name}.{torch_name}", weight)


def _plain_write(memory: Titan, params: Any, x: Any, cotangent: Any) -> dict[str, Any]:
    """The fast weights after one write along `cotangent` at the memory's output; rows are tokens."""
    everywhere = jnp.ones(len(x), bool)
    signal = WriteSignal(cotangent, {}, jnp.ones(len(x)), everywhere, everywhere)

    @quick_jit
    def write(fast: Any) -> Any:
        trace = memory.read(params, fast, x, {})[1]
        norms, start = memory.norms(params), jnp.int32(0)
        return memory.write(params, norms, fast, trace, signal, position=start, reduce=own)[0]

    delta = write(memory.init(params))["titan"].delta
    return {name: params[name] + delta[name] for name in delta}


def gradient(memory: Titan, params: Any, delta: Any, key: Any, cotangent: Any) -> dict[str, Any]:
    """Gradient of sum_t <cotangent_t, mem(key_t)> at params + delta, of LayerNorm's parameters too."""
    norm = {name: params[name] + delta[name] for name in replay_cms.LAYER_NORM}
    fast, weights = mlp_memory.fast_weights(delta), mlp_memory.fast_weights(params)
    how: Any = {"output_clip": memory.output_clip, "activation": memory.activation}
    branch = mlp_memory.forward(weights, fast, key, memory.activation).o
    if memory.output_clip is not None:
        branch = branch * mlp_memory.clip_factor(branch, memory.output_clip)
    pull = jax.vjp(lambda o, n: mlp_memory.normalise(n, o), branch, norm)[1]
    at_branch, by_norm = pull(cotangent)
    factors = mlp_memory.write_factors(weights, fast, key, at_branch, **how)
    return {**mlp_memory.write_gradient(factors, weights), **by_norm}


def published_write(
    memory: Titan, optimizer: Any, params: Any, state: tuple[Any, Any], key: Any, teach: Any
) -> tuple[Any, Any]:
    """One layer's deltas and optimizer state after a write of the titan model; rows are tokens.

    params: with the SelfModifier. state: (deltas of all other parameters, optimizer state).
    """
    delta, opt = state
    weights = {name: params[name] for name in delta}
    now = jax.tree.map(jnp.add, weights, delta)
    value, _ = memory.read(now, None, key, {})
    target = teach + self_modifier_read(params["self_modifier"], key, value, teach)
    active = (teach != 0).any(-1)
    cotangent = jnp.where(active[:, None], 2.0 * (value - target), 0) / jnp.maximum(active.sum(), 1)
    grads = gradient(memory, weights, delta, key, cotangent)
    update, opt = optimizer.update(grads, opt, context=key.mean(0))
    return jax.tree.map(lambda d, u: d - memory.level.lr * u, delta, update), opt


def replay_model(g: Golden) -> None:
    """Logits of a plain call and of every call at the recorded deltas, and the deltas that it leaves."""
    config = g.config["model"]
    if not offered(config):
        g.leave_rest("not_offered")
        return
    model, params = model_of(config, g.weights)
    training = g.config.get("model_mode", "eval()") == "train()"
    read = quick_jit(
        lambda p, fast, tokens: model.read(p, fast, None, tokens, jnp.ones_like(tokens), training=training)
    )
    tokens = [jnp.asarray(g.inputs[f"tokens.{i}"], jnp.int32) for i in range(g.config["calls"])]
    g.compare("plain_logits", model.logits(params, read(params, {}, tokens[0]).hidden))

    titan = params["blocks"]["titan"]
    optimizers = config.get("optimizers") or {}
    recorded = optimizers.get(config["titan_level"].get("optimizer_key") or "default")
    spec = inner_level(g, recorded, config.get("self_mod_lr", 1e-3), 2)
    made: Any = model.memories(training=training)["titan"]
    memory = replace(made, level=spec)
    weights = {name: value for name, value in titan.items() if name != "self_modifier"}
    one_layer = jax.tree.map(lambda w: w[0], weights)
    optimizer = make_inner_optimizer(spec, context_axes(one_layer, config["dim"]))
    state = (jax.tree.map(jnp.zeros_like, weights), jax.vmap(optimizer.init)(weights))
    write = quick_jit(jax.vmap(lambda *args: published_write(memory, optimizer, *args)))
    # Whether the whole batch surprises is not asked here: the recorded writes are read instead.
    gated, last = config.get("surprise_threshold") is not None, -1
    for i, rows in enumerate(tokens):
        out = read(*_with_deltas(model, params, state[0], len(rows)), rows)
        g.compare(f"call.{i}.logits", model.logits(params, out.hidden))
        if gated:
            g.leave_rest(
                "batch_surprise",
                [f"call.{i}.titan_delta.{name}" for name in g.under(f"call.{i}.titan_delta")],
            )
        elif due(config["titan_level"], i, last):
            last = i
            signal = block_signal(config, jnp.asarray(g.inputs[f"teach_signal.{i}"])).reshape(
                -1, config["dim"]
            )
            keys = trees.stack(out.trace)["titan"].z.reshape(len(out.trace), -1, config["dim"])
            state = write(titan, state, keys, jnp.broadcast_to(signal, keys.shape))
        if gated:
            state = (recorded_deltas(g, f"call.{i}.titan_delta", config["num_layers"]), state[1])
        for layer in range(config["num_layers"]):
            deltas = convert.torch_titan(jax.tree.map(lambda d, at=layer: d[at], state[0]))
            for name in g.under(f"call.{i}.titan_delta.layer{layer}"):
                if not gated:
                    g.compare(f"call.{i}.titan_delta.layer{layer}.{name}", deltas[name])


def recorded_deltas(g: Golden, prefix: str, layers: int) -> Any:
    """The deltas that a call has left, as recorded, stacked over layers."""
    by_layer = [convert.titan(g.under(f"{prefix}.layer{layer}")) for layer in range(layers)]
    return jax.tree.map(lambda *t: jnp.stack([jnp.asarray(leaf) for leaf in t]), *by_layer)


def _with_deltas(model: HopeModel, params: Any, deltas: Any, batch: int) -> tuple[Any, Any]:
    """Parameters and fast state that read with the deltas; LayerNorm's are added to its parameters."""
    level = trees.stack(model.init_fast_state(params, batch))["titan"]["titan"]
    written = jax.tree.map(
        lambda at, d: jnp.broadcast_to(d[:, None], at.shape), level.delta, mlp_memory.fast_weights(deltas)
    )
    norm = {key: params["blocks"]["titan"][key] + deltas[key] for key in replay_cms.LAYER_NORM}
    blocks = {**params["blocks"], "titan": {**params["blocks"]["titan"], **norm}}
    fast = {"titan": {"titan": level._replace(delta=written)}}
    return {**params, "blocks": blocks}, trees.unstack(fast, model.spec.num_layers)
