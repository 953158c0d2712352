"""Teach signals: one backward pass with taps against the naive one, closed form, order of processing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning import teach
from hope_jax.learning.loss import prediction_entropy, token_loss
from hope_jax.learning.teach import TeachRule, TeachSchedule
from tests.oracle import bridge, cases
from tests.oracle import teach as naive
from tests.oracle.inner import Level
from tests.oracle.model import Arch
from tests.oracle.periods import Learning
from tests.oracle.stream import chunk_pass

ARCH = Arch(cases.HEADS, levels=("fast", "slow"))
LEARNING = Learning(levels=(Level("fast", 4), Level("slow", 8)), chunk=12)


@pytest.fixture(scope="module")
def passes() -> dict:
    """Production's cotangents at the taps [L, B, n, D] and its read, beside the naive ones of each row."""
    params = jax.tree.map(jnp.asarray, cases.model_params(ARCH))
    model, rows = bridge.hope_model(ARCH, LEARNING), cases.examples(2, 12)
    batch = bridge.batch_of(rows)

    def loss(taps: dict) -> tuple:
        out = model.read(params, {}, None, batch.tokens, batch.segment_ids, taps)
        return token_loss(out.logits, batch.targets).loss.sum(), out

    raw, out = jax.jit(jax.grad(loss, has_aux=True))(model.init_taps(2, 12))
    wanted = [chunk_pass(params, ARCH, row.part(ARCH, 0, 12), None, [{}, {}]) for row in rows]
    return {"params": params, "model": model, "batch": batch, "raw": raw, "out": out, "wanted": wanted}


def test_taps_give_naive_signals(passes: dict) -> None:
    for b, (_, _, _, cotangents) in enumerate(passes["wanted"]):
        for layer, by_name in enumerate(cotangents):
            for name, wanted in by_name.items():
                got = passes["raw"]["block"] if name == "block" else passes["raw"]["cms"][name]
                bridge.assert_close(got[layer, b], np.asarray(wanted), f"{layer} {b} {name}")


def test_signal_depends_neither_on_batch_nor_on_other_examples(passes: dict) -> None:
    """Row 0's signal is that of row 0 alone: no division by anything of the batch."""
    _, _, _, alone = passes["wanted"][0]
    bridge.assert_close(passes["raw"]["block"][1, 0], np.asarray(alone[1]["block"]), "row 0")


def test_global_signal_is_last_blocks_own(passes: dict) -> None:
    """The closed form pulled back through the final norm is the cotangent at the last block's output."""
    out, batch = passes["out"], passes["batch"]
    params, model = passes["params"], passes["model"]
    signal = teach.global_signal(
        out.logits, batch.targets, params["embed"], out.pre_norm, partial(model.final_norm, params)
    )
    bridge.assert_close(signal, np.asarray(passes["raw"]["block"][-1]), "global")


@pytest.mark.parametrize("metric", ["l2", "loss", "logit_entropy"])
def test_processing_order(metric: str, passes: dict) -> None:
    """Scale, then surprise, then schedule, then clip per token."""
    rule = TeachRule(scale=0.3, clip=0.15, metric=metric)
    out, batch = passes["out"], passes["batch"]
    signal = teach.process(rule, passes["raw"], out.logits, batch.targets, 0.5)
    for b, (read, losses, _, cotangents) in enumerate(passes["wanted"]):
        for layer, by_name in enumerate(cotangents):
            block = np.asarray(by_name["block"])
            wanted = naive.process(block, 0.3, 0.5, 0.15)
            bridge.assert_close(signal.block[layer, b], wanted, "block")
            for name in ARCH.levels:
                own = naive.process(np.asarray(by_name[name]), 0.3, 0.5, 0.15)
                bridge.assert_close(signal.own["cms"][name][layer, b], own, name)
            surprise = naive.surprise(metric, 0.3 * block, losses, read.logits)
            bridge.assert_close(signal.surprise_n[layer, b], surprise, metric)
            np.testing.assert_array_equal(signal.active_n[layer, b], (wanted != 0).any(-1))
            counted = (block != 0).any(-1) if metric == "l2" else np.asarray(batch.targets[b]) >= 0
            np.testing.assert_array_equal(signal.counted_n[layer, b], counted)
    lengths = np.linalg.norm(np.asarray(signal.block), axis=-1)
    assert 0 < np.mean(lengths > 0.1499) < 1


def test_batch_mean_divides_by_supervised_tokens(passes: dict) -> None:
    out, batch = passes["out"], passes["batch"]
    rule = TeachRule(scale=0.3)
    plain = teach.process(rule, passes["raw"], out.logits, batch.targets, 1.0)
    mean = teach.process(rule._replace(batch_mean=True), passes["raw"], out.logits, batch.targets, 1.0)
    count = int((batch.targets >= 0).sum())
    bridge.assert_close(mean.block * count, np.asarray(plain.block), "block")


def test_losses_and_entropy_of_unsupervised_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(3, cases.VOCAB)) * 4
    losses = token_loss(jnp.asarray(logits), jnp.array([2, -1, 5]))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses.loss, [-log_p[0, 2], 0, -log_p[2, 5]], atol=1e-12)
    np.testing.assert_array_equal(losses.supervised, [True, False, True])
    np.testing.assert_allclose(
        prediction_entropy(jnp.asarray(logits)), -(np.exp(log_p) * log_p).sum(-1), atol=1e-12
    )


@pytest.mark.parametrize(
    "schedule", [TeachSchedule(), TeachSchedule(5), TeachSchedule(4, 6, 3), TeachSchedule(0, 0, 7)]
)
def test_schedule(schedule: TeachSchedule) -> None:
    for step in range(12):
        assert float(schedule(step)) == pytest.approx(naive.schedule_factor(step, *schedule), abs=1e-6)
