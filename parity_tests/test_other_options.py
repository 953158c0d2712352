"""Golden files with options that no kept file has: activations, widths, levels without LayerNorm, no levels,
memories written into the module's weights. Their numbers are those of the naive oracles."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests import convert, golden
from parity_tests.test_other_files import Entries, expect_match, torch_level_weights
from tests.oracle import model as oracle
from tests.oracle import titan
from tests.oracle.cms import level_read
from tests.oracle.layers import Arch, attend

WIDTH, VOCAB, LAYERS, TOKENS = 4, 7, 2, 6
QUICK = {"xla_backend_optimization_level": 0}


def attention_weights(rng: np.random.Generator) -> Entries:
    shapes = {"qkv.weight": (3 * WIDTH, WIDTH), "out_proj.weight": (WIDTH, WIDTH)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    return {f"attn.{name}": rng.normal(size=shape) for name, shape in shapes.items()}


def block_weights(rng: np.random.Generator, levels: list[str], multiplier: int, norm: bool) -> Entries:
    weights, hidden = attention_weights(rng), multiplier * WIDTH
    for level in levels:
        own = torch_level_weights(rng, WIDTH, hidden, norm)
        weights |= {f"cms.blocks.{level}.{name}": w for name, w in own.items()}
    return weights


def model_file(
    variant: str, levels: list[str], act: str, multiplier: int, norm: bool
) -> tuple[Any, Entries, Arch]:
    """Configuration, torch weights and the oracle's architecture."""
    rng = np.random.default_rng(0)
    weights: Entries = {"embed.weight": 0.5 * rng.normal(size=(VOCAB, WIDTH))}
    weights |= {"norm.weight": rng.normal(size=WIDTH), "norm.bias": rng.normal(size=WIDTH)}
    for layer in range(LAYERS):
        block = block_weights(rng, levels, multiplier, norm)
        if variant == "transformer":
            block |= {"mlp.norm.weight": rng.normal(size=WIDTH), "mlp.norm.bias": rng.normal(size=WIDTH)}
            block["mlp.net.0.weight"] = rng.normal(size=(multiplier * WIDTH, WIDTH))
            block["mlp.net.2.weight"] = rng.normal(size=(WIDTH, multiplier * WIDTH))
        weights |= {f"blocks.{layer}.{name}": w for name, w in block.items()}
    config = {
        "block_variant": variant,
        "vocab_size": VOCAB,
        "dim": WIDTH,
        "heads": 2,
        "num_layers": LAYERS,
        "cms_levels": [{"name": name, "update_period": 2 * (i + 1)} for i, name in enumerate(levels)],
        "cms_use_layernorm": norm,
        ("transformer_activation" if variant == "transformer" else "activation"): act,
    }
    arch = Arch(2, "reference", tuple(levels), qk_norm="none", act=act, read_clip=1.0)
    return config, weights, arch


@partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def forward(arch: Arch, training: bool, params: Any, tokens: Any) -> oracle.Read:
    arch = arch if training else Arch(**{**arch.__dict__, "read_clip": 0.0})
    return oracle.read(params, arch, tokens)


MODELS = [
    ("transformer", [], "relu", 3, True),
    ("hope_attention", ["a", "b"], "silu", 2, False),
    ("hope_attention", [], "gelu", 1, True),
]


@pytest.mark.parametrize(("variant", "levels", "act", "multiplier", "norm"), MODELS)
def test_model(
    tmp_path: Path, variant: str, levels: list[str], act: str, multiplier: int, norm: bool
) -> None:
    config, weights, arch = model_file(variant, levels, act, multiplier, norm)
    params = convert.model(weights, LAYERS)
    tokens = np.random.default_rng(1).integers(0, VOCAB, TOKENS)
    entries: Entries = {f"w.{name}": w for name, w in weights.items()} | {"in.tokens": tokens[None]}
    for mode in ("eval", "train"):
        read = forward(arch, mode == "train", params, tokens)
        entries |= {f"out.{mode}.logits": read.logits[None], f"out.{mode}.pre_norm": read.pre_norm[None]}
        entries |= {f"out.{mode}.block_out.{i}": y[None] for i, y in enumerate(read.block_out)}
        entries[f"out.{mode}.loss"] = np.mean(oracle.cross_entropy(read.logits[:-1], tokens[1:]))
    expect_match(tmp_path / "model_other.npz", {"model": config}, entries)


@pytest.mark.parametrize(("variant", "levels", "act", "multiplier", "norm"), MODELS[:2])
def test_first_gradients_of_training(
    tmp_path: Path, variant: str, levels: list[str], act: str, multiplier: int, norm: bool
) -> None:
    config, weights, arch = model_file(variant, levels, act, multiplier, norm)
    tokens = np.random.default_rng(1).integers(0, VOCAB, TOKENS)

    @partial(jax.jit, compiler_options=QUICK)
    @jax.value_and_grad
    def loss(params: Any) -> Any:
        logits = oracle.read(params, arch, tokens).logits
        return jnp.mean(oracle.cross_entropy(logits[:-1], tokens[1:]))

    value, grads = loss(jax.tree.map(jnp.asarray, convert.model(weights, LAYERS)))
    entries: Entries = {f"w.{name}": w for name, w in weights.items()} | {"in.tokens.0": tokens[None]}
    by_name = convert.torch_model(grads, LAYERS)
    assert set(by_name) == set(weights)
    entries |= {f"out.grad_before_clip.0.{name}": g for name, g in by_name.items()}
    entries["out.call_losses"] = np.asarray([value])
    config = {"model": config, "train": {"steps": 1}, "optim": {"lr": 0.01}}
    expect_match(tmp_path / "train_step_other.npz", config, entries)


