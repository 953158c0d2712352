"""Production against the torch reference: logits, memories after ragged streams, statistics, outer gradients.

Everything in float64 and to 1e-9 of the larger of 1 and the largest magnitude of a leaf. Every leaf of the
parameters has noise; rows hold two documents, a token of padding and a whole period without targets.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hope_jax.learning import modes
from hope_jax.learning.stream import Streamer
from parity_tests import torch_bridge as bridge
from parity_tests.torch_cases import CASES, CHUNK, TOKENS, setup
from parity_tests.torch_reference import model as reference
from parity_tests.torch_reference import stream
from parity_tests.torch_reference.periods import Write
from parity_tests.torch_reference.settings import Arch
from parity_tests.torch_reference.stream import Stream

torch.set_num_threads(1)

NIGHTLY = pytest.mark.nightly
MODES = ("online", "online_2N", "through_writes")


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=bridge.QUICK)


READS = ("transformer_pp_published", "selfmod_published")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in READS else NIGHTLY) for n in CASES])
def test_logits_of_whole_sequences(name: str) -> None:
    case, (model, params, rows, batch) = CASES[name], setup(name)
    fast = model.init_fast_state(params, len(rows))
    read = jit(lambda p: model.logits(p, model.read(p, fast, None, *batch[::2], training=True).hidden))
    theta, arch = bridge.to_torch(params), case.arch
    empty = reference.fresh_fast(theta, arch), reference.fresh_carry(theta)
    wanted = [reference.read(theta, arch, *empty, row.tokens, row.segments).logits for row in rows]
    bridge.assert_close(read(params), np.stack([logits.numpy() for logits in wanted]), "logits")


DAILY = {
    ("attention", "online_2N"),
    ("titan_published", "through_writes"),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param(n, m, marks=() if (n, m) in DAILY else NIGHTLY) for n in CASES for m in MODES],
)
def test_streams_and_their_outer_gradients(name: str, mode: str) -> None:
    case, (model, params, rows, batch) = CASES[name], setup(name)
    rules = replace(case.rules, truncate=2 * CHUNK if mode == "online_2N" else CHUNK)
    through = mode == "through_writes"
    mode_of = modes.through_writes if through else modes.online
    run = jit(partial(mode_of, model, bridge.online_rule(rules)))
    fast = model.init_fast_state(params, len(rows))
    gradient, result = run(params, fast, batch, jnp.asarray(rules.schedule))

    theta = bridge.to_torch(params)
    wanted = [stream.outer_gradient(theta, case.arch, rules, row, through_writes=through) for row in rows]
    loss = sum(out.loss.detach().numpy() for _, out in wanted)
    bridge.assert_close(result.sums.loss, loss, "loss")
    bridge.compare_fast(case.arch, result.fast, [out.fast for _, out in wanted])
    compare_statistics(case.arch, result.stats, [out for _, out in wanted])
    total = bridge.summed(lambda pair: bridge.to_numpy(pair[0]), wanted)
    bridge.assert_close(gradient, total, "outer gradient")


def compare_statistics(arch: Arch, stats: Any, wanted: list[Stream]) -> None:
    """Float32 sums over the stream, by layer, level and example."""
    for b, out in enumerate(wanted):
        for layer in range(bridge.LAYERS):
            for memory, name, _ in bridge.written(arch):
                mine = [w for w in out.writes if (w.layer, w.level) == (layer, name)]
                got = bridge.example_of(stats[memory][name], layer, b)
                for field, value in summary(mine).items():
                    what = f"{field} of {name}, layer {layer}, example {b}"
                    np.testing.assert_allclose(getattr(got, field), value, rtol=2e-6, atol=1e-6, err_msg=what)


def summary(writes: list[Write]) -> dict[str, float]:
    """Production's statistics of these writes."""
    applied = [w for w in writes if w.applied]
    return {
        "periods": len(writes),
        "updates_applied": len(applied),
        "gate_hit": sum(w.is_open for w in writes),
        "chunk_tokens": sum(w.tokens for w in writes),
        "tokens_flushed": sum(w.tokens for w in applied if w.flushed),
        "surprise_value": sum(w.surprise for w in writes),
        "grad_norm": sum(w.grad_norm for w in applied),
        "write_clip_hits": sum(w.write_clip_hits for w in applied),
        "delta_clip_hits": sum(w.delta_clip_hits for w in applied),
    }


