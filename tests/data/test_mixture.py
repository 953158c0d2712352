"""Mixtures of shards: proportions, order, epochs, sharding, workers, the cursor, and what is held out."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hope_jax.core.errors import CheckpointError, DataError
from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.data import mixture as found
from hope_jax.data.batches import TrainIterator, as_row, fixed_batches
from hope_jax.data.corpus import load_documents, split_documents
from hope_jax.data.mixture import Interleaving, epochs, held_out_rows, training_rows
from tests.data.shard_folder import TOKENIZER, numbered_rows, shard_documents, tokens_of

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
ROWS = {"a": 30, "b": 12, "c": 7}
FIRST = {"a": 10, "b": 110, "c": 210}
SHAPE = {"seq_len": 16, "batch_size": 4, "seed": 7}
PUBLISHED = [0.4, 0.2, 0.15, 0.15, 0.1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources whose rows can be told apart by any of their tokens."""
    made = tmp_path_factory.mktemp("shards")
    for name in WEIGHTS:
        numbered_rows(made / name, FIRST[name], ROWS[name])
    return made


def opened(folder: Path, weights=WEIGHTS):
    return found.find_sources(str(folder), weights, {})


def train(folder: Path, weights=WEIGHTS, **changes):
    shape = {key: changes.pop(key, value) for key, value in SHAPE.items()}
    stream = training_rows(opened(folder, weights), **shape)
    return TrainIterator(stream, batch_size=shape["batch_size"], **{"prefetch": 0, **changes})


def held_out(folder: Path, weights=WEIGHTS, **changes):
    values = {"seq_len": 16, "batch_size": 4, "max_batches": 0, **changes}
    return fixed_batches(
        held_out_rows(opened(folder, weights), **values), values["batch_size"], TOKENIZER.pad_id
    )


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def numbers(batches):
    """The token that tells each row."""
    return np.concatenate([batch.tokens[:, 0] for batch in batches]).tolist()


def source_of(token):
    return max((name for name in FIRST if FIRST[name] <= token), key=FIRST.get)


def assert_same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)


