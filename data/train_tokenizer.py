"""Trains the embedded tokenizer on the training documents of the embedded corpus.

    python -m data.train_tokenizer [--vocab_size=1024] [--out=FILE] [--check]

One thread, no sampling, no paths in the model: the same sentencepiece version gives the same bytes. `--check`
writes nothing and fails if the shipped model differs. Why 1024: docs/data.md.
"""

import argparse
import hashlib
import io
import sys
from pathlib import Path

import sentencepiece

from hope_jax.data.corpus import EMBEDDED, load_documents, split_documents
from hope_jax.data.tokenizer import EMBEDDED_MODEL

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "hope_jax" / "data" / "assets" / EMBEDDED_MODEL


def train(vocab_size: int) -> bytes:
    """A serialized unigram model: bytes as fallback, white space kept, newline a token of its own."""
    training, _ = split_documents(load_documents(EMBEDDED))
    lines = [line for document in training for line in document.text.split("\n") if line]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="unigram",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        max_sentence_length=max(len(line.encode()) for line in lines) + 1,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def main() -> int:
    """Writes (or checks) the model and prints its size and sha256."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    model = train(args.vocab_size)
    print(f"{args.out.name}\t{len(model)} bytes\t{hashlib.sha256(model).hexdigest()}")
    if not args.check:
        args.out.write_bytes(model)
    elif args.out.read_bytes() != model:
        print("the shipped model differs from a fresh training", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
