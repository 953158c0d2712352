"""Texts that a tokenizer is trained or judged on: sources, read document by document, and samples of them.

A source is what one `--input` names: a folder of `.txt`, `.jsonl` and `.jsonl.gz` files at any depth, one
such file, or the embedded corpus, which is three sources. A `.txt` file holds documents as in `corpus`; a
line of a `.jsonl` file is an object with a document in its text field.
"""

import gzip
import hashlib
import heapq
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from hope_jax.core.errors import DataError
from hope_jax.core.paths import as_path, files_in
from hope_jax.data import text_files
from hope_jax.data.corpus import EMBEDDED, Document, embedded_files, held_out_digests, parse_documents

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
_KINDS = ", ".join(SUFFIXES)


@dataclass(frozen=True)
class TextSource:
    """Files whose documents are counted together. name: the last part of the path; no folder of a machine."""

    name: str
    files: tuple[Traversable, ...]
    text_field: str = "text"

    def documents(self) -> Iterator[Document]:
        """The documents that hold more than white space, in the files' order. Raises: DataError: a file
        cannot be read, is not UTF-8, or holds a line that is not an object with text."""
        for file in self.files:
            try:
                if file.name.endswith(".txt"):
                    yield from parse_documents(str(file), file.read_bytes(), "--input")
                else:
                    with file.open("rb") as raw:
                        packed = file.name.endswith(".gz")
                        lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
                        yield from _parse_lines(file, lines, self.text_field)
            except (OSError, EOFError, zlib.error) as error:
                problem = getattr(error, "strerror", None) or error
                raise DataError(
                    f"--input: cannot read {file}: {problem}; bring it back or take it out"
                ) from None


def open_sources(inputs: Sequence[str], text_field: str = "text") -> list[TextSource]:
    """The sources that inputs name ("embedded", folders, files), in the given order; no text is read yet.
    text_field: of a `.jsonl` line, the key of its text. Raises: DataError: no input, one that is missing or
    given twice, or a folder without such files."""
    if not inputs:
        raise DataError(f"--input is missing; give {EMBEDDED!r}, a folder, or a file ({_KINDS})")
    sources: list[TextSource] = []
    for name in inputs:
        path, where = as_path("--input", name), f"--input={name}"
        if inputs.count(name) > 1:
            raise DataError(f"{where}: given twice; name each input once")
        if name == EMBEDDED:
            sources += [TextSource(file.name, (file,)) for file in embedded_files()]
            continue
        if not path.exists():
            raise DataError(f"{where}: no such file or folder; give {EMBEDDED!r} or a path that exists")
        if not path.is_dir() and not name.endswith(SUFFIXES):
            raise DataError(f"{where}: want a folder, or a file that ends in one of {_KINDS}")
        files = files_in(path, *(f"**/*{suffix}" for suffix in SUFFIXES)) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{where}: no file of text in this folder; want {_KINDS}")
        sources.append(TextSource(path.resolve().name, tuple(files), text_field))
    return sources


def _parse_lines(file: Traversable, lines: Iterable[bytes], text_field: str) -> Iterator[Document]:
    for number, raw in enumerate(lines, 1):
        try:
            line = text_files.begin(raw) if number == 1 else raw
            if not line.strip():
                continue
            text = text_files.parse_json(line)[text_field]
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


def held_out(digests: Iterable[Iterable[str]]) -> set[str]:
    """The documents that training leaves out, of each source's digests: those that `split_documents` would
    hold out. A source of one document is used whole."""
    return {digest for of_source in digests for digest in held_out_digests(set(of_source))}


def select(source: TextSource, split: str, held: set[str]) -> Iterator[Document]:
    """The documents of one side of the split (train, heldout or all); held: what `held_out` says."""
    for document in source.documents():
        if split == "all" or (document.digest in held) == (split == "heldout"):
            yield document


def sample(texts: Iterable[str], limit: int, seed: int) -> list[str]:
    """Texts, in their order, that have at most `limit` characters together (0: all), at least one of them.
    They are taken in an order shuffled by the seed while they fit, so that nothing but the seed prefers one
    to another. Holds no more in memory than it gives back."""
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
