"""Rows read in order and side by side, against what the model's own reads give one by one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core import trees
from hope_jax.core.types import PyTree
from hope_jax.evals.reading.reader import Reader, packed
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.tasks.finetune import Tuner
from hope_jax.models.lm import HopeModel
from tests.evals.subjects import subject

VARIANTS = ["hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly)]


def rows(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 1000, n).astype(np.int32) for n in lengths]


@partial(jax.jit, static_argnums=0)
def all_logits(model: HopeModel, params: PyTree, fast: PyTree, tokens: Any) -> Any:
    return model.logits(params, model.read(params, fast, None, tokens, jnp.ones_like(tokens)).hidden)


def naive(reader: Reader, params: PyTree, fast: PyTree, row: np.ndarray) -> np.ndarray:
    """Cross-entropies of one row of up to 47 tokens, by one read and a softmax over all logits. What is read
    after the row changes nothing before."""
    tokens = np.zeros((1, 48), np.int32)
    tokens[0, : len(row) + 1] = [reader.tokenizer.bos_id, *row]
    logits = np.asarray(all_logits(reader.model, params, fast, tokens), np.float64)[0, : len(row)]
    norm = np.log(np.exp(logits).sum(-1))
    return norm - logits[np.arange(len(row)), row]


def near(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_memories_pass_from_row_to_row(variant: str) -> None:
    """Read without writing, each row is what it is alone; with it, the first online chunk only. Memories as
    they stand give the naive loss, for whole rows and for their ends."""
    model = subject(variant)
    reader, params = Reader(model), model.trained.params
    start, given = reader.start(params), rows(31, 20)
    fresh = [naive(reader, params, start, row) for row in given]
    silent, same, _ = reader.read_on(params, start, given, write=False)
    if variant == "hope_attention":
        jax.tree.map(np.testing.assert_array_equal, same, start)
        near(-silent[1], fresh[1])
    near(-silent[0], fresh[0])
    read, fast, _ = reader.read_on(params, start, given)
    near(-read[0][:15], fresh[0][:15])
    assert np.abs(read[1] + fresh[1]).max() > 1e-3
    wanted = [naive(reader, params, fast, row) for row in given]
    assert np.abs(wanted[1] - fresh[1]).max() > 1e-3
    for got, exact in zip(reader.losses(params, fast, given, batch_size=4), wanted, strict=True):
        near(got, exact)
    for got, exact, tail in zip(
        reader.losses(params, fast, given, [3, 4], batch_size=4), wanted, [3, 4], strict=True
    ):
        near(got, exact[-tail:])


@pytest.mark.nightly
def test_a_row_is_read_and_written_as_the_scorer_does() -> None:
    model = subject()
    reader, params = Reader(model), model.trained.params
    given = rows(31, 300, 200, 90)
    read, _, _ = reader.read_on(params, reader.start(params), given)
    assert [len(row) for row in read] == [31, 300, 200, 90]
    near(read[0], token_log_probs(model, given[:1], batch_size=1)[0])
    reader.stream_tokens = 64  # each row a stream of its own; what they pass on is in the memories
    apart, _, _ = reader.read_on(params, reader.start(params), given)
    near(apart[0], read[0])
    assert abs(float(apart[3].mean() - read[3].mean())) < 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prefix_read_once_is_as_if_it_stood_in_every_row(variant: str) -> None:
    """19 tokens and BOS: one online chunk of 16, and 4 that are read with each row."""
    model = subject(variant)
    reader, params = Reader(model), model.trained.params
    fast, (head, *given) = reader.start(params), rows(19, 20, 5)
    prefix = reader.prefix(params, fast, head, 20)
    got = reader.losses(params, fast, given, [4, 2], prefix=prefix, batch_size=4)
    for one, row, tail in zip(got, given, [4, 2], strict=True):
        near(one, naive(reader, params, fast, np.concatenate([head, row]))[-tail:])


def test_rows_are_packed_in_order() -> None:
    found = list(packed([np.array([5, 6]), np.array([7]), np.array([8, 9, 10])], 1, 5))
    assert [[part.tolist() for part in stream] for stream in found] == [
        [[1, 5, 6, 1, 7], [1, 1, 1, 2, 2]],
        [[1, 8, 9, 10], [1, 1, 1, 1]],
    ]


def test_fine_tuning_lowers_the_loss_of_what_it_reads() -> None:
    model = subject()
    reader, params = Reader(model), model.trained.params
    tuner, given = Tuner(reader, 32), rows(31, 9, 12)
    before = reader.losses(params, reader.start(params), given, batch_size=4)
    read, tuned = tuner.read_on(tuner.begin(params, 1e-2), given[:1])
    near(-read[0], before[0])
    for _ in range(3):
        read, tuned = tuner.read_on(tuned, given)
    assert [len(row) for row in read] == [31, 9, 12]
    after = reader.losses(tuned.params, reader.start(tuned.params), given, batch_size=4)
    assert all(new.mean() < old.mean() for new, old in zip(after, before, strict=True))


@pytest.mark.nightly
def test_fine_tuning_trains_memories_that_write_themselves_and_they_are_read_as_trained() -> None:
    model = subject("hope_selfmod")
    reader, params = Reader(model), model.trained.params
    _, tuned = Tuner(reader, 64).read_on(Tuner(reader, 64).begin(params, 1e-2), rows(63))
    old, new = (p["blocks"]["self_mod"] for p in (params, tuned.params))
    for name in ("k", "v", "memory"):
        assert np.abs(new[name]["w_in"] - old[name]["w_in"]).max() > 1e-3, name
    start = trees.stack(reader.start(tuned.params))["self_mod"].weights["memory"]["w_in"]
    np.testing.assert_array_equal(start[:, 0], new["memory"]["w_in"])


@pytest.mark.nightly
def test_the_end_of_a_stream_is_written_by_memories_that_write_themselves_too() -> None:
    model = subject("hope_selfmod")
    reader, params = Reader(model), model.trained.params
    before = reader.start(params)
    after = reader.read_on(params, before, rows(10)).fast
    for name in ("k", "memory"):
        moved = np.subtract(*(trees.stack(t)["self_mod"].weights[name]["w_in"] for t in (after, before)))
        assert np.abs(moved).max() > 0, name
