"""Trains tokenizers: unigram models of sentencepiece that lose nothing and come out the same every time.

Nothing is normalised and no space is added, a newline is a piece of its own, and what the vocabulary lacks is
spelt in bytes, so that decoding gives back the text. One thread and a seeded sample of the text: the same
input gives the same bytes under the same version of sentencepiece.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sentencepiece

import hope_jax
from hope_jax.core.errors import DataError
from hope_jax.data.holdout import HOLDOUT_FRACTION, SPLIT_SALT
from hope_jax.data.sidecar import KIND
from hope_jax.data.texts import TextSource, combined_digest, held_out, sample, select

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
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


@dataclass(frozen=True)
class TrainingOptions:
    """How a tokenizer is trained.

    vocab_size: pieces wanted, special ones and bytes included. hard_vocab_limit: whether it must come out so;
    else a text that does not hold as many gives fewer; None: only of a text that is no small sample.
    character_coverage: share of the text's characters that get a piece; the rarest are spelt in bytes.
    max_characters: of the sample that is trained on, 0 for all of the text. seed: of the sample.
    """

    vocab_size: int
    hard_vocab_limit: bool | None = None
    character_coverage: float = 0.99995
    max_characters: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TrainedTokenizer:
    """A serialized model, its pieces with their log probabilities as text, and what its sidecar says."""

    model: bytes
    vocab: str
    record: dict[str, Any]


def train_tokenizer(sources: Sequence[TextSource], options: TrainingOptions) -> TrainedTokenizer:
    """Trains on the documents that the split does not hold out.

    The sources are read twice, document by document; only the sample is held in memory.

    Raises:
        DataError: a source that cannot be read, or holds no text; a text that does not fit the vocabulary.
    """
    described = [_describe(source) for source in sources]
    held = held_out(digests for _, digests in described)
    inputs = [{**entry, "held_out": sum(d in held for d in digests)} for entry, digests in described]
    lines = sample(
        (line for s in sources for d in select(s, "train", held) for line in cut_lines(d.text)),
        options.max_characters,
        options.seed,
    )
    characters = sum(map(len, lines))
    hard = options.hard_vocab_limit
    if hard is None:
        hard = characters >= SMALL_SAMPLE * options.vocab_size
    model = train_model(lines, options.vocab_size, options.character_coverage, hard)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    record = {
        "kind": KIND,
        "sha256": hashlib.sha256(model).hexdigest(),
        "bytes": len(model),
        "vocab_size": processor.get_piece_size(),
        "special_ids": {**SPECIAL_IDS, "newline_id": processor.piece_to_id(NEWLINE)},
        "settings": {
            **asdict(options),
            "hard_vocab_limit": hard,
            "model_type": "unigram",
            "byte_fallback": True,
            "normalization": "identity",
        },
        "split": {"holdout": HOLDOUT_FRACTION, "salt": SPLIT_SALT},
        "inputs": inputs,
        "trained_on": {
            "lines": len(lines),
            "characters": characters,
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        },
        "versions": {"hope_jax": hope_jax.__version__, "sentencepiece": sentencepiece.__version__},
    }
    return TrainedTokenizer(model, vocab_text(model), record)


def train_model(
    lines: Sequence[str], vocab_size: int, character_coverage: float = 1.0, hard_vocab_limit: bool = True
) -> bytes:
    """A serialized unigram model of lines (`cut_lines`); arguments as in `TrainingOptions`.

    Raises:
        DataError: no lines, or a vocabulary that is too large or too small for them; names one that fits.
    """
    if not lines:
        raise DataError("--input: no text to train on; put text in it")
    out = io.BytesIO()
    # A field that is set, even to its default, is stored in the model and changes its bytes.
    settings: dict[str, Any] = dict(SPECIAL_IDS)
    if not hard_vocab_limit:
        settings["hard_vocab_limit"] = False
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
            **settings,
        )
    except RuntimeError as error:
        raise _explain(error, vocab_size) from None
    return out.getvalue()


def cut_lines(text: str) -> Iterator[str]:
    """The lines of a document that are not empty, long ones in parts. Pieces never go over a space, so a cut
    before one divides no word."""
    for line in _LINE_END.split(text):
        start = 0
        while len(line) - start > MAX_LINE:
            end = line.rfind(" ", start + 1, start + MAX_LINE)
            end = start + MAX_LINE if end < 0 else end
            yield line[start:end]
            start = end
        if line[start:]:
            yield line[start:]


def _describe(source: TextSource) -> tuple[dict[str, Any], list[str]]:
    """What the sidecar says of a source, and the digests of its documents."""
    digests, characters = [], 0
    for document in source.documents():
        digests.append(document.digest)
        characters += len(document.text)
    if not digests:
        raise DataError(f"--input: {source.name} holds no text; put text in it, or leave it out")
    entry = {
        "name": source.name,
        "documents": len(digests),
        "characters": characters,
        "text_sha256": combined_digest(digests),
    }
    return entry, digests


def _explain(error: RuntimeError, vocab_size: int) -> DataError:
    if match := _TOO_LARGE.search(str(error)):
        return DataError(
            f"--vocab_size={vocab_size}: the text holds no more than {match[1]} pieces; want "
            f"--vocab_size={match[1]} or less, more text, or --hard_vocab_limit=off to take what there is"
        )
    if match := _TOO_SMALL.search(str(error)):
        return DataError(
            f"--vocab_size={vocab_size}: special pieces, bytes and characters alone are {match[1]} here; "
            f"want --vocab_size={match[1]} or more, or a lower --character_coverage"
        )
    return DataError(f"--input: sentencepiece cannot train on this text ({error}); is it text?")


def vocab_text(model: bytes) -> str:
    """A line for each id in order: the piece, with white space but the space escaped, a tab, its score."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    escapes = str.maketrans({"\\": r"\\", "\n": r"\n", "\t": r"\t", "\r": r"\r"})
    pieces = ((processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size()))
    return "".join(f"{piece.translate(escapes)}\t{score:.6g}\n" for piece, score in pieces)
