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
import json
import os
import re
from pathlib import Path

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.output import say

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


def main(argv: list[str]) -> None:
    """Trains or checks, and prints the model's digest and name."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; every option is a flag (--help)")
    if _SHA256.value is not None and not re.fullmatch("[0-9a-fA-F]{64}", _SHA256.value):
        raise ConfigError(f"--sha256={_SHA256.value!r}: want 64 hex digits, as sha256sum prints them")
    if _CHECK.value:
        if _INPUTS.value or _OUT.value:
            raise ConfigError("--check takes neither --input nor --out; it trains nothing")
        check(_CHECK.value, _SHA256.value)
    else:
        train()


def check(source: str, sha256: str | None) -> None:
    """Holds a model against `sha256`, and against its sidecar, of which one must be there."""
    from hope_jax.data import sidecar, tokenizer

    model, record, place = tokenizer.read_model(source)
    found = hashlib.sha256(model).hexdigest()
    if record is None and sha256 is None:
        raise ConfigError(f"--check={source}: there is no {place} to check it against; give --sha256=HEX")
    if record is not None:
        sidecar.check_digest(source, found, record["sha256"], str(place))
    if sha256 is not None:
        sidecar.check_digest(source, found, sha256, "--sha256")
    say(f"{found}  {source}")


def train() -> None:
    """Trains on `--input`, writes the three files of `--out` and says what came out."""
    from hope_jax.data.texts import open_sources
    from hope_jax.data.tokenizer_training import TrainingOptions, train_tokenizer

    if not _OUT.value:
        raise ConfigError("--out is missing; want --input=PATH --out=DIR/NAME")
    out = Path(_OUT.value.removesuffix(".model"))
    _check_folder(out)
    options = TrainingOptions(
        vocab_size=_VOCAB_SIZE.value,
        hard_vocab_limit={"on": True, "off": False, "auto": None}[_HARD.value],
        character_coverage=_COVERAGE.value,
        max_characters=_MAX_CHARACTERS.value,
        seed=_SEED.value,
    )
    trained = train_tokenizer(open_sources(_INPUTS.value, _TEXT_FIELD.value), options)
    record, model = trained.record, Path(f"{out}.model")
    if _SHA256.value is not None and record["sha256"] != _SHA256.value.lower():
        raise DataError(
            f"--sha256={_SHA256.value}: what came out has {record['sha256']}, so the input, the "
            f"flags or the version of sentencepiece (here {record['versions']['sentencepiece']}) are others; "
            "nothing was written"
        )
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    vocab = trained.vocab.encode()
    cli.write_files(
        "out", {Path(f"{out}.json"): text.encode(), Path(f"{out}.vocab"): vocab, model: trained.model}
    )
    read = ", ".join(
        f"{i['name']} {i['documents'] - i['held_out']}/{i['documents']}" for i in record["inputs"]
    )
    say(f"documents read of those there are: {read}")
    say(f"trained on {record['trained_on']['lines']} lines, {record['trained_on']['characters']} characters")
    fewer = " (the text holds no more)" if record["vocab_size"] < options.vocab_size else ""
    say(f"vocabulary: {record['vocab_size']} of {options.vocab_size} pieces{fewer}")
    say(f"{record['sha256']}  {model}")


def _check_folder(out: Path) -> None:
    if not out.name or out.is_dir():
        raise ConfigError(f"--out={out}: is a folder; want DIR/NAME, the files' name without its ending")
    folder = next(p for p in out.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--out={out}: {folder} is no folder that can be written to; choose another --out")


if __name__ == "__main__":
    cli.run_command(main)
