"""A mixture of token shards: their folders, found and checked, and their rows, taken by weight. Everything is
refused here that would only show after hours, or never.

Every source is shuffled and repeated for itself. Which one gives the next row is computed, not drawn: among
any first k rows a source has its share of k to within a few rows, and exactly its share where that is a whole
number for all sources at once. Any row is at hand by its number, so the state of training is the number of
the next batch, as it is for texts.
"""

import hashlib
import itertools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import grain

from hope_jax.core.errors import DataError, instead
from hope_jax.core.paths import as_path, files_in
from hope_jax.core.types import Batch
from hope_jax.data.batches import ENDLESS, Stream, as_row, digest_int, spread
from hope_jax.data.corpus import EMBEDDED, combined_digest
from hope_jax.data.shards import MANIFEST, ShardManifest, ShardRows, Split, check_files, read_manifest
from hope_jax.data.tokenizer import Tokenizer

logger = logging.getLogger("hope_jax.data")

BUILD = "python -m hope_jax.data.build"
_VARIABLE = "HOPE_SHARD_DIR_"
_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """One source of a mixture. weight: its share of the rows, over the sum of the weights."""

    name: str
    weight: float
    folder: Path
    manifest: ShardManifest

    def rows(self, split: Split, seq_len: int) -> ShardRows:
        """The rows of a split. Raises: DataError if seq_len does not divide them."""
        return ShardRows(self.folder, self.manifest, split, seq_len)

    def digest(self) -> str:
        """Hex SHA-256 of its shards' digests, in order."""
        return combined_digest(file.sha256 for file in self.manifest.every_file())


def variable(name: str) -> str:
    """The environment variable that names the folder of a source."""
    return _VARIABLE + re.sub(r"[^A-Z0-9]", "_", name.upper())


def find_sources(source: str, mixture: Mapping[str, float], environ: Mapping[str, str]) -> list[Source]:
    """The shards that `data.source` and `data.mixture` name, in the order of their names; none: texts. A
    source of the mixture is in the folder that its environment variable names, or in `<source>/<name>`.
    Without a mixture `source` itself may be a folder of shards. Raises: DataError: a folder or its manifest
    is missing or is not one, or shards lie there in another way."""
    if source == EMBEDDED:
        return []
    folder = as_path("data.source", source)
    if mixture:
        owner: dict[str, str] = {}
        for name in sorted(mixture):
            if not _NAME.fullmatch(name):
                raise DataError(
                    f"data.mixture: {name!r} is not a source's name; use letters, digits, '.', '_' and '-', "
                    f"and {_VARIABLE}NAME for a folder elsewhere"
                )
            if (other := owner.setdefault(variable(name), name)) != name:
                problem = f"{other} and {name} share the variable {variable(name)}"
                raise DataError(f"data.mixture: {problem}; rename a folder")
        return [_named(folder, name, mixture[name], environ) for name in sorted(mixture)]
    if (folder / MANIFEST).is_file() or files_in(folder, "*.arrayrecord"):
        manifest = read_manifest(folder)
        return [Source(manifest.source, 1.0, folder, manifest)]
    inside = [path.parent.name for path in files_in(folder, f"*/{MANIFEST}")]
    if inside and not files_in(folder, "**/*.txt"):
        raise DataError(
            f"data.source={source!r} holds the shards of {', '.join(inside)}; name the weight of each, as in "
            f"--config.data.mixture=\"{{'{inside[0]}': 1.0}}\", or one of these folders"
        )
    return []


def _named(parent: Path, name: str, weight: float, environ: Mapping[str, str]) -> Source:
    given = environ.get(variable(name))
    folder = parent / name if given is None else as_path(variable(name), given)
    if not folder.is_dir():
        if given is None and (parent / MANIFEST).is_file():
            raise DataError(
                f"data.source={str(parent)!r} is itself a folder of shards, so there is no {name} in it; "
                "leave data.mixture empty (--config.data.mixture={}), or name the folder above"
            )
        why = f"{variable(name)} can name another folder" if given is None else f"{variable(name)} names it"
        beside = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
        there = f"{instead(name, beside, 'shards there:')}; " if beside else ""
        raise DataError(
            f"data.mixture.{name}: there is no folder {folder}; {there}build its shards with {BUILD} ({why})"
        )
    manifest = read_manifest(folder)
    if manifest.source != name:
        logger.warning("data.mixture.%s: the shards in %s are those of %s", name, folder, manifest.source)
    return Source(name, weight, folder, manifest)


def check_sources(
    sources: Sequence[Source], tokenizer: Tokenizer, *, seq_len: int, document_multiple: int, digests: bool
) -> None:
    """Holds the sources against their files, the run and each other. digests: read every file and compare its
    digest, not only its size. Raises: DataError: names the first that does not fit."""
    for source in sources:
        _check_fit(source, tokenizer, seq_len, document_multiple)
    # One rule of what is held out, and no shard twice: then no document is on both sides.
    first = sources[0].manifest
    for source in sources:
        other = source.manifest
        if (other.holdout, other.salt) != (first.holdout, first.salt):
            raise DataError(
                f"{sources[0].folder} and {source.folder} hold documents out by different rules (holdout "
                f"{first.holdout:g} and {other.holdout:g}, salt {first.salt!r} and {other.salt!r}), so one "
                "document may be on both sides; build them with the same"
            )
    if digests:
        size = sum(file.size for source in sources for file in source.manifest.every_file())
        logger.info("checking the digests of %.1f MB of shards (data.verify_shards)", size / 1e6)
    seen: dict[str, Path] = {}
    for source in sources:
        check_files(source.folder, source.manifest, digests=digests, seen=seen)