@pytest.mark.parametrize("selection", [False, True])
def test_memorizing_into_the_modules_weights(tmp_path: Path, selection: bool) -> None:
    """What is read afterwards is compared, but where the file holds only some of the written weights."""
    config, weights, arch = model_file("hope_attention", ["a"], "relu", 2, True)
    rng = np.random.default_rng(2)
    texts = {name: rng.integers(0, VOCAB, TOKENS) for name in ("tokens", "probe")}
    after = {
        name: w + 0.1 * rng.normal(size=w.shape) if ".cms." in name else w for name, w in weights.items()
    }
    entries: Entries = {f"w.{name}": w for name, w in weights.items()}
    for name, text in texts.items():
        entries[f"in.{name}"] = text[None]
        for at, held in ((f"out.before.{name}", weights), (f"out.memorize_call.0.logits_{name}", after)):
            entries[at] = forward(arch, False, convert.model(held, LAYERS), text).logits[None]
    written = [n for n in weights if ".cms." in n and not (selection and n.endswith("bias"))]
    entries |= {f"out.weights_after.{name}": after[name] for name in written}
    entries["out.memorize_call.0.stats"] = np.array(json.dumps({"a_updates": 1.0}))
    path = tmp_path / "memorize_hope_attention_module_route.npz"
    recorded = np.array(json.dumps({"model": config, "memorize": {"steps": 1, "use_fast_state": False}}))
    np.savez(path, config=recorded, **entries)
    report = golden.check(path)
    assert report.verdict == golden.DIFFERENCE, report.line()
    assert report.golden is not None and report.golden.compared == (2 if selection else 4)
    assert {"memorize_rules", "module_writes"} <= set(report.golden.sizes)
    entries["out.memorize_call.0.logits_probe"] += 1e-6
    np.savez(path, config=recorded, **entries)
    assert golden.check(path).verdict == (golden.DIFFERENCE if selection else golden.MISMATCH)


def test_titan_memory(tmp_path: Path) -> None:
    rng, hidden, act, lr = np.random.default_rng(3), 3 * WIDTH, "silu", 0.2
    shapes = {"net.0.weight": (hidden, WIDTH), "net.0.bias": (hidden,), "net.2.weight": (WIDTH, hidden)}
    shapes |= {"net.2.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    weights: Entries = {f"titan.{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    widths = (3 * WIDTH, 5, 5, WIDTH)
    for i in range(3):
        weights[f"self_modifier.net.{2 * i}.weight"] = rng.normal(size=(widths[i + 1], widths[i]))
        weights[f"self_modifier.net.{2 * i}.bias"] = rng.normal(size=widths[i + 1])
    inputs = {name: rng.normal(size=(2, 3, WIDTH)) for name in ("x", "value", "error_signal")}
    p = convert.titan(convert.under(weights, "titan"))
    entries: Entries = {f"w.{n}": w for n, w in weights.items()} | {f"in.{n}": v for n, v in inputs.items()}
    entries["out.eval"] = titan.mem(p, inputs["x"], 0.0, act)
    rows = [titan.mem(p, row, 1.0, act) for row in inputs["x"].reshape(-1, WIDTH)]
    entries["out.train"] = np.stack(rows).reshape(inputs["x"].shape)
    modifier = convert.self_modifier(convert.under(weights, "self_modifier"))
    flat = [inputs[name].reshape(-1, WIDTH) for name in ("x", "value", "error_signal")]
    answers = [titan.self_modifier(modifier, *row) for row in zip(*flat, strict=True)]
    entries["out.self_modifier"] = np.stack(answers).reshape(inputs["x"].shape)
    losses = {
        "update_mse": lambda y: jnp.mean((y - inputs["value"]) ** 2),
        "update_error_signal": lambda y: jnp.mean(y * inputs["error_signal"]),
    }
    for name, loss in losses.items():
        grads = jax.grad(lambda p, loss=loss: loss(titan.mem(p, inputs["x"], 0.0, act)))(p)
        written = {key: w if key.startswith("ln") else w - lr * grads[key] for key, w in p.items()}
        entries |= {f"out.{name}.{key}": w for key, w in convert.torch_titan(written).items()}
    config = {"activation": act, "dim": WIDTH, "hidden_multiplier": 3, "layers": 2, "update_lr": lr}
    expect_match(tmp_path / "titan_memory_other.npz", config, entries)


@pytest.mark.parametrize("levels", [["a", "b"], []])
def test_block_that_only_reads(tmp_path: Path, levels: list[str]) -> None:
    rng, act = np.random.default_rng(4), "relu"
    weights = block_weights(rng, levels, 2, False)
    x, arch = rng.normal(size=(TOKENS, WIDTH)), Arch(2, "reference", qk_norm="none")
    attention = convert.attention(convert.under(weights, "attn"))
    y, _ = attend(attention, arch, x, None, np.ones(TOKENS))
    for level in convert.cms(convert.under(weights, "cms"), levels).values():
        y = level_read(level, y, 0.0, act)
    config = {
        "kind": "attention",
        "route": "fast",
        "calls": [{"T": TOKENS, "teach": False}],
        "block": {
            "dim": WIDTH,
            "heads": 2,
            "activation": act,
            "cms_use_layernorm": False,
            "cms_levels": [{"name": name, "update_period": 2} for name in levels],
        },
    }
    path = tmp_path / "attnblock_other.npz"
    entries = {f"w.{name}": w for name, w in weights.items()} | {"in.x.0": x[None], "out.call.0.y": y[None]}
    np.savez(path, config=np.array(json.dumps(config)), **entries)
    report = golden.check(path)
    assert report.verdict == golden.DIFFERENCE and report.golden.compared == 1, report.line()  # type: ignore[union-attr]
