"""Report how well a tokenizer covers texts, and guard against one that covers them worse than before.

python -m hope_jax.data.coverage --input=PATH [--input=PATH ...] [--tokenizer=MODEL] [--out=FILE]
python -m hope_jax.data.coverage --input=PATH [--input=PATH ...] [--tokenizer=MODEL] --baseline=FILE

PATH is a folder of .txt, .jsonl and .jsonl.gz files, one such file, or "embedded"; each is a source, and
embedded is three. Prints a table; --out writes a report as JSON too. With --baseline, a report of the same
texts, exit code 1 if in a source, or overall, words need more tokens, or fewer words are one token, than the
two limits allow; 2 if the report is of other texts. docs/data.md says what is counted.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, DataError, GuardError
from hope_jax.core.output import columns, say
from hope_jax.data import corpus
from hope_jax.data.tokenizer import EMBEDDED, Tokenizer

_INPUTS = cli.define_paths(
    "input", "Folder, .txt, .jsonl or .jsonl.gz file, or embedded; may be given again."
)
_TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Key of a .jsonl line's text.", allow_override=True)
_TOKENIZER = cli.define_path("tokenizer", "Sentencepiece .model file, or embedded (the default).")
_OUT = cli.define_path("out", "File for the report as JSON.")
_BASELINE = cli.define_path("baseline", "Report to compare with.")
_INCREASE = flags.DEFINE_float(
    "max_tokens_per_word_increase", 0.05, "By how much tokens per word may grow.", lower_bound=0.0
)
_DROP = flags.DEFINE_float(
    "max_single_token_drop",
    0.02,
    "By how much the share of words that are one token may fall: 0.02 is two of a hundred words.",
    lower_bound=0.0,
)
_SPLIT = flags.DEFINE_enum(
    "split", "all", ["all", "train", "heldout"], "Documents to count: a side of the held-out split, or all."
)
_MAX_CHARACTERS = flags.DEFINE_integer(
    "max_characters",
    10_000_000,
    "Size of the sample of each source, in whole documents; 0: all text.",
    lower_bound=0,
    allow_override=True,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sample.", allow_override=True)

KIND = "hope_jax.coverage"
OVERALL = "overall"
"""All sources together."""
BUCKETS = (*map(str, range(8)), "8+")
"""Of the histogram: tokens of a word. A word without any is one that the model's normalisation takes away."""
COUNTS = (
    "documents", "characters", "tokens", "words", "word_tokens", "words_by_tokens", "byte_characters",
    "unknown_tokens",
)  # fmt: skip
"""tokens: of whole documents, without BOS and EOS. word_tokens: of the words. words_by_tokens: histogram over
`BUCKETS`. byte_characters: spelt in bytes. unknown_tokens: those with the unknown id."""

Counts: TypeAlias = dict[str, Any]
Report: TypeAlias = dict[str, Any]
"""As in its file: under `OVERALL` and for each of `sources` the counts and their measures."""

_WORD = re.compile(r" ?\S+")
_MEASURES = {
    "tokens_per_word": ("word_tokens", "words"),
    "single_token_share": ("1", "words"),
    "tokens_per_character": ("tokens", "characters"),
    "byte_character_share": ("byte_characters", "characters"),
    "unknown_token_share": ("unknown_tokens", "tokens"),
}


class Comparison(NamedTuple):
    """A measure of a source (or `OVERALL`) before and now; worse: by more than the limit."""

    source: str
    measure: str
    said: str
    limit: str
    worse: bool


