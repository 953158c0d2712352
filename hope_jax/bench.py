"""Benchmarks: kernels, whole steps, compile time, loader; each beside what it is compared with.

python -m hope_jax.bench [NAME ...] [--json=FILE] [--rounds=5] [--list]

NAME is an operation (`self_mod`) or the beginning of a comparison's name (`self_mod/forward`); none: all of
them. Prints one line a case: median time of a call, spread (interquartile range over median), ratio over the
comparison's first case, share of the float32 matmul peak measured in the same run, tokens/s and what they
would be at that peak, memory of temporaries and compile time, share of the time that was spent waiting for
data, and each goal with whether it is met. Figures are this machine's: ratios and shares carry over between
runs, times do not.
"""

import importlib
import json
import os
import platform
from collections.abc import Iterator

import jax
from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.output import say
from hope_jax.perf.timing import Comparison, Timing, measure

FLAGS = flags.FLAGS
_JSON = cli.define_path("json", "File that receives all figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Samples of each case.", lower_bound=1)
_LIST = flags.DEFINE_boolean("list", False, "Print the names of the comparisons and stop.")

MODULES = {
    "causal_conv": "hope_jax.perf.kernels.causal_conv",
    "cms_write": "hope_jax.perf.kernels.cms_write",
    "compile": "hope_jax.perf.compilation",
    "gated_deltanet": "hope_jax.perf.kernels.gated_deltanet",
    "loader": "hope_jax.perf.loader",
    "newton_schulz": "hope_jax.perf.kernels.newton_schulz",
    "self_mod": "hope_jax.perf.kernels.self_mod",
    "step": "hope_jax.perf.step_benchmark",
    "step_small": "hope_jax.perf.small_step",
    "xent_teach": "hope_jax.perf.kernels.xent_teach",
}
"""Operation -> module with `comparisons() -> Iterator[Comparison]`."""


def comparisons(names: list[str]) -> Iterator[Comparison]:
    """The comparisons that the names select, in order. Raises: ConfigError if a name selects none."""
    wanted = names or sorted(MODULES)
    for name in wanted:
        operation = name.partition("/")[0]
        if operation not in MODULES:
            raise ConfigError(f"bench {name}: unknown; {instead(operation, sorted(MODULES))}")
        module = importlib.import_module(MODULES[operation])
        there: list[Comparison] = list(module.comparisons())
        chosen = [one for one in there if "/" not in name or one.name.startswith(name)]
        if not chosen:
            raise ConfigError(f"bench {name}: unknown; {instead(name, [one.name for one in there])}")
        yield from chosen


HEADER = " ".join(
    [
        f"{'case':34}",
        f"{'median ms':>10} {'spread':>7} {'ratio':>7} {'share':>7} {'tokens/s':>10} {'at peak':>10}",
        f"{'MiB':>8} {'compile s':>9} {'waits':>7}  goals",
    ]
)


def line(timing: Timing) -> str:
    """One row of the table."""

    def cell(value: float | None, form: str, width: int) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    goals = "; ".join(f"{goal}: {'met' if met else 'missed'}" for goal, met in timing.met.items())
    return " ".join(
        [
            f"  {timing.case:32}",
            cell(timing.seconds * 1e3, ".2f", 10),
            cell(timing.spread, ".1%", 7),
            cell(timing.ratio, ".2f", 7),
            cell(timing.share, ".1%", 7),
            cell(timing.tokens_per_second, ",.0f", 10),
            cell(timing.tokens_per_second_at_peak, ",.0f", 10),
            cell(timing.temporary_mib, ".1f", 8),
            cell(timing.compile_seconds, ".1f", 9),
            cell(timing.wait_share, ".2%", 7),
            f" {goals}",
        ]
    ).rstrip()


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main(argv: list[str]) -> None:
    """Prints the table and writes the JSON."""
    chosen = list(comparisons(argv))
    if _LIST.value:
        say("\n".join(one.name for one in chosen))
        return
    target = cli.output_file("json", _JSON.value)
    found: list[Timing] = []
    say(HEADER)
    for one in chosen:
        timings = measure(one, _ROUNDS.value)
        found += timings
        if target:  # after each comparison: an interrupted run keeps what it has measured
            report = {"machine": machine(), "timings": [timing._asdict() for timing in found]}
            cli.write_files("json", {target: (json.dumps(report, indent=1) + "\n").encode()})
        say(f"{one.name} (peak {timings[0].peak_gflops:.0f} GFLOP/s, {_ROUNDS.value} rounds)")
        say("\n".join(line(timing) for timing in timings))
        jax.clear_caches()


if __name__ == "__main__":
    cli.run_command(main)