def test_weights_hold_to_two_rows_in_the_short_run_and_exactly_in_the_long() -> None:
    mix, drawn = Interleaving(PUBLISHED), Counter()
    for k in range(2000):
        source, before = mix[k]
        assert before == drawn[source]
        drawn[source] += 1
        counts = [drawn[i] for i in range(5)]
        assert counts == mix.counts(k + 1)
        assert all(abs(n - (k + 1) * w) < 2 for n, w in zip(counts, PUBLISHED, strict=True))
        if (k + 1) % 20 == 0:
            assert counts == [8 * (k + 1) // 20, 4 * (k + 1) // 20, *[3 * (k + 1) // 20] * 2, (k + 1) // 10]
    far = 20 * 10**12
    assert mix.counts(far) == [8 * 10**12, 4 * 10**12, 3 * 10**12, 3 * 10**12, 2 * 10**12]
    assert mix[far] == (mix[0][0], far * 4 // 10 if mix[0][0] == 0 else mix[far][1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=7), st.integers(0, 2**50))
def test_any_weights_hold_at_any_place(weights: list[float], start: int) -> None:
    mix, total = Interleaving(weights), sum(weights)
    counts = mix.counts(start)
    assert sum(counts) == start
    for k in range(start, start + 40):
        source, before = mix[k]
        assert before == counts[source]
        counts[source] += 1
        assert counts == mix.counts(k + 1)
    slack = len(weights) + (start + 40) * 1e-15  # of the floating-point products on this side
    assert all(abs(n - (start + 40) * w / total) <= slack for n, w in zip(counts, weights, strict=True))


def test_weights_that_grains_own_mix_rounds_are_exact() -> None:
    assert Interleaving([0.0067, 0.9933]).counts(10_000) == [67, 9933]


def test_batches_hold_the_weights_and_every_epoch_of_a_source_each_row_once(folder: Path) -> None:
    rows = numbers(take(train(folder), 50))
    assert Counter(map(source_of, rows)) == {"a": 100, "b": 60, "c": 40}
    for name in WEIGHTS:
        own = [row for row in rows if source_of(row) == name]
        every = range(FIRST[name], FIRST[name] + ROWS[name])
        turns = [own[i : i + len(every)] for i in range(0, len(own) - len(every) + 1, len(every))]
        assert len(turns) >= 3 and all(sorted(turn) == list(every) for turn in turns)
        assert turns[0] != turns[1] != turns[2] and turns[0] != list(every)
    read = epochs(opened(folder), 16, 50, 4)
    assert read == {"a": 100 / 30, "b": 60 / 12, "c": 40 / 7}


def test_seed_alone_decides_the_order_and_sources_have_their_own(folder: Path) -> None:
    first = take(train(folder), 20)
    assert_same(take(train(folder), 20), first)
    assert_same(take(train(folder, dict(reversed(WEIGHTS.items()))), 20), first)
    assert numbers(take(train(folder, seed=8), 20)) != numbers(first)
    same = {"b": 0.5, "c": 0.5}
    own = [
        [n - FIRST[name] for n in numbers(take(train(folder, same), 12)) if source_of(n) == name]
        for name in same
    ]
    assert [n for n in own[0] if n < 7][:7] != own[1][:7]


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_get_shares_of_the_same_global_batches(folder: Path, process_count: int) -> None:
    whole = take(train(folder), 40)
    shares = [
        take(train(folder, process_index=p, process_count=process_count), 40) for p in range(process_count)
    ]
    joined = [
        Batch(*(np.concatenate(part) for part in zip(*b, strict=True))) for b in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize(("read", "prefetch"), [(0, 4), (3, 0), (17, 4), (61, 2)])
def test_a_restored_cursor_goes_on_at_the_very_example(folder: Path, read: int, prefetch: int) -> None:
    want = take(train(folder), read + 30)[read:]
    interrupted = train(folder, prefetch=prefetch)
    take(interrupted, read)
    state = json.loads(json.dumps(interrupted.get_state()))
    assert state["next_batch"] == read
    assert_same(take(interrupted, 30), want)
    fresh = train(folder, prefetch=1)
    take(fresh, 2)
    fresh.set_state(state)
    assert_same(take(fresh, 30), want)
    half = train(folder, process_index=1, process_count=2, start_batch=5)
    half.set_state(state)
    assert_same(take(half, 30), [Batch(*(x[2:] for x in batch)) for batch in want])


def test_workers_prepare_the_same_batches_and_leave_with_the_iterator(folder: Path) -> None:
    want, before = take(train(folder), 30), multiprocessing.active_children()
    iterator = train(folder, workers=2, start_batch=3)
    assert_same(take(iterator, 4), want[3:7])
    assert len(multiprocessing.active_children()) == len(before) + 2
    state = iterator.get_state()
    assert state["next_batch"] == 7
    fewer = train(folder, workers=0)
    fewer.set_state(state)
    assert_same(take(fewer, 3), want[7:10])
    iterator.set_state({**state, "next_batch": 20})
    assert_same(take(iterator, 5), want[20:25])
    iterator.close()
    assert multiprocessing.active_children() == before
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_another_stream_is_refused(folder: Path, tmp_path: Path) -> None:
    state = train(folder).get_state()
    for change in (
        {"seed": 8},
        {"seq_len": 8},
        {"batch_size": 2},
        {"weights": {"a": 0.6, "b": 0.2, "c": 0.2}},
    ):
        with pytest.raises(CheckpointError, match=r"another training stream .*data.mixture"):
            train(folder, **change).set_state(state)
    for name in WEIGHTS:
        numbered_rows(tmp_path / name, FIRST[name], ROWS[name] + (name == "c"))
    with pytest.raises(CheckpointError, match="another training stream"):
        train(tmp_path).set_state(state)


def test_moved_and_rebuilt_shards_are_the_same_stream(folder: Path, tmp_path: Path) -> None:
    for name in WEIGHTS:
        numbered_rows(tmp_path / name, FIRST[name], ROWS[name])
    again = train(tmp_path)
    again.set_state({**train(folder).get_state(), "next_batch": 9})
    assert_same(take(again, 2), take(train(folder), 11)[9:])


def test_held_out_rows_have_the_weights_and_are_there_once(folder: Path) -> None:
    rows = [n for n in numbers(held_out(folder)) if n != TOKENIZER.pad_id]
    by_source = Counter(map(source_of, rows))
    # four rows of each are held out, so a's share is the one that ends
    assert by_source["a"] == 4 and 1 <= by_source["c"] <= by_source["b"] <= 3
    assert len(set(rows)) == len(rows)
    assert all(n - FIRST[source_of(n)] >= ROWS[source_of(n)] for n in rows), "none is trained on"
    assert_same(held_out(folder), held_out(folder))
    few = numbers(held_out(folder, batch_size=1, max_batches=2))
    assert len(few) == 2 and set(few) <= set(range(10, 300))
    spread = numbers(held_out(folder, {"a": 1.0}, batch_size=2, max_batches=1))
    assert spread == [FIRST["a"] + ROWS["a"], FIRST["a"] + ROWS["a"] + 2]


def test_rows_cut_from_longer_ones_are_numbered_from_one() -> None:
    batch = as_row((np.array([5, 6, 7, 8, 9], np.int32), np.array([3, 3, 4, 4, 0], np.int32)))
    assert batch.targets.tolist() == [6, NO_TARGET, 8, NO_TARGET]
    assert batch.segment_ids.tolist() == [1, 1, 2, 2]
    empty = as_row((np.zeros(4, np.int32), np.zeros(4, np.int32)))
    assert empty.segment_ids.tolist() == [0, 0, 0] and set(empty.targets.tolist()) == {NO_TARGET}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of real documents, some of which are in both, in rows of 32 tokens."""
    made, documents = tmp_path_factory.mktemp("texts"), load_documents("embedded")[:40]
    shard_documents(made / "p", documents[:25], row_tokens=32)
    shard_documents(made / "q", documents[15:], row_tokens=32)
    return made


def documents_of(batches):
    """Runs of tokens that no document's start or end interrupts, long enough to tell documents apart."""
    found = set()
    for batch in batches:
        for row, segments in zip(batch.tokens, batch.segment_ids, strict=True):
            if segments.min() == segments.max() == 1 and row[0] != TOKENIZER.bos_id:
                found.add(tuple(row.tolist()))
    return found


def test_no_document_is_on_both_sides(texts: Path) -> None:
    sources = opened(texts, {"p": 0.5, "q": 0.5})
    sides = {split: set() for split in ("train", "heldout")}
    for source in sources:
        for split in sides:
            rows = source.rows(split, 32)
            stream = [rows[i] for i in range(len(rows))]
            for tokens, numbers in stream:
                starts = np.flatnonzero(tokens == TOKENIZER.bos_id)
                sides[split] |= {
                    tuple(tokens[s : s + 12].tolist()) for s in starts if s + 12 <= 32 and numbers[s]
                }
    train_documents, kept_back = split_documents(load_documents("embedded")[:40])
    assert sides["heldout"] and not sides["train"] & sides["heldout"]
    begin = {tuple(tokens_of(d)[:12].tolist()) for d in kept_back}
    assert sides["heldout"] <= begin and not sides["train"] & begin
    assert sides["train"] <= {tuple(tokens_of(d)[:12].tolist()) for d in train_documents}


def test_every_pair_of_a_source_is_trained_on_once_an_epoch(texts: Path) -> None:
    documents, _ = split_documents(load_documents("embedded")[:25])
    want = Counter(pair for d in documents for pair in itertools.pairwise(tokens_of(d).tolist()))
    rows = len(opened(texts, {"p": 1.0})[0].rows("train", 8))
    got: Counter[tuple[int, int]] = Counter()
    for batch in take(train(texts, {"p": 1.0}, seq_len=8, batch_size=1), rows):
        mask = batch.targets != NO_TARGET
        got.update(zip(batch.tokens[mask].tolist(), batch.targets[mask].tolist(), strict=True))
    assert got == want


def test_padded_shards_begin_documents_at_chunks(tmp_path: Path) -> None:
    shard_documents(tmp_path / "p", load_documents("embedded")[:12], row_tokens=32, multiple=8)
    for batch in take(train(tmp_path, {"p": 1.0}, seq_len=16), 20):
        starts = np.argwhere(batch.tokens == TOKENIZER.bos_id)
        assert all(at % 8 == 0 for _, at in starts)


def test_a_batch_that_processes_do_not_divide_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="batch_size=4 is not divisible by 3 processes; try 6"):
        train(folder, process_count=3)


CHILD = """
import multiprocessing, sys
from hope_jax.data.batches import TrainIterator
from hope_jax.data.mixture import training_rows
from hope_jax.data.mixture import find_sources

if __name__ == "__main__":
    sources = find_sources(sys.argv[1], {"a": 1.0}, {})
    stream = training_rows(sources, seq_len=16, batch_size=4, seed=7)
    iterator = TrainIterator(stream, batch_size=4, workers=1)
    for _ in range(50):
        first = next(iterator).tokens[0, 0]
        print(multiprocessing.active_children()[0].pid, first, flush=True)
        sys.stdin.readline()
"""


def test_a_worker_outlives_a_signal_to_the_job_and_not_a_killed_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "child.py"), str(folder)], env=environment, **pipes
    )
    want = [str(batch.tokens[0, 0]) for batch in take(train(folder, {"a": 1.0}), 20)]
    try:
        for number in range(20):  # far more than are prefetched
            worker, first = run.stdout.readline().split()
            assert first == want[number]
            for name in (signal.SIGTERM, signal.SIGINT):
                os.kill(int(worker), name)
            run.stdin.write("\n")
    finally:
        run.kill()
        run.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
