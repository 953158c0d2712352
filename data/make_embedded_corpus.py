"""Derives the embedded corpus (hope_jax/data/assets/*.txt) from three public-domain texts.

    python data/make_embedded_corpus.py --source=FOLDER [--out=hope_jax/data/assets] [--check]

FOLDER holds kjv.txt, austen.txt and sotu.txt; hope_jax/data/assets/PROVENANCE.md says where they come
from and how each is made. Their hashes are checked first, so the output is the same bytes everywhere.
`--check` writes nothing and fails if a shipped file differs from what the sources give.

Each output is one contiguous slice of its source, cut into documents (a chapter, a novel's chapter, an
address). Words are untouched; only white space changes: one paragraph a line, no blank lines.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "hope_jax" / "data" / "assets"
SEPARATOR = "\n\f\n"

SOURCE_SHA256 = {
    "kjv.txt": "b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d",
    "austen.txt": "c9fb55340f00e818b44ef6ef4bb3a9e76dfbc2d27ffefdcedde5d4a2d5febcca",
    "sotu.txt": "acacfbf791e73c52e64c7931ea4e3a8e0e588fb5af5b56a3048a251716352b54",
}

# Verses per chapter: the source has one verse a line and no chapter marks.
GENESIS_VERSES = (
    *(31, 25, 24, 26, 32, 22, 24, 22, 29, 32, 32, 20, 18, 24, 21, 16, 27, 33, 38, 18, 34, 24, 20, 67, 34),
    *(35, 46, 22, 35, 43, 55, 32, 20, 31, 29, 43, 36, 30, 23, 23, 57, 38, 34, 34, 28, 34, 31, 22, 33, 26),
)
EXODUS_VERSES = (
    *(22, 25, 22, 31, 23, 30, 25, 32, 35, 29, 10, 51, 22, 31, 27, 36, 16, 27, 25, 26),
    *(36, 31, 33, 18, 40, 37, 21, 43, 46, 38, 18, 35, 23, 35, 35, 38, 29, 31, 43, 38),
)
NOVEL_START = "PRIDE AND PREJUDICE"
NOVEL_END = "SENSE AND SENSIBILITY"  # title of the novel that follows
ADDRESSES = 27  # December 1790 to December 1816: Washington, Adams, Jefferson, Madison


def kjv_documents(text: str) -> list[str]:
    """Genesis and Exodus, one document a chapter, one line a verse."""
    verses = text.splitlines()
    documents, start = [], 0
    for count in GENESIS_VERSES + EXODUS_VERSES:
        documents.append("\n".join(verses[start : start + count]))
        start += count
    return documents


def austen_documents(text: str) -> list[str]:
    """Pride and Prejudice, one document a chapter, hard-wrapped lines joined to one line a paragraph."""
    lines = text.splitlines()
    novel = lines[lines.index(NOVEL_START) + 1 : lines.index(NOVEL_END)]
    heads = [i for i, line in enumerate(novel) if line.startswith("Chapter ")]
    documents = []
    for start, end in zip(heads, [*heads[1:], len(novel)], strict=True):
        paragraphs = "\n".join(line.strip() for line in novel[start:end]).split("\n\n")
        joined = (" ".join(p.split()) for p in paragraphs)
        documents.append("\n".join(p for p in joined if p))
    return documents


def sotu_documents(text: str) -> list[str]:
    """The first State of the Union addresses, one document an address (one line each in the source)."""
    addresses = [line for line in text.split("\n") if line.strip()]
    return [" ".join(a.split()) for a in addresses[:ADDRESSES]]


DERIVATIONS: dict[str, Callable[[str], list[str]]] = {
    "kjv.txt": kjv_documents,
    "austen.txt": austen_documents,
    "sotu.txt": sotu_documents,
}


def read_source(folder: Path, name: str) -> str:
    """The text of a source file whose hash is the expected one."""
    raw = (folder / name).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SOURCE_SHA256[name]:
        raise SystemExit(
            f"{folder / name}: sha256 is {digest}, want {SOURCE_SHA256[name]}; see PROVENANCE.md"
        )
    return raw.decode("utf-8")


def derive(folder: Path, name: str) -> bytes:
    """The bytes of one embedded file: its documents, separated by a line holding only a form feed."""
    documents = DERIVATIONS[name](read_source(folder, name))
    return (SEPARATOR.join(documents) + "\n").encode("utf-8")


def main() -> int:
    """Writes (or checks) the three files and prints name, documents, bytes and sha256 of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    failed = False
    for name in DERIVATIONS:
        data = derive(args.source, name)
        target = args.out / name
        if args.check:
            failed |= not target.is_file() or target.read_bytes() != data
        else:
            target.write_bytes(data)
        documents = data.count(SEPARATOR.encode()) + 1
        print(f"{name}\t{documents} documents\t{len(data)} bytes\t{hashlib.sha256(data).hexdigest()}")
    if failed:
        print("a shipped file differs from its derivation", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
