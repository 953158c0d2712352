"""Batches: packing, order, sharding, prefetch and the saved cursor."""

import itertools
import json
import multiprocessing
import threading
import time

import numpy as np
import pytest
from etils import epath
from grain.checkpoint import CheckpointHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from hope_jax.core.errors import CheckpointError, DataError
from hope_jax.core.types import NO_TARGET
from hope_jax.data.batches import TrainIterator, fixed_batches
from hope_jax.data.corpus import Document, load_documents, split_documents
from hope_jax.data.pipeline import held_out_rows, tokenize_documents, training_rows
from hope_jax.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load("embedded")
DOCUMENTS = [
    Document(", ".join(f"son {i} of father {j}" for j in range(1 + 3 * i % 7)), "x.txt", i) for i in range(40)
]
SHARING = ("process_index", "process_count", "prefetch", "workers", "start_batch")
SIZES = {"documents": DOCUMENTS, "tokenizer": TOKENIZER, "seq_len": 16, "batch_size": 4}


def train(**changes):
    options = {**SIZES, "seed": 7, **changes}
    sharing = {key: options.pop(key) for key in list(options) if key in SHARING}
    return TrainIterator(training_rows(**options), batch_size=options["batch_size"], **sharing)


def make_eval_batches(**options):
    return fixed_batches(held_out_rows(**options), options["batch_size"], TOKENIZER.pad_id)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def rows_of(batches):
    return [tuple(row) for b in batches for row in np.concatenate([b.tokens, b.targets], axis=1).tolist()]


def epoch_rows():
    """Rows of one epoch: as many as whole windows of seq_len targets."""
    return (len(tokenize_documents(DOCUMENTS, TOKENIZER)[0]) - 1) // SIZES["seq_len"]


def pairs(batches):
    """Supervised (document-order) pairs, read back from the rows alone."""
    found = []
    for b in batches:
        mask = b.targets != NO_TARGET
        found += zip(b.tokens[mask].tolist(), b.targets[mask].tolist(), strict=True)
    return sorted(found)


def naive_pairs(documents):
    found = []
    for d in documents:
        ids = [TOKENIZER.bos_id, *TOKENIZER.encode(d.text).tolist(), TOKENIZER.eos_id]
        found += itertools.pairwise(ids)
    return sorted(found)


def test_batches_are_int32_numpy_of_the_stated_shape():
    for batch in (next(train()), make_eval_batches(**SIZES, max_batches=1)[0]):
        for array in batch:
            assert isinstance(array, np.ndarray) and array.dtype == np.int32 and array.shape == (4, 16)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(alphabet="ab \n", max_size=30), min_size=1, max_size=8),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_every_pair_of_a_document_is_supervised_exactly_once(contents, seq_len, batch_size):
    documents = [Document(t, "x.txt", i) for i, t in enumerate(contents)]
    batches = make_eval_batches(
        documents=documents, tokenizer=TOKENIZER, seq_len=seq_len, batch_size=batch_size, max_batches=0
    )
    assert pairs(batches) == naive_pairs(documents)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(alphabet="ab \n", max_size=30), min_size=1, max_size=8),
    st.integers(2, 6),
    st.integers(1, 4),
)
def test_padded_documents_begin_at_chunks_and_are_there_once(contents, chunk, chunks_a_row):
    documents = [Document(t, "x.txt", i) for i, t in enumerate(contents)]
    batches = make_eval_batches(
        documents=documents,
        tokenizer=TOKENIZER,
        seq_len=chunk * chunks_a_row,
        batch_size=1,
        max_batches=0,
        document_multiple=chunk,
    )
    assert pairs(batches) == naive_pairs(documents)
    tokens, segments = (np.concatenate([b[field].ravel() for b in batches]) for field in (0, 2))
    assert tokens[segments > 0].tolist() == tokenize_documents(documents, TOKENIZER)[0].tolist()
    by_chunk = segments.reshape(-1, chunk)
    assert np.all((by_chunk == by_chunk[:, :1]) | (by_chunk == 0))
    full = (by_chunk > 0).all(axis=1)
    for i in np.flatnonzero(~full[:-1]):
        assert tokens[(i + 1) * chunk] == TOKENIZER.bos_id or not segments[(i + 1) * chunk :].any()