def main(argv: list[str]) -> None:
    """Counts, prints, writes and compares. Raises: GuardError: coverage is worse than the limits allow."""
    cli.refuse_arguments(argv)
    out = cli.output_file("out", _OUT.value)
    for flag in (_INCREASE, _DROP):
        if not math.isfinite(flag.value):
            raise ConfigError(f"--{flag.name}={flag.value}: want a finite number; a large one lets all pass")
    baseline = read_report(Path(_BASELINE.value)) if _BASELINE.value else None
    tokenizer = Tokenizer.load(_TOKENIZER.value or EMBEDDED)
    sources = corpus.open_sources(_INPUTS.value, _TEXT_FIELD.value)
    report = report_coverage(tokenizer, sources, _SPLIT.value, _MAX_CHARACTERS.value, _SEED.value)
    if out:
        cli.write_json("out", out, report)
    say(render(report))
    if baseline is None:
        return
    found = compare(baseline, report, _INCREASE.value, _DROP.value)
    if worse := [f"{c.said}, {c.limit}" for c in found if c.worse]:
        raise GuardError(
            f"--tokenizer={tokenizer.name} covers the text worse than --baseline={_BASELINE.value} says: "
            f"{'; '.join(worse)}. "
            "Keep the tokenizer of before, or, if the loss is meant, write the baseline again"
        )
    say(f"\nguard passed: {'; '.join(c.said for c in found if c.source == OVERALL)}")


def report_coverage(
    tokenizer: Tokenizer, sources: Sequence[corpus.TextSource], split: str, max_characters: int, seed: int
) -> Report:
    """Counts each source, or of each a sample of whole documents of at most `max_characters` (0: all).
    Raises: DataError: a source cannot be read or has no document on that side of the split."""
    held = set() if split == "all" else corpus.held_out({d.digest for d in s.documents()} for s in sources)
    counted = []
    for source in sources:
        texts = corpus.sample((d.text for d in corpus.select(source, split, held)), max_characters, seed)
        if not texts:
            side = "" if split == "all" else f" on the side {split!r} of the held-out split"
            raise DataError(f"--input: {source.name} holds no text{side}; put text in it, or leave it out")
        digest = corpus.combined_digest(map(corpus.text_digest, texts))
        counted.append({"name": source.name, "text_sha256": digest, **count(tokenizer, texts)})
    name, size = Path(tokenizer.name).name, tokenizer.vocab_size
    return {
        "kind": KIND,
        "tokenizer": {"name": name, "sha256": tokenizer.sha256, "vocab_size": size},
        "sampling": {"split": split, "max_characters": max_characters, "seed": seed},
        OVERALL: add_counts(counted),
        "sources": counted,
    }


def count(tokenizer: Tokenizer, texts: Iterable[str]) -> Counts:
    """Counts of documents' texts, and their measures.

    A *word* is a run of characters that are not white space (`str.isspace`), with its punctuation, and with
    the one space before it where there is one: " word" after a space, "word" at the start of a line. That is
    how it stands in the text, and pieces begin with that space and never go over one, so a word has the same
    tokens here as in the text. White space that is no part of a word counts in `tokens` alone.
    """
    found, by_tokens, words = Counter[str](), dict.fromkeys(BUCKETS, 0), Counter[str]()
    for text in texts:
        ids = tokenizer.encode(text)
        found["documents"] += 1
        found["characters"] += len(text)
        found["tokens"] += len(ids)
        found["byte_characters"] += tokenizer.characters_in_bytes(ids)
        found["unknown_tokens"] += int((ids == tokenizer.unk_id).sum())
        words.update(match[0] for match in _WORD.finditer(text))
    for word, times in words.items():
        length = len(tokenizer.encode(word))
        found["words"] += times
        found["word_tokens"] += times * length
        by_tokens[BUCKETS[min(length, len(BUCKETS) - 1)]] += times
    return _measured({name: found[name] for name in COUNTS} | {"words_by_tokens": by_tokens})


def add_counts(parts: Sequence[Counts]) -> Counts:
    """The counts of several texts together, and their measures."""
    total: Counts = {n: sum(p[n] for p in parts) for n in COUNTS if n != "words_by_tokens"}
    histogram = {bucket: sum(p["words_by_tokens"][bucket] for p in parts) for bucket in BUCKETS}
    return _measured({name: total.get(name, histogram) for name in COUNTS})


