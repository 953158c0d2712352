"""Replays a recorded self-modifying Titans file (`smt_*`) with production code.

The published code restarts chunks and convolution at every call and writes the partial chunk at a call's end.
Production does neither, so each recorded call is driven here as a sequence from position 0, and what is left
over is written as one shorter chunk.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hope_jax.kernels import self_mod as kernel

from hope_jax.memory.self_mod import SelfMod, SelfModState
from parity_tests import convert
from parity_tests.golden_file import Golden

NAMES = {"w1": "w_out", "w2": "w_in", "w_skip": "w_skip"}
NOT_CREATED = "a memory that is never read (M_q without adaptive_q, M_alpha without use_alpha) is not created"


def self_mod_of(config: dict[str, Any]) -> SelfMod:
    """Production's constants from the recorded ones."""
    return SelfMod(
        dim=config["dim"],
        online_chunk=config["chunk_size_other"],
        chunk_size=config["chunk_size_other"],
        chunk_size_memory=config["chunk_size_memory"] or config["chunk_size_other"],
        eta_scale=config["eta_scale"],
        qk_norm=config["qk_l2_norm"],
        adaptive_q=config["adaptive_q"],
        use_alpha=config["use_alpha"],
        rank1=config["use_rank1_precond"],
        projection_skip=config["use_skip"],
        objective=config["objective"],
        stopgrad_vhat=config["stopgrad_vhat"],
        momentum=config["momentum"],
        conv_window=config["local_conv_window"] or 0,
        eps=config["eps"],
    )


def params_of(memory: SelfMod, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Production's parameters from torch's: memories stay (out, in), the query projection is transposed."""
    params: dict[str, Any] = {}
    for name in (*memory.generator_names(), "memory"):
        part = convert.under(weights, f"m_{name}")
        params[name] = {NAMES[key.removesuffix(".weight")]: value for key, value in part.items()}
    if not memory.adaptive_q:
        params["w_q"] = weights["w_q.weight"].T
    if "local_conv.weight" in weights:
        params["conv"] = weights["local_conv.weight"][:, 0, :].T
    return jax.tree.map(jnp.asarray, params)


def write_rest(memory: SelfMod, state: SelfModState, streams: kernel.Tokens) -> SelfModState:
    """The state after the shorter chunks that a call of the published code ends with."""
    weights, momentum = dict(state.weights), dict(state.momentum or {})
    groups = ((memory.chunk_size, memory.generator_names()), (memory.chunk_size_memory, ("memory",)))
    for chunk, names in groups:
        rest = len(streams.eta) % chunk
        if not rest:
            continue
        group = {name: weights[name] for name in names}
        layout, tail = kernel.layout_of(group), jax.tree.map(lambda t, n=rest: t[-n:], streams)
        buffers = kernel.stack({name: momentum[name] for name in names}) if momentum else None
        rule = kernel.Rule(memory.objective, memory.stopgrad_vhat, memory.rank1, memory.momentum)
        new, m = kernel.write_chunk(kernel.stack(group), buffers, layout, tail, rule)
        weights.update(kernel.unstack(new, layout))
        momentum.update({} if m is None else kernel.unstack(m, layout))
    return SelfModState(weights, momentum or ())


def call_with_updates(memory: SelfMod, params: Any, state: SelfModState, x: Any) -> tuple[Any, SelfModState]:
    """One published call for one example."""
    o, new, _, _ = memory.read(params, state, None, x, position=0)
    return o, write_rest(memory, new, memory.streams(params, state, x))


def replay(g: Golden) -> None:
    """Compare every output of the file. Raises GoldenMismatch."""
    config = self_mod_of(g.config["selfmod"])
    memory, override = config, g.config["chunk_override"]
    if override:
        other, own = _sizes(override, config)
        memory = replace(config, chunk_size=other, chunk_size_memory=own, online_chunk=other)
    params = params_of(config, g.weights)
    x = [jnp.asarray(g.inputs[f"x.{i}"]) for i in range(len(g.config["lengths"]))]

    def read_only(params: Any, x: Any) -> Any:
        return jax.vmap(lambda row: memory.read(params, None, None, row, position=0)[0])(x)

    def updates(memory: SelfMod) -> Any:
        return jax.jit(jax.vmap(lambda state, row: call_with_updates(memory, params, state, row)))

    def broadcast(tree: Any) -> Any:
        return jax.tree.map(lambda t: jnp.broadcast_to(t, (x[0].shape[0], *t.shape)), tree)

    for name in ("forward_meta", "forward_with_initial_state"):
        if name in g.outputs:
            g.compare(name, read_only(params, x[0]))
    fresh = broadcast(config.init(params))
    state, run = fresh, updates(memory)
    for i, inputs in enumerate(x):
        o, state = run(state, inputs)
        g.compare(f"call.{i}.o", o)
        _compare_state(g, f"call.{i}.state", state)
    _compare_probe(g, memory, params, state)
    if g.under("apply_updates_inplace"):
        _, written = updates(config)(fresh, x[0])
        mean = jax.tree.map(lambda t: t.mean(0), written.weights)
        for name in g.under("apply_updates_inplace"):
            part, key = name.removeprefix("m_").removesuffix(".weight").split(".")
            g.compare(f"apply_updates_inplace.{name}", mean[part][NAMES[key]])
    g.finish()


def _sizes(override: Any, config: SelfMod) -> tuple[int, int]:
    """Chunk sizes given at call time: by name (with or without `chunk_size_`), or a pair."""
    if not isinstance(override, dict):
        override = dict(zip(("other", "memory"), override, strict=True))
    sizes = {key.removeprefix("chunk_size_"): value for key, value in override.items()}
    other = sizes.get("other") or config.chunk_size
    return other, sizes.get("memory") or config.chunk_size_memory


def _compare_state(g: Golden, prefix: str, state: SelfModState) -> None:
    for name in g.under(prefix):
        part, key = name.split(".")
        tree = state.momentum if key.startswith("m_") else state.weights
        if part in state.weights:
            g.compare(f"{prefix}.{name}", tree[part][NAMES[key.removeprefix("m_")]])
        else:
            g.leave_out(f"{prefix}.{name}", NOT_CREATED)


def _compare_probe(g: Golden, memory: SelfMod, params: Any, state: SelfModState) -> None:
    """A read of the final state, and its gradient with respect to the initial weights at that state."""
    if "probe" not in g.inputs:
        return
    probe = jnp.asarray(g.inputs["probe"])

    def read(params: Any) -> Any:
        def row(state: SelfModState, x: Any) -> Any:
            held = {**params, **memory.rebase(params, state).weights}
            return memory.read(held, None, None, x, position=0)[0]

        return jax.vmap(row)(state, probe)

    g.compare("forward_with_final_state", read(params))
    if not g.under("probe_grad"):
        return
    grads = jax.jit(jax.grad(lambda p: jnp.sum(read(p) * g.inputs["probe_cotangent"])))(params)
    for name in g.under("probe_grad"):
        if name == "local_conv.weight":
            value = grads["conv"].T[:, None, :]
        elif name == "w_q.weight":
            value = grads["w_q"].T
        else:
            part, key = name.removeprefix("m_").removesuffix(".weight").split(".")
            value = grads[part][NAMES[key]]
        g.compare(f"probe_grad.{name}", value)
