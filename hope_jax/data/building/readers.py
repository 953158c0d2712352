"""Readers: files or a Hugging Face dataset to datatrove documents, with each rejection counted by its reason.

datatrove's own readers skip an empty document, a broken line and the rest of a file that is not UTF-8 without
counting them, so each `read_file` is written here; what they do with files, tasks and statistics is kept.
A reason counts as `dropped_<reason>`, as in datatrove's filters. Reasons: empty, too_short, too_long (more
than `max_bytes`), invalid_utf8, nul, invalid_json, no_text (the field is missing or holds no text).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader

from hope_jax.core.errors import DataError
from hope_jax.data import text_files
from hope_jax.data.building import streams
from hope_jax.data.building.recipe import Source
from hope_jax.data.building.tasks import task_share


def reject_reason(text: str, source: Source) -> str | None:
    """Why a text cannot be a document of the source; None if it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "nul"
    if len(text.strip()) < source.min_characters:
        return "too_short"
    # No character has more than four bytes: only long texts need be encoded to be measured.
    if 4 * len(text) > source.max_bytes and len(text.encode("utf-8", "replace")) > source.max_bytes:
        return "too_long"
    return None


def checked(record: bytes | str, source: Source) -> tuple[str | None, str]:
    """(why a record cannot be a document or None, its text)."""
    if isinstance(record, bytes):
        try:
            record = record.decode("utf-8")
        except UnicodeDecodeError:
            return "invalid_utf8", ""
    return reject_reason(record, source), record


class FilesReader(BaseDiskReader):
    """Reads files of a source: task r of n has files r, r + n, ... of the list, and its share of `limit`
    documents. Subclasses say what is in a file (`records`)."""

    name = "files"

    def __init__(self, source: Source, files: tuple[Path, ...]) -> None:
        super().__init__("/", add_file_path=False)
        self.source, self.files = source, files

    def records(self, path: Path) -> Iterator[bytes | str | None]:
        """Texts of a file, as bytes yet to be decoded or as str; None for one that is too long."""
        raise NotImplementedError

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Documents of a file, in its order."""
        name = os.fsencode(Path(filepath).name).decode("utf-8", "replace")  # a name may be any bytes
        for index, record in enumerate(self.records(Path(filepath))):
            reason, text = ("too_long", "") if record is None else checked(record, self.source)
            if reason:
                self.stat_update(f"dropped_{reason}")
            else:
                yield Document(text=text, id=f"{name}:{index}")

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of one task."""
        if self.source.limit is not None:
            self.limit = task_share(self.source.limit, rank, world_size)
        if self.limit != 0:
            yield from self.read_files_shard([str(f) for f in self.files[rank::world_size]])


class TextReader(FilesReader):
    """UTF-8 text files."""

    name = "text"

    def records(self, path: Path) -> Iterator[bytes | None]:
        """Documents of a file. One of another encoding is refused, for who knows how many are lost in it;
        where a file is a document, it is one that is rejected."""
        separated = self.source.separator == "form_feed"
        try:
            yield from streams.texts(streams.chunks(path), self.source.max_bytes, separated)
        except streams.OtherEncodingError:
            if separated:
                raise
            self.stat_update("dropped_invalid_utf8")


class JsonLinesReader(FilesReader):
    """JSON objects, one a line."""

    name = "jsonl"

    def records(self, path: Path) -> Iterator[bytes | str | None]:
        """The field's text of each line."""
        # Other fields and escapes need room beside the text.
        for line in streams.lines(streams.chunks(path), 4 * self.source.max_bytes):
            if line is None:
                yield None
            elif not line.strip():
                self.stat_update("dropped_empty")
            else:
                yield from self._text(line)

    def _text(self, line: bytes) -> Iterator[bytes | str]:
        try:
            value = text_files.parse_json(line)
            text = value.get(self.source.field) if isinstance(value, dict) else None
            if isinstance(text, str):
                text.encode("utf-8")  # not so halves of surrogate pairs, which JSON can tell
        except UnicodeDecodeError:
            self.stat_update("dropped_invalid_utf8")
        except ValueError:
            self.stat_update("dropped_invalid_json")
        else:
            if isinstance(text, str):
                yield text
            else:
                self.stat_update("dropped_no_text")


