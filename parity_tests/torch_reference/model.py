"""Whole models as reads: embedding, blocks, final norm, tied head. One context."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity_tests.torch_reference import cms, layers, nested, periods, self_mod, titan
from parity_tests.torch_reference.layers import Cache
from parity_tests.torch_reference.settings import Arch, Level
from parity_tests.torch_reference.trees import select

SUBLAYERS = {
    "transformer": ("attention", "mlp"),
    "transformer_pp": ("attention", "swiglu"),
    "hope_attention": ("attention", "cms"),
    "hope_selfmod": ("self_mod", "cms"),
    "hope_hybrid": ("attention", "titan", "cms"),
    "titan": ("attention", "titan"),
}
"""What each block variant is made of, in the order of reading."""

ByLayer = list[dict[str, Any]]
"""One dict a layer. Fast state: {"cms": {level: LevelState}, "titan": {level: LevelState}, "self_mod":
SelfModState}; a carry: {"attention": Cache, "self_mod": SelfModCarry}; taps: {"block", level: [n, D]}.
"""


@dataclass(frozen=True)
class Read:
    """A read of n tokens. logits: [n, V], at least float32. pre_norm: [n, D] input of the final norm.
    inputs: by layer, level (the TITAN memory's too) -> [n, D]. fast, carry: after these tokens."""

    logits: Tensor
    pre_norm: Tensor
    inputs: list[dict[str, Tensor]]
    fast: ByLayer
    carry: ByLayer


def layer_params(params: dict) -> list[dict]:
    """The parameters of each block."""
    count = len(layers_of(params["blocks"]))
    return [select(params["blocks"], i) for i in range(count)]


def layers_of(tree: Any) -> Tensor:
    """Any leaf of a tree whose leaves have a leading layer axis."""
    return layers_of(next(iter(tree.values()))) if isinstance(tree, dict) else tree


def fresh_fast(params: dict, arch: Arch) -> ByLayer:
    """The fast state of a context that has written nothing."""
    fast = []
    for p in layer_params(params):
        state: dict[str, Any] = {}
        if "cms" in SUBLAYERS[arch.variant]:
            state["cms"] = {level.name: periods.fresh(level, p["cms"][level.name]) for level in arch.levels}
            if arch.connection == "nested":
                state["cms"] = nested.fresh(arch.levels, p["cms"])
        if "titan" in SUBLAYERS[arch.variant]:
            state["titan"] = {arch.titan.name: periods.fresh(arch.titan, p["titan"])}
        if "self_mod" in SUBLAYERS[arch.variant]:
            state["self_mod"] = self_mod.fresh(arch.self_mod, p["self_mod"])
        fast.append(state)
    return fast


def taught_levels(arch: Arch) -> list[tuple[str, Level]]:
    """The levels that teach signals write, each with the name of its memory, in the order of reading."""
    found = {"cms": [("cms", level) for level in arch.levels], "titan": [("titan", arch.titan)]}
    return [pair for sublayer in SUBLAYERS[arch.variant] for pair in found.get(sublayer, [])]


def fresh_carry(params: dict) -> ByLayer:
    """The carry before the first token."""
    empty = {"attention": Cache(), "self_mod": self_mod.SelfModCarry()}
    return [dict(empty) for _ in layer_params(params)]


def zero_taps(params: dict, arch: Arch, tokens: int) -> ByLayer:
    """Zeros [n, D] to add to each block's and each level's output; they ask for gradients."""
    names = ["block", *(level.name for _, level in taught_levels(arch))]
    wide = layers.wide(torch.zeros(0, dtype=arch.dtype)).dtype
    shape = (tokens, params["embed"].shape[1])
    return [
        {name: torch.zeros(shape, dtype=wide, requires_grad=True) for name in names}
        for _ in layer_params(params)
    ]


def read(
    params: dict,
    arch: Arch,
    fast: ByLayer,
    carry: ByLayer,
    tokens: list[int],
    segments: list[int],
    taps: ByLayer | None = None,
) -> Read:
    """Reads n tokens after those of `carry`, with the memories of `fast`."""
    x = params["embed"][torch.tensor(tokens)].to(arch.dtype)
    inputs, new_fast, new_carry = [], [], []
    for layer, p in enumerate(layer_params(params)):
        x, state, kept, level_inputs = block(
            p, arch, fast[layer], carry[layer], x, segments, taps[layer] if taps else {}
        )
        new_fast.append(state)
        new_carry.append(kept)
        inputs.append(level_inputs)
    hidden = layers.norm(arch, params["final_norm"], x, prefix="")
    # Logits are differences that the loss lives on: the product is not rounded to the activations' dtype.
    logits = layers.wide(hidden) @ layers.wide(params["embed"].to(arch.dtype)).T
    return Read(logits, x, inputs, new_fast, new_carry)


def block(
    p: dict, arch: Arch, fast: dict, carry: dict, x: Tensor, segments: list[int], taps: dict[str, Tensor]
) -> tuple[Tensor, dict, dict, dict[str, Tensor]]:
    """One block: its output, fast state, carry, and the inputs of its levels."""
    fast, carry, inputs = dict(fast), dict(carry), {}
    for sublayer in SUBLAYERS[arch.variant]:
        if sublayer == "attention":
            x, carry["attention"] = layers.attention(p["attn"], arch, x, segments, carry["attention"])
        elif sublayer == "mlp":
            x = layers.mlp(p["mlp"], arch, x)
        elif sublayer == "swiglu":
            x = layers.swiglu(p["mlp"], arch, x)
        elif sublayer == "self_mod":
            x, fast["self_mod"], carry["self_mod"] = self_mod_sublayer(p, arch, fast, carry, x, segments)
        elif sublayer == "titan":
            x, inputs[arch.titan.name] = titan_sublayer(p, arch, fast["titan"][arch.titan.name], x, taps)
        else:
            x, level_inputs = cms_sublayer(p["cms"], arch, fast["cms"], x, taps)
            inputs |= level_inputs
    if arch.variant == "titan" and not arch.modern:
        x = layers.norm(arch, p, x)
    if "block" in taps:
        x = x + taps["block"].to(x.dtype)
    return x, fast, carry, inputs


def cms_sublayer(
    p: dict, arch: Arch, fast: dict, x: Tensor, taps: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The levels as they are connected, at theta + delta."""
    levels = {v.name: cms.with_delta(p[v.name], fast[v.name].delta) for v in arch.levels}
    if arch.connection == "independent":
        return cms.average_read(levels, p["mix"], x, taps, arch.read_clip)
    return cms.chain_read(levels, x, taps, arch.read_clip)


def titan_sublayer(
    p: dict, arch: Arch, state: periods.LevelState, x: Tensor, taps: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """x + mem(key), and the key: norm(x) in the modern style, x in the reference."""
    key = layers.norm(arch, p, x, prefix="titan_") if arch.modern else x
    m = titan.read(cms.with_delta(p["titan"], state.delta), key, arch.read_clip)
    return x + cms.tapped(m, taps, arch.titan.name), key


def self_mod_sublayer(
    p: dict, arch: Arch, fast: dict, carry: dict, x: Tensor, segments: list[int]
) -> tuple[Tensor, self_mod.SelfModState, self_mod.SelfModCarry]:
    """x + SM(norm(x)) (modern); the reference style has neither norm nor residual."""
    z = layers.rms_norm(x, p["self_mod_scale"]) if arch.modern else x
    given = fast["self_mod"], carry["self_mod"]
    o, state, kept = self_mod.read(arch.self_mod, p["self_mod"], *given, z, segments)
    return (x + o if arch.modern else o), state, kept


def token_losses(logits: Tensor, targets: list[int]) -> Tensor:
    """Cross-entropy [n] in nats; 0 where the target is negative."""
    log_p = torch.log_softmax(logits, -1)
    rows = [-row[t] if t >= 0 else row[0] * 0 for row, t in zip(log_p, targets, strict=True)]
    return torch.stack(rows)