def test_padded_rows_resume_where_they_were_and_not_in_another_stream():
    padded = {"document_multiple": 8}
    want = take(train(**padded), 40)
    interrupted = train(**padded)
    take(interrupted, 17)
    fresh = train(**padded)
    fresh.set_state(json.loads(json.dumps(interrupted.get_state())))
    assert_same(take(fresh, 23), want[17:])
    with pytest.raises(CheckpointError, match="memory.reset_at_document"):
        train().set_state(interrupted.get_state())


def test_targets_stay_within_the_document_and_segments_count_from_one():
    bos, eos = TOKENIZER.bos_id, TOKENIZER.eos_id
    rows = [row for b in make_eval_batches(**SIZES, max_batches=0) for row in zip(*b, strict=True)]
    assert max(segments.max() for _, _, segments in rows) > 1
    for tokens, targets, segments in rows:
        real = segments > 0
        assert np.all(np.diff(real.astype(int)) <= 0)
        assert not real.any() or segments[0] == 1
        assert np.all((np.diff(segments) == 1)[real[1:]] == (tokens[1:] == bos)[real[1:]])
        assert np.all((targets[:-1] == tokens[1:]) | (targets[:-1] == NO_TARGET))
        assert np.all(((targets == NO_TARGET) == (tokens == eos))[real])
        assert np.all(targets[~real] == NO_TARGET) and np.all(tokens[~real] == TOKENIZER.pad_id)


def test_an_epoch_visits_every_row_once_and_the_next_one_in_another_order():
    n = epoch_rows()
    rows = rows_of(take(train(batch_size=1), 2 * n))
    windows = rows_of(make_eval_batches(**{**SIZES, "batch_size": 1}, max_batches=0))[:n]
    first, second = rows[:n], rows[n:]
    assert sorted(first) == sorted(second) == sorted(windows)
    assert first != second and first != windows


def test_seed_alone_decides_the_order():
    assert_same(take(train(), 20), take(train(), 20))
    n = epoch_rows()
    first = rows_of(take(train(batch_size=1, seed=7), 2 * n))
    other = rows_of(take(train(batch_size=1, seed=8), n))
    assert other != first[:n] and other != first[n:]  # neighbouring seeds share no epoch


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_get_contiguous_shares_of_the_single_process_batches(process_count):
    n = 2 * epoch_rows() // 4 + 3  # past two epochs
    whole = take(train(), n)
    shares = [take(train(process_index=p, process_count=process_count), n) for p in range(process_count)]
    joined = [
        type(parts[0])(*(np.concatenate(a) for a in zip(*parts, strict=True)))
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("read", [0, 1, 9, 60])
def test_restored_iterator_continues_the_uninterrupted_stream_across_epochs(prefetch, read):
    per_epoch = epoch_rows() / 4
    assert 9 < per_epoch < 60 < 60 + per_epoch
    length = int(per_epoch) + 5
    want = take(train(prefetch=0), read + length)[read:]
    interrupted = train(prefetch=prefetch)
    take(interrupted, read)
    time.sleep(0.02)  # let the background thread run ahead of what was read
    state = json.loads(json.dumps(interrupted.get_state()))
    assert_same(take(interrupted, length), want)

    fresh = train(prefetch=prefetch)
    fresh.set_state(state)
    assert_same(take(fresh, length), want)
    used = train(prefetch=prefetch)
    take(used, 3)
    used.set_state(state)
    assert used.get_state() == state
    assert_same(take(used, length), want)


def test_start_batch_skips_exactly_that_many():
    assert_same(take(train(start_batch=13), 30), take(train(), 43)[13:])
    assert train(start_batch=13).get_state()["next_batch"] == 13


def test_state_moves_between_process_counts():
    one = train()
    take(one, 5)
    two = train(process_index=1, process_count=2)
    two.set_state(one.get_state())
    np.testing.assert_array_equal(next(two).tokens, next(one).tokens[2:])


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"seq_len": 15}, {"batch_size": 2}, {"documents": DOCUMENTS[1:]}],
    ids=lambda c: next(iter(c)),
)
def test_state_of_another_stream_is_refused(change):
    with pytest.raises(CheckpointError, match="another training stream"):
        train(**change).set_state(train().get_state())


