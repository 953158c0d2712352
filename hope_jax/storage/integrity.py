"""Whether what is on disk is what was written: checkpoints and workdirs, everything recomputed."""

from pathlib import Path
from typing import NamedTuple

import yaml

from hope_jax.storage import digests as manifest
from hope_jax.storage import seal, stored
from hope_jax.storage.digests import BadFileError


class Verified(NamedTuple):
    """What was found good. digest: of the arrays (a workdir's: of its newest checkpoint). files: how many.
    extra: paths of others that lie in the checkpoints' folders, and are none of theirs."""

    digest: str
    files: int
    extra: tuple[str, ...] = ()


def verify(path: Path) -> Verified:
    """Recomputes every digest of a workdir, a folder `checkpoints`, or one `checkpoints/<step>`.

    Raises: BadFileError: names the first bad file. CheckpointError: there is nothing to verify.
    """
    path = path.absolute()
    folder, newest = stored.resolve(path)
    if stored.step_of(path) is not None:
        return verify_checkpoint(folder, newest)
    # a seal whose folder is gone counts too
    entries = [entry.with_suffix("") if entry.suffix == ".sha256" else entry for entry in folder.iterdir()]
    steps = sorted({step for entry in entries if (step := stored.step_of(entry)) is not None})
    each = {step: verify_checkpoint(folder, step) for step in steps}
    extra = tuple(name for one in each.values() for name in one.extra)
    return Verified(each[newest].digest, sum(one.files for one in each.values()), extra)


def verify_checkpoint(folder: Path, step: int, *, strict: bool = False) -> Verified:
    """Files against their list; arrays, cursor and configuration against the metadata beside them.

    strict: its folder holds no other file.
    Raises: BadFileError: names the first bad file, by its path.
    """
    try:
        meta = seal.check(folder, step, strict=strict)
        listed = manifest.parse(manifest.read_text(folder / f"{step}.sha256"), f"{step}.sha256")
        extra = tuple(str(folder / name) for name in seal.extra_files(folder, step))
        loaded = stored.load_checkpoint(folder / str(step), verify=False)
        found = {
            "checkpoint_digest": stored.digest(loaded),
            "tokenizer_digest": loaded.meta.get("tokenizer_digest"),
            "data": loaded.data,
        }
        for key, value in found.items():
            if meta.get(key) != value:
                problem = f"says {key} is {meta.get(key)!r}, the checkpoint's is {value!r}"
                raise BadFileError(f"{step}.meta.json", problem)
        if yaml.safe_load(manifest.read_text(folder / f"{step}.yaml")) != loaded.config:
            raise BadFileError(f"{step}.yaml", "is another configuration than the checkpoint's own")
    except BadFileError as error:
        raise error.under(folder) from error
    return Verified(found["checkpoint_digest"], len(listed) + 1, extra)


def digest(path: Path) -> str:
    """The digest of a checkpoint's arrays and cursor; its files are checked first.

    Raises: CheckpointError.
    """
    return stored.digest(stored.load_checkpoint(path))
