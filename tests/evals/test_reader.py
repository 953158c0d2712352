"""Rows read in order and side by side, against what the model's own reads give one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.evals.finetune import Tuner
from hope_jax.evals.reader import Reader, packed
from hope_jax.evals.scoring import token_log_probs
from tests.evals.subjects import subject

pytestmark = pytest.mark.usefixtures("quick")
VARIANTS = ["hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly)]


def rows(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 1000, n).astype(np.int32) for n in lengths]


def naive(reader: Reader, params: Any, fast: Any, row: np.ndarray) -> np.ndarray:
    """Cross-entropies of one row, by one read and a softmax over all logits."""
    tokens = jnp.asarray(np.concatenate([[reader.tokenizer.bos_id], row]), jnp.int32)[None]
    hidden = reader.model.read(params, fast, None, tokens, jnp.ones_like(tokens)).hidden
    logits = np.asarray(reader.model.logits(params, hidden), np.float64)[0, :-1]
    norm = np.log(np.exp(logits).sum(-1))
    return norm - logits[np.arange(len(row)), row]


@pytest.mark.parametrize("variant", VARIANTS)
def test_memories_as_they_stand_give_the_naive_loss_for_whole_rows_and_their_ends(variant: str) -> None:
    model = subject(variant)
    reader, params = Reader(model), model.trained.params
    _, fast = reader.read_on(params, reader.start(params), rows(40, 25))
    given = rows(20, 9, 14)
    wanted = [naive(reader, params, fast, row) for row in given]
    for got, exact in zip(reader.losses(params, fast, given, batch_size=2), wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)
    ends = reader.losses(params, fast, given, [3, 9, 1], batch_size=4)
    for got, exact, tail in zip(ends, wanted, [3, 9, 1], strict=True):
        np.testing.assert_allclose(got, exact[-tail:], rtol=1e-4, atol=1e-4)
    fresh = naive(reader, params, reader.start(params), given[0])
    assert np.abs(fresh - wanted[0]).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prefix_read_once_is_as_if_it_stood_in_every_row(variant: str) -> None:
    """19 tokens and BOS: one online chunk of 16, and 4 that are read with each row."""
    model = subject(variant)
    reader, params = Reader(model), model.trained.params
    fast, (head, *given) = reader.start(params), rows(19, 20, 5)
    prefix = reader.prefix(params, fast, head, 20)
    got = reader.losses(params, fast, given, [20, 2], prefix=prefix, batch_size=2)
    whole = [np.concatenate([head, row]) for row in given]
    wanted = reader.losses(params, fast, whole, [20, 2], batch_size=2)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_only_memories_pass_from_row_to_row() -> None:
    """Read without writing, each row is what it is alone; with it, the first one only."""
    model = subject()
    reader, params = Reader(model), model.trained.params
    start, given = reader.start(params), rows(31, 31, 300)
    silent, same = reader.read_on(params, start, given, write=False)
    for got, row in zip(silent, given, strict=True):
        np.testing.assert_allclose(got, -naive(reader, params, start, row), rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, same, start)
    read, fast = reader.read_on(params, start, given)
    alone = token_log_probs(model, given[:2], batch_size=2)
    np.testing.assert_allclose(read[0], alone[0], rtol=1e-4, atol=1e-4)
    assert np.abs(read[1] - alone[1]).max() > 1e-3
    # A stream that ends in between goes on from the memories it left.
    first, between = reader.read_on(params, start, given[:2])
    np.testing.assert_array_equal(first[1], read[1])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (between, fast)), strict=True))


def test_rows_are_packed_in_order() -> None:
    found = list(packed([np.array([5, 6]), np.array([7]), np.array([8, 9, 10])], 1, 5))
    assert [[part.tolist() for part in stream] for stream in found] == [
        [[1, 5, 6, 1, 7], [1, 1, 1, 2, 2]],
        [[1, 8, 9, 10], [1, 1, 1, 1]],
    ]


def test_fine_tuning_lowers_the_loss_of_what_it_reads() -> None:
    model = subject()
    reader, params = Reader(model), model.trained.params
    tuner, fast, given = Tuner(reader, 32), reader.start(params), rows(31, 9, 12)
    before = reader.losses(params, fast, given, batch_size=4)
    read, tuned = tuner.read_on(tuner.begin(params, 1e-2), fast, given[:1])
    np.testing.assert_allclose(-read[0], before[0], rtol=1e-4, atol=1e-4)
    for _ in range(3):
        read, tuned = tuner.read_on(tuned, fast, given)
    assert [len(row) for row in read] == [31, 9, 12]
    after = reader.losses(tuned.params, fast, given, batch_size=4)
    assert all(new.mean() < old.mean() for new, old in zip(after, before, strict=True))