@pytest.mark.parametrize("state", [{}, {"next_batch": -1}, {"next_batch": "3"}])
def test_malformed_state_is_refused(state):
    with pytest.raises(CheckpointError, match="next_batch"):
        train().set_state(state)


def test_grains_own_checkpoint_handler_saves_and_restores_the_iterator(tmp_path):
    iterator = train()
    take(iterator, 6)
    CheckpointHandler().save(epath.Path(tmp_path), iterator)
    want = take(iterator, 3)
    assert_same(take(CheckpointHandler().restore(epath.Path(tmp_path), train()), 3), want)


@pytest.mark.nightly
def test_workers_prepare_the_same_batches():
    iterator = train(workers=2, start_batch=3)
    first = take(iterator, 1)
    assert len(multiprocessing.active_children()) >= 2
    assert_same(first + take(iterator, 7), take(train(), 11)[3:])
    iterator.close()


def test_prefetch_runs_in_the_background_and_close_ends_it():
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch") and t not in before]

    before = threading.enumerate()
    iterator = train(prefetch=4)
    next(iterator)
    assert threads()
    iterator.close()
    for thread in threads():
        thread.join(timeout=5)
    assert not threads()
    next(train(prefetch=0))
    assert not threads()


def test_eval_batches_are_fixed_and_padded_at_the_end():
    batches = make_eval_batches(**SIZES, max_batches=0)
    assert_same(make_eval_batches(**SIZES, max_batches=0), batches)
    assert_same(make_eval_batches(**SIZES, max_batches=len(batches)), batches)
    assert sum(int((b.targets != NO_TARGET).sum()) for b in batches) == len(naive_pairs(DOCUMENTS))
    empty = batches[-1].segment_ids[-1] == 0
    assert empty.all() == bool((epoch_rows() + 1) % 4)


def test_a_limited_eval_reads_rows_from_all_over_the_split():
    few = make_eval_batches(**{**SIZES, "batch_size": 2}, max_batches=3)
    every = rows_of(make_eval_batches(**{**SIZES, "batch_size": 1}, max_batches=0))
    where = [every.index(row) for row in rows_of(few)]
    assert len(few) == 3 and where == sorted(set(where))
    assert where[0] == 0 and where[-1] >= len(every) * 5 // 6 - 1


def test_more_processes_than_rows_divide_is_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"batch_size=4 .* 3 processes; try 6"):
        train(process_count=3)


def test_a_corpus_smaller_than_one_batch_is_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"tokens, one batch needs 40001 .*lower these or add text"):
        train(seq_len=10000)
    with pytest.raises(DataError, match="0 tokens"):
        train(documents=[])
    with pytest.raises(DataError, match="held-out split is empty"):
        make_eval_batches(**{**SIZES, "documents": []}, max_batches=0)


def test_the_embedded_corpus_loads_far_faster_than_it_can_be_trained_on():
    documents, _ = split_documents(load_documents("embedded"))
    start = time.perf_counter()
    iterator = train(documents=documents, seq_len=256, batch_size=8, seed=0)
    tokens = sum(batch.tokens.size for batch in take(iterator, 100))
    assert (
        tokens / (time.perf_counter() - start) > 50_000
    )  # tokenization included; training does about 10,000
