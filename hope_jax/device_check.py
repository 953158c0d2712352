"""Check a device: the CPU's numbers, tokens/s beside the plan's bound, memory; a report to send in.

python -m hope_jax.device_check --out=DIR [--small] [--again] [PART ...]
python -m hope_jax.device_check --list [--small]

Runs PARTs (all) that have no result in DIR/device_check.json yet, and writes DIR/report.html anew. A part
takes some minutes at most, and is best run in a process of its own (launch/gpu_check.sh does), as memory is
measured over a process. --small: a few parts at toy sizes, which a CPU can run. Exit code 1 where something
disagrees or failed.
"""

import json
import traceback
from pathlib import Path
from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.output import complain, say

_OUT = cli.define_path("out", "Folder of the results; made if it is not there.")
_SMALL = flags.DEFINE_boolean("small", False, "Toy sizes.")
_AGAIN = flags.DEFINE_boolean("again", False, "Also parts that have a result.")
_LIST = flags.DEFINE_boolean("list", False, "Print the parts and stop.", allow_override=True)


def main(argv: list[str]) -> int:
    """Runs the parts and writes the report."""
    from hope_jax.perf import device_check, device_report

    parts = device_check.parts(_SMALL.value)
    if _LIST.value:
        say("\n".join(parts))
        return 0
    for name in argv:
        if name not in parts:
            raise ConfigError(f"device_check {name}: unknown; {instead(name, parts)}")
    if not _OUT.value:
        raise ConfigError("--out is missing; want a folder for the results, for example --out=runs/gpu_check")
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    target = out / "device_check.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    for name in argv or parts:
        if name in found and not _AGAIN.value:
            continue
        say(f"== {name}")
        try:
            result = parts[name]()
        except (
            Exception
        ) as error:  # whatever a device or its compiler makes JAX raise: it belongs in the report
            complain(traceback.format_exc())
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        found[name] = result
        ordered = {part: found[part] for part in parts if part in found}
        cli.write_json("out", target, ordered)
        device_report.write(out, ordered, [part for part in parts if part not in found])
    failed = device_report.failures({name: found[name] for name in argv or parts})
    if failed:
        complain(f"device_check: {', '.join(failed)}: see {out / 'report.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run_command(main)
