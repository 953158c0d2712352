"""Torch state dicts as this package's parameter trees.

A torch Linear holds [out, in], ours [in, out]; its depthwise convolution [D, 1, W], ours [W, D], both with
the last tap on the current token; its fused qkv rows are the thirds q, k, v.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from hope_jax.core import trees

Weights = Mapping[str, np.ndarray]

LEVEL_NAMES = {
    "net.0.weight": "ln_scale",
    "net.0.bias": "ln_bias",
    "net.1.weight": "w_up",
    "net.1.bias": "b_up",
    "net.3.weight": "w_down",
    "net.3.bias": "b_down",
}
MLP_NAMES = {
    "norm.weight": "norm_scale",
    "norm.bias": "norm_bias",
    "net.0.weight": "w_up",
    "net.2.weight": "w_down",
}
TITAN_NAMES = {
    "net.0.weight": "w_up",
    "net.0.bias": "b_up",
    "net.2.weight": "w_down",
    "net.2.bias": "b_down",
    "norm.weight": "ln_scale",
    "norm.bias": "ln_bias",
}
SELF_MODIFIER_NAMES = {
    f"net.{2 * i}.{t}": f"{o}_{i + 1}" for i in range(3) for t, o in (("weight", "w"), ("bias", "b"))
}


def under(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """Entries of a submodule, under their names within it."""
    return {k[len(prefix) + 1 :]: v for k, v in weights.items() if k.startswith(prefix + ".")}


def renamed(weights: Weights, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Entries under our names, matrices transposed. Raises KeyError on a name without a counterpart."""
    return {names[k]: v.T if v.ndim == 2 else v for k, v in weights.items()}


def level(weights: Weights) -> dict[str, np.ndarray]:
    """One CMS level, or anything with the same names (its gradients, deltas, optimizer moments)."""
    return renamed(weights, LEVEL_NAMES)


def torch_layout(value: Any) -> np.ndarray:
    """One of our matrices [in, out] as torch lays it; vectors as they are."""
    value = np.asarray(value)
    return value.T if value.ndim == 2 else value


def titan(weights: Weights) -> dict[str, np.ndarray]:
    """A TITAN memory, without its SelfModifier. Raises KeyError if it has more than two layers."""
    return renamed(weights, TITAN_NAMES)


def self_modifier(weights: Weights) -> dict[str, np.ndarray]:
    """The SelfModifier of a TITAN memory."""
    return renamed(weights, SELF_MODIFIER_NAMES)


