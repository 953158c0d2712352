"""Reads of whole models against the naive forward pass, in one call and in pieces."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.models.lm import HopeModel
from tests.close import assert_close, at
from tests.oracle import bridge, cases
from tests.oracle import model as naive
from tests.oracle.cms import level_normed
from tests.oracle.layers import Arch
from tests.oracle.writes import FAST, Learning, Level
from tests.specs import small_spec

TOKENS = 12
LEVELS = ("fast", "slow")
LEARNING = Learning(levels=(Level("fast", 4), Level("slow", 8)), chunk=4)
HOPE = Arch(cases.HEADS, levels=LEVELS)
ARCHS = {
    "hope_modern": (HOPE, 0),
    "hope_reference": (replace(HOPE, style="reference", qk_norm="none"), 0),
    "hope_window_conv_l2": (replace(HOPE, window=4, qk_norm="l2", act="silu", cms_norm=False), 3),
    "hope_other_base": (replace(HOPE, rope_theta=30.0), 0),
    "transformer_modern": (Arch(cases.HEADS), 0),
    "transformer_reference_conv": (Arch(cases.HEADS, style="reference", qk_norm="l2", act="relu"), 4),
}
QUICK = {"xla_backend_optimization_level": 0}


def learning_of(arch: Arch) -> Learning:
    return LEARNING if arch.levels else Learning(chunk=4)


def deltas(params: dict, examples: int) -> list:
    """Random fast weights: per example and layer, by level and tensor."""
    rng = np.random.default_rng(4)
    return [
        [
            {
                name: {n: 0.1 * rng.normal(size=w.shape[1:]) for n, w in level.items() if n in FAST}
                for name, level in params["blocks"].get("cms", {}).items()
                if name != "mix"
            }
            for _ in range(cases.LAYERS)
        ]
        for _ in range(examples)
    ]


def with_deltas(fast: tuple, by_example: list) -> tuple:
    """Production's fast state holding the given deltas."""
    for layer, memories in enumerate(fast):
        for name, state in memories.get("cms", {}).items():
            delta = {n: jnp.stack([d[layer][name][n] for d in by_example]) for n in state.delta}
            memories["cms"][name] = state._replace(delta=delta)
    return fast


@pytest.mark.parametrize("name", ARCHS)
def test_reads_match_naive_forward_whole_and_in_pieces(name: str) -> None:
    arch, conv = ARCHS[name]
    model, rows = bridge.hope_model(arch, learning_of(arch), conv), cases.examples(2, TOKENS)
    params, batch = cases.model_params(arch, conv=conv), bridge.batch_of(rows)
    by_example = deltas(params, len(rows))
    params = jax.tree.map(jnp.asarray, params)
    fast = with_deltas(model.init_fast_state(params, len(rows)), by_example)
    read = jax.jit(model.read, compiler_options=QUICK)
    out = read(params, fast, None, batch.tokens, batch.segment_ids)
    logits = model.logits(params, out.hidden)
    naive_read = jax.jit(naive.read, static_argnums=1, compiler_options=QUICK)
    for b, row in enumerate(rows):
        wanted = naive_read(params, arch, *map(np.array, (row.tokens, row.segments)), by_example[b])
        assert_close(logits[b], np.asarray(wanted.logits), "logits")
        assert_close(out.block_out[-1][b], np.asarray(wanted.pre_norm), "pre_norm")
        for layer in range(cases.LAYERS):
            assert_close(out.block_out[layer][b], np.asarray(wanted.block_out[layer]), "block_out")
            for level in arch.levels:
                p = at(params["blocks"]["cms"][level], layer)
                normed = level_normed(p, wanted.level_in[layer][level])
                assert_close(out.trace[layer]["cms"][level].z[b], np.asarray(normed), level)
    carry, pieces = model.init_carry(len(rows), TOKENS), []
    for start in range(0, TOKENS, 4):
        now = slice(start, start + 4)
        piece = read(params, fast, carry, batch.tokens[:, now], batch.segment_ids[:, now])
        carry = piece.carry
        pieces.append(model.logits(params, piece.hidden))
    assert_close(jnp.concatenate(pieces, axis=1), np.asarray(logits), "pieces", 1e-10)


@pytest.mark.parametrize("name", ARCHS)
def test_parameters_have_the_documented_tree(name: str) -> None:
    arch, conv = ARCHS[name]
    model = bridge.hope_model(arch, learning_of(arch), conv)
    made = jax.eval_shape(model.init_params, jax.random.key(0))
    wanted = cases.model_params(arch, conv=conv)
    assert jax.tree.map(lambda t: t.shape, made) == jax.tree.map(np.shape, wanted)


@pytest.mark.parametrize(
    ("connection", "act", "style"),
    [
        ("", "relu", "modern"),
        ("", "silu", "reference"),
        ("independent", "relu", "reference"),
        ("nested", "silu", "modern"),
    ],
)
def test_gradients_of_other_activations_without_layer_norm(connection: str, act: str, style: str) -> None:
    """Of the loss, at weights that have written; no connection: the transformer's MLP."""
    levels = {"levels": LEVELS, "connection": connection, "cms_norm": False} if connection else {}
    arch = Arch(cases.HEADS, style=style, act=act, **levels)  # type: ignore[arg-type]
    model, (row,) = bridge.hope_model(arch, learning_of(arch)), cases.examples(1, TOKENS)
    params, batch = cases.model_params(arch), bridge.batch_of([row])
    written = deltas(params, 1)
    params = jax.tree.map(jnp.asarray, params)
    fast = with_deltas(model.init_fast_state(params, 1), written)

    def loss(params: dict) -> jax.Array:
        out = model.read(params, fast, None, batch.tokens, batch.segment_ids)
        return naive.cross_entropy(model.logits(params, out.hidden)[0], row.targets).sum()

    def naive_loss(params: dict) -> jax.Array:
        read = naive.read(params, arch, row.tokens, row.segments, written[0])
        return naive.cross_entropy(read.logits, row.targets).sum()

    got, wanted = (jax.jit(jax.grad(f), compiler_options=QUICK)(params) for f in (loss, naive_loss))
    assert_close(got, jax.tree.map(np.asarray, wanted), "gradient")


@pytest.mark.parametrize(
    ("alpha_init", "style", "near_one"),
    [
        ("style", "modern", True),
        ("style", "reference", False),
        ("half", "modern", False),
        ("near_one", "reference", True),
    ],
)
def test_retention_starts_as_its_key_says(alpha_init: str, style: str, near_one: bool) -> None:
    """Near one by a bias, without which alpha is the sigmoid of a small number: about a half."""
    model = HopeModel(small_spec("hope_selfmod", 4, {}, style=style, own_options={"alpha_init": alpha_init}))
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    assert ("b_alpha" in params["blocks"]["self_mod"]) == near_one


def test_later_tokens_do_not_reach_earlier_ones() -> None:
    model = bridge.hope_model(HOPE, LEARNING)
    params = jax.tree.map(jnp.asarray, cases.model_params(HOPE))
    tokens = jnp.arange(TOKENS)[None] % cases.VOCAB
    changed = tokens.at[0, 7].set(0)
    ones = jnp.ones_like(tokens)
    read = jax.jit(lambda t: model.read(params, {}, None, t, ones).hidden[0], compiler_options=QUICK)
    a, b = read(tokens), read(changed)
    np.testing.assert_array_equal(a[:7], b[:7])
    assert (np.abs(a[7:] - b[7:]).max(-1) > 1e-6).all()
