"""How well a tokenizer covers a text, as counts and measures, and whether it covers it worse than before.

A *word* is a run of characters that are not white space (`str.isspace`), with its punctuation, and with the
one space before it where there is one: " word" after a space, "word" at the start of a line. That is how it
stands in the text, and pieces begin with that space and never go over one, so a word has the same tokens here
as in the text. A word by itself, without its space, is one that running text hardly has: nearly all words
would seem to need a token more. White space that is no part of a word counts in `tokens` alone.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data.corpus import Document
from hope_jax.data.texts import Split, TextSource, combined_digest, held_out, sample, select
from hope_jax.data.tokenizer import Tokenizer

KIND = "hope_jax.coverage"
OVERALL = "overall"
"""All sources together."""
BUCKETS = (*map(str, range(8)), "8+")
"""Of the histogram: tokens of a word. A word without any is one that the model's normalisation takes away."""

_WORD = re.compile(r" ?\S+")


@dataclass(frozen=True)
class Counts:
    """What was counted. tokens: of whole documents, without BOS and EOS. word_tokens: of the words.
    words_by_tokens: histogram over `BUCKETS`. byte_characters: characters spelt in bytes. unknown_tokens:
    those with the unknown id, which a model with all bytes never gives."""

    documents: int
    characters: int
    tokens: int
    words: int
    word_tokens: int
    words_by_tokens: Mapping[str, int]
    byte_characters: int
    unknown_tokens: int

    @property
    def tokens_per_word(self) -> Fraction:
        """Mean tokens of a word; 0 without words."""
        return Fraction(self.word_tokens, max(self.words, 1))

    @property
    def single_token_share(self) -> Fraction:
        """Share of the words that are one token."""
        return Fraction(self.words_by_tokens["1"], max(self.words, 1))

    def measures(self) -> dict[str, float]:
        """All measures, as numbers for people; comparisons use the counts, which are exact."""
        return {
            "tokens_per_word": float(self.tokens_per_word),
            "single_token_share": float(self.single_token_share),
            "tokens_per_character": self.tokens / max(self.characters, 1),
            "byte_character_share": self.byte_characters / max(self.characters, 1),
            "unknown_token_share": self.unknown_tokens / max(self.tokens, 1),
        }


@dataclass(frozen=True)
class SourceCounts:
    """Counts of one source. text_sha256: of the documents that were counted."""

    name: str
    text_sha256: str
    counts: Counts


