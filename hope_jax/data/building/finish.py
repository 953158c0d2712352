"""After the stages: a manifest in each source's folder, and the statistics of the mixture."""

import json
import logging
import re
from collections import Counter
from typing import Any

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.files import write_atomic
from hope_jax.core.output import columns
from hope_jax.data.building.passes import TaskResult, read_result
from hope_jax.data.building.tasks import Plan, PlannedSource
from hope_jax.data.shards import MANIFEST, SPLITS, ShardManifest, check_files

_LOG = logging.getLogger(__name__)
_OURS = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.(?:arrayrecord|partial)")
_TOTALS = [f"{what}_{split}" for what in ("documents", "characters", "tokens") for split in SPLITS]
_DUPLICATES = {"exact-deduplication": "exact_duplicate", "MinHash": "near_duplicate"}


def check_outputs(plan: Plan) -> None:
    """Looks at the places of what a build writes. Raises: ConfigError: something else is there."""
    mixture = plan.mixture
    path, out = mixture.statistics, mixture.out
    try:
        for folder in (out, *(out / planned.source.name for planned in plan.sources)):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(
                    f"{mixture.path}: out={out}: {folder} is no folder; move it away, or choose another `out`"
                )
        if path is not None and (path.is_dir() or any(p.exists() and not p.is_dir() for p in path.parents)):
            raise ConfigError(
                f"{mixture.path}: statistics={path}: want a file in a folder; this cannot be one"
            )
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ConfigError(
            f"{mixture.path}: {error.filename}: {error.strerror}; choose another `out` or `statistics`"
        ) from None


def finish(plan: Plan) -> dict[str, Any]:
    """Writes the manifests, each last and at once, and the statistics; returns the latter. Raises: DataError:
    nothing is left of a source, or one of its shards occurs twice."""
    made = {planned.source.name: _manifest(plan, planned) for planned in plan.sources}
    for name, manifest in made.items():
        check_files(plan.mixture.out / name, manifest, digests=False)  # which `read_result` has looked at
    for name, manifest in made.items():
        if not manifest.files["heldout"]:
            _LOG.warning("WARNING: sources.%s: no document was held out; none can be evaluated on", name)
        folder = plan.mixture.out / name
        path, text = folder / MANIFEST, manifest.to_json()
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text)
        names = {file.name for file in manifest.every_file()}
        for stray in folder.iterdir():
            if _OURS.fullmatch(stray.name) and stray.name not in names:
                stray.unlink()
    statistics = mixture_statistics(plan, made)
    if plan.mixture.statistics is not None:
        write_atomic(plan.mixture.statistics, json.dumps(statistics, indent=1) + "\n")
    return statistics


def _manifest(plan: Plan, planned: PlannedSource) -> ShardManifest:
    source, mixture = planned.source, plan.mixture
    results = []
    for task in range(planned.first, planned.first + source.shards):
        if (result := read_result(plan, task)) is None:
            raise DataError(
                f"{mixture.out}: the shards of task {task} changed while they were built; build again"
            )
        results.append(result)
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
    totals = dict.fromkeys(_TOTALS, 0)
    for split, result, file in ((s, r, file) for r in results for s, file in r.files.items()):
        totals[f"documents_{split}"] += file.documents
        totals[f"characters_{split}"] += result.characters[split]
        totals[f"tokens_{split}"] += file.tokens
    rejected: Counter[str] = Counter()
    splits = set()
    for stage, first in ((planned.stage, 0), (plan.shards_stage, planned.first)):
        for task in range(first, first + planned.source.shards):
            for step in stage.statistics(task):
                rejected.update(_dropped(step))
                splits |= {key.removeprefix("split_") for key in step["stats"] if key.startswith("split_")}
    remote = planned.source.reader == "huggingface"
    own = {"split": sorted(splits)} if remote else {"input_bytes": planned.size}
    read = sum(rejected.values()) + sum(totals[f"documents_{split}"] for split in SPLITS)
    return {**own, "read": read, "rejected": dict(sorted(rejected.items())), **totals}


def _dropped(step: dict[str, Any]) -> dict[str, int]:
    """Documents that a step rejected, by reason."""
    totals = {key: n["total"] if isinstance(n, dict) else n for key, n in step["stats"].items()}
    named = {k.removeprefix("dropped_"): int(n) for k, n in totals.items() if k.startswith("dropped_") and n}
    rest = int(totals.get("dropped", 0)) - sum(named.values())
    if rest > 0:
        reason = next((r for mark, r in _DUPLICATES.items() if mark in step["name"]), step["name"])
        named[reason] = rest
    return named


def mixture_statistics(plan: Plan, made: dict[str, ShardManifest]) -> dict[str, Any]:
    """Counts, weights and digests of all sources. tokens_until_repeated: of the whole mixture, after which
    the source has been read once at its weight. epochs: of the source, in a run of `train_tokens`."""
    mixture, sources = plan.mixture, {}
    for source in mixture.sources:
        manifest = made[source.name]
        tokens = manifest.statistics["tokens_train"]
        entry: dict[str, Any] = {
            "weight": source.weight,
            "licence": source.licence,
            "origin": source.origin,
            **manifest.statistics,
            "tokens_until_repeated": round(tokens / source.weight),
        }
        if mixture.train_tokens is not None:
            entry["epochs"] = round(mixture.train_tokens * source.weight / tokens, 4)
        entry["sha256"] = {f.name: f.sha256 for f in manifest.every_file()}
        sources[source.name] = entry
    keys = ("row_tokens", "document_multiple", "holdout", "salt", "train_tokens")
    return {
        "manifest": mixture.path.name,
        "tokenizer_sha256": plan.tokenizer.sha256,
        "vocab_size": plan.tokenizer.vocab_size,
        **{key: getattr(mixture, key) for key in keys},
        **{key: sum(s[key] for s in sources.values()) for key in _TOTALS},
        "sources": sources,
    }


def table(statistics: dict[str, Any]) -> str:
    """The statistics for people."""
    rows = [["source", "weight", "read", "kept", "held out", "tokens", "char/token", "rejected"]]
    for name, s in statistics["sources"].items():
        documents, tokens, characters = (
            sum(s[f"{what}_{split}"] for split in SPLITS) for what in ("documents", "tokens", "characters")
        )
        reasons = ", ".join(f"{count} {reason}" for reason, count in s["rejected"].items()) or "none"
        counts = (s["read"], documents, s["documents_heldout"], tokens)
        rows.append([name, f"{s['weight']:g}", *map(str, counts), f"{characters / tokens:.2f}", reasons])
    lines = columns([row[:-1] for row in rows])
    return "\n".join(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True))
