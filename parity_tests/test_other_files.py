"""Golden files of other shapes, lengths and options, made with the naive oracles: they match as well."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests import convert, golden, published_update
from parity_tests.golden_file import golden as kept
from parity_tests.golden_file import load_golden
from tests.oracle import self_mod
from tests.oracle.layers import Arch, attend
from tests.oracle.model import cross_entropy
from tests.oracle.writes import Level

Entries = dict[str, Any]


def expect_match(path: Path, config: Any, entries: Entries) -> None:
    np.savez(path, config=np.array(json.dumps(config)), **entries)
    report = golden.check(path)
    assert report.verdict == golden.MATCH, report.line()
    assert report.golden is not None
    assert report.golden.compared == sum(name.startswith("out.") for name in entries)


def torch_level_weights(rng: np.random.Generator, width: int, hidden: int, norm: bool) -> Entries:
    shapes = {"net.1.weight": (hidden, width), "net.1.bias": (hidden,)}
    shapes |= {"net.3.weight": (width, hidden), "net.3.bias": (width,)}
    shapes |= {"net.0.weight": (width,), "net.0.bias": (width,)} if norm else {}
    return {name: 0.3 * rng.normal(size=shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("variant", "batch", "tokens", "hidden", "norm", "train", "act", "params"),
    [
        ("nl_l2_precond", 2, 3, 6, True, False, "silu", {"beta": 0.8}),
        ("preconditioned", 1, 1, 4, True, True, "gelu", {"beta2": 0.99, "eps": 1e-6}),
        ("l2_objective", 3, 2, 5, False, True, "relu", {}),
    ],
)
def test_cms_update(
    tmp_path: Path,
    variant: str,
    batch: int,
    tokens: int,
    hidden: int,
    norm: bool,
    train: bool,
    act: str,
    params: Any,
) -> None:
    rng, width = np.random.default_rng(0), 6
    weights = torch_level_weights(rng, width, hidden, norm)
    p = convert.level(weights)
    entries: Entries = {f"w.{name}": value for name, value in weights.items()}
    level = Level("level", 4, 0.07, variant, **params)
    delta: Entries = {name: np.zeros_like(w) for name, w in p.items()}
    state = None
    for i in range(4):
        x, teach = rng.normal(size=(2, batch, tokens, width))
        teach[0, -1] = 0.0
        teach = teach * (i != 2)
        result = published_update.update(level, p, delta, state, x, teach, "mean", float(train), act)
        delta, state = result["delta"], result["state"]
        entries |= {f"in.x.{i}": x, f"in.teach.{i}": teach}
        step = f"out.mean.step.{i}"
        for kind, tree in (("grad", result["grads"]), ("delta", delta)):
            entries |= {f"{step}.{kind}.{k}": v for k, v in convert.torch_level(tree).items()}
        entries |= {f"{step}.loss": result["loss"], f"{step}.magnitude": result["magnitude"]}
        entries[f"{step}.stats_metrics"] = np.array(json.dumps(result["stats"]))
    assert state is not None
    for slot, recorded in (("v", "grad_avg"), ("s", "sq_avg")):
        moments = {name: slots[slot] for name, slots in state.items() if slot in slots}
        for name, moment in convert.torch_level(moments).items():
            entries[f"out.mean.optimizer_state.{name}.{recorded}"] = moment
    config = {
        "activation": act,
        "dim": width,
        "n_updates": 4,
        "optimizer": {"lr": 0.07, "params": {"variant": variant, **params}},
        "train_mode": train,
    }
    expect_match(tmp_path / "cms_update_other.npz", config, entries)


def published_call(params: Entries, weights: Entries, x: np.ndarray, settings: Any) -> tuple[Any, Entries]:
    """One example's call from position 0; what is left of a chunk is written at its end."""
    stream = self_mod.Stream({**params, **weights}, settings)
    outs = [stream.read(token) for token in x]
    stream.write(last=True)
    return outs, stream.weights


