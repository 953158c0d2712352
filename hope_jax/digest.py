"""Print one digest of a checkpoint: parameters, optimizer, fast state, random stream, data cursor.

python -m hope_jax.digest PATH

PATH is a workdir (its newest checkpoint), one checkpoints/<step>, or a release bundle. The digest does not
depend on the files' layout: two runs that end in the same state have the same one. All files are held against
their own first.
"""

from hope_jax import cli
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say
from hope_jax.core.paths import as_path


def main(argv: list[str]) -> None:
    """Prints the digest alone."""
    if len(argv) != 1:
        raise ConfigError("name one workdir, or one of its checkpoints/<step>")
    # JAX and Orbax take seconds to import
    from hope_jax.storage import stored

    say(stored.digest_of(as_path("PATH", argv[0])))


if __name__ == "__main__":
    cli.run_command(main)
