"""Make a release bundle: a checkpoint with all that it needs, and all that is known of it, in one folder.

python -m hope_jax.package --checkpoint=PATH --out=FOLDER [--baseline=PATH ...] [--evals=FOLDER ...]

PATH is a workdir (its newest checkpoint) or one checkpoints/<step>; it is verified first. The bundle has the
checkpoint, its configuration, tokenizer, logs and plots, the parameters as safetensors, a model card, and
digests of everything. Baselines are taken along whole, of evaluations the JSON files. The bundle is written
beside --out and renamed when it is complete. `python -m hope_jax.verify FOLDER` recomputes everything in it,
and --checkpoint=FOLDER of other commands needs nothing else. docs/release.md describes it.
"""

from pathlib import Path

from hope_jax import cli
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say

_CHECKPOINT = cli.define_checkpoint()
_OUT = cli.define_path("out", "Folder to make.")
_BASELINES = cli.define_paths("baseline", "Checkpoint to take along; may be given again.")
_EVALS = cli.define_paths("evals", "Folder of evaluations' .json files; may be given again.")


def main(argv: list[str]) -> None:
    """Makes the bundle and prints its checkpoint's digest."""
    cli.refuse_arguments(argv)
    if not _CHECKPOINT.value or not _OUT.value:
        missing = "--out" if _CHECKPOINT.value else "--checkpoint"
        raise ConfigError(f"{missing} is missing; want --checkpoint=WORKDIR --out=FOLDER")
    # JAX and Orbax take seconds to import
    from hope_jax.release import bundle

    out = Path(_OUT.value)
    made = bundle.write(
        out, Path(_CHECKPOINT.value), [Path(p) for p in _BASELINES.value], [Path(p) for p in _EVALS.value]
    )
    say(f"{out}: {made.files} files, digest {made.digest}")


if __name__ == "__main__":
    cli.run_command(main)
