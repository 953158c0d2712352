"""Teach signals: one backward pass with taps against the naive one, closed form, order of processing."""

from dataclasses import astuple, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning import teach
from hope_jax.learning.chunk import read_loss
from hope_jax.learning.teach import Teach, TeachSchedule
from tests.close import assert_close
from tests.oracle import bridge, cases
from tests.oracle import stream as naive
from tests.oracle.layers import Arch
from tests.oracle.writes import Learning, Level

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
    parts = [row.part(0, 12) for row in rows]
    wanted = [naive.read_and_teach(params, ARCH, LEARNING, part, None, [{}, {}]) for part in parts]
    return {"params": params, "model": model, "batch": batch, "raw": raw, "losses": losses, "wanted": wanted}


def test_taps_give_naive_signals(passes: dict) -> None:
    for b, chunk in enumerate(passes["wanted"]):
        for layer, by_name in enumerate(chunk.signals):
            for name, wanted in by_name.items():
                raw = passes["raw"][layer]
                got = raw["block"] if name == "block" else raw["cms"][name].output
                assert_close(got[b], wanted, f"{layer} {b} {name}")


def test_signal_depends_neither_on_batch_nor_on_other_examples(passes: dict) -> None:
    """Row 0's signal is that of row 0 alone: no division by anything of the batch."""
    alone = passes["wanted"][0].signals
    assert_close(passes["raw"][1]["block"][0], alone[1]["block"], "row 0")


def test_global_signal_is_the_heads_pulled_back_for_all_layers(passes: dict) -> None:
    signal = teach.process(Teach(scale=1.0, source="global"), passes["raw"], passes["losses"], 1.0)
    for b, chunk in enumerate(passes["wanted"]):
        targets = np.asarray(passes["batch"].targets[b])
        wanted = np.asarray(naive.global_signal(passes["params"], ARCH, chunk.read, targets))
        for layer in signal:
            assert_close(layer.block[b], wanted, f"global {b}")


@pytest.mark.parametrize("metric", ["l2", "loss", "logit_entropy"])
def test_processing_order(metric: str, passes: dict) -> None:
    """Scale, then surprise, then schedule, then clip per token."""
    rule = Teach(scale=0.3, clip=0.15)
    batch = passes["batch"]
    signal = teach.process(rule, passes["raw"], passes["losses"], 0.5, metric)

    def cleaned(raw: np.ndarray) -> np.ndarray:
        return np.stack([naive.process(token, 0.3, 0.5, 0.15) for token in raw])

    for b, chunk in enumerate(passes["wanted"]):
        for layer, by_name in enumerate(chunk.signals):
            block, targets = by_name["block"], np.asarray(batch.targets[b])
            wanted = cleaned(block)
            assert_close(signal[layer].block[b], wanted, "block")
            for name in ARCH.levels:
                own = cleaned(by_name[name])
                assert_close(signal[layer].own["cms"][name].output[b], own, name)
            tokens = zip(0.3 * block, chunk.read.logits, targets, strict=True)
            surprise = np.array([naive.surprise(metric, *token) for token in tokens])
            assert_close(signal[layer].surprise_n[b], surprise, metric)
            np.testing.assert_array_equal(signal[layer].active_n[b], (wanted != 0).any(-1))
            counted = (block != 0).any(-1) if metric == "l2" else targets >= 0
            np.testing.assert_array_equal(signal[layer].counted_n[b], counted)
    lengths = np.linalg.norm([layer.block for layer in signal], axis=-1)
    assert 0 < np.mean(lengths > 0.1499) < 1


def test_batch_mean_divides_by_supervised_tokens(passes: dict) -> None:
    rule, raw, losses = Teach(scale=0.3), passes["raw"], passes["losses"]
    plain = teach.process(rule, raw, losses, 1.0)
    mean = teach.process(replace(rule, normalize="batch_mean"), raw, losses, 1.0)
    count = int((passes["batch"].targets >= 0).sum())
    for got, wanted in zip(mean, plain, strict=True):
        assert_close(got.block * count, np.asarray(wanted.block), "block")


def schedule_factor(step: int, warmup_steps: int, decay_start: int, decay_duration: int) -> float:
    """Linear warm-up to 1 at the last warm-up step, then a linear decay to 0; 0 switches a part off."""
    factor = 1.0
    if warmup_steps > 0:
        factor *= min(1.0, (step + 1) / warmup_steps)
    if decay_duration > 0:
        factor *= min(1.0, max(0.0, 1.0 - (step - decay_start) / decay_duration))
    return factor


@pytest.mark.parametrize(
    "schedule", [TeachSchedule(), TeachSchedule(5), TeachSchedule(4, 6, 3), TeachSchedule(0, 0, 7)]
)
def test_schedule(schedule: TeachSchedule) -> None:
    for step in range(12):
        assert float(schedule(step)) == pytest.approx(schedule_factor(step, *astuple(schedule)), abs=1e-6)
