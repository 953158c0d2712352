"""A mixture of token shards to rows: every source shuffled and repeated for itself, rows taken by weight.

Which source gives the next row is computed, not drawn: among any first k rows a source has its share of k to
within a few rows, and exactly its share where that is a whole number for all sources at once. Any row is at
hand by its number, so the state of training is the number of the next batch, as it is for texts.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from fractions import Fraction

import grain

from hope_jax.core.errors import DataError
from hope_jax.core.types import Batch
from hope_jax.data.batches import ENDLESS, Stream, as_row, digest_int, spread
from hope_jax.data.sources import Source


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
        at, following = index, index + 1
        for source, (tail, rest) in enumerate(itertools.pairwise(self._tails)):
            at_rest, following_rest = at * rest // tail, following * rest // tail
            if at_rest == following_rest:
                return source, at - at_rest
            at, following = at_rest, following_rest
        raise AssertionError("the last source takes what is left")

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
    an order of its own. Raises: DataError: sizes that do not fit each other, or a source without rows."""
    shuffled = []
    for source in sources:
        rows = source.rows("train", seq_len)
        if not len(rows):
            raise DataError(f"{source.name}: the shards in {source.folder} have no rows for training")
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
    """Rows of the held-out splits, int32 [T], the same on every call and process.

    Sources have their weights' shares of the rows, so the loss is that of the mixture; each row is there at
    most once, and those of a source are spread evenly over its split. max_batches: 0: as many rows as there
    are in these proportions. Raises: DataError: a source without rows.
    """
    available = [source.rows("heldout", seq_len) for source in sources]
    interleaving = Interleaving([source.weight for source in sources])
    # The largest number of rows of which no source has more than are available.
    low, high = 0, max_batches * batch_size or sum(map(len, available))
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(n <= len(m) for n, m in zip(interleaving.counts(middle), available, strict=True))
        low, high = (middle, high) if fits else (low, middle - 1)
    if not low:
        raise DataError("data.source: the held-out split is empty; build shards from more documents")
    counts = interleaving.counts(low)
    chosen = [spread(count, len(rows)) for count, rows in zip(counts, available, strict=True)]
    places = [interleaving[k] for k in range(low)]
    return [as_row(available[source][int(chosen[source][at])]) for source, at in places]


def epochs(sources: Sequence[Source], seq_len: int, batches: int, batch_size: int) -> dict[str, float]:
    """How often a run of so many batches reads each source's training rows."""
    counts = Interleaving([source.weight for source in sources]).counts(batches * batch_size)
    return {s.name: n / len(s.rows("train", seq_len)) for s, n in zip(sources, counts, strict=True)}
