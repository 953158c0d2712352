"""The naive oracles reproduce the published code's recorded numbers, every one of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests import convert, published_update
from parity_tests.golden_file import Golden, GoldenMismatch, golden
from parity_tests.targets import next_targets
from tests.oracle import model as oracle
from tests.oracle.cms import level_read
from tests.oracle.layers import Arch, Carry, attend
from tests.oracle.writes import Level


def test_every_golden_output_must_be_compared() -> None:
    g = golden("teach_plain")
    g.compare("n_active", g.outputs["n_active"])
    with pytest.raises(GoldenMismatch, match="never compared: teach_signal"):
        g.finish()
    g.compare("teach_signal", g.outputs["teach_signal"] + 1e-7)
    with pytest.raises(GoldenMismatch, match="teach_signal: largest difference"):
        g.finish()


def attention_arch(g: Golden) -> Arch:
    qk_norm = "l2" if g.config["qk_l2_norm"] else "none"
    return Arch(heads=g.config["heads"], style="reference", qk_norm=qk_norm)


def attend_pieces(
    g: Golden, p: dict[str, np.ndarray], row: np.ndarray, cuts: list[int]
) -> tuple[list[np.ndarray], Carry]:
    past, pieces = None, []
    for start, stop in zip([0, *cuts], [*cuts, len(row)], strict=True):
        out, past = attend(p, attention_arch(g), row[start:stop], past, np.ones(stop))
        pieces.append(np.asarray(out))
    assert past is not None
    return pieces, past


@pytest.mark.parametrize("name", ["attention_plain", "attention_qknorm_conv"])
def test_attention_with_and_without_cache(name: str) -> None:
    g = golden(name)
    p, cuts = convert.attention(g.weights), g.config["cache_cut_points"]
    rows = g.inputs["x"]
    g.compare("y", np.stack([attend_pieces(g, p, row, [])[0][0] for row in rows]))
    if cuts:
        cached = [attend_pieces(g, p, row, cuts) for row in rows]
        for i in range(len(cuts) + 1):
            g.compare(f"cached_pieces.{i}", np.stack([pieces[i] for pieces, _ in cached]))
        for key, field in (("key", "keys"), ("value", "values")):
            stacked = [np.asarray(getattr(past, field)).transpose(1, 0, 2) for _, past in cached]
            g.compare(f"final_cache.{key}", np.stack(stacked))
    g.finish()


def cms_chain(levels: dict[str, Any], x: Any, read_clip: float) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    ins, outs = {}, {}
    for name, p in levels.items():
        ins[name] = x
        x = outs[name] = level_read(p, x, read_clip)
    return x, ins, outs


@pytest.mark.parametrize("name", ["cms_forward_ln", "cms_forward_noln"])
def test_cms_forward_and_train_gradients(name: str) -> None:
    g = golden(name)
    names = [level["name"] for level in g.config["cms_levels"]]
    levels, x = convert.cms(g.weights, names), g.inputs["x"]
    for mode, read_clip in (("eval", 0.0), ("train", g.config["grad_clip"])):
        y, ins, outs = cms_chain(levels, x, read_clip)
        g.compare(f"{mode}.y", y)
        for level in names:
            g.compare(f"{mode}.level_in.{level}", ins[level])
            g.compare(f"{mode}.level_out.{level}", outs[level])
            if mode == "train":
                branch = level_read(levels[level], ins[level]) - ins[level]
                clipped = np.mean(np.linalg.norm(branch, axis=-1) > read_clip)
                assert clipped == pytest.approx(g.config["fraction_of_tokens_clipped_in_train"][level])

    def paired(tree: Any, inputs: Any) -> Any:
        return jnp.sum(cms_chain(tree, inputs, g.config["grad_clip"])[0] * g.inputs["train_grad_cotangent"])

    by_level, by_x = jax.jit(jax.grad(paired, argnums=(0, 1)))(levels, x)
    g.compare("train_grad.x", by_x)
    for level in names:
        for torch_name, value in convert.torch_level(by_level[level]).items():
            g.compare(f"train_grad.blocks.{level}.{torch_name}", value)
    g.finish()


UPDATES = ["dmgd", "l2_objective", "momentum", "muon", "nl_l2_precond", "preconditioned"]


@pytest.mark.parametrize("variant", UPDATES)
def test_cms_update_under_the_published_rule(variant: str) -> None:
    g = golden(f"cms_update_{variant}")
    for reduction in ("sum", "mean"):
        compare_updates(g, variant, reduction)
    g.finish()


def compare_updates(g: Golden, variant: str, reduction: str) -> None:
    p, optimizer = convert.level(g.weights), g.config["optimizer"]
    level = Level("level", period=4, lr=optimizer["lr"], optimizer=variant)
    delta: dict[str, Any] = {name: np.zeros_like(w) for name, w in p.items()}
    state = None
    for i in range(g.config["n_updates"]):
        result = published_update.update(
            level, p, delta, state, g.inputs[f"x.{i}"], g.inputs[f"teach.{i}"], reduction
        )
        delta, state = result["delta"], result["state"]
        step = f"{reduction}.step.{i}"
        g.compare(f"{step}.loss", result["loss"])
        g.compare(f"{step}.magnitude", result["magnitude"])
        g.compare(f"{step}.stats_metrics", result["stats"])
        for kind, tree in (("grad", result["grads"]), ("delta", delta)):
            for torch_name, value in convert.torch_level(tree).items():
                g.compare(f"{step}.{kind}.{torch_name}", value)
    assert state is not None
    for torch_name, ours in convert.LEVEL_NAMES.items():
        for slot, moment in state[ours].items():
            recorded = {"v": "grad_avg", "s": "sq_avg"}[slot]
            g.compare(f"{reduction}.optimizer_state.{torch_name}.{recorded}", convert.torch_layout(moment))


@pytest.mark.parametrize("name", ["teach_plain", "teach_next", "teach_ignore"])
def test_teach_signal_of_the_mean_loss(name: str) -> None:
    g = golden(name)
    targets = next_targets(g)
    g.compare("n_active", np.sum(targets >= 0))
    g.compare(
        "teach_signal",
        published_update.mean_loss_signal(g.inputs["logits"], targets, g.weights["lm_head.weight"]),
    )
    g.finish()


QUICK = {"xla_backend_optimization_level": 0}
READ = jax.jit(
    lambda params, tokens, carry, arch: oracle.read(params, arch, tokens, carry=carry),
    static_argnames="arch",
    compiler_options=QUICK,
)


def model_and_arch(g: Golden) -> tuple[Any, Arch]:
    config = g.config["model"]
    levels = ()
    if config["block_variant"] == "hope_attention":
        levels = tuple(level["name"] for level in config["cms_levels"])
    params = jax.tree.map(jnp.asarray, convert.model(g.weights, config["num_layers"]))
    return params, Arch(config["heads"], style="reference", levels=levels, qk_norm="none")


def read_rows(params: Any, arch: Arch, rows: np.ndarray, cuts: list[int]) -> list[list[oracle.Read]]:
    """Reads of every row in pieces, keys and values carried."""
    results = []
    for row in rows:
        carry, reads = None, []
        for start, stop in zip([0, *cuts], [*cuts, len(row)], strict=True):
            read = READ(params, row[start:stop], carry, arch)
            carry = read.carry
            reads.append(read)
        results.append(reads)
    return results


@pytest.mark.parametrize("name", ["model_transformer", "model_hope_attention"])
def test_model_forward(name: str) -> None:
    g = golden(name)
    params, arch = model_and_arch(g)
    tokens = g.inputs["tokens"]
    targets = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), -1)], axis=1)
    for mode, read_clip in (("eval", 0.0), ("train", 1.0)):
        reads = read_rows(params, Arch(**{**arch.__dict__, "read_clip": read_clip}), tokens, [])
        g.compare(f"{mode}.logits", np.stack([r[0].logits for r in reads]))
        g.compare(f"{mode}.pre_norm", np.stack([r[0].pre_norm for r in reads]))
        for i in range(g.config["model"]["num_layers"]):
            g.compare(f"{mode}.block_out.{i}", np.stack([r[0].block_out[i] for r in reads]))
        losses = [oracle.cross_entropy(r[0].logits, t) for r, t in zip(reads, targets, strict=True)]
        g.compare(f"{mode}.loss", np.sum(losses) / np.sum(targets >= 0))
    cached = read_rows(params, arch, tokens, [5, 17])
    logits = np.stack([np.concatenate([r.logits for r in row]) for row in cached])
    equal = np.max(np.abs(logits - g.outputs["eval.logits"])) < 1e-10
    g.compare("cached_equals_full", int(equal))
    g.finish()