class ParquetReader(FilesReader):
    """A column of parquet files."""

    name = "parquet"

    def records(self, path: Path) -> Iterator[bytes]:
        """The field's text of each row."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                if self.source.field not in file.schema_arrow.names:
                    raise DataError(
                        f"{path}: no column {self.source.field!r}; set sources.{self.source.name}.field "
                        f"to one of {', '.join(file.schema_arrow.names)}"
                    )
                kind = file.schema_arrow.field(self.source.field).type
                try:
                    pa.array([], kind).cast(pa.large_binary())
                except pa.ArrowException:
                    raise DataError(
                        f"{path}: the column {self.source.field!r} holds {kind}, not text; set "
                        f"sources.{self.source.name}.field to one that does"
                    ) from None
                for batch in file.iter_batches(batch_size=256, columns=[self.source.field]):
                    # As bytes: Arrow does not check that its strings are UTF-8.
                    for row in batch.column(0).cast(pa.large_binary()):
                        if row.is_valid:
                            yield row.as_py()
                        else:
                            self.stat_update("dropped_no_text")
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: truncated, damaged, or no parquet ({error}); fetch it again, or take it out of "
                "the source"
            ) from None


class HuggingFaceReader(BaseReader):
    """Rows of a dataset, streamed; the tasks share its files, or its rows where there is one file."""

    name = "huggingface"

    def __init__(self, source: Source, split: str) -> None:
        super().__init__()
        self.source, self.split = source, split

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of one task."""
        limit = None
        if self.source.limit is not None:
            limit = task_share(self.source.limit, rank, world_size)
        rows = load_rows(self.source, self.split)
        step = 1
        if rows.num_shards >= world_size:
            rows = rows.shard(num_shards=world_size, index=rank, contiguous=False)
        else:  # every task reads everything, and keeps its rows
            step = world_size
        self.stat_update(f"split_{self.split}")
        for index, raw in enumerate(self._records(rows)):
            if step > 1 and index % step != rank:
                continue
            if limit is not None and limit <= 0:
                return
            reason, text = ("no_text", "") if raw is None else checked(raw, self.source)
            if reason:
                self.stat_update(f"dropped_{reason}")
                continue
            limit = None if limit is None else limit - 1
            self.stat_update("documents")
            yield Document(text=text, id=f"{rank}:{index}")

    def _records(self, rows: Any) -> Iterator[bytes | None]:
        """The field's text of each row; None where there is none.

        As Arrow's bytes: made into Python's strings, one row that is not UTF-8 would end all.
        """
        import pyarrow as pa

        try:
            for table in rows.with_format("arrow").iter(batch_size=64):
                try:
                    column = table.column(self.source.field).cast(pa.large_binary())
                except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError):  # missing, or not text
                    yield from [None] * table.num_rows
                    continue
                for value in column:
                    yield value.as_py()
        except Exception as error:  # of many libraries: network, compression and file formats
            raise DataError(
                f"sources.{self.source.name}: the dataset {self.source.dataset!r} cannot be read to its end "
                f"({type(error).__name__}: {error}): a file of it is truncated or damaged, holds rows that "
                "the datasets library cannot take, or cannot be reached; fetch it again, or read its files "
                "with the reader jsonl or parquet, which leaves bad rows out"
            ) from error


class NoSuchSplit(Exception):
    """A dataset that can be had lacks the split."""


def load_rows(source: Source, split: str) -> Any:
    """The rows of a split, as `datasets` streams them.

    Raises: NoSuchSplit; DataError: the dataset cannot be had.
    """
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


def make_reader(source: Source, files: tuple[Path, ...], split: str) -> BaseReader:
    """The reader of a source."""
    if source.reader == "huggingface":
        return HuggingFaceReader(source, split)
    kinds = {"jsonl": JsonLinesReader, "parquet": ParquetReader, "text": TextReader}
    return kinds[source.reader](source, files)
