"""Rows by number to the batches of a process: its shares of global batches, prepared ahead by a thread or by
worker processes, at a position that is one number.

Where rows come from (`pipeline`: texts; `mixture`: shards) makes no difference here.
"""

import hashlib
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from absl import flags

from hope_jax.config.experiment import DataConfig
from hope_jax.core.errors import CheckpointError, DataError
from hope_jax.core.processes import end_with_parent
from hope_jax.core.types import NO_TARGET, Array, Batch
from hope_jax.data.shards import numbered_from_1

ENDLESS = 2**52
"""Rows of an endless dataset. Grain's own endless length, sys.maxsize, overflows when batched one by one."""

_NO_SHARED_MEMORY = grain.experimental.DatasetOptions(min_shm_size=2**40)
"""Batches of workers come through pipes: containers have little shared memory, and a killed run leaves its
blocks behind."""


def digest_of(batches: Sequence[Batch]) -> str:
    """Hex SHA-256 of batches of host arrays."""
    digest = hashlib.sha256()
    for array in (array for batch in batches for array in batch):
        digest.update(f"{array.shape}".encode() + np.asarray(array).tobytes())
    return digest.hexdigest()


class Stream(NamedTuple):
    """Endless rows, Batches of int32 [T], found by number, and a digest of all that decides what batch n
    holds."""

    rows: grain.MapDataset
    digest: str


class TrainIterator(grain.DatasetIterator):
    """Endless training batches whose position is a small JSON-able state.

    The state names the next batch and a digest of the stream it counts in. All processes of a run have the
    same state, and it may be restored under another number of processes, workers or prefetched batches.
    Threads and workers start with the first batch; `close` ends them.

    Process p of P gets rows [p B/P, (p+1) B/P) of each batch. start_batch: number of the first. prefetch:
    batches prepared ahead. workers: processes that prepare them; 0: a thread of this one (none if `prefetch`
    is 0). Raises: DataError: the processes do not divide the batch.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = DataConfig.prefetch,
        workers: int = 0,
        start_batch: int = 0,
    ) -> None:
        super().__init__()
        self._source: grain.DatasetIterator | None = None
        if batch_size % process_count:
            raise DataError(
                f"data.batch_size={batch_size} is not divisible by {process_count} processes; "
                f"try {-(-batch_size // process_count) * process_count}"
            )
        # Batches of a share's size, every process_count-th of them: together exactly the global batches.
        self._batches = stream.rows.batch(batch_size // process_count)[process_index::process_count]
        self._stream_digest = stream.digest
        self._next_batch, self._prefetch, self._workers = start_batch, prefetch, workers

    def __next__(self) -> Batch:
        """The process's share of the next global batch: int32 [batch_size / process_count, T] arrays."""
        self._assert_not_closed()
        if self._source is None:
            self._source = self._started()
        batch = cast(Batch, next(self._source))
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """{"next_batch": number of the batch that `next` returns, "stream": digest}; prefetch or not."""
        return {"next_batch": self._next_batch, "stream": self._stream_digest}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of `get_state`. Raises: CheckpointError: it is none, or another stream's."""
        following = state.get("next_batch")
        if not isinstance(following, int) or following < 0:
            raise CheckpointError(
                f"data cursor: next_batch={following!r} is not a batch number; restore another step"
            )
        if state.get("stream") != self._stream_digest:
            raise CheckpointError(
                "data cursor: the checkpoint was written with another training stream (texts or shards, "
                "data.mixture, data.task_options, tokenizer, data.seq_len, data.batch_size, train.seed or "
                "memory.reset_at_document differ); restore them, or use a new workdir"
            )
        self._stop()
        self._next_batch = following

    def close(self) -> None:
        """Ends threads and workers; there are no more batches."""
        super().close()
        self._stop()

    def _stop(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _started(self) -> grain.DatasetIterator:
        """The batches from the next one on. A worker takes every `workers`-th of them, in turns."""
        rest = self._batches[self._next_batch :]
        if not self._workers:
            threads = min(self._prefetch, 1)
            ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch)
            return iter(rest.to_iter_dataset(ahead))
        if not flags.FLAGS.is_parsed():  # grain reads flags of its own; a program may have none
            flags.FLAGS.mark_as_parsed()
        at_once = rest.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        piped = grain.experimental.WithOptionsIterDataset(at_once, _NO_SHARED_MEMORY)
        options = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=max(1, -(-self._prefetch // self._workers))
        )
        return iter(piped.mp_prefetch(options, worker_init_fn=_start_worker))


def as_row(row: Sequence[np.ndarray] | np.ndarray) -> Batch:
    """(tokens, numbers of documents from 1, 0: padding), int32 [T + 1] each, as a Batch of int32 [T]."""
    tokens, numbers = row
    here, following = numbers[:-1], numbers[1:]
    supervised = (here == following) & (here > 0)
    return host_batch(
        tokens=tokens[:-1],
        targets=np.where(supervised, tokens[1:], NO_TARGET).astype(np.int32),
        segment_ids=numbered_from_1(here).astype(np.int32),
    )


def fixed_batches(rows: Sequence[Batch], batch_size: int, pad_id: int) -> list[Batch]:
    """Rows, int32 [T] each, as batches of int32 [B, T]; the last is filled with padding rows (segment 0,
    `NO_TARGET`)."""
    seq_len = len(rows[0].tokens)
    padding = host_batch(
        tokens=np.full(seq_len, pad_id, np.int32),
        targets=np.full(seq_len, NO_TARGET, np.int32),
        segment_ids=np.zeros(seq_len, np.int32),
    )
    full = [*rows, *[padding] * (-len(rows) % batch_size)]
    groups = (full[i : i + batch_size] for i in range(0, len(full), batch_size))
    return [host_batch(*(np.stack(arrays) for arrays in zip(*group, strict=True))) for group in groups]


def unigram_entropy(targets: Iterable[np.ndarray]) -> float:
    """Plug-in entropy of the tokens' own frequencies, in nats per token; 0.0 if there are none: the least
    loss of a model that ignores context, fitted to these very tokens. targets: int arrays of any shape,
    whose `NO_TARGET` entries are left out."""
    flat = np.concatenate([np.zeros(0, np.int32), *map(np.ravel, targets)])
    counts = np.unique(flat[flat != NO_TARGET], return_counts=True)[1]
    shares = counts / counts.sum()
    return float((shares * -np.log(shares)).sum())


def spread(count: int, rows: int) -> np.ndarray:
    """int64 [count]: numbers of `count` of `rows` rows, evenly spread and in order, each once if there are
    enough."""
    return np.arange(count) * rows // max(count, 1)


def host_batch(tokens: np.ndarray, targets: np.ndarray, segment_ids: np.ndarray) -> Batch:
    """A Batch of host arrays: `Batch` is annotated for the device side, where the step receives it."""
    return Batch(cast(Array, tokens), cast(Array, targets), cast(Array, segment_ids))


def digest_int(seed: int | str) -> int:
    """32 bits of the seed's hash: grain's epoch e uses seed + e, so plain seeds would share epochs."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")


def _start_worker(index: int, count: int) -> None:
    """A worker leaves when its run does: not on a signal to the whole job, upon which the run first ends its
    step and saves, and always with a run that was killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
