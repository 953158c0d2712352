"""Build token shards of a mixture: read, filter, remove duplicates, encode, pack, and say what was done.

python -m hope_jax.data.build --manifest=FILE [--out=DIR] [--only=SOURCE,...] [--workers=N] [--executor=KIND]
    [--dry_run] [--json]

Run again, it skips what is done and verified, goes on where it was killed, and makes again what was damaged.
docs/data.md describes the manifest; data/mixtures/ holds two. Needs pip install 'hope_jax[data]'.
"""

import dataclasses
import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.core.output import say
from hope_jax.data.building.recipe import Mixture, load_manifest
from hope_jax.data.building.tasks import LOCK, Plan, make_plan

_MANIFEST = cli.define_path("manifest", "YAML file that describes the mixture.")
_OUT = cli.define_path("out", "Folder of the shards, instead of the manifest's.")
_ONLY = flags.DEFINE_string(
    "only", None, "Sources to build, as a mixture of their own; needs --out.", allow_override=True
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Tasks to run at once; 0: one a core.", lower_bound=0, allow_override=True
)
_EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "slurm", "ray"], "Where tasks run; the manifest holds its arguments.",
    allow_override=True,
)  # fmt: skip
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only say what would be built.", allow_override=True)
_JSON = flags.DEFINE_boolean("json", False, "Print the statistics as one JSON object.", allow_override=True)

_LOG = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Builds the mixture of `--manifest` and prints its statistics."""
    cli.refuse_arguments(argv)
    if not _MANIFEST.value:
        raise ConfigError("--manifest is missing; want a YAML file, for example data/mixtures/sample.yaml")
    try:
        from hope_jax.data.building import filters, finish, stages
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; building shards needs pip install 'hope_jax[data]'"
        ) from error
    planned = make_plan(_chosen(load_manifest(Path(_MANIFEST.value))))
    words = filters.make_words(planned.mixture.words)
    for source in planned.mixture.sources:
        filters.make_filters(source, words)
    finish.check_outputs(planned)
    if _DRY_RUN.value:
        say(_description(planned))
        return
    with _alone(planned.mixture.out):
        if not stages.run(planned, _EXECUTOR.value, _WORKERS.value or os.cpu_count() or 1):
            _LOG.info("handed to Slurm; run the command again when its jobs are done, to verify and finish")
            return
        statistics = finish.finish(planned)
    say(json.dumps(statistics) if _JSON.value else finish.table(statistics))


def _chosen(mixture: Mixture) -> Mixture:
    """The mixture with `--out` and `--only`."""
    if _OUT.value:
        mixture = dataclasses.replace(mixture, out=Path(_OUT.value).resolve())
    if _ONLY.value is None:
        return mixture
    if not _OUT.value:
        raise ConfigError(
            f"--only={_ONLY.value}: needs --out=DIR: duplicates that these sources share with the others "
            "stay, so their shards are not those of the whole mixture"
        )
    names = _ONLY.value.split(",")
    known = {source.name: source for source in mixture.sources}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"--only={_ONLY.value}: no source {unknown[0]!r}; {instead(unknown[0], known, 'there are')}"
        )
    chosen = tuple(source for source in mixture.sources if source.name in names)
    return dataclasses.replace(mixture, sources=chosen, statistics=None)


def _description(planned: Plan) -> str:
    mixture = planned.mixture
    lines = [
        f"{mixture.path} -> {mixture.out}",
        f"tokenizer {mixture.tokenizer}: {planned.tokenizer.vocab_size} pieces, sha256 "
        f"{planned.tokenizer.sha256}",
        f"rows of {mixture.row_tokens} tokens; {mixture.holdout:.2%} of the documents held out",
        f"duplicates: exact {'on' if mixture.dedup.exact else 'off'}, near "
        f"{'off' if mixture.dedup.minhash is None else 'on'}, over all sources",
    ]
    for one in planned.sources:
        source = one.source
        where = f"{len(one.files)} files, {one.size:,} bytes"
        if source.reader == "huggingface":
            where = f"{source.dataset} {source.config or ''} split {source.split}"
        lines.append(
            f"{source.name}: weight {source.weight:g}, {source.reader}, {where}, limit "
            f"{source.limit or 'none'}, {source.shards} shards, filters "
            f"{', '.join(source.filters) or 'none'}, licence {source.licence or '?'}"
        )
    return "\n".join(lines)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the lock of an output folder. Raises: DataError: another build has it, or it or a file cannot be
    written; those that cannot be read are one already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / LOCK).open("w") as file:
            try:
                # Unlike flock's, this lock is not inherited by processes that outlive this one.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                problem = "another build is writing there; wait for it, or choose another --out"
                raise DataError(f"{out}: {problem}") from None
            yield
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE):  # of processes, not of files
            raise
        raise DataError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}; make room, or "
            "choose another --out; run again, what is done stays"
        ) from error


if __name__ == "__main__":
    cli.run_command(main)
