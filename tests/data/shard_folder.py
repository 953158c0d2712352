"""Small folders of token shards: of given tokens, or of documents that are split and tokenised."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hope_jax.data.corpus import HOLDOUT_FRACTION, SPLIT_SALT, Document, split_documents
from hope_jax.data.shards import MANIFEST, RowWriter, ShardFile, ShardManifest, Split
from hope_jax.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load()


def write_shards(
    folder: Path,
    texts: dict[Split, Sequence[np.ndarray]],
    *,
    row_tokens: int = 16,
    files: int = 2,
    multiple: int = 1,
    **changes: Any,
) -> ShardManifest:
    """Shards of tokenised documents by split, the training ones dealt to `files` files; `changes` replace
    values of the manifest."""
    folder.mkdir(parents=True)
    made: dict[str, tuple[ShardFile, ...]] = {}
    for split, count in (("train", files), ("heldout", 1)):
        parts = [texts[split][part::count] for part in range(count)]
        made[split] = tuple(
            _write(folder / f"{split}-{i:05d}-of-{count:05d}.arrayrecord", part, row_tokens, multiple)
            for i, part in enumerate(parts)
        )
    values: dict[str, Any] = {
        "source": folder.name,
        "row_tokens": row_tokens,
        "vocab_size": TOKENIZER.vocab_size,
        "tokenizer_sha256": TOKENIZER.sha256,
        "files": made,
        "holdout": HOLDOUT_FRACTION,
        "salt": SPLIT_SALT,
        "document_multiple": multiple,
    }
    manifest = ShardManifest(**{**values, **changes})
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest


def _write(path: Path, texts: Sequence[np.ndarray], row_tokens: int, multiple: int) -> ShardFile:
    writer = RowWriter(path, row_tokens=row_tokens, vocab_size=TOKENIZER.vocab_size, pad_id=TOKENIZER.pad_id)
    for tokens in texts:
        writer.add(tokens, -len(tokens) % multiple)
    return writer.close()


def shard_documents(folder: Path, documents: Sequence[Document], **options: Any) -> ShardManifest:
    """Shards of documents under the embedded tokenizer and the package's split; options as of
    `write_shards`."""
    train, held_out = split_documents(documents)
    return write_shards(
        folder,
        {"train": [tokens_of(d) for d in train], "heldout": [tokens_of(d) for d in held_out]},
        **options,
    )


def tokens_of(document: Document) -> np.ndarray:
    """BOS, tokens, EOS."""
    return np.concatenate([[TOKENIZER.bos_id], TOKENIZER.encode(document.text), [TOKENIZER.eos_id]])


def numbered_rows(folder: Path, first: int, rows: int, heldout: int = 4, **options: Any) -> ShardManifest:
    """Shards of one document of 17 tokens a row, BOS and then one token that no other row of any folder has:
    `first` + its number, those of the training split first. Rows have 16 tokens."""

    def of(numbers: range) -> list[np.ndarray]:
        # The last token of a row is the next one's first: 16 a document keep one number in a row.
        return [np.full(16, first + n) for n in numbers] + [np.full(1, first + numbers[-1])]

    return write_shards(
        folder, {"train": of(range(rows)), "heldout": of(range(rows, rows + heldout))}, files=1, **options
    )
