"""Teach signals: one backward pass with taps against the naive one, closed form, order of processing."""

from dataclasses import astuple, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning import teach
from hope_jax.learning.chunk import read_loss
from hope_jax.learning.teach import Teach, TeachSchedule
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
    """Production's cotangents at the taps [B, n, D] of each layer and its read, beside the naive ones."""
    params = jax.tree.map(jnp.asarray, cases.model_params(ARCH))
    model, rows = bridge.hope_model(ARCH, LEARNING), cases.examples(2, 12)
    batch = bridge.batch_of(rows)

    def loss(taps: dict) -> tuple:
        out = model.read(params, {}, None, batch.tokens, batch.segment_ids, taps)
        losses = read_loss(params, out, batch.targets)
        return losses.total, losses

    raw, losses = jax.jit(jax.grad(loss, has_aux=True))(model.init_taps(2, 12))
    wanted = [chunk_pass(params, ARCH, row.part(0, 12), None, [{}, {}]) for row in rows]
    return {"params": params, "model": model, "batch": batch, "raw": raw, "losses": losses, "wanted": wanted}


def test_taps_give_naive_signals(passes: dict) -> None:
    for b, (_, _, _, cotangents) in enumerate(passes["wanted"]):
        for layer, by_name in enumerate(cotangents):
            for name, wanted in by_name.items():
                raw = passes["raw"][layer]
                got = raw["block"] if name == "block" else raw["cms"][name].output
                bridge.assert_close(got[b], np.asarray(wanted), f"{layer} {b} {name}")


def test_signal_depends_neither_on_batch_nor_on_other_examples(passes: dict) -> None:
    """Row 0's signal is that of row 0 alone: no division by anything of the batch."""
    _, _, _, alone = passes["wanted"][0]
    bridge.assert_close(passes["raw"][1]["block"][0], np.asarray(alone[1]["block"]), "row 0")


def test_global_signal_is_the_heads_pulled_back_for_all_layers(passes: dict) -> None:
    signal = teach.process(Teach(scale=1.0, source="global"), passes["raw"], passes["losses"], 1.0)
    for b, (read, _, _, _) in enumerate(passes["wanted"]):
        targets = np.asarray(passes["batch"].targets[b])
        logits, pre_norm = np.asarray(read.logits), np.asarray(read.pre_norm)
        wanted = naive.global_signal(passes["params"], ARCH, pre_norm, logits, targets)
        for layer in signal:
            bridge.assert_close(layer.block[b], wanted, f"global {b}")


@pytest.mark.parametrize("metric", ["l2", "loss", "logit_entropy"])
def test_processing_order(metric: str, passes: dict) -> None:
    """Scale, then surprise, then schedule, then clip per token."""
    rule = Teach(scale=0.3, clip=0.15)
    batch = passes["batch"]
    signal = teach.process(rule, passes["raw"], passes["losses"], 0.5, metric)
    for b, (read, losses, _, cotangents) in enumerate(passes["wanted"]):
        for layer, by_name in enumerate(cotangents):
            block = np.asarray(by_name["block"])
            wanted = naive.process(block, 0.3, 0.5, 0.15)
            bridge.assert_close(signal[layer].block[b], wanted, "block")
            for name in ARCH.levels:
                own = naive.process(np.asarray(by_name[name]), 0.3, 0.5, 0.15)
                bridge.assert_close(signal[layer].own["cms"][name].output[b], own, name)
            surprise = naive.surprise(metric, 0.3 * block, losses, read.logits)
            bridge.assert_close(signal[layer].surprise_n[b], surprise, metric)
            np.testing.assert_array_equal(signal[layer].active_n[b], (wanted != 0).any(-1))
            counted = (block != 0).any(-1) if metric == "l2" else np.asarray(batch.targets[b]) >= 0
            np.testing.assert_array_equal(signal[layer].counted_n[b], counted)
    lengths = np.linalg.norm([layer.block for layer in signal], axis=-1)
    assert 0 < np.mean(lengths > 0.1499) < 1


def test_batch_mean_divides_by_supervised_tokens(passes: dict) -> None:
    rule, raw, losses = Teach(scale=0.3), passes["raw"], passes["losses"]
    plain = teach.process(rule, raw, losses, 1.0)
    mean = teach.process(replace(rule, normalize="batch_mean"), raw, losses, 1.0)
    count = int((passes["batch"].targets >= 0).sum())
    for got, wanted in zip(mean, plain, strict=True):
        bridge.assert_close(got.block * count, np.asarray(wanted.block), "block")


@pytest.mark.parametrize(
    "schedule", [TeachSchedule(), TeachSchedule(5), TeachSchedule(4, 6, 3), TeachSchedule(0, 0, 7)]
)
def test_schedule(schedule: TeachSchedule) -> None:
    for step in range(12):
        assert float(schedule(step)) == pytest.approx(
            naive.schedule_factor(step, *astuple(schedule)), abs=1e-6
        )
