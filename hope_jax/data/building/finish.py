"""After the stages: a manifest in each source's folder, and the statistics of the mixture."""

import json
import logging
import re
from collections import Counter
from typing import Any

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data.building import stages
from hope_jax.data.building.shard_step import TaskResult, read_result, write_atomically
from hope_jax.data.building.tasks import Plan, PlannedSource
from hope_jax.data.shards import MANIFEST, SPLITS, ShardManifest, check_files

_LOG = logging.getLogger(__name__)
_OURS = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.(?:arrayrecord|partial)")
_DUPLICATES = {"exact-deduplication": "exact_duplicate", "MinHash": "near_duplicate"}


def check_outputs(plan: Plan) -> None:
    """Looks at the places of what a build writes. Raises: ConfigError: something else is there."""
    mixture = plan.mixture
    try:
        _check_places(plan)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ConfigError(
            f"{mixture.path}: {error.filename}: {error.strerror}; choose another `out` or `statistics`"
        ) from None


def _check_places(plan: Plan) -> None:
    mixture = plan.mixture
    for folder in (mixture.out, *(mixture.out / planned.source.name for planned in plan.sources)):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"{mixture.path}: out={mixture.out}: {folder} is no folder; move it away, or choose "
                "another `out`"
            )
    path = mixture.statistics
    if path is not None and (path.is_dir() or any(p.exists() and not p.is_dir() for p in path.parents)):
        raise ConfigError(f"{mixture.path}: statistics={path}: want a file in a folder; this cannot be one")


def finish(plan: Plan) -> dict[str, Any]:
    """Writes the manifests, each last and at once, and the statistics; returns the latter.

    Raises: DataError: nothing is left of a source, or one of its shards occurs twice.
    """
    made = {}
    for planned in plan.sources:
        results = [_result(plan, planned.first + i) for i in range(planned.source.shards)]
        made[planned.source.name] = _manifest(plan, planned, results)
    for name, manifest in made.items():
        check_files(plan.mixture.out / name, manifest, digests=False)  # which `read_result` has looked at
    for name, manifest in made.items():
        if not manifest.files["heldout"]:
            _LOG.warning("WARNING: sources.%s: no document was held out; none can be evaluated on", name)
        folder = plan.mixture.out / name
        path, text = folder / MANIFEST, manifest.to_json()
        if not path.is_file() or path.read_text() != text:
            write_atomically(path, text)
        names = {file.name for files in manifest.files.values() for file in files}
        for stray in folder.iterdir():
            if _OURS.fullmatch(stray.name) and stray.name not in names:
                stray.unlink()
    statistics = mixture_statistics(plan, made)
    if plan.mixture.statistics is not None:
        write_atomically(plan.mixture.statistics, json.dumps(statistics, indent=1) + "\n")
    return statistics


def _result(plan: Plan, task: int) -> TaskResult:
    result = read_result(plan, task)
    if result is None:
        raise DataError(
            f"{plan.mixture.out}: the shards of task {task} changed while they were built; build again"
        )
    return result


def _manifest(plan: Plan, planned: PlannedSource, results: list[TaskResult]) -> ShardManifest:
    source, mixture = planned.source, plan.mixture
    files = {split: tuple(r.files[split] for r in results if split in r.files) for split in SPLITS}
    statistics = _source_statistics(plan, planned, results)
    if not files["train"]:
        raise DataError(
            f"sources.{source.name}: no training document is left of {statistics['read']} that were read; "
            f"rejected: {statistics['rejected'] or 'none'}; mend the source, its `field` or its filters"
        )
    return ShardManifest(
        source=source.name, row_tokens=mixture.row_tokens, vocab_size=plan.tokenizer.vocab_size,
        tokenizer_sha256=plan.tokenizer.sha256, files=files, holdout=mixture.holdout, salt=mixture.salt,
        document_multiple=mixture.document_multiple, origin=source.origin, licence=source.licence,
        statistics=statistics,
    )  # fmt: skip


