"""Documents: the embedded corpus or a folder of text files, and their split into training and held-out.

A file holds one document, or several separated by lines that hold only a form feed.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePath

from hope_jax.core.errors import DataError
from hope_jax.core.paths import as_path, files_in, is_left_behind
from hope_jax.data import text_files

EMBEDDED = "embedded"
HOLDOUT_FRACTION = 0.09
SPLIT_SALT = "hope_jax.split.515"
"""Of the split. This value holds out 8-10 % of the embedded corpus and of each of its sources."""

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
    return _unit_hash(digest, salt) < holdout


def _unit_hash(digest: str, salt: str) -> float:
    """A number in [0, 1) that depends on both strings alone."""
    raw = hashlib.sha256(f"{salt}:{digest}".encode()).digest()
    return int.from_bytes(raw[:6], "big") / 2**48


def load_documents(source: str) -> list[Document]:
    """Reads a corpus in a fixed order (file name, then position in the file): the embedded one, or a folder
    of UTF-8 `.txt` files at any depth. Raises: DataError: no folder or text, or a file that is not UTF-8."""
    if source == EMBEDDED:
        files = [(file.name, file.read_bytes()) for file in embedded_files()]
    else:
        files = _read_folder(as_path("data.source", source))
    documents = [d for name, raw in files for d in parse_documents(name, raw)]
    if not documents:
        raise DataError(f"data.source={source!r}: the .txt files there are empty; put text in them")
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


def split_documents(
    documents: Sequence[Document], holdout: float = HOLDOUT_FRACTION, salt: str = SPLIT_SALT
) -> tuple[list[Document], list[Document]]:
    """Splits documents into (training, held-out), each in the given order.

    A document's side depends on its text alone: it does not move when files are renamed, reordered or added,
    and equal texts share a side. Only where that leaves a side empty does the nearest document cross.
    holdout: expected share of documents held out. salt: makes another split of the same corpus. Raises:
    DataError: holdout is not in (0, 1), or there are fewer than two different documents.
    """
    if not 0.0 < holdout < 1.0:
        raise DataError(f"holdout={holdout}: want a share between 0 and 1, such as {HOLDOUT_FRACTION}")
    digests = {d.digest for d in documents}
    if len(digests) < 2:
        raise DataError(
            f"data.source: {len(documents)} document(s), {len(digests)} of them different: nothing can be "
            "held out; add files, or separate the documents of a file with lines that hold only a form feed"
        )
    held_digests = held_out_digests(digests, holdout, salt)
    train = [d for d in documents if d.digest not in held_digests]
    held = [d for d in documents if d.digest in held_digests]
    return train, held


def held_out_digests(
    digests: Iterable[str], holdout: float = HOLDOUT_FRACTION, salt: str = SPLIT_SALT
) -> set[str]:
    """Which documents, by digest, `split_documents` holds out; none if there are fewer than two digests."""
    score = {digest: _unit_hash(digest, salt) for digest in digests}
    ranked = sorted(score, key=score.__getitem__)
    below = sum(score[digest] < holdout for digest in ranked)
    return set(ranked[: max(min(max(below, 1), len(ranked) - 1), 0)])


def embedded_files() -> list[Traversable]:
    """The files of the embedded corpus, by name."""
    assets = resources.files("hope_jax.data") / "assets"
    texts = (f for f in assets.iterdir() if f.name.endswith(".txt"))
    return sorted((f for f in texts if not is_left_behind(PurePath(f.name))), key=lambda f: f.name)


def _read_folder(folder: Path) -> list[tuple[str, bytes]]:
    where = f"data.source={str(folder)!r}"
    if not folder.is_dir():
        raise DataError(f"{where}: no such folder; give {EMBEDDED!r} or a folder of .txt files")
    paths = files_in(folder, "**/*.txt")
    if not paths:
        raise DataError(f"{where}: no .txt file in it; text files must end in .txt")
    try:
        return [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in paths]
    except OSError as error:
        raise DataError(f"{where}: cannot read {error.filename}: {error.strerror}") from None
