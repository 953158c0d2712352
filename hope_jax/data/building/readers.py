"""Readers: files or a Hugging Face dataset to datatrove documents, with each rejection counted by its reason.

datatrove's own readers skip an empty document, a broken line and the rest of a file that is not UTF-8 without
counting them. A reason counts as `dropped_<reason>`, as in datatrove's filters. Reasons: empty, too_short,
too_long (more than `max_bytes`), invalid_utf8, nul, invalid_json, no_text (the field is missing or holds no
text). Files are cut into records at a bounded memory, whatever is in them: None stands for a record over the
limit. Half of a compressed file, which ends too early or is damaged, is never taken for the whole.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hope_jax.core.errors import DataError
from hope_jax.data import text_files
from hope_jax.data.building.recipe import Source
from hope_jax.data.building.tasks import task_share

CHUNK = 1 << 20
_PACKED = 256
"""Bytes of a .zst file to unpack at once: four of them can stand for a block of 128 KiB, so this is 8 MiB."""

_LONGEST_MARK = 4
"""Bytes of a byte order mark."""

SEPARATOR = b"\f"
"""What a line between two documents of a text file holds."""


class Rejected(NamedTuple):
    """What stands for a record that cannot be a document."""

    reason: str


Record: TypeAlias = bytes | str | Rejected
"""A text, as bytes yet to be decoded or as str, or why there is none."""


class Reader(PipelineStep):
    """Reads a source, each task its share of `limit` documents. Of n tasks, task r has files r, r + n, ... of
    the list, or the same of a dataset's."""

    type, name = "reader", "source"

    def __init__(self, source: Source, files: tuple[Path, ...], split: str) -> None:
        super().__init__()
        self.source, self.files, self.split = source, files, split

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of one task."""
        limit = self.source.limit
        if self.source.reader == "huggingface":
            self.stat_update(f"split_{self.split}")
            records = dataset_records(self.source, self.split, rank, world_size)
        else:
            read = _READ[self.source.reader]
            records = (r for file in self.files[rank::world_size] for r in read(file, self.source))
        share = None if limit is None else task_share(limit, rank, world_size)
        yield from islice(self._kept(records, rank), share)

    def _kept(self, records: Iterator[Record], rank: int) -> Iterator[Document]:
        for index, record in enumerate(records):
            text = checked(record, self.source)
            if isinstance(text, Rejected):
                self.stat_update(f"dropped_{text.reason}")
            else:
                yield Document(text=text, id=f"{rank}:{index}")


def checked(record: Record, source: Source) -> str | Rejected:
    """The text of a record if it can be a document of the source, or why not."""
    if isinstance(record, Rejected):
        return record
    try:
        text = record.decode("utf-8") if isinstance(record, bytes) else record
    except UnicodeDecodeError:
        return Rejected("invalid_utf8")
    if not text.strip():
        return Rejected("empty")
    if "\0" in text:
        return Rejected("nul")
    if len(text.strip()) < source.min_characters:
        return Rejected("too_short")
    # No character has more than four bytes: only long texts need be encoded to be measured.
    if 4 * len(text) > source.max_bytes and len(text.encode("utf-8", "replace")) > source.max_bytes:
        return Rejected("too_long")
    return text


def text_records(path: Path, source: Source) -> Iterator[Record]:
    """Documents of a text file. One of another encoding is refused, for who knows how many are lost in it;
    where a file is a document, it is one that is rejected."""
    separated = source.separator == "form_feed"
    try:
        for text in texts(chunks(path), source.max_bytes, separated):
            yield Rejected("too_long") if text is None else text
    except OtherEncodingError:
        if separated:
            raise
        yield Rejected("invalid_utf8")


def json_records(path: Path, source: Source) -> Iterator[Record]:
    """The field's text of each line, an object."""
    # Other fields and escapes need room beside the text.
    for line in lines(chunks(path), 4 * source.max_bytes):
        if line is None:
            yield Rejected("too_long")
        elif not line.strip():
            yield Rejected("empty")
        else:
            try:
                value = text_files.parse_json(line)
                text = value.get(source.field) if isinstance(value, dict) else None
                if isinstance(text, str):
                    text.encode("utf-8")  # not so halves of surrogate pairs, which JSON can tell
            except UnicodeDecodeError:
                yield Rejected("invalid_utf8")
            except ValueError:
                yield Rejected("invalid_json")
            else:
                yield text if isinstance(text, str) else Rejected("no_text")