@pytest.mark.parametrize(
    ("chunk", "chunk_memory", "override", "options"),
    [
        (2, 3, None, {"adaptive_q": True, "use_alpha": False}),
        (4, None, {"other": 3, "memory": 2}, {"rank1_precondition": False, "objective": "dot"}),
    ],
)
def test_self_modifying_calls(
    tmp_path: Path, chunk: int, chunk_memory: int | None, override: Any, options: dict[str, Any]
) -> None:
    rng, width, lengths = np.random.default_rng(1), 4, [5, 1, 4]
    weights: Entries = {"w_q.weight": rng.normal(size=(width, width))}
    for name in ("k", "v", "q", "eta", "alpha", "memory"):
        out = 1 if name in ("eta", "alpha") else width
        weights[f"m_{name}.w1.weight"] = 0.4 * rng.normal(size=(out, width))
        weights[f"m_{name}.w2.weight"] = 0.4 * rng.normal(size=(width, width))
    sizes = override or {"other": chunk, "memory": chunk_memory or chunk}
    settings = self_mod.Settings(chunk=sizes["other"], chunk_memory=sizes["memory"], eta_scale=0.1, **options)
    written = {"k", "v", "eta", "memory"} | ({"q"} if settings.adaptive_q else set())
    written |= {"alpha"} if settings.use_alpha else set()
    names = {"w1": "w_out", "w2": "w_in"}
    memories = {
        name: {ours: weights[f"m_{name}.{key}.weight"] for key, ours in names.items()} for name in written
    }
    params = {"w_q": weights["w_q.weight"].T, **memories}
    entries: Entries = {f"w.{name}": value for name, value in weights.items()}
    states = [memories, memories]
    for i, tokens in enumerate(lengths):
        x = rng.normal(size=(2, tokens, width))
        calls = [published_call(params, s, row, settings) for s, row in zip(states, x, strict=True)]
        states = [state for _, state in calls]
        entries |= {f"in.x.{i}": x, f"out.call.{i}.o": np.stack([np.stack(outs) for outs, _ in calls])}
        for name in ("k", "v", "q", "eta", "alpha", "memory"):
            for key, ours in names.items():
                first = weights[f"m_{name}.{key}.weight"]
                parts = [state[name][ours] if name in written else first for state in states]
                entries[f"out.call.{i}.state.{name}.{key}"] = np.stack(parts)
    config = {
        "lengths": lengths,
        "chunk_override": override,
        "selfmod": {
            "dim": width,
            "chunk_size_other": chunk,
            "chunk_size_memory": chunk_memory,
            "eta_scale": 0.1,
            "qk_l2_norm": True,
            "adaptive_q": settings.adaptive_q,
            "use_alpha": settings.use_alpha,
            "use_rank1_precond": settings.rank1_precondition,
            "use_skip": False,
            "objective": settings.objective,
            "stopgrad_vhat": True,
            "momentum": 0.0,
            "local_conv_window": None,
            "eps": 1e-6,
        },
    }
    expect_match(tmp_path / "smt_other.npz", config, entries)


