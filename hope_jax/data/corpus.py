"""Documents: the embedded corpus or a folder of text files, split into training and held-out; and the sources
that a tokenizer is trained or judged on, read document by document, and samples of them.

A `.txt` file holds one document, or several separated by lines that hold only a form feed; a line of a
`.jsonl` file is an object with a document in its text field.
"""

import gzip
import hashlib
import heapq
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePath

from hope_jax.core.errors import DataError
from hope_jax.core.paths import as_path, files_in, is_left_behind
from hope_jax.data import text_files

EMBEDDED = "embedded"
HOLDOUT_FRACTION = 0.09
SPLIT_SALT = "hope_jax.split.515"
"""Of the split. This value holds out 8-10 % of the embedded corpus and of each of its sources."""

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
_KINDS = ", ".join(SUFFIXES)
_SEPARATOR = re.compile(r"^\f\r?(?:\n|\Z)", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One text that belongs together: never cut by the split, its tokens end with EOS. source: the file it
    comes from, relative to the corpus folder. index: position in that file, from 0."""

    text: str
    source: str
    index: int = 0

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the text. Documents of equal text are one document to the split."""
        return text_digest(self.text)


def text_digest(text: str) -> str:
    """Hex SHA-256 of a document's text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def is_held_out(digest: str, holdout: float, salt: str) -> bool:
    """Whether the document of this `text_digest` is held out, at an expected share of `holdout`."""
    return _place(digest, salt) < holdout


def _place(digest: str, salt: str) -> float:
    """A number in [0, 1) that depends on both strings alone."""
    raw = hashlib.sha256(f"{salt}:{digest}".encode()).digest()
    return int.from_bytes(raw[:6], "big") / 2**48


def load_documents(source: str) -> list[Document]:
    """Reads a corpus in a fixed order (file name, then position in the file): the embedded one, or a folder
    of UTF-8 `.txt` files at any depth. Raises: DataError: no folder or text, or a file that is not UTF-8."""
    where = f"data.source={source!r}"
    if source == EMBEDDED:
        files: dict[str, Traversable] = {file.name: file for file in embedded_files()}
    else:
        folder = as_path("data.source", source)
        if not folder.is_dir():
            raise DataError(f"{where}: no such folder; give {EMBEDDED!r} or a folder of .txt files")
        files = {path.relative_to(folder).as_posix(): path for path in files_in(folder, "**/*.txt")}
        if not files:
            raise DataError(f"{where}: no .txt file in it; text files must end in .txt")
    try:
        documents = [d for name, file in files.items() for d in parse_documents(name, file.read_bytes())]
    except OSError as error:
        raise DataError(f"{where}: cannot read {error.filename}: {error.strerror}") from None
    if not documents:
        raise DataError(f"{where}: the .txt files there are empty; put text in them")
    return documents


def parse_documents(name: str, raw: bytes, key: str = "data.source") -> list[Document]:
    """The documents of a file's bytes that hold more than white space. key: for errors. Raises: DataError:
    the bytes are not UTF-8."""
    try:
        text = text_files.decode(raw)
    except text_files.NotUtf8Error as error:
        raise DataError(
            f"{key}: {name} {error}; convert it, for example with iconv, or take it out of the folder"
        ) from None
    texts = (part.strip("\r\n") for part in _SEPARATOR.split(text))
    return [Document(part, name, i) for i, part in enumerate(t for t in texts if t.strip())]


def split_documents(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Splits documents into (training, held-out), each in the given order.

    A document's side depends on its text alone: it does not move when files are renamed, reordered or added,
    and equal texts share a side. Only where that leaves a side empty does the nearest document cross. Raises:
    DataError: there are fewer than two different documents.
    """
    digests = {d.digest for d in documents}
    if len(digests) < 2:
        raise DataError(
            f"data.source: {len(documents)} document(s), {len(digests)} of them different: nothing can be "
            "held out; add files, or separate the documents of a file with lines that hold only a form feed"
        )
    held = held_out([digests])
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        sides[document.digest in held].append(document)
    return sides


def held_out(sources: Iterable[Iterable[str]]) -> set[str]:
    """The documents that training leaves out, of the digests of each source: those that `split_documents`
    would hold out. A source of one document is used whole."""
    held: set[str] = set()
    for digests in sources:
        ranked = sorted(set(digests), key=lambda digest: _place(digest, SPLIT_SALT))
        below = sum(is_held_out(digest, HOLDOUT_FRACTION, SPLIT_SALT) for digest in ranked)
        held.update(ranked[: max(min(max(below, 1), len(ranked) - 1), 0)])
    return held


def embedded_files() -> list[Traversable]:
    """The files of the embedded corpus, by name."""
    assets = resources.files("hope_jax.data") / "assets"
    texts = (f for f in assets.iterdir() if f.name.endswith(".txt"))
    return sorted((f for f in texts if not is_left_behind(PurePath(f.name))), key=lambda f: f.name)


@dataclass(frozen=True)
class TextSource:
    """What one `--input` names: a folder of files with `SUFFIXES` at any depth, or one of them; the embedded
    corpus is three. name: the last part of the path; no folder of a machine."""

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
    """One hex SHA-256 of digests, or of lines, in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