def parquet_records(path: Path, source: Source) -> Iterator[Record]:
    """The field's text of each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    remedy = f"set sources.{source.name}.field to one"
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if source.field not in schema.names:
                raise DataError(f"{path}: no column {source.field!r}; {remedy} of {', '.join(schema.names)}")
            kind = schema.field(source.field).type
            try:
                pa.array([], kind).cast(pa.large_binary())
            except pa.ArrowException:
                raise DataError(
                    f"{path}: the column {source.field!r} holds {kind}, not text; {remedy} that does"
                ) from None
            for batch in file.iter_batches(batch_size=256, columns=[source.field]):
                yield from _binary(batch.column(0))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: truncated, damaged, or no parquet ({error}); fetch it again, or take it out of "
            "the source"
        ) from None


def dataset_records(source: Source, split: str, rank: int, world_size: int) -> Iterator[Record]:
    """The field's text of a task's rows of a dataset, streamed; tasks share its files, or, where those
    are fewer, its rows."""
    import pyarrow as pa

    def records() -> Iterator[Record]:
        for table in rows.with_format("arrow").iter(batch_size=64):
            try:
                yield from list(_binary(table.column(source.field)))
            except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError):  # missing, or not text
                yield from [Rejected("no_text")] * table.num_rows

    rows, first, step = load_rows(source, split), rank, world_size
    if rows.num_shards >= world_size:
        rows, first, step = rows.shard(num_shards=world_size, index=rank, contiguous=False), 0, 1
    try:
        yield from islice(records(), first, None, step)
    except Exception as error:  # of many libraries: network, compression and file formats
        raise DataError(
            f"sources.{source.name}: the dataset {source.dataset!r} cannot be read to its end "
            f"({type(error).__name__}: {error}): a file of it is truncated or damaged, holds rows that "
            "the datasets library cannot take, or cannot be reached; fetch it again, or read its files "
            "with the reader jsonl or parquet, which leaves bad rows out"
        ) from error


def _binary(column: Any) -> Iterator[Record]:
    """Arrow's texts as bytes: it does not check that they are UTF-8, and one that is not would end all."""
    import pyarrow as pa

    for value in column.cast(pa.large_binary()):
        yield value.as_py() if value.is_valid else Rejected("no_text")


_READ = {"text": text_records, "jsonl": json_records, "parquet": parquet_records}


class NoSuchSplit(Exception):
    """A dataset that can be had lacks the split."""


def load_rows(source: Source, split: str) -> Any:
    """The rows of a split, as `datasets` streams them. Raises: NoSuchSplit; DataError: the dataset cannot be
    had."""
    import datasets

    files = {"data_files": source.data_files} if source.data_files else {}
    try:
        builder = datasets.load_dataset_builder(
            source.dataset, source.config, revision=source.revision, **files
        )
        return builder.as_streaming_dataset(split=split)
    except Exception as error:  # of many libraries: network, hub and file formats
        if isinstance(error, ValueError) and str(error).startswith("Bad split"):
            raise NoSuchSplit(str(error)) from None
        raise DataError(
            f"sources.{source.name}: the dataset {source.dataset!r} cannot be had "
            f"({type(error).__name__}: {error}); check its name, config and revision, that its files are "
            "whole, and the network"
        ) from error


class OtherEncodingError(DataError):
    """A file begins with the byte order mark of UTF-16 or UTF-32."""


def chunks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes of a file, by its suffix (.gz, .zst, else plain), from behind a byte order mark on.
    Raises: DataError: a damaged archive, a file that cannot be read; OtherEncodingError."""
    parts, head = _unpacked(path), b""
    while len(head) < _LONGEST_MARK and (part := next(parts, None)) is not None:
        head += part
    try:
        yield text_files.begin(head)
    except text_files.NotUtf8Error as error:
        raise OtherEncodingError(
            f"{path} {error}; convert it, for example with iconv, or take it out of the source"
        ) from None
    yield from parts


def _unpacked(path: Path) -> Iterator[bytes]:
    try:
        if path.suffix in (".gz", ".zst") and not path.stat().st_size:
            raise EOFError("it has no bytes at all")  # which gzip takes for no text
        if path.suffix == ".zst":
            yield from _zstd_chunks(path)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from iter(lambda: file.read(CHUNK), b"")
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: the archive is truncated or damaged ({error}); fetch it again, or take it out of the "
            "source"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # zstandard's own stream reader takes the end of a cut file for the end of its text.
    frame = None
    with path.open("rb") as file:
        while packed := file.read(_PACKED):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(packed)
                packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends within a frame")


def lines(parts: Iterable[bytes], limit: int) -> Iterator[bytes | None]:
    """Lines without their ends; None for one of more than `limit` bytes."""
    held, over = bytearray(), False
    for part in parts:
        *ended, rest = part.split(b"\n")
        for piece in ended:
            whole = bytes(held) + piece
            yield None if over or len(whole) > limit else whole.removesuffix(b"\r")
            held.clear()
            over = False
        over = over or len(held) + len(rest) > limit
        if over:
            held.clear()
        else:
            held += rest
    if held or over:
        yield None if over else bytes(held)


def texts(parts: Iterable[bytes], limit: int, separated: bool) -> Iterator[bytes | None]:
    """Documents of a text file: all of it, or what lies between lines that hold only a form feed; white space
    alone is no document. None for one of more than `limit` bytes."""
    end: Any = object()
    held: list[bytes] = []
    size, over = 0, False
    for line in chain(lines(parts, limit), (end,)):
        if line is end or (separated and line == SEPARATOR):
            text = b"\n".join(held).strip(b"\r\n")
            if over or text.strip():
                yield None if over else text
            held, size, over = [], 0, False
            continue
        size += len(line or b"") + 1
        if over or line is None or size - 1 > limit:
            held, over = [], True
        else:
            held.append(line)
