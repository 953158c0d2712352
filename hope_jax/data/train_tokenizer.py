"""Train a tokenizer, or check one against its digest.

python -m hope_jax.data.train_tokenizer --input=PATH [--input=PATH ...] --out=DIR/NAME [--vocab_size=32000]
python -m hope_jax.data.train_tokenizer --check=DIR/NAME.model [--sha256=HEX]

PATH is a folder of .txt, .jsonl and .jsonl.gz files, one such file, or "embedded". Only documents that the
held-out split leaves to training are used. Writes NAME.model, NAME.vocab (its pieces, for people) and, last,
NAME.json: the model's digest, settings, versions, and digests and counts of the input. The same input gives
the same bytes. --check exits with 1 if a model is not the one that NAME.json, or --sha256, says. docs/data.md
has more.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from absl import flags

import hope_jax
from hope_jax import cli
from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.output import say
from hope_jax.data import corpus
from hope_jax.data.tokenizer import KIND, check_digest, read_model

_INPUTS = cli.define_paths(
    "input", "Folder, .txt, .jsonl or .jsonl.gz file, or embedded; may be given again."
)
_TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Key of a .jsonl line's text.", allow_override=True)
_OUT = cli.define_path("out", "DIR/NAME of the files to write.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 32_000, "Pieces wanted.", lower_bound=1)
_HARD = flags.DEFINE_enum(
    "hard_vocab_limit",
    "auto",
    ["on", "off", "auto"],
    "Whether a text that holds fewer pieces is refused (on) or gives fewer (off); auto: off for texts of "
    "less than 200 characters a piece.",
)
_COVERAGE = flags.DEFINE_float(
    "character_coverage",
    0.99995,
    "Share of the text's characters that get a piece; the rarest are spelt in bytes.",
    lower_bound=0.98,
    upper_bound=1.0,
)
_MAX_CHARACTERS = flags.DEFINE_integer(
    "max_characters",
    100_000_000,
    "Size of the sample to train on; 0: all text. Memory is about 30 bytes a character.",
    lower_bound=0,
    allow_override=True,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sample.", allow_override=True)
_CHECK = cli.define_path("check", "Model to check instead of training one.")
_SHA256 = flags.DEFINE_string("sha256", None, "Hex digest that the model must have.", allow_override=True)

SPECIAL_IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
NEWLINE = "\n"
SMALL_SAMPLE = 200
"""Characters for each wanted piece below which a text counts as a small sample: it need not hold that many
pieces."""
MAX_LINE = 100_000
"""Characters above which a line is cut, before a space where there is one: no line is the whole sample."""

# Sentencepiece leaves out every line that holds its mark of unknown pieces.
_LINE_END = re.compile("[\n\u2585]")
_LEAST_MAXIMUM = 10
"""Bytes of a line, the least limit that sentencepiece takes."""


def main(argv: list[str]) -> None:
    """Trains or checks, and prints the model's digest and name."""
    cli.refuse_arguments(argv)
    sha256 = _SHA256.value
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"--sha256={sha256!r}: want 64 hex digits, as sha256sum prints them")
    if not _CHECK.value:
        train(sha256)
    elif _INPUTS.value or _OUT.value:
        raise ConfigError("--check takes neither --input nor --out; it trains nothing")
    else:
        check(_CHECK.value, sha256)


def check(source: str, sha256: str | None) -> None:
    """Holds a model against `sha256`, and against its sidecar, of which one must be there."""
    model, said, sidecar = read_model(source)
    if not said and not sha256:
        raise ConfigError(f"--check={source}: there is no {sidecar} to check it against; give --sha256=HEX")
    for digest, by in ((said, str(sidecar)), (sha256, "--sha256")):
        if digest:
            check_digest(source, model, digest, by)
    say(f"{hashlib.sha256(model).hexdigest()}  {source}")


