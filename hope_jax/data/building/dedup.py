"""Duplicates over the whole mixture: exact ones by datatrove's ExactDedup, near ones by its MinHash.

Both look at the documents that the sources' filters kept, in the order of the mixture's tasks.
"""

from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from datatrove.data import Document
from datatrove.io import DataFolder
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
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from hope_jax.core.paths import is_left_behind
from hope_jax.data.building.steps import CleanReader
from hope_jax.data.building.tasks import MOST_TASKS, Plan


class PlainFolder(DataFolder):
    """A local folder. datatrove's own takes brackets and stars in its path for a pattern, so that it finds no
    file there, and a double colon for a chain of file systems."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(str(path), LocalFileSystem())

    def glob(self, path: str, **options: Any) -> Any:
        """What fits a pattern below this folder, as fsspec has it."""
        found = self.fs.glob(f"{escape(self.path)}/{path}", **options)
        return {self._relpath(p): info for p, info in found.items()} if options.get("detail") else found

    def list_files(self, *arguments: Any, **options: Any) -> list[str]:
        """Files by path in this folder, sorted; none that an operating system left behind."""
        found = super().list_files(*arguments, **options)
        return [name for name in found if not is_left_behind(PurePosixPath(name))]


def text_of(document: Document) -> str:
    """What exact duplicates share."""
    return document.text


def priority_of(document: Document) -> int:
    """The earlier the task, the higher: the first source that has a text keeps it."""
    return MOST_TASKS - int(document.metadata["task"])


_EXACT = ExactDedupConfig(content_getter=text_of, document_priority=priority_of)


def stages(plan: Plan, words: WordTokenizer) -> list[tuple[str, list[PipelineStep], int]]:
    """(name, steps, tasks) of what finds the duplicates, in order; empty if nothing does."""
    dedup, folder, found = plan.mixture.dedup, plan.dedup_folder, []
    if dedup.exact:
        signatures = PlainFolder(folder / "exact-signatures")
        found += [
            ("exact-signatures", [CleanReader(plan), ExactDedupSignature(signatures, _EXACT)], plan.tasks),
            ("exact-find", [ExactFindDedups(signatures, PlainFolder(folder / "exact"), _EXACT)], 1),
        ]
    if dedup.minhash is not None:
        config, parts = MinhashConfig(**dedup.minhash), [PlainFolder(folder / f"minhash-{i}") for i in (1, 2)]
        signature = MinhashDedupSignature(parts[0], config, language=words)
        buckets = MinhashDedupBuckets(parts[0], parts[1], config=config)
        cluster = MinhashDedupCluster(parts[1], PlainFolder(folder / "minhash"), config)
        # After the exact duplicates: of two equal texts the one of the first source is to stay.
        found += [
            ("minhash-signatures", [CleanReader(plan), *_exact_filter(plan), signature], plan.tasks),
            ("minhash-buckets", [buckets], config.num_buckets),
            ("minhash-cluster", [cluster], 1),
        ]
    return found


def filters(plan: Plan) -> list[PipelineStep]:
    """Steps that leave the duplicates out."""
    if plan.mixture.dedup.minhash is None:
        return _exact_filter(plan)
    return [*_exact_filter(plan), MinhashDedupFilter(PlainFolder(plan.dedup_folder / "minhash"))]


def _exact_filter(plan: Plan) -> list[PipelineStep]:
    folder = PlainFolder(plan.dedup_folder / "exact")
    return [ExactDedupFilter(folder, _EXACT)] if plan.mixture.dedup.exact else []