def torch_titan(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `titan`."""
    return torch_named(tree, TITAN_NAMES)


def torch_named(tree: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `renamed`, of the parameters that `tree` has."""
    return {name: torch_layout(tree[ours]) for name, ours in names.items() if ours in tree}


def torch_level(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `level`."""
    return torch_named(tree, LEVEL_NAMES)


def cms(weights: Weights, names: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """The levels of a CMS by name."""
    return {name: level(under(weights, f"blocks.{name}")) for name in names}


def mlp(weights: Weights) -> dict[str, np.ndarray]:
    """The transformer's MLP."""
    return renamed(weights, MLP_NAMES)


def attention(weights: Weights) -> dict[str, np.ndarray]:
    """The attention sublayer, its norm included."""
    q, k, v = np.split(weights["qkv.weight"], 3, axis=0)
    tree = {
        "norm_scale": weights["norm.weight"],
        "norm_bias": weights["norm.bias"],
        "w_q": q.T,
        "w_k": k.T,
        "w_v": v.T,
        "w_out": weights["out_proj.weight"].T,
    }
    if "local_conv.weight" in weights:
        tree["conv"] = weights["local_conv.weight"][:, 0, :].T
    return tree


def block(weights: Weights, self_mod: Any = None) -> dict[str, Any]:
    """One block of any variant, by the submodules that it has.

    self_mod: turns the weights of self-modifying Titans into parameters (`replay_smt.params_of`).
    """
    tree: dict[str, Any] = {}
    parts = {name.split(".")[0] for name in weights}
    if "attn" in parts:
        tree["attn"] = attention(under(weights, "attn"))
    if "mlp" in parts:
        tree["mlp"] = mlp(under(weights, "mlp"))
    if "selfmod" in parts:
        tree["self_mod"] = self_mod(under(weights, "selfmod"))
    if "titan_memory" in parts:
        tree["titan"] = titan(under(weights, "titan_memory"))
        tree["titan"]["self_modifier"] = self_modifier(under(weights, "self_modifier"))
    if "norm" in parts:
        tree["norm_scale"], tree["norm_bias"] = weights["norm.weight"], weights["norm.bias"]
    if "cms" in parts:
        levels = under(under(weights, "cms"), "blocks")
        tree["cms"] = cms(under(weights, "cms"), sorted({name.split(".")[0] for name in levels}))
    return tree


def model(weights: Weights, layers: int, self_mod: Any = None) -> dict[str, Any]:
    """A whole model of any variant; `self_mod` as in `block`."""
    blocks = [block(under(weights, f"blocks.{i}"), self_mod) for i in range(layers)]
    return {
        "embed": weights["embed.weight"],
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "final_norm": {"scale": weights["norm.weight"], "bias": weights["norm.bias"]},
    }


def torch_model(tree: Mapping[str, Any], layers: int) -> dict[str, np.ndarray]:
    """The inverse of `model`, of the parameters that `tree` has."""
    found = {
        "embed.weight": np.asarray(tree["embed"]),
        "norm.weight": np.asarray(tree["final_norm"]["scale"]),
        "norm.bias": np.asarray(tree["final_norm"]["bias"]),
    }
    for i, layer in enumerate(trees.unstack(tree["blocks"], layers)):
        for part, values in torch_block(layer).items():
            found.update({f"blocks.{i}.{part}.{name}": value for name, value in values.items()})
    return found


def torch_block(tree: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `block`: submodule -> name -> array."""
    parts = {}
    if "attn" in tree:
        parts["attn"] = torch_attention(tree["attn"])
    if "mlp" in tree:
        parts["mlp"] = torch_named(tree["mlp"], MLP_NAMES)
    if "titan" in tree:
        parts["titan_memory"] = torch_titan(tree["titan"])
    if "self_mod" in tree:
        parts["selfmod"] = torch_self_mod(tree["self_mod"])
    for name, level in tree.get("cms", {}).items():
        parts[f"cms.blocks.{name}"] = torch_level(level)
    if "norm_scale" in tree:
        parts["norm"] = {"weight": np.asarray(tree["norm_scale"]), "bias": np.asarray(tree["norm_bias"])}
    return parts


def torch_self_mod(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Self-modifying Titans under torch's names, of the memories that `tree` has."""
    names = {"w_out": "w1", "w_in": "w2", "w_skip": "w_skip"}
    found = {
        f"m_{memory}.{names[key]}.weight": np.asarray(value)
        for memory, weights in tree.items()
        if isinstance(weights, Mapping)
        for key, value in weights.items()
    }
    if "w_q" in tree:
        found["w_q.weight"] = torch_layout(tree["w_q"])
    if "conv" in tree:
        found["local_conv.weight"] = np.asarray(tree["conv"]).T[:, None, :]
    return found


def torch_attention(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `attention`."""
    found = {
        "qkv.weight": np.concatenate([torch_layout(tree[name]) for name in ("w_q", "w_k", "w_v")]),
        "out_proj.weight": torch_layout(tree["w_out"]),
        "norm.weight": np.asarray(tree["norm_scale"]),
        "norm.bias": np.asarray(tree["norm_bias"]),
    }
    if "conv" in tree:
        found["local_conv.weight"] = np.asarray(tree["conv"]).T[:, None, :]
    return found
