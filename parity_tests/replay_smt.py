"""Replays a recorded self-modifying Titans file (`smt_*`) with production code.

The published code restarts chunks and convolution at every call and writes the partial chunk at a call's end.
Production does neither, so each recorded call is driven here as a stream from position 0, token by token with
production's carry, and what the carry then holds of unfinished chunks is written as shorter chunks.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hope_jax.kernels import self_mod as kernel

from hope_jax.core import trees
from hope_jax.memory.self_mod import SelfMod, SelfModCarry, SelfModState
from parity_tests import convert
from parity_tests.golden_file import Golden
from parity_tests.quick import quick_jit

NAMES = {"w1": "w_out", "w2": "w_in", "w_skip": "w_skip"}


def self_mod_of(config: dict[str, Any]) -> SelfMod:
    """Production's constants from the recorded ones."""
    return SelfMod(
        dim=config["dim"],
        online_chunk=1,
        eps=config["eps"],
        chunk_size=config["chunk_size_other"],
        chunk_size_memory=config["chunk_size_memory"] or config["chunk_size_other"],
        eta_scale=config["eta_scale"],
        qk_norm=config["qk_l2_norm"],
        adaptive_q=config["adaptive_q"],
        use_alpha=config["use_alpha"],
        rank1_precondition=config["use_rank1_precond"],
        projection_skip=config["use_skip"],
        objective=config["objective"],
        stopgrad_vhat=config["stopgrad_vhat"],
        momentum=config["momentum"],
        local_conv_window=config["local_conv_window"] or 0,
    )


