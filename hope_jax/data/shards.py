"""Token shards: packed rows of one source in ArrayRecord files, and the manifest that says what is in them.

    SOURCE/manifest.json                    counts, digests, tokenizer, licence, what was rejected and why
    SOURCE/train-00000-of-00004.arrayrecord
    SOURCE/heldout-00000-of-00001.arrayrecord

A record is a row of R + 1 tokens, then the number in its row of each token's document (from 1; 0: padding),
both little-endian. Neighbouring rows of a file share a token, the last of one and the first of the next, so
that every pair of neighbouring tokens of a document is supervised once. All records of a file have one size.

ArrayRecord, because a row is found by number without reading those before it (the cursor of training is one
number), several processes can read one file, and grain reads it as it is; every record has a checksum.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from hope_jax.core.errors import DataError
from hope_jax.core.ranges import Count, Range, Share, Whole, fits

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "heldout")
WRITER_OPTIONS = "group_size:16,zstd:3"
"""Rows that are compressed together, and how. Reading one row unpacks its group."""
_READ_ALONE = "readahead_buffer_size:0"
"""Rows are shuffled: reading ahead would only read what is not asked for."""

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class ShardFile:
    """One file of rows. sha256: hex, of its bytes. size: bytes. supervised: pairs of neighbouring tokens of
    one document."""

    name: str
    sha256: str
    size: Count
    rows: Whole
    tokens: Whole
    documents: Whole
    supervised: Whole


@dataclass(frozen=True)
class ShardManifest:
    """What a folder of shards holds. row_tokens: R. document_multiple: tokens of which documents are padded
    to a multiple. origin, licence: of the texts, for people. holdout, salt: of the split
    (`corpus.is_held_out`). statistics: what was read, rejected by reason and kept."""

    source: str
    row_tokens: Annotated[int, Range(2)]
    vocab_size: Count
    tokenizer_sha256: str
    files: dict[str, tuple[ShardFile, ...]]
    holdout: Share
    salt: str
    document_multiple: Count = 1
    origin: str = ""
    licence: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def every_file(self) -> list[ShardFile]:
        """The files of both splits."""
        return [file for split in SPLITS for file in self.files[split]]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def numbered_from_1(numbers: np.ndarray) -> np.ndarray:
    """The numbers of a row's documents, the first of which becomes 1; 0 stays, of padding."""
    first = numbers[numbers > 0].min(initial=np.iinfo(numbers.dtype).max)
    return np.where(numbers > 0, numbers - first + 1, 0)


def dtype_of(vocab_size: int) -> np.dtype:
    """The type in which tokens are stored."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class RowWriter:
    """Packs documents into the rows of one file. `close` fills up the last row with padding; a file that was
    not closed has no index, and nothing can read it."""

    def __init__(self, path: Path, *, row_tokens: int, vocab_size: int, pad_id: int) -> None:
        self._path, self._row_tokens, self._pad_id = path, row_tokens, pad_id
        self._dtype = dtype_of(vocab_size)
        self._writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
        self._tokens, self._numbers = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._counts = {"rows": 0, "tokens": 0, "documents": 0, "supervised": 0}

    def add(self, tokens: np.ndarray, padding: int = 0) -> None:
        """Adds a document, int [n] with BOS and EOS, and `padding` tokens behind it."""
        self._counts["documents"] += 1
        self._counts["tokens"] += len(tokens)
        self._counts["supervised"] += max(len(tokens) - 1, 0)
        self._append(tokens, self._counts["documents"])
        self._append(np.full(padding, self._pad_id), 0)

    def _append(self, tokens: np.ndarray, number: int) -> None:
        self._tokens = np.concatenate([self._tokens, tokens])
        self._numbers = np.concatenate([self._numbers, np.full(len(tokens), number)])
        size = self._row_tokens
        while len(self._tokens) > size:
            row, in_row = self._tokens[: size + 1], numbered_from_1(self._numbers[: size + 1])
            self._writer.write(row.astype(self._dtype).tobytes() + in_row.astype("<u2").tobytes())
            self._counts["rows"] += 1
            self._tokens, self._numbers = self._tokens[size:], self._numbers[size:]

    def close(self) -> ShardFile:
        """Ends the file; what is in it."""
        if self._counts["rows"] == 0 or len(self._tokens) > 1:
            self._append(np.full(self._row_tokens + 1 - len(self._tokens), self._pad_id), 0)
        self._writer.close()
        size = self._path.stat().st_size
        return ShardFile(self._path.name, sha256_of(self._path), size, **self._counts)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a folder of shards. Raises: DataError: it is missing, of another format, or not one."""
    path, again = folder / MANIFEST, "build the shards again"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no {MANIFEST}, so no finished shards; build them with python -m hope_jax.data.build"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {again}") from None
    found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
    if found != FORMAT:
        raise DataError(f"{path}: want format {FORMAT}, got {found}; {again}")
    try:
        files = {split: tuple(ShardFile(**f) for f in raw["files"][split]) for split in SPLITS}
        kinds = get_type_hints(ShardManifest)
        manifest = ShardManifest(**{**{name: raw[name] for name in kinds}, "files": files})
        if problem := next(_problems(manifest), None):
            raise TypeError(problem)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest of shards ({error}); {again}") from None
    return manifest