def _measured(counts: Counts) -> Counts:
    """The measures, 0 where there is nothing to measure, and the counts."""
    parts = {**counts, **counts["words_by_tokens"]}
    shares = {name: Fraction(parts[a], max(parts[b], 1)) for name, (a, b) in _MEASURES.items()}
    return {name: float(share) for name, share in shares.items()} | counts


def read_report(path: Path) -> Report:
    """A report that `--out` wrote. Raises: ConfigError: it is missing or is not one."""
    try:
        raw = json.loads(path.read_bytes())
        if raw["kind"] != KIND:
            raise ValueError(f"is of kind {raw['kind']!r}")
        if not all(isinstance(s["name"], str) and isinstance(s["text_sha256"], str) for s in raw["sources"]):
            raise TypeError("a source without a name")
        sources = [{**s, **add_counts([s])} for s in raw["sources"]]
        return {**raw, "sampling": dict(raw["sampling"]), OVERALL: add_counts(sources), "sources": sources}
    except OSError as error:
        problem = error.strerror or error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"not a coverage report ({type(error).__name__}: {error})"
    remedy = "write one with python -m hope_jax.data.coverage --out=FILE"
    raise ConfigError(f"--baseline={path}: {problem}; {remedy}")


def compare(before: Report, now: Report, increase: float, drop: float) -> list[Comparison]:
    """Both measures of the guard, overall and of every source, which are told by their text and not by name.
    A measure that is worse by just what is allowed passes. increase: of the tokens per word. drop: of the
    share of words that are one token. Raises: ConfigError: the reports are of other texts."""
    theirs, ours = ({s["text_sha256"]: s for s in report["sources"]} for report in (before, now))
    if theirs.keys() != ours.keys() or len(before["sources"]) != len(now["sources"]):
        then, today = (
            # Those that the other report lacks bear their digests.
            ", ".join(
                s["name"] + ("" if (of := s["text_sha256"]) in other else f" (digest {of})") for s in mine
            )
            for mine, other in ((before["sources"], ours), (now["sources"], theirs))
        )
        raise ConfigError(
            f"--baseline is of another text than --input: it counted {then}, and now it is {today}; give the "
            f"same --input, --split, --max_characters and --seed (then {before['sampling']}), or write the "
            "baseline again"
        )
    pairs = [(OVERALL, before[OVERALL], now[OVERALL])]
    pairs += [(s["name"], theirs[s["text_sha256"]], s) for s in now["sources"]]
    found = []
    for source, old, new in pairs:
        for name, way, allowed in (
            ("tokens_per_word", "grow", increase),
            ("single_token_share", "fall", drop),
        ):
            was, is_now = old[name], new[name]
            said = f"{source}: {name} was {was:.4f}, is {is_now:.4f} ({is_now - was:+.4f})"
            # One word more or less is a larger change than what floating point adds to 0.05.
            worse = (is_now - was if way == "grow" else was - is_now) > allowed + 1e-12
            found.append(Comparison(source, name, said, f"may {way} by {allowed:g}", worse))
    return found


def render(report: Report) -> str:
    """The tokenizer and two tables: measures, and the histogram in per cent of the words."""
    head = ["source", "documents", "words", "tokens/word", "one token", "tokens/char", "chars in bytes"]
    measures, histogram = [[*head, "unknown"]], [["words of ... tokens", *BUCKETS]]
    forms = ("{:.4f}", "{:.2%}", "{:.4f}", "{:.3%}", "{:.3%}")
    for entry in (*report["sources"], {"name": OVERALL, **report[OVERALL]}):
        name, words = entry["name"], max(entry["words"], 1)
        told = (form.format(entry[key]) for form, key in zip(forms, _MEASURES, strict=True))
        measures.append([name, f"{entry['documents']:,}", f"{entry['words']:,}", *told])
        histogram.append([name, *(f"{n / words:.1%}" for n in entry["words_by_tokens"].values())])
    about = report["tokenizer"]
    title = f"{about['name']}, {about['vocab_size']:,} pieces, sha256 {about['sha256']}"
    return "\n".join([title, "", *columns(measures), "", *columns(histogram)])


if __name__ == "__main__":
    cli.run_command(main)
