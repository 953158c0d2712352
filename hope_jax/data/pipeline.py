"""Texts to rows: their documents packed, shuffled, and found by number.

The documents of a split, each as BOS + tokens + EOS, form one stream. Row r reads its tokens
[r T, (r+1) T) and, shifted by one, the targets that follow them, so every pair of neighbouring tokens of a
document is supervised exactly once. Any row is at hand without reading those before it. Therefore the whole
state of the training input is one number, the next batch, and a relaunch starts anywhere at no cost; grain's
own packers are iterators that would have to be replayed. Where memories start afresh at each document,
documents are padded to whole online chunks and rows consist of whole ones, so that a document begins only
where a chunk does.
"""

import hashlib
from collections.abc import Sequence

import grain
import numpy as np

from hope_jax.core.errors import DataError
from hope_jax.core.types import Batch
from hope_jax.data.batches import ENDLESS, Stream, as_row, digest_int, spread
from hope_jax.data.corpus import Document
from hope_jax.data.tokenizer import Tokenizer


def training_rows(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    document_multiple: int = 1,
) -> Stream:
    """Endless rows of the training split's documents, shuffled by the seed; every epoch visits every row
    once, in an order of its own. A last row that is not full is left out. seq_len: T, tokens per row.
    document_multiple: tokens of which each document is padded to a multiple; divides `seq_len`. Raises:
    DataError: less text than one batch."""
    tokens, numbers = tokenize_documents(documents, tokenizer, document_multiple)
    rows = max(len(tokens) - 1, 0) // seq_len
    if rows < batch_size:
        raise DataError(
            f"data.source: {len(tokens)} tokens, one batch needs {seq_len * batch_size + 1} "
            f"(data.seq_len={seq_len} x data.batch_size={batch_size}, and one); lower these or add text"
        )
    packed = grain.MapDataset.source(_windows(tokens, numbers, seq_len))
    shuffled = packed.shuffle(seed=digest_int(seed)).repeat(ENDLESS // rows)
    # Numbers count from 0 in the digest of every cursor that there is.
    parts = f"{seq_len},{batch_size},{seed}".encode(), tokens.tobytes(), (numbers - 1).tobytes()
    return Stream(shuffled.map(as_row), hashlib.sha256(b"".join(parts)).hexdigest())


def held_out_rows(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    max_batches: int,
    document_multiple: int = 1,
) -> list[Batch]:
    """Rows of the held-out split, int32 [T], the same on every call and process. A last row that is not full
    is padded. Where `max_batches` (0: all) does not reach, rows are spread evenly over the split, so that
    every source is among them. Other arguments as of `training_rows`. Raises: DataError: no pair of
    tokens to predict."""
    tokens, numbers = tokenize_documents(documents, tokenizer, document_multiple)
    rows = -(-max(len(tokens) - 1, 0) // seq_len)
    if not rows:
        raise DataError("data.source: the held-out split is empty; add documents")
    missing = (0, rows * seq_len + 1 - len(tokens))
    tokens = np.pad(tokens, missing, constant_values=tokenizer.pad_id)
    windows = _windows(tokens, np.pad(numbers, missing), seq_len)
    return [as_row(windows[row]) for row in spread(min(max_batches * batch_size or rows, rows), rows)]


def tokenize_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, numbers), both int32 [N]: BOS + tokens + EOS of each document, and its number from 1. Padding,
    whose number is 0, fills each document up to a multiple of `multiple` tokens."""
    tokens, numbers = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for number, document in enumerate(documents, 1):
        ids = tokenizer.document(document.text)
        padding = (0, -len(ids) % multiple)
        tokens.append(np.pad(ids, padding, constant_values=tokenizer.pad_id))
        numbers.append(np.pad(np.full(len(ids), number, np.int32), padding))
    return np.concatenate(tokens), np.concatenate(numbers)


def _windows(tokens: np.ndarray, numbers: np.ndarray, seq_len: int) -> np.ndarray:
    """int32 [rows, 2, T + 1], without a copy: of each whole row its tokens and their documents' numbers, and
    those of the token behind it."""
    both = np.lib.stride_tricks.sliding_window_view(np.stack([tokens, numbers]), seq_len + 1, axis=1)
    return both[:, ::seq_len].swapaxes(0, 1)