@dataclass(frozen=True)
class Report:
    """Coverage of sources by one tokenizer. tokenizer, sampling: what made it, for people."""

    tokenizer: Mapping[str, Any]
    sampling: Mapping[str, Any]
    sources: tuple[SourceCounts, ...]

    @property
    def overall(self) -> Counts:
        """The counts of all sources together."""
        return add_counts([s.counts for s in self.sources])

    def to_json(self) -> str:
        """The report as JSON text."""

        def entry(counts: Counts) -> dict[str, Any]:
            return {**counts.measures(), **asdict(counts)}

        content = {
            "kind": KIND,
            "tokenizer": dict(self.tokenizer),
            "sampling": dict(self.sampling),
            OVERALL: entry(self.overall),
            "sources": [
                {"name": s.name, "text_sha256": s.text_sha256, **entry(s.counts)} for s in self.sources
            ],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Comparison:
    """A measure of a source (or `OVERALL`) before and now. worse: by more than is allowed."""

    source: str
    measure: str
    before: Fraction
    now: Fraction
    worse: bool


def report_coverage(
    tokenizer: Tokenizer, sources: Sequence[TextSource], *, split: Split, max_characters: int, seed: int
) -> Report:
    """Counts each source.

    Args:
        split: which side of the held-out split; "all" for both.
        max_characters: of the sample of whole documents of each source, 0 for all. seed: of the sample.

    Raises:
        DataError: a source cannot be read or has no document on that side of the split.
    """
    held = set() if split == "all" else held_out({d.digest for d in s.documents()} for s in sources)
    counted = []
    for source in sources:
        texts = sample((d.text for d in select(source, split, held)), max_characters, seed)
        documents = [Document(text, source.name) for text in texts]
        if not documents:
            side = "" if split == "all" else f" on the side {split!r} of the held-out split"
            raise DataError(f"--input: {source.name} holds no text{side}; put text in it, or leave it out")
        digest = combined_digest(d.digest for d in documents)
        counted.append(SourceCounts(source.name, digest, count(tokenizer, texts)))
    return Report(
        {"name": Path(tokenizer.name).name, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        {"split": split, "max_characters": max_characters, "seed": seed},
        tuple(counted),
    )


def count(tokenizer: Tokenizer, texts: Iterable[str]) -> Counts:
    """Counts of documents' texts."""
    documents = characters = tokens = byte_characters = unknown = 0
    words: Counter[str] = Counter()
    for text in texts:
        ids = tokenizer.encode(text)
        documents += 1
        characters += len(text)
        tokens += len(ids)
        byte_characters += tokenizer.characters_in_bytes(ids)
        unknown += int((ids == tokenizer.unk_id).sum())
        words.update(match[0] for match in _WORD.finditer(text))
    histogram = dict.fromkeys(BUCKETS, 0)
    word_tokens = 0
    for word, times in words.items():
        length = len(tokenizer.encode(word))
        word_tokens += times * length
        histogram[BUCKETS[min(length, len(BUCKETS) - 1)]] += times
    return Counts(
        documents, characters, tokens, words.total(), word_tokens, histogram, byte_characters, unknown
    )


def add_counts(parts: Sequence[Counts]) -> Counts:
    """The counts of several texts together."""
    total: dict[str, Any] = {f.name: 0 for f in fields(Counts)}
    for name in total:
        if name == "words_by_tokens":
            total[name] = {bucket: sum(p.words_by_tokens[bucket] for p in parts) for bucket in BUCKETS}
        else:
            total[name] = sum(getattr(p, name) for p in parts)
    return Counts(**total)


def read_report(path: Path) -> Report:
    """A report that `to_json` wrote.

    Raises:
        ConfigError: it is missing or is not one.
    """
    remedy = "write one with python -m hope_jax.data.coverage --out=FILE"
    try:
        raw = json.loads(path.read_bytes())
        if raw["kind"] != KIND:
            raise ValueError(f"is of kind {raw['kind']!r}")
        sources = tuple(
            SourceCounts(s["name"], s["text_sha256"], Counts(**{f.name: s[f.name] for f in fields(Counts)}))
            for s in raw["sources"]
        )
        report = Report(raw["tokenizer"], raw["sampling"], sources)
        report.overall.measures()
    except OSError as error:
        raise ConfigError(f"--baseline={path}: {error.strerror or error}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--baseline={path}: not a coverage report ({type(error).__name__}: {error}); {remedy}"
        ) from None
    return report


def compare(
    before: Report, now: Report, *, max_tokens_per_word_increase: float, max_single_token_drop: float
) -> list[Comparison]:
    """Both measures of the guard, overall and of every source, which are told by their text and not by name.

    A measure that is worse by just what is allowed passes. max_single_token_drop: a difference of shares,
    0.02 for two of a hundred words.

    Raises:
        ConfigError: the reports are of other texts.
    """
    theirs, ours = ({s.text_sha256: s for s in report.sources} for report in (before, now))
    if Counter(s.text_sha256 for s in before.sources) != Counter(s.text_sha256 for s in now.sources):
        raise ConfigError(
            "--baseline is of another text than --input: it counted "
            f"{_names(before, ours)}, and now it is {_names(now, theirs)}; give the same --input, --split, "
            f"--max_characters and --seed (then {dict(before.sampling)}), or write the baseline again"
        )
    pairs = [(OVERALL, before.overall, now.overall)]
    pairs += [(s.name, theirs[s.text_sha256].counts, s.counts) for s in now.sources]
    # Written in decimals, limits are exact, and so are the measures: 1.55 is not past 1.5 + 0.05.
    increase, drop = (Fraction(repr(x)) for x in (max_tokens_per_word_increase, max_single_token_drop))
    found = []
    for name, old, new in pairs:
        longer = new.tokens_per_word - old.tokens_per_word
        lost = old.single_token_share - new.single_token_share
        found.append(
            Comparison(name, "tokens_per_word", old.tokens_per_word, new.tokens_per_word, longer > increase)
        )
        found.append(
            Comparison(
                name, "single_token_share", old.single_token_share, new.single_token_share, lost > drop
            )
        )
    return found


def _names(report: Report, known: Mapping[str, object]) -> str:
    """Its sources; those that the other report lacks with their digests."""
    return ", ".join(
        s.name if s.text_sha256 in known else f"{s.name} (digest {s.text_sha256})" for s in report.sources
    )