def _problems(manifest: ShardManifest) -> Iterator[str]:
    """Values that no manifest of ours has."""
    for of in (manifest, *manifest.every_file()):
        kinds = get_type_hints(type(of), include_extras=True)
        yield from (f"{k}={v!r}" for k, v in vars(of).items() if not fits(kinds[k], v))
    names = [file.name for file in manifest.every_file()]
    for at, name in enumerate(names):
        if Path(name).name != name:
            yield f"{name!r} is not a file's name"
        if name in names[:at]:
            yield f"{name!r} is listed twice"


def check_files(
    folder: Path, manifest: ShardManifest, *, digests: bool = True, seen: dict[str, Path] | None = None
) -> None:
    """Files against the manifest: sizes, numbers and length of their rows and, if asked for, digests. seen:
    files of other folders by digest, to which these are added. Raises: DataError: names the first file that
    is missing, not what the manifest says, or there twice."""
    seen, again = {} if seen is None else seen, "build the shards again"
    for file in manifest.every_file():
        path = folder / file.name
        if not path.is_file():
            raise DataError(f"{path}: a shard is missing; {again}")
        if (size := path.stat().st_size) != file.size:
            raise DataError(f"{path}: {size} bytes, the manifest says {file.size}; {again}")
        if digests and sha256_of(path) != file.sha256:
            raise DataError(f"{path}: another digest than the manifest's; {again}")
        if file.supervised and file.sha256 in seen:
            raise DataError(
                f"{path}: the same shard as {seen[file.sha256]}; its rows would be read twice: take "
                "one of them away, or its source out of data.mixture"
            )
        seen[file.sha256] = path
        wanted = (manifest.row_tokens + 1) * (dtype_of(manifest.vocab_size).itemsize + 2)
        try:
            reader = ArrayRecordReader(str(path), options=_READ_ALONE)
            rows = reader.num_records()
            size = len(reader.read([0])[0]) if rows else wanted
            reader.close()
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"{path}: cannot be read ({error}); {again}") from None
        if (rows, size) != (file.rows, wanted):
            raise DataError(
                f"{path}: {rows} rows of {size} bytes, the manifest says {file.rows} of {wanted} "
                f"(row_tokens={manifest.row_tokens}); {again}"
            )


class ShardRows:
    """Rows of one split by number, cut to `seq_len` tokens: a random-access source for grain. Item i is
    (tokens, numbers), int32 [seq_len + 1] each: tokens, and their documents in the row from 1, 0: padding.
    Worker processes open the files for themselves. Raises: DataError: seq_len does not divide rows."""

    def __init__(self, folder: Path, manifest: ShardManifest, split: Split, seq_len: int) -> None:
        if manifest.row_tokens % seq_len:
            raise DataError(
                f"data.seq_len={seq_len} does not divide the rows of {folder}, which have "
                f"{manifest.row_tokens} tokens; choose a divisor, or build the shards with another row_tokens"
            )
        self._folder, self._seq_len = folder, seq_len
        self._row_tokens, self._dtype = manifest.row_tokens, dtype_of(manifest.vocab_size)
        self._files = [f.name for f in manifest.files[split] if f.rows]
        self._ends = np.cumsum([f.rows for f in manifest.files[split] if f.rows], dtype=np.int64)
        self._readers: dict[int, ArrayRecordReader] = {}

    def __len__(self) -> int:
        rows = int(self._ends[-1]) if len(self._ends) else 0
        return rows * (self._row_tokens // self._seq_len)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        row, part = divmod(index, self._row_tokens // self._seq_len)
        file = int(np.searchsorted(self._ends, row, side="right"))
        row -= int(self._ends[file - 1]) if file else 0
        path, cut = self._folder / self._files[file], (self._row_tokens + 1) * self._dtype.itemsize
        try:
            if file not in self._readers:
                self._readers[file] = ArrayRecordReader(str(path), options=_READ_ALONE)
            record = self._readers[file].read([row])[0]
        except (RuntimeError, IndexError, OSError) as error:  # its checksum tells
            problem = f"row {row} cannot be read ({str(error)[:200]})"
            raise DataError(f"{path}: {problem}; build the shards again") from None
        if len(record) != cut + 2 * (self._row_tokens + 1):
            raise DataError(f"{path}: a record of {len(record)} bytes; build the shards again")
        window = slice(part * self._seq_len, (part + 1) * self._seq_len + 1)
        tokens, numbers = np.frombuffer(record[:cut], self._dtype), np.frombuffer(record[cut:], "<u2")
        return tokens[window].astype(np.int32), numbers[window].astype(np.int32)