def params_of(memory: SelfMod, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Production's parameters from torch's: memories stay (out, in), the query projection is transposed.

    A memory that is never read (M_q without adaptive_q, M_alpha without use_alpha) has no counterpart.
    """
    params: dict[str, Any] = {}
    for name in (*memory.generator_names(), "memory"):
        part = convert.under(weights, f"m_{name}")
        params[name] = {NAMES[key.removesuffix(".weight")]: value for key, value in part.items()}
    if not memory.adaptive_q:
        params["w_q"] = weights["w_q.weight"].T
    if "local_conv.weight" in weights:
        params["conv"] = weights["local_conv.weight"][:, 0, :].T
    return jax.tree.map(jnp.asarray, params)


def write_rest(memory: SelfMod, state: SelfModState, carry: SelfModCarry, tokens: int) -> SelfModState:
    """The state after the shorter chunks that a published call of `tokens` tokens ends with."""
    weights, momentum = dict(state.weights), dict(state.momentum or {})
    groups = (
        (memory.chunk_size, memory.generator_names(), carry.generators),
        (memory.chunk_size_memory, ("memory",), carry.memory),
    )
    for chunk, names, pending in groups:
        rest = tokens % chunk
        if not rest:
            continue
        group = {name: weights[name] for name in names}
        layout, tail = kernel.layout_of(group), jax.tree.map(lambda t, n=rest: t[:n], pending)
        buffers = {name: momentum[name] for name in names} if momentum else None
        new = kernel.write_chunk(kernel.stack(group, buffers), layout, tail, memory)
        written, kept = kernel.unstack(new, layout)
        weights.update(written)
        momentum.update(kept or {})
    return SelfModState(weights, momentum or ())


class Calls:
    """Published calls with updates, of a batch [B, T, D] with a state per example."""

    def __init__(self, memory: SelfMod, params: Any) -> None:
        self.memory = memory

        def step(state: SelfModState, carry: SelfModCarry, x: Any, position: Any) -> Any:
            return memory.read(params, state, carry, x[None], position=position)[:3]

        rest = jax.vmap(lambda s, c, n: write_rest(memory, s, c, n), in_axes=(0, 0, None))
        self.step = quick_jit(jax.vmap(step, in_axes=(0, 0, 0, None)))
        self.rest = quick_jit(rest, static_argnums=2)

    def __call__(self, state: SelfModState, x: Any) -> tuple[Any, SelfModState]:
        """o [B, T, D], and the state after the call."""
        carry = broadcast(self.memory.init_carry(x.dtype), len(x))
        outputs = []
        for position in range(x.shape[1]):
            o, state, carry = self.step(state, carry, x[:, position], position)
            outputs.append(o)
        return np.concatenate(outputs, axis=1), self.rest(state, carry, x.shape[1])


def broadcast(tree: Any, batch: int) -> Any:
    """The tree with a leading axis of `batch` copies."""
    return jax.tree.map(lambda t: jnp.broadcast_to(t, (batch, *t.shape)), tree)


def replay(g: Golden) -> None:
    """Every call's outputs and states, the reads of first and last state, and their gradient."""
    config, override = self_mod_of(g.config["selfmod"]), g.config["chunk_override"]
    memory = replace(config, **_sizes(override, config)) if override else config
    params = params_of(config, g.weights)
    x = [jnp.asarray(g.inputs[f"x.{i}"]) for i in range(len(g.config["lengths"]))]
    for name in ("forward_meta", "forward_with_initial_state"):
        if name in g.outputs:
            read_only = jax.vmap(lambda row: memory.read(params, None, None, row, position=0)[0])
            g.compare(name, quick_jit(read_only)(x[0]))
    fresh = broadcast(config.init(params), x[0].shape[0])
    calls, state, first = Calls(memory, params), fresh, None
    for i, inputs in enumerate(x):
        o, state = calls(state, inputs)
        first = first or state
        g.compare(f"call.{i}.o", o)
        compare_state(g, f"call.{i}.state", state)
    _compare_probe(g, memory, params, state)
    in_place = g.under("apply_updates_inplace")
    if in_place:
        written = first if memory == config else Calls(config, params)(fresh, x[0])[1]
        mean = jax.tree.map(lambda t: t.mean(0), written.weights)
        for name in in_place:
            part, key = name.removeprefix("m_").removesuffix(".weight").split(".")
            g.compare(f"apply_updates_inplace.{name}", mean[part][NAMES[key]])


def _sizes(override: Any, config: SelfMod) -> dict[str, int]:
    """Chunk sizes given at call time: by name (with or without `chunk_size_`), or a pair."""
    if not isinstance(override, dict):
        override = dict(zip(("other", "memory"), override, strict=True))
    sizes = {key.removeprefix("chunk_size_"): value for key, value in override.items()}
    return {
        "chunk_size": sizes.get("other") or config.chunk_size,
        "chunk_size_memory": sizes.get("memory") or config.chunk_size_memory,
    }


def compare_state(g: Golden, at: str, state: SelfModState, prefix: str = "") -> None:
    """Compares the recorded state `at`; prefix: of the weights' names.

    A memory that is never read is not created here; the published state keeps its first weights.
    """
    for name, recorded in g.under(at).items():
        part, key = name.split(".")
        if part in state.weights:
            tree = state.momentum if key.startswith("m_") else state.weights
            g.compare(f"{at}.{name}", tree[part][NAMES[key.removeprefix("m_")]])
        elif key.startswith("m_"):
            g.compare(f"{at}.{name}", np.zeros(recorded.shape))
        else:
            first = g.weights[f"{prefix}m_{part}.{key}.weight"]
            g.compare(f"{at}.{name}", np.broadcast_to(first, (len(recorded), *first.shape)))


def _compare_probe(g: Golden, memory: SelfMod, params: Any, state: SelfModState) -> None:
    """A read of the final state, and its gradient with respect to the initial weights at that state."""
    if "probe" not in g.inputs:
        return
    cotangent = g.inputs.get("probe_cotangent", np.zeros(g.inputs["probe"].shape))

    def read(params: Any, state: Any, probe: Any) -> Any:
        def row(state: SelfModState, x: Any) -> Any:
            old, fast = trees.stop_gradient((params, state))
            held = {**params, **memory.move(old, params, fast).weights}
            return memory.read(held, None, None, x, position=0)[0]

        o = jax.vmap(row)(state, probe)
        return jnp.sum(o * cotangent), o

    (_, o), grads = quick_jit(jax.value_and_grad(read, has_aux=True))(params, state, g.inputs["probe"])
    g.compare("forward_with_final_state", o)
    for name in g.under("probe_grad"):
        if name == "local_conv.weight":
            value = grads["conv"].T[:, None, :]
        elif name == "w_q.weight":
            value = grads["w_q"].T
        else:
            part, key = name.removeprefix("m_").removesuffix(".weight").split(".")
            value = grads[part][NAMES[key]]
        g.compare(f"probe_grad.{name}", value)
