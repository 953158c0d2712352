"""Texts to batches: their documents as packed rows, shuffled, and found by number.

The documents of a split, each as BOS + tokens + EOS, form one stream. Row r reads its tokens
[r T, (r+1) T) and, shifted by one, the targets that follow them, so every pair of neighbouring tokens of a
document is supervised exactly once. Any row is at hand without reading those before it. Therefore the whole
state of the training input is one number, the next batch, and a relaunch starts anywhere at no cost; grain's
own packers are iterators that would have to be replayed. Where memories start afresh at each document,
documents are padded to whole online chunks and rows consist of whole ones, so that a document begins only
where a chunk does.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Unpack

import grain
import numpy as np

from hope_jax.core.errors import DataError
from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.data.batches import (
    ENDLESS,
    Sharing,
    TrainIterator,
    digest_int,
    fixed_batches,
    host_batch,
    shared_batches,
    spread,
)
from hope_jax.data.corpus import Document
from hope_jax.data.tokenizer import Tokenizer


class PackedRows:
    """Rows of a token stream, by number: a grain random-access source of one-row batches.

    tokens: int32 [N] the stream. documents: int32 [N] non-decreasing number of each token's document, -1:
    padding, with which no row begins.
    A last row that the stream does not fill is padded (`keep_partial`) or left out.
    """

    def __init__(
        self, tokens: np.ndarray, documents: np.ndarray, *, seq_len: int, pad_id: int, keep_partial: bool
    ) -> None:
        pairs = max(len(tokens) - 1, 0)
        self._rows = -(-pairs // seq_len) if keep_partial else pairs // seq_len
        self._seq_len = seq_len
        missing = max(self._rows * seq_len + 1 - len(tokens), 0)
        self._tokens = np.pad(tokens, (0, missing), constant_values=pad_id)
        self._documents = np.pad(documents, (0, missing), constant_values=-1)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Batch:
        """Row `row` as a Batch of int32 [T] arrays."""
        start = row * self._seq_len
        window = slice(start, start + self._seq_len)
        shifted = slice(start + 1, start + self._seq_len + 1)
        document, following = self._documents[window], self._documents[shifted]
        supervised = (document == following) & (document >= 0)
        return host_batch(
            tokens=self._tokens[window],
            targets=np.where(supervised, self._tokens[shifted], NO_TARGET).astype(np.int32),
            segment_ids=np.where(document >= 0, document - document[0] + 1, 0).astype(np.int32),
        )


def make_train_iterator(
    *,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    seq_len: int,
    batch_size: int,
    seed: int,
    document_multiple: int = 1,
    **sharing: Unpack[Sharing],
) -> TrainIterator:
    """Endless shuffled batches; every epoch visits every row once, in an order of its own.

    Args:
        documents: the training split.
        seq_len: T, tokens per row.
        batch_size: rows of the global batch; process p gets its rows [p B/P, (p+1) B/P).
        seed: of the order.
        document_multiple: tokens of which each document is padded to a multiple; divides `seq_len`.
        sharing: see `Sharing`.

    Raises:
        DataError: sizes that do not fit each other, or less text than one batch.
    """
    _check_sizes(seq_len, batch_size, document_multiple)
    tokens, numbers = tokenize_documents(documents, tokenizer, document_multiple)
    rows = PackedRows(tokens, numbers, seq_len=seq_len, pad_id=tokenizer.pad_id, keep_partial=False)
    if len(rows) < batch_size:
        raise DataError(
            f"data.source: {len(tokens)} tokens, one batch needs {seq_len * batch_size + 1} "
            f"(data.seq_len={seq_len} x data.batch_size={batch_size}, and one); lower these or add text"
        )
    shuffled = grain.MapDataset.source(rows).shuffle(seed=digest_int(seed)).repeat(ENDLESS // len(rows))
    digest = hashlib.sha256(f"{seq_len},{batch_size},{seed}".encode() + tokens.tobytes() + numbers.tobytes())
    return shared_batches(
        shuffled,
        digest.hexdigest(),
        batch_size=batch_size,
        **sharing,
    )


def make_eval_batches(
    *,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    seq_len: int,
    batch_size: int,
    max_batches: int,
    document_multiple: int = 1,
) -> list[Batch]:
    """The held-out split as batches of int32 [B, T] arrays, the same on every call and process.

    The last batch is filled with padding rows (segment 0, `NO_TARGET`). Where `max_batches` (0: all) does not
    reach, its rows are spread evenly over the split, so that every source is among them. `document_multiple`:
    see `make_train_iterator`.

    Raises:
        DataError: a size below its least, or no pair of tokens to predict.
    """
    _check_sizes(seq_len, batch_size, document_multiple)
    tokens, numbers = tokenize_documents(documents, tokenizer, document_multiple)
    rows = PackedRows(tokens, numbers, seq_len=seq_len, pad_id=tokenizer.pad_id, keep_partial=True)
    if not len(rows):
        raise DataError("data.source: the held-out split is empty; add documents")
    chosen: Iterable[int] = range(len(rows))
    if 0 < max_batches * batch_size < len(rows):
        chosen = spread(max_batches * batch_size, len(rows))
    return fixed_batches([rows[int(row)] for row in chosen], batch_size, tokenizer.pad_id)


def tokenize_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, numbers), both int32 [N]: BOS + tokens + EOS of each document, and its number from 0. Padding,
    whose number is -1, fills each document up to a multiple of `multiple` tokens."""
    bos, eos = (np.array([i], np.int32) for i in (tokenizer.bos_id, tokenizer.eos_id))
    parts = [np.concatenate([bos, tokenizer.encode(d.text), eos]) for d in documents]
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    numbers = [np.full(len(part), i, np.int32) for i, part in enumerate(parts)]
    if multiple > 1:
        fill = [(0, -len(part) % multiple) for part in parts]
        parts = [np.pad(p, f, constant_values=tokenizer.pad_id) for p, f in zip(parts, fill, strict=True)]
        numbers = [np.pad(n, f, constant_values=-1) for n, f in zip(numbers, fill, strict=True)]
    return np.concatenate(parts), np.concatenate(numbers)


def _check_sizes(seq_len: int, batch_size: int, document_multiple: int) -> None:
    if seq_len < 1 or batch_size < 1:
        raise DataError(f"data.seq_len={seq_len}, data.batch_size={batch_size}: both must be at least 1")
    if document_multiple < 1 or seq_len % document_multiple:
        raise DataError(
            f"data.seq_len={seq_len} is no multiple of the online chunk ({document_multiple} tokens) that "
            "documents are padded to; change one of them"
        )