def test_attention_in_odd_pieces(tmp_path: Path) -> None:
    rng, width, tokens, cuts = np.random.default_rng(2), 6, 7, [1, 2, 6]
    shapes = {"qkv.weight": (3 * width, width), "out_proj.weight": (width, width)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    p, arch = convert.attention(weights), Arch(heads=2, style="reference", qk_norm="l2")
    x = rng.normal(size=(2, tokens, width))
    entries: Entries = {"in.x": x, **{f"w.{name}": value for name, value in weights.items()}}
    pieces: list[list[Any]] = []
    for row in x:
        past, outs = None, []
        for start, stop in zip([0, *cuts], [*cuts, tokens], strict=True):
            out, past = attend(p, arch, row[start:stop], past, np.ones(stop))
            outs.append(np.asarray(out))
        pieces.append([*outs, past])
    entries["out.y"] = np.stack([np.concatenate(row[:-1]) for row in pieces])
    for i in range(len(cuts) + 1):
        entries[f"out.cached_pieces.{i}"] = np.stack([row[i] for row in pieces])
    for key, part in (("key", "keys"), ("value", "values")):
        kept_rows = [np.asarray(getattr(row[-1], part)).transpose(1, 0, 2) for row in pieces]
        entries[f"out.final_cache.{key}"] = np.stack(kept_rows)
    config = {"dim": width, "heads": 2, "qk_l2_norm": True, "local_conv_window": None}
    expect_match(tmp_path / "attention_other.npz", {**config, "cache_cut_points": cuts}, entries)


@pytest.mark.parametrize("name", ["model_hope_selfmod", "model_transformer"])
def test_model_of_another_batch_and_length(tmp_path: Path, name: str) -> None:
    """Rows are independent and models causal: one row's beginning is a recorded result, too."""
    g, tokens = kept(name), 13
    text = g.inputs["tokens"][:1, :tokens]
    entries: Entries = {f"w.{k}": v for k, v in g.weights.items()} | {"in.tokens": text}
    for key, value in g.outputs.items():
        if key.endswith(".loss"):
            logits = g.outputs[key.replace("loss", "logits")][0, : tokens - 1]
            entries[f"out.{key}"] = np.mean(cross_entropy(logits, text[0, 1:]))
        elif np.ndim(value) == 3:
            entries[f"out.{key}"] = value[:1, :tokens]
    config = {"model": g.config["model"]}
    expect_match(tmp_path / f"{name}_short.npz", config, entries)


def orthogonal(m: np.ndarray, steps: int) -> np.ndarray:
    x = m / (np.linalg.norm(m) + 1e-8)
    for _ in range(steps):
        x = 0.5 * x @ (3 * np.eye(x.shape[1]) - x.T @ x)
    return x


def test_m3_of_a_tensor_with_decay(tmp_path: Path) -> None:
    rng, steps, decay, every = np.random.default_rng(3), 7, 0.1, 3
    p = rng.normal(size=(3, 2, 2))
    grads = rng.normal(size=(steps, *p.shape))
    entries: Entries = {"in.param.0": p, "in.grad.0": grads}
    m1, m2, v, gathered, o2 = (np.zeros((3, 4)) for _ in range(5))
    w, trajectory = p.reshape(3, 4), []
    for step in range(steps):
        g = grads[step].reshape(3, 4) + decay * w
        m1, v, gathered = m1 + 0.9 * g, v + 0.999 * g**2, gathered + g
        w = w - 0.02 * (orthogonal(m1, 2) + 0.5 * o2) / (np.sqrt(v) + 1e-8)
        if (step + 1) % every == 0:
            m2, gathered = m2 + 0.7 * gathered, np.zeros_like(g)
            o2 = orthogonal(m2, 2)
        trajectory.append(w.reshape(p.shape))
    entries["out.trajectory.0"] = np.stack(trajectory)
    state = {"m1": m1, "m2": m2, "o2": o2, "slow_buffer": gathered, "v": v}
    entries |= {f"out.state.0.{name}": value for name, value in state.items()} | {"out.state.0.step": steps}
    hyper = {
        "lr": 0.02,
        "weight_decay": decay,
        "slow_chunk": every,
        "beta3": 0.7,
        "alpha": 0.5,
        "ns_steps": 2,
    }
    config = {"optimizer": "m3", "hyper": hyper, "shapes": [p.shape], "steps": steps}
    expect_match(tmp_path / "optim_m3_tensor.npz", config, entries)


def test_float32_inputs_are_computed_in_double(tmp_path: Path) -> None:
    g = kept("teach_ignore")
    entries: Entries = {f"in.{k}": v for k, v in g.inputs.items()} | {
        f"w.{k}": v for k, v in g.weights.items()
    }
    narrow = {
        k: np.asarray(v, np.float32) if np.asarray(v).dtype == np.float64 else v for k, v in entries.items()
    }
    np.savez(tmp_path / "narrow.npz", config=np.array("{}"), **narrow)
    loaded = load_golden(tmp_path / "narrow.npz")
    assert loaded.inputs["logits"].dtype == np.float64