def _check_fit(source: Source, tokenizer: Tokenizer, seq_len: int, document_multiple: int) -> None:
    folder, manifest = source.folder, source.manifest
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"data.tokenizer={tokenizer.name!r} has the digest {tokenizer.sha256}, but the shards in "
            f"{folder} were made with a tokenizer of digest {manifest.tokenizer_sha256}: name that one, or "
            "build the shards again"
        )
    if manifest.vocab_size > tokenizer.vocab_size:
        raise DataError(
            f"{folder / MANIFEST}: vocab_size={manifest.vocab_size}, its tokenizer has "
            f"{tokenizer.vocab_size} tokens; build the shards again"
        )
    if manifest.document_multiple % document_multiple:
        raise DataError(
            f"memory.reset_at_document needs documents that begin at the online chunk ({document_multiple} "
            f"tokens), those of {folder} begin at multiples of {manifest.document_multiple}; build them with "
            f"document_multiple={document_multiple}, or set memory.reset_at_document=False"
        )
    sides: dict[Split, str] = {"train": "for training", "heldout": "held out"}
    for split, what in sides.items():
        if not sum(file.supervised for file in manifest.files[split]) or not source.rows(split, seq_len):
            raise DataError(
                f"{source.name}: the shards in {folder} have no text {what}; build them from more documents, "
                "or leave the source out of data.mixture"
            )


class Interleaving(grain.transforms.DatasetSelectionMap):
    """Row of the mixture -> (source, how many rows of that source come before it).

    The first k rows hold floor(k R/S) of the sources from the second on, where R are their weights and S
    all of them; of those, the sources from the third on hold their share likewise. Weights are taken as the
    decimal numbers that they are written as, so nothing is rounded. (Grain's own mix scales them to whole
    numbers of at least 100, which is off by up to 1 %.)

    weights: above 0, of any sum.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(repr(weight)) for weight in weights]
        unit = math.lcm(*(weight.denominator for weight in exact))
        parts = [int(weight * unit) for weight in exact]
        self._tails = [sum(parts[i:]) for i in range(len(parts) + 1)]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = self.counts(index), self.counts(index + 1)
        source = next(i for i, count in enumerate(before) if after[i] > count)
        return source, before[source]

    def counts(self, rows: int) -> list[int]:
        """Rows of each source among the first `rows`."""
        found = []
        for tail, rest in itertools.pairwise(self._tails):
            beyond = rows * rest // tail
            found.append(rows - beyond)
            rows = beyond
        return found


def training_rows(sources: Sequence[Source], *, seq_len: int, batch_size: int, seed: int) -> Stream:
    """Endless rows of the training splits by weight. Every epoch of a source visits each of its rows once, in
    an order of its own. Raises: DataError: sizes that do not fit each other."""
    shuffled = []
    for source in sources:
        rows = source.rows("train", seq_len)
        order = grain.MapDataset.source(rows).shuffle(seed=digest_int(f"{seed}:{source.name}"))
        # The mixture is as long as ENDLESS, and no source can be longer.
        shuffled.append(order.repeat(-(-ENDLESS // len(rows))))
    mixed = grain.MapDataset.select_from_datasets(shuffled, Interleaving([s.weight for s in sources]))
    described = [
        {
            "name": source.name,
            "weight": repr(source.weight),
            "row_tokens": source.manifest.row_tokens,
            "shards": [[file.sha256, file.rows] for file in source.manifest.files["train"]],
        }
        for source in sources
    ]
    stream = {"sources": described, "seq_len": seq_len, "batch_size": batch_size, "seed": seed}
    digest = hashlib.sha256(json.dumps(stream, sort_keys=True).encode()).hexdigest()
    return Stream(mixed.map(as_row), digest)


def held_out_rows(
    sources: Sequence[Source], *, seq_len: int, batch_size: int, max_batches: int
) -> list[Batch]:
    """Rows of the held-out splits, int32 [T], the same on every call and process. Sources have their weights'
    shares of the rows, so the loss is that of the mixture; each row is there at most once, and those of a
    source are spread evenly over its split. max_batches: 0: as many as these proportions give."""
    available = [source.rows("heldout", seq_len) for source in sources]
    interleaving = Interleaving([source.weight for source in sources])
    # The largest number of rows of which no source has more than are available.
    low, high = 0, max_batches * batch_size or sum(map(len, available))
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(n <= len(m) for n, m in zip(interleaving.counts(middle), available, strict=True))
        low, high = (middle, high) if fits else (low, middle - 1)
    counts = interleaving.counts(low)
    chosen = [spread(count, len(rows)) for count, rows in zip(counts, available, strict=True)]
    places = [interleaving[k] for k in range(low)]
    return [as_row(available[source][int(chosen[source][at])]) for source, at in places]


def epochs(sources: Sequence[Source], seq_len: int, batches: int, batch_size: int) -> dict[str, float]:
    """How often a run of so many batches reads each source's training rows."""
    counts = Interleaving([source.weight for source in sources]).counts(batches * batch_size)
    return {s.name: n / len(s.rows("train", seq_len)) for s, n in zip(sources, counts, strict=True)}
