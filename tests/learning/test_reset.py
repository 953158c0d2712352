"""`reset_at_document`: a packed row is its documents, each read as a row of its own."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.learning import modes
from hope_jax.learning.chunk import OnlineRule, stream_loss
from hope_jax.learning.reread import reread
from hope_jax.learning.stream import Streamer
from hope_jax.learning.teach import Teach
from hope_jax.memory.levels import Level
from hope_jax.models import documents
from hope_jax.models.blocks import BLOCKS
from hope_jax.models.lm import HopeModel
from tests.close import assert_close
from tests.specs import small_spec

CHUNK, ROOM, VOCAB = 4, 36, 11
LENGTHS = ((11, 20, 3), (4, 7, 22))
"""Tokens of each document, by row; the last chunk of each is filled up with padding."""

NUMBERS = [(row, i) for row, lengths in enumerate(LENGTHS) for i in range(len(lengths))]
QUICK = {"xla_backend_optimization_level": 0}
NIGHTLY = pytest.mark.nightly
CUTS = {"online_n": CHUNK, "online_k": 4 * CHUNK, "through_writes": CHUNK}
"""K by mode. That of online_k is shorter than some documents, of which most begin off its multiples."""

DAILY = (
    ("gated_deltanet", "online_n"),
    ("transformer", "online_k"),
    ("hope_attention", "through_writes"),
)


@cache
def setup(
    variant: str, reset: bool, truncate: int = CHUNK, short: bool = False
) -> tuple[HopeModel, OnlineRule]:
    """Periods of two online chunks, so that documents begin off their grid in the row; short: of less than a
    chunk besides."""
    levels = {"fast": Level(2, 0.2)} if short else {}
    spec = small_spec(
        variant, CHUNK, {**levels, "slow": Level(8, 0.1)}, local_conv_window=3, dtype=jnp.dtype("float64"),
        own=(2 if short else 4, 8), own_options={"eta_scale": 0.01, "local_conv_window": 3},
        memory={"reset_at_document": reset},
    )  # fmt: skip
    return HopeModel(spec), OnlineRule(CHUNK, truncate, Teach(scale=1.0))


@cache
def first_params(variant: str, short: bool = False) -> Any:
    """All leaves moved: convolutions, for one, start as the identity."""
    init = jax.jit(setup(variant, False, short=short)[0].init_params, compiler_options=QUICK)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * jnp.asarray(rng.normal(size=p.shape)), init(jax.random.key(0)))


def document(length: int, number: int, room: int) -> Batch:
    """One document, and padding of tokens that are not zero."""
    tokens, at = np.random.default_rng(length).integers(0, VOCAB, room), np.arange(room)
    targets = np.where(at < length - 1, np.roll(tokens, -1), NO_TARGET)
    return rows_of(tokens, targets, np.where(at < length, number, 0))


def rows_of(*arrays: np.ndarray) -> Batch:
    return Batch(*(jnp.asarray(a, jnp.int32) for a in arrays))


def whole_chunks(length: int) -> int:
    return CHUNK * -(-length // CHUNK)


def packed(numbers: tuple[int, ...] = (1, 2, 1)) -> Batch:
    """Both rows, and rows of padding: as many as there are documents, to compile once for all of them. A
    number that comes again is another document's."""
    rows = []
    for lengths in LENGTHS:
        parts = [document(n, number, whole_chunks(n)) for n, number in zip(lengths, numbers, strict=True)]
        rows.append(rows_of(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))
    rows += [document(0, 1, ROOM)] * (len(NUMBERS) - len(rows))
    return rows_of(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


def apart() -> Batch:
    """Every document in a row of its own."""
    rows = [document(n, 1, ROOM) for lengths in LENGTHS for n in lengths]
    return rows_of(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


def same_documents(of_packed: np.ndarray, of_apart: np.ndarray, what: str) -> None:
    """Equal values [rows, T, ...] at the documents' tokens."""
    for alone, (row, i) in enumerate(NUMBERS):
        start, length = sum(map(whole_chunks, LENGTHS[row][:i])), LENGTHS[row][i]
        got = np.asarray(of_packed)[row, start : start + length]
        assert_close(got, np.asarray(of_apart)[alone, :length], f"{what} of document {i} in row {row}")


def assert_finite(tree: Any) -> None:
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@cache
def gradients(variant: str, mode: str, reset: bool, short: bool) -> Callable[[Batch], Any]:
    """Batch -> outer gradient, loss, supervised tokens."""
    model, rule = setup(variant, reset, CUTS[mode], short)
    of_mode = modes.through_writes if mode == "through_writes" else modes.online

    def run(params: Any, batch: Batch) -> Any:
        fast = model.init_fast_state(params, len(batch.tokens))
        gradient, result = of_mode(model, rule, params, fast, batch, jnp.asarray(0.9))
        return gradient, result.sums.loss, result.sums.tokens

    compiled = jax.jit(run, compiler_options=QUICK)
    return lambda batch: compiled(first_params(variant, short), batch)


def compare(variant: str, mode: str, *, option: bool, short: bool) -> None:
    """Packed rows against rows of one document, which are read with the option or without it."""
    gradient, loss, tokens = gradients(variant, mode, True, short)(packed())
    wanted, wanted_loss, wanted_tokens = gradients(variant, mode, option, short)(apart())
    assert int(tokens) == int(wanted_tokens) == sum(n - 1 for lengths in LENGTHS for n in lengths)
    assert_finite((loss, gradient))
    assert_close(loss, np.asarray(wanted_loss), "loss")
    assert_close(gradient, jax.tree.map(np.asarray, wanted), "gradient")


@pytest.mark.parametrize(("variant", "mode"), DAILY)
def test_documents_packed_in_a_row_learn_as_in_rows_of_their_own(variant: str, mode: str) -> None:
    compare(variant, mode, option=True, short=False)


@NIGHTLY
@pytest.mark.parametrize("mode", CUTS)
@pytest.mark.parametrize("variant", BLOCKS)
def test_documents_packed_in_a_row_learn_as_without_the_option_in_rows_of_their_own(
    variant: str, mode: str
) -> None:
    compare(variant, mode, option=False, short=True)


@pytest.mark.parametrize(
    ("variant", "option"),
    [("hope_hybrid", True), *(pytest.param(variant, False, marks=NIGHTLY) for variant in BLOCKS)],
)
def test_streams_predict_documents_as_if_each_began_them(variant: str, option: bool) -> None:
    """In one call and in pieces that end anywhere, against streams of one document, which are read with the
    option or without it."""
    params = first_params(variant)
    streamer, alone = Streamer(*setup(variant, True)), Streamer(*setup(variant, option))

    def read(streamer: Streamer, batch: Batch, *lengths: int) -> np.ndarray:
        state, at, logits = streamer.begin(params, len(batch.tokens), ROOM), 0, []
        for n in lengths:
            part = slice(at, at + n)
            out, state = streamer.feed(params, state, batch.tokens[:, part], batch.segment_ids[:, part])
            logits.append(out)
            at += n
        return np.concatenate(logits, axis=1)

    wanted = read(alone, apart(), ROOM)
    assert_finite(wanted)
    same_documents(read(streamer, packed(), ROOM), wanted, "logits")
    same_documents(read(streamer, packed(), 3, 10, 0, 23), wanted, "logits in pieces")


def test_a_document_that_begins_inside_a_chunk_is_refused() -> None:
    streamer, params = Streamer(*setup("transformer", True)), first_params("transformer")
    state = streamer.begin(params, 2, ROOM)
    segments = np.array([[1, 1, 1, 1, 2, 0], [1, 1, 0, 0, 1, 2]])
    with pytest.raises(ValueError, match=r"example 1 has a token of document 2 at position 5, .* 4 tokens"):
        streamer.feed(params, state, np.ones_like(segments), segments)


def test_one_memory_for_documents_that_begin_at_different_places_is_refused() -> None:
    spec = setup("hope_attention", True)[0].spec
    with pytest.raises(ValueError, match="scope='example', got 'batch'"):
        HopeModel(replace(spec, memory=replace(spec.memory, scope="batch")))


@pytest.mark.parametrize("variant", ["transformer", "hope_selfmod"])
def test_slow_weights_alone_read_documents_as_rows_of_their_own(variant: str) -> None:
    """With the option or without it: neither attention nor convolutions see other documents."""
    model, params = setup(variant, False)[0], first_params(variant)

    @partial(jax.jit, compiler_options=QUICK)
    def read(batch: Batch) -> Any:
        return model.read(params, {}, None, batch.tokens, batch.segment_ids).hidden

    wanted, batch = np.asarray(read(apart())), packed((1, 2, 3))
    same_documents(read(batch), wanted, "hidden")
    one = read(batch._replace(segment_ids=jnp.ones_like(batch.segment_ids)))
    with pytest.raises(AssertionError, match="document 1 in row 0"):
        same_documents(one, wanted, "hidden")


@NIGHTLY
@pytest.mark.parametrize("variant", ["hope_attention", "hope_hybrid", "titan"])
def test_reading_again_is_as_in_rows_of_their_own(variant: str) -> None:
    found = []
    for batch, reset in ((packed(), True), (apart(), False)):
        model, rule = setup(variant, reset)
        run = jax.jit(lambda p, b, m=model, r=rule: reread(m, r, p, b), compiler_options=QUICK)
        found.append(run(first_params(variant), batch))
    for name in ("before", "after"):
        by_chunk = [np.repeat(getattr(out, name).T, CHUNK, axis=1) for out in found]
        same_documents(*by_chunk, name)
    assert np.abs(found[1].after - found[1].before).max() > 1e-6


@NIGHTLY
def test_a_stream_goes_on_from_the_memories_that_are_given() -> None:
    """The first document of a stream is no boundary."""
    model, rule = setup("hope_attention", True)
    params, batch = first_params("hope_attention"), packed()

    @jax.jit
    def run(fast: Any) -> Any:
        return stream_loss(model, rule, params, fast, batch)

    first = run(model.init_fast_state(params, len(batch.tokens)))
    assert abs(run(first.fast).sums.loss - first.sums.loss) > 1e-3


def naive_clock(segments: np.ndarray, position: int) -> int:
    """Back from the chunk at `position` over chunks that begin with the same number."""
    at = position
    while at and segments[at - CHUNK] == segments[position]:
        at -= CHUNK
    return position - at


@pytest.mark.parametrize("room", [ROOM, ROOM + 2])
def test_clock_counts_from_the_chunk_that_began_the_document(room: int) -> None:
    rng = np.random.default_rng(room)
    segments = np.repeat(rng.integers(0, 3, (5, ROOM // CHUNK)), CHUNK, axis=1)
    for position in range(0, ROOM, CHUNK):
        cached = np.full((5, room), -1)
        cached[:, :position] = segments[:, :position]
        now = segments[:, position : position + CHUNK]
        got = documents.clock(*map(jnp.asarray, (cached, now, position)), CHUNK)
        assert got.tolist() == [naive_clock(row, position) for row in segments]