@pytest.mark.parametrize("name", [pytest.param(n, marks=NIGHTLY) for n in CASES])
def test_two_pass_gradient_and_writes(name: str) -> None:
    case, (model, params, rows, _) = CASES[name], setup(name)
    rows = [row.part(0, 16) for row in rows]
    whole = replace(case.rules, chunk=16, truncate=0)
    model, batch = bridge.hope_model(case.arch, whole, case.conv), bridge.batch_of(rows)
    run = jit(partial(modes.two_pass, model, bridge.online_rule(whole)))
    fast = model.init_fast_state(params, len(rows))
    gradient, result = run(params, fast, batch, jnp.asarray(whole.schedule))
    wanted = [stream.outer_gradient(bridge.to_torch(params), case.arch, whole, row) for row in rows]
    bridge.assert_close(result.sums.loss, sum(out.loss.detach().numpy() for _, out in wanted), "loss")
    total = bridge.summed(lambda pair: bridge.to_numpy(pair[0]), wanted)
    bridge.assert_close(gradient, total, "outer gradient")
    bridge.compare_fast(case.arch, result.fast, [out.fast for _, out in wanted])


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("attention", (1, 1, 13, 12)),
        pytest.param("attention_published_all_rules", (9, 1, 17), marks=NIGHTLY),
        pytest.param("hybrid_published_titans", (8, 19), marks=NIGHTLY),
        pytest.param("nested", (5, 22), marks=NIGHTLY),
        pytest.param("selfmod", (3, 13, 0, 11), marks=NIGHTLY),
        pytest.param("selfmod_published", (16, 11), marks=NIGHTLY),
    ],
)
def test_a_stream_in_pieces(name: str, lengths: tuple[int, ...]) -> None:
    case, (model, params, rows, batch) = CASES[name], setup(name)
    arch, rules = replace(case.arch, read_clip=0.0), replace(case.rules, schedule=1.0)
    streamer = Streamer(model, bridge.online_rule(rules)._replace(training=False))
    # A stream makes its own targets: the next token of the same document, where the mask allows it.
    mask = np.array([[True, *(target >= 0 for target in row.targets[:-1])] for row in rows])
    state, at, logits = streamer.begin(params, len(rows), TOKENS), 0, []
    for length in lengths:
        here = slice(at, at + length)
        piece, state = streamer.feed(
            params, state, batch.tokens[:, here], batch.segment_ids[:, here], mask[:, here]
        )
        logits.append(piece)
        at += length
    result = streamer.finish(params, state)
    theta = bridge.to_torch(params)
    wanted = [stream.stream(theta, arch, rules, row) for row in rows]
    read = np.stack([torch.cat(out.logits).numpy() for out in wanted])
    bridge.assert_close(jnp.concatenate(logits, axis=1), read, "logits")
    bridge.compare_fast(arch, result.fast, [out.fast for out in wanted])
    compare_statistics(arch, result.stats, wanted)


def writes_of(name: str) -> list[Write]:
    case, (_, params, rows, _) = CASES[name], setup(name)
    theta = bridge.to_torch(params)
    return [w for row in rows for w in stream.stream(theta, case.arch, case.rules, row).writes]


@NIGHTLY
def test_cases_exercise_what_they_name() -> None:
    """Gates block and pass, bounds bite, unfinished periods are flushed, a period is fully masked."""
    writes = writes_of("attention_published_all_rules")
    assert {w.applied for w in writes} == {True, False}
    assert any(w.applied and 0 < w.tokens < 8 for w in writes if w.level == "mid")
    assert any(w.write_clip_hits for w in writes) and any(w.delta_clip_hits for w in writes)
    assert any(w.flushed and w.applied for w in writes)
    assert any(w.is_open and not w.tokens for w in writes_of("attention"))
    for name in ("attention_global_loss_gate", "selfmod_published"):
        assert {w.is_open for w in writes_of(name)} == {True, False}, name
