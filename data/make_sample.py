"""Derives data/sample/jargon.txt, a slice of the Jargon File, for the sample mixture.

    python data/make_sample.py --source=FOLDER [--check]

FOLDER holds jargon.txt as data/sample/PROVENANCE.md says; its hash is checked first. The slice is the
lexicon's entries from its first on, as many as fit into 400,000 bytes; a document is an entry, its paragraphs
joined to one line each. `--check` writes nothing and fails if the shipped file differs.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parent / "sample" / "jargon.txt"
SOURCE_SHA256 = "40dfb4b98191a670a09a183d5798d50f243d23fdbd1495dcc0aca2ce5895ba97"
MOST_BYTES = 400_000
SEPARATOR = "\n\f\n"

_ENTRY = re.compile(r"^   :\S", re.MULTILINE)
_END = re.compile(r"^Appendix\sA\.", re.MULTILINE)


def entries(text: str) -> list[str]:
    """The lexicon's entries in order, one line a paragraph."""
    lexicon = text[: _END.search(text).start()]
    starts = [match.start() for match in _ENTRY.finditer(lexicon)]
    pieces = (lexicon[a:b] for a, b in zip(starts, [*starts[1:], len(lexicon)], strict=True))
    return ["\n".join(p for p in (" ".join(q.split()) for q in piece.split("\n\n")) if p) for piece in pieces]


def derive(folder: Path) -> bytes:
    """The bytes of the sample."""
    raw = (folder / "jargon.txt").read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SOURCE_SHA256:
        raise SystemExit(
            f"{folder / 'jargon.txt'}: sha256 is {digest}, want {SOURCE_SHA256}; see PROVENANCE.md"
        )
    kept: list[str] = []
    size = 0
    for entry in entries(raw.decode("utf-8")):
        size += len(entry.encode()) + len(SEPARATOR)
        if size > MOST_BYTES:
            break
        kept.append(entry)
    return (SEPARATOR.join(kept) + "\n").encode()


def main() -> int:
    """Writes or checks the sample."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    data = derive(args.source)
    documents, digest = data.count(SEPARATOR.encode()) + 1, hashlib.sha256(data).hexdigest()
    print(f"{documents} documents\t{len(data)} bytes\t{digest}")
    if args.check:
        return int(not OUT.is_file() or OUT.read_bytes() != data)
    OUT.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
