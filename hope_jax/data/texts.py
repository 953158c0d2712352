"""Texts that a tokenizer is trained or judged on: sources, read document by document, and samples of them.

A source is what one `--input` names: a folder of `.txt`, `.jsonl` and `.jsonl.gz` files at any depth, one
such file, or the embedded corpus, which is three sources. A `.txt` file holds documents as in `corpus`; a
line of a `.jsonl` file is an object with a document in its text field.
"""

import contextlib
import gzip
import hashlib
import heapq
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Literal

from hope_jax.core.errors import DataError
from hope_jax.core.paths import as_path, files_in
from hope_jax.data import text_files
from hope_jax.data.corpus import EMBEDDED, Document, held_out_digests, is_text, parse_documents

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
_KINDS = ", ".join(SUFFIXES)
Split = Literal["all", "train", "heldout"]


@dataclass(frozen=True)
class TextSource:
    """Files whose documents are counted together. name: the last part of the path; no folder of a machine."""

    name: str
    files: tuple[Traversable, ...]
    text_field: str = "text"

    def documents(self) -> Iterator[Document]:
        """The documents that hold more than white space, in the files' order.

        Raises:
            DataError: a file cannot be read, is not UTF-8, or holds a line that is not an object with text.
        """
        for file in self.files:
            try:
                if file.name.endswith(".txt"):
                    yield from parse_documents(str(file), file.read_bytes(), "--input")
                else:
                    yield from _read_json_lines(file, self.text_field)
            except (OSError, EOFError, zlib.error) as error:
                problem = getattr(error, "strerror", None) or error
                raise DataError(
                    f"--input: cannot read {file}: {problem}; bring it back or take it out"
                ) from None


def open_sources(inputs: Sequence[str], text_field: str = "text") -> list[TextSource]:
    """The sources that inputs name, in the given order; no text is read yet.

    Args:
        inputs: "embedded", or paths of folders and of files.
        text_field: of a `.jsonl` line, the key of its text.

    Raises:
        DataError: no input, one that is missing or given twice, or a folder without such files.
    """
    if not inputs:
        raise DataError(f"--input is missing; give {EMBEDDED!r}, a folder, or a file ({_KINDS})")
    sources: list[TextSource] = []
    for name in inputs:
        if inputs.count(name) > 1:
            raise DataError(f"--input={name}: given twice; name each input once")
        if name == EMBEDDED:
            assets = resources.files("hope_jax.data") / "assets"
            texts = sorted(filter(is_text, assets.iterdir()), key=lambda f: f.name)
            sources += [TextSource(f.name, (f,)) for f in texts]
        else:
            path = as_path("--input", name)
            sources.append(TextSource(path.resolve().name, _find_files(path), text_field))
    return sources


def held_out(digests: Iterable[Iterable[str]]) -> set[str]:
    """The documents that training leaves out: of each source those that `split_documents` would hold out. A
    source of one document is used whole.

    Args:
        digests: for each source, those of its documents.
    """
    return {digest for of_source in digests for digest in held_out_digests(set(of_source))}


def select(source: TextSource, split: Split, held: set[str]) -> Iterator[Document]:
    """The documents of one side of the split; held: what `held_out` says."""
    for document in source.documents():
        if split == "all" or (document.digest in held) == (split == "heldout"):
            yield document


def sample(texts: Iterable[str], limit: int, seed: int) -> list[str]:
    """Texts, in their order, that have at most `limit` characters together.

    They are taken in an order shuffled by the seed while they fit, so that nothing but the seed prefers one
    to another. All texts if limit is 0; at least one if there is any. Holds no more in memory than it gives
    back.
    """
    numbers = random.Random(seed)
    kept: list[tuple[float, int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        heapq.heappush(kept, (-numbers.random(), index, text))
        size += len(text)
        while 0 < limit < size and len(kept) > 1:
            size -= len(heapq.heappop(kept)[2])
    return [text for _, _, text in sorted(kept, key=lambda entry: entry[1])]


def combined_digest(digests: Iterable[str]) -> str:
    """One hex SHA-256 of documents' digests in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _find_files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        files = tuple(files_in(path, *(f"**/*{suffix}" for suffix in SUFFIXES)))
        if not files:
            raise DataError(f"--input={path}: no file of text in this folder; want {_KINDS}")
        return files
    if not path.exists():
        raise DataError(f"--input={path}: no such file or folder; give {EMBEDDED!r} or a path that exists")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"--input={path}: want a folder, or a file that ends in one of {_KINDS}")
    return (path,)


def _read_json_lines(file: Traversable, text_field: str) -> Iterator[Document]:
    with contextlib.ExitStack() as stack:
        lines: IO[bytes] = stack.enter_context(file.open("rb"))
        if file.name.endswith(".gz"):
            lines = stack.enter_context(gzip.GzipFile(fileobj=lines))  # type: ignore[arg-type]
        for number, raw in enumerate(lines, 1):
            try:
                line = text_files.begin(raw) if number == 1 else raw
                if not line.strip():
                    continue
                entry = text_files.parse_json(line)
                text = entry[text_field]
                text.encode("utf-8")
            except text_files.NotUtf8Error as error:
                problem = f"the file {error}"
            except UnicodeDecodeError:
                problem = "not UTF-8"
            except UnicodeEncodeError:
                problem = f"{text_field!r} holds a lone surrogate, which no UTF-8 text can"
            except ValueError as error:
                problem = f"not JSON ({error})"
            except (KeyError, TypeError, AttributeError):
                problem = f"want an object with a string under {text_field!r} (--text_field)"
            else:
                if text.strip():
                    yield Document(text, file.name, number)
                continue
            raise DataError(f"--input: {file}, line {number}: {problem}; mend the line or take it out")