def train(sha256: str | None) -> None:
    """Trains on `--input`, writes the three files of `--out` and says what came out."""
    if not _OUT.value:
        raise ConfigError("--out is missing; want --input=PATH --out=DIR/NAME")
    out = Path(_OUT.value.removesuffix(".model"))
    if not out.name or out.is_dir():
        raise ConfigError(f"--out={out}: is a folder; want DIR/NAME, the files' name without its ending")
    folder = next(p for p in out.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--out={out}: {folder} is no folder that can be written to; choose another --out")
    model, record = train_tokenizer(
        corpus.open_sources(_INPUTS.value, _TEXT_FIELD.value),
        vocab_size=_VOCAB_SIZE.value,
        hard_vocab_limit={"on": True, "off": False, "auto": None}[_HARD.value],
        character_coverage=_COVERAGE.value,
        max_characters=_MAX_CHARACTERS.value,
        seed=_SEED.value,
    )
    if sha256 is not None and record["sha256"] != sha256.lower():
        raise DataError(
            f"--sha256={sha256}: what came out has {record['sha256']}, so the input, the "
            f"flags or the version of sentencepiece (here {record['versions']['sentencepiece']}) are others; "
            "nothing was written"
        )
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    files = {".json": text.encode(), ".vocab": vocab_text(model).encode(), ".model": model}
    cli.write_files("out", {Path(f"{out}{ending}"): content for ending, content in files.items()})
    read = (f"{i['name']} {i['documents'] - i['held_out']}/{i['documents']}" for i in record["inputs"])
    say(f"documents read of those there are: {', '.join(read)}")
    say(f"trained on {record['trained_on']['lines']} lines, {record['trained_on']['characters']} characters")
    fewer = " (the text holds no more)" if record["vocab_size"] < _VOCAB_SIZE.value else ""
    say(f"vocabulary: {record['vocab_size']} of {_VOCAB_SIZE.value} pieces{fewer}")
    say(f"{record['sha256']}  {out}.model")


def train_tokenizer(
    sources: Sequence[corpus.TextSource],
    *,
    vocab_size: int,
    hard_vocab_limit: bool | None = None,
    character_coverage: float = 0.99995,
    max_characters: int = 0,
    seed: int = 0,
) -> tuple[bytes, dict[str, Any]]:
    """A serialized model of the documents that the split does not hold out, and what its sidecar says.

    The sources are read twice, document by document; only the sample is held in memory. The same input gives
    the same bytes under the same version of sentencepiece. Arguments as of the flags; hard_vocab_limit: None
    is `auto`. Raises: DataError: a source that cannot be read, or holds no text; a text that does not fit the
    vocabulary.
    """
    inputs, digests = [], []
    for source in sources:
        found = [(document.digest, len(document.text)) for document in source.documents()]
        if not found:
            raise DataError(f"--input: {source.name} holds no text; put text in it, or leave it out")
        digests.append([digest for digest, _ in found])
        size = {"documents": len(found), "characters": sum(size for _, size in found)}
        inputs.append({"name": source.name, **size, "text_sha256": corpus.combined_digest(digests[-1])})
    held = corpus.held_out(digests)
    documents = (d for source in sources for d in corpus.select(source, "train", held))
    lines = corpus.sample((line for d in documents for line in cut_lines(d.text)), max_characters, seed)
    characters = sum(map(len, lines))
    if hard_vocab_limit is None:
        hard_vocab_limit = characters >= SMALL_SAMPLE * vocab_size
    model = train_model(lines, vocab_size, character_coverage, hard_vocab_limit)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return model, {
        "kind": KIND,
        "sha256": hashlib.sha256(model).hexdigest(),
        "bytes": len(model),
        "vocab_size": processor.get_piece_size(),
        "special_ids": {**SPECIAL_IDS, "newline_id": processor.piece_to_id(NEWLINE)},
        "settings": {
            "vocab_size": vocab_size,
            "hard_vocab_limit": hard_vocab_limit,
            "character_coverage": character_coverage,
            "max_characters": max_characters,
            "seed": seed,
            "model_type": "unigram",
            "byte_fallback": True,
            "normalization": "identity",
        },
        "split": {"holdout": corpus.HOLDOUT_FRACTION, "salt": corpus.SPLIT_SALT},
        "inputs": [
            {**entry, "held_out": sum(digest in held for digest in of)}
            for entry, of in zip(inputs, digests, strict=True)
        ],
        "trained_on": {
            "lines": len(lines),
            "characters": characters,
            "sha256": corpus.combined_digest(lines),
        },
        "versions": {"hope_jax": hope_jax.__version__, "sentencepiece": sentencepiece.__version__},
    }


def train_model(
    lines: Sequence[str], vocab_size: int, character_coverage: float = 1.0, hard_vocab_limit: bool = True
) -> bytes:
    """A serialized unigram model of lines (`cut_lines`); arguments as of `train_tokenizer`. Nothing is
    normalised and no space is added, a newline is a piece of its own, and what the vocabulary lacks is spelt
    in bytes, so that decoding gives back the text. Raises: DataError: no lines, or a vocabulary that is too
    large or too small for them; names one that fits."""
    if not lines:
        raise DataError("--input: no text to train on; put text in it")
    out = io.BytesIO()
    # A field that is set, even to its default, is stored in the model and changes its bytes.
    unusual: dict[str, Any] = SPECIAL_IDS | ({} if hard_vocab_limit else {"hard_vocab_limit": False})
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="unigram",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=[NEWLINE],
            max_sentence_length=max(_LEAST_MAXIMUM, max(len(line.encode()) for line in lines) + 1),
            num_threads=1,
            minloglevel=2,
            **unusual,
        )
    except RuntimeError as error:
        asked = f"--vocab_size={vocab_size}"
        if match := re.search(r"Please set it to a value <= (\d+)", str(error)):
            raise DataError(
                f"{asked}: the text holds no more than {match[1]} pieces; want --vocab_size={match[1]} or "
                "less, more text, or --hard_vocab_limit=off to take what there is"
            ) from None
        if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise DataError(
                f"{asked}: special pieces, bytes and characters alone are {match[1]} here; "
                f"want --vocab_size={match[1]} or more, or a lower --character_coverage"
            ) from None
        raise DataError(f"--input: sentencepiece cannot train on this text ({error}); is it text?") from None
    return out.getvalue()


def cut_lines(text: str) -> Iterator[str]:
    """The lines of a document that are not empty, long ones in parts. Pieces never go over a space, so a cut
    before one divides no word."""
    for line in _LINE_END.split(text):
        while len(line) > MAX_LINE:
            end = line.rfind(" ", 1, MAX_LINE)
            end = MAX_LINE if end < 0 else end
            yield line[:end]
            line = line[end:]
        if line:
            yield line


def vocab_text(model: bytes) -> str:
    """A line for each id in order: the piece, with white space but the space escaped, a tab, its score."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    escapes = str.maketrans({"\\": r"\\", "\n": r"\n", "\t": r"\t", "\r": r"\r"})
    pieces = ((processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size()))
    return "".join(f"{piece.translate(escapes)}\t{score:.6g}\n" for piece, score in pieces)


if __name__ == "__main__":
    cli.run_command(main)
