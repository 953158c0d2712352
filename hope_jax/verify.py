"""Verify checkpoints and release bundles: recompute the digests of all files and arrays.

python -m hope_jax.verify PATH... [--json]

PATH is a workdir (all its checkpoints), a folder checkpoints/, one checkpoints/<step>, or a release bundle
(everything in it). Exit code 0, or 1 with the first bad file named. A file in a checkpoint's folder that is
none of its own is told of on stderr, and changes nothing; in a bundle it is bad. --json prints a line for
each PATH, {"ok", "digest", "files"}; of a good one also "extra" (such files), of a bad one "bad", "problem".
"""

import json
from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import complain, say
from hope_jax.core.paths import as_path

_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object for each path.", allow_override=True)


def main(argv: list[str]) -> int:
    """Verifies every path, the bad ones too, and says what was found."""
    if not argv:
        raise ConfigError("name a workdir, one of its checkpoints/<step>, or a release bundle")
    # JAX and Orbax take seconds to import
    from hope_jax.release import bundle
    from hope_jax.storage import stored
    from hope_jax.storage.digests import BadFileError

    good = True
    for name in argv:
        try:
            path = as_path("PATH", name)
            found = bundle.verify(path) if bundle.is_bundle(path) else stored.verify(path)
        except Exception as error:  # whatever a damaged file makes a library raise: the other paths count too
            good = False
            bad = str(error.path) if isinstance(error, BadFileError) else name
            problem = error.problem if isinstance(error, BadFileError) else str(error)
            report: dict[str, Any] = {"ok": False, "digest": None, "files": 0, "bad": bad, "problem": problem}
            complain(f"error: {error}")
        else:
            report = {"ok": True, "digest": found.digest, "files": found.files, "extra": list(found.extra)}
            if not _JSON.value:
                say(f"{name}: good, {found.files} files, digest {found.digest}")
        if _JSON.value:
            say(json.dumps(report))
    return 0 if good else 1


if __name__ == "__main__":
    cli.run_command(main)
