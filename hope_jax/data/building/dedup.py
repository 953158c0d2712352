"""Duplicates over the whole mixture: exact ones by datatrove's ExactDedup, near ones by its MinHash.

Both look at the documents that the sources' filters kept, in the order of the mixture's tasks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer

from hope_jax.data.building import streams
from hope_jax.data.building.folders import PlainFolder
from hope_jax.data.building.tasks import MOST_TASKS, Plan

LONGEST_LINE = 2**31


class CleanReader(PipelineStep):
    """Reads the documents that a task of the mixture kept."""

    type, name = "reader", "kept documents"

    def __init__(self, files: list[Path]) -> None:
        super().__init__()
        self.files = files

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of one task, in order."""
        for line in streams.lines(streams.chunks(self.files[rank]), LONGEST_LINE):
            row = orjson.loads(line or b"{}")
            yield Document(text=row["text"], id=row["id"], metadata={"task": rank})


def text_of(document: Document) -> str:
    """What exact duplicates share."""
    return document.text


def priority_of(document: Document) -> int:
    """The earlier the task, the higher: the first source that has a text keeps it."""
    return MOST_TASKS - int(document.metadata["task"])


def stages(plan: Plan, words: WordTokenizer) -> list[tuple[str, list[PipelineStep], int]]:
    """(name, steps, tasks) of what finds the duplicates, in order; empty if nothing does."""
    dedup, folder, found = plan.mixture.dedup, plan.dedup_folder, []
    if dedup.exact:
        exact, signatures = _exact_config(), PlainFolder(folder / "exact-signatures")
        found += [
            ("exact-signatures", [clean_reader(plan), ExactDedupSignature(signatures, exact)], plan.tasks),
            ("exact-find", [ExactFindDedups(signatures, PlainFolder(folder / "exact"), exact)], 1),
        ]
    if dedup.minhash is not None:
        config, parts = MinhashConfig(**dedup.minhash), [PlainFolder(folder / f"minhash-{i}") for i in (1, 2)]
        signature = MinhashDedupSignature(parts[0], config, language=words)
        buckets = MinhashDedupBuckets(parts[0], parts[1], config=config)
        cluster = MinhashDedupCluster(parts[1], PlainFolder(folder / "minhash"), config)
        # After the exact duplicates: of two equal texts the one of the first source is to stay.
        found += [
            ("minhash-signatures", [clean_reader(plan), *_exact_filter(plan), signature], plan.tasks),
            ("minhash-buckets", [buckets], config.num_buckets),
            ("minhash-cluster", [cluster], 1),
        ]
    return found


def clean_reader(plan: Plan) -> CleanReader:
    """The documents of all sources, by task of the mixture."""
    return CleanReader([plan.clean_file(task) for task in range(plan.tasks)])


def filters(plan: Plan) -> list[PipelineStep]:
    """Steps that leave the duplicates out."""
    near = plan.mixture.dedup.minhash is not None
    return [
        *_exact_filter(plan),
        *([MinhashDedupFilter(PlainFolder(plan.dedup_folder / "minhash"))] if near else []),
    ]


def _exact_filter(plan: Plan) -> list[PipelineStep]:
    folder = PlainFolder(plan.dedup_folder / "exact")
    return [ExactDedupFilter(folder, _exact_config())] if plan.mixture.dedup.exact else []


def _exact_config() -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=text_of, document_priority=priority_of)