def _source_statistics(plan: Plan, planned: PlannedSource, results: list[TaskResult]) -> dict[str, Any]:
    """read: documents, the rejected ones too. rejected: by reason."""
    kept: Counter[str] = Counter()
    for result in results:
        kept.update({f"documents_{split}": file.documents for split, file in result.files.items()})
        kept.update({f"characters_{split}": count for split, count in result.characters.items()})
        kept.update({f"tokens_{split}": file.tokens for split, file in result.files.items()})
    rejected, splits = _rejections(plan, planned)
    totals = {
        f"{what}_{split}": 0 for what in ("documents", "characters", "tokens") for split in SPLITS
    } | kept
    read = sum(rejected.values()) + sum(totals[f"documents_{split}"] for split in SPLITS)
    own = (
        {"split": sorted(splits)} if planned.source.reader == "huggingface" else {"input_bytes": planned.size}
    )
    return {**own, "read": read, "rejected": dict(sorted(rejected.items())), **totals}


def _rejections(plan: Plan, planned: PlannedSource) -> tuple[Counter[str], set[str]]:
    """Rejected documents by reason, and the splits that were read."""
    rejected: Counter[str] = Counter()
    splits = set()
    logs = [(stages.clean_stage_logs(plan, planned), 0), (stages.shards_stage_logs(plan), planned.first)]
    for folder, first in logs:
        for index in range(planned.source.shards):
            for step in stages.read_statistics(folder, first + index):
                rejected.update(_dropped(step))
                splits |= {key.removeprefix("split_") for key in step["stats"] if key.startswith("split_")}
    return rejected, splits


def _dropped(step: dict[str, Any]) -> Counter[str]:
    counts = {key: _total(value) for key, value in step["stats"].items()}
    named = {key.removeprefix("dropped_"): n for key, n in counts.items() if key.startswith("dropped_") and n}
    rest = counts.get("dropped", 0) - sum(named.values())
    if rest > 0:
        reason = next((r for mark, r in _DUPLICATES.items() if mark in step["name"]), step["name"])
        named[reason] = rest
    return Counter(named)


def _total(value: Any) -> int:
    return int(value["total"] if isinstance(value, dict) else value)


def mixture_statistics(plan: Plan, made: dict[str, ShardManifest]) -> dict[str, Any]:
    """Counts, weights and digests of all sources.

    tokens_until_repeated: of the whole mixture, after which the source has been read once at its weight.
    epochs: of the source, in a run of `train_tokens`.
    """
    sources = {}
    for planned in plan.sources:
        source, manifest = planned.source, made[planned.source.name]
        tokens = manifest.statistics["tokens_train"]
        entry: dict[str, Any] = {
            "weight": source.weight,
            "licence": source.licence,
            "origin": source.origin,
            **manifest.statistics,
            "tokens_until_repeated": round(tokens / source.weight),
        }
        if plan.mixture.train_tokens is not None:
            entry["epochs"] = round(plan.mixture.train_tokens * source.weight / tokens, 4)
        entry["sha256"] = {f.name: f.sha256 for split in SPLITS for f in manifest.files[split]}
        sources[source.name] = entry
    return {
        "manifest": plan.mixture.path.name,
        "tokenizer_sha256": plan.tokenizer.sha256,
        "vocab_size": plan.tokenizer.vocab_size,
        "row_tokens": plan.mixture.row_tokens,
        "document_multiple": plan.mixture.document_multiple,
        "holdout": plan.mixture.holdout,
        "salt": plan.mixture.salt,
        "train_tokens": plan.mixture.train_tokens,
        **{f"{what}_{split}": sum(s[f"{what}_{split}"] for s in sources.values())
           for what in ("documents", "characters", "tokens") for split in SPLITS},
        "sources": sources,
    }  # fmt: skip


def table(statistics: dict[str, Any]) -> str:
    """The statistics for people."""
    head = ("source", "weight", "read", "kept", "held out", "tokens", "char/token", "rejected")
    rows = [head, *(_row(name, s) for name, s in statistics["sources"].items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:], strict=True)),
                row[-1],
            ]
        )
        for row in rows
    )


def _row(name: str, s: dict[str, Any]) -> tuple[str, ...]:
    documents, tokens, characters = (_both(s, what) for what in ("documents", "tokens", "characters"))
    reasons = ", ".join(f"{count} {reason}" for reason, count in s["rejected"].items())
    return (
        name, f"{s['weight']:g}", str(s["read"]), str(documents), str(s["documents_heldout"]), str(tokens),
        f"{characters / tokens:.2f}", reasons or "none",
    )  # fmt: skip


def _both(statistics: dict[str, Any], what: str) -> int:
    return sum(int(statistics[f"{what}_{split}"]) for split in SPLITS)
