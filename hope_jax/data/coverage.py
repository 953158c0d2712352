"""Report how well a tokenizer covers texts, and guard against one that covers them worse than before.

python -m hope_jax.data.coverage --input=PATH [--input=PATH ...] [--tokenizer=MODEL] [--out=FILE]
python -m hope_jax.data.coverage --input=PATH [--input=PATH ...] [--tokenizer=MODEL] --baseline=FILE

PATH is a folder of .txt, .jsonl and .jsonl.gz files, one such file, or "embedded"; each is a source, and
embedded is three. Prints a table; --out writes a report as JSON too. With --baseline, a report of the same
texts, exit code 1 if in a source, or overall, words need more tokens, or fewer words are one token, than the
two limits allow; 2 if the report is of other texts. docs/data.md says what is counted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, GuardError
from hope_jax.core.output import say

if TYPE_CHECKING:
    from hope_jax.data.texts import Split
    from hope_jax.data.tokenizer_coverage import Comparison, Report

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


def main(argv: list[str]) -> None:
    """Counts, prints, writes and compares. Raises: GuardError: coverage is worse than the limits allow."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; every option is a flag (--help)")
    out = cli.output_file("out", _OUT.value)
    for flag in (_INCREASE, _DROP):
        if not math.isfinite(flag.value):
            raise ConfigError(f"--{flag.name}={flag.value}: want a finite number; a large one lets all pass")
    # JAX, which the corpus module reaches, takes seconds to import.
    from hope_jax.data.texts import open_sources
    from hope_jax.data.tokenizer import EMBEDDED, Tokenizer
    from hope_jax.data.tokenizer_coverage import OVERALL, compare, read_report, report_coverage

    baseline = read_report(Path(_BASELINE.value)) if _BASELINE.value else None
    tokenizer = Tokenizer.load(_TOKENIZER.value or EMBEDDED)
    report = report_coverage(
        tokenizer,
        open_sources(_INPUTS.value, _TEXT_FIELD.value),
        split=cast("Split", _SPLIT.value),
        max_characters=_MAX_CHARACTERS.value,
        seed=_SEED.value,
    )
    if out:
        cli.write_files("out", {out: report.to_json().encode()})
    say(render(report))
    if baseline is None:
        return
    found = compare(
        baseline,
        report,
        max_tokens_per_word_increase=_INCREASE.value,
        max_single_token_drop=_DROP.value,
    )
    limits = {
        "tokens_per_word": f"may grow by {_INCREASE.value:g}",
        "single_token_share": f"may fall by {_DROP.value:g}",
    }
    if worse := [f"{describe(c)}, {limits[c.measure]}" for c in found if c.worse]:
        raise GuardError(
            f"--tokenizer={tokenizer.name} covers the text worse than --baseline={_BASELINE.value} says: "
            f"{'; '.join(worse)}. "
            "Keep the tokenizer of before, or, if the loss is meant, write the baseline again"
        )
    passed = "; ".join(describe(c) for c in found if c.source == OVERALL)
    say(f"\nguard passed: {passed}")


def describe(found: Comparison) -> str:
    """A measure with both its numbers."""
    before, now, change = (float(x) for x in (found.before, found.now, found.now - found.before))
    return f"{found.source}: {found.measure} was {before:.4f}, is {now:.4f} ({change:+.4f})"


def render(report: Report) -> str:
    """The tokenizer and two tables: measures, and the histogram in per cent of the words."""
    from hope_jax.data.tokenizer_coverage import BUCKETS, OVERALL

    measures = [
        [
            "source",
            "documents",
            "words",
            "tokens/word",
            "one token",
            "tokens/char",
            "chars in bytes",
            "unknown",
        ]
    ]
    histogram = [["words of ... tokens", *BUCKETS]]
    for name, counts in [*((s.name, s.counts) for s in report.sources), (OVERALL, report.overall)]:
        found = counts.measures()
        measures.append(
            [
                name,
                f"{counts.documents:,}",
                f"{counts.words:,}",
                f"{found['tokens_per_word']:.4f}",
                f"{found['single_token_share']:.2%}",
                f"{found['tokens_per_character']:.4f}",
                f"{found['byte_character_share']:.3%}",
                f"{found['unknown_token_share']:.3%}",
            ]
        )
        words = max(counts.words, 1)
        histogram.append([name, *(f"{counts.words_by_tokens[b] / words:.1%}" for b in BUCKETS)])
    about = report.tokenizer
    head = f"{about['name']}, {about['vocab_size']:,} pieces, sha256 {about['sha256']}"
    return "\n".join([head, "", *_table(measures), "", *_table(histogram)])


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


if __name__ == "__main__":
    cli.run_command(main)
