"""Benchmarks: kernels, whole steps, compile time, loader; each beside what it is compared with.

python -m hope_jax.bench [NAME ...] [--json=FILE] [--rounds=5] [--list]
python -m hope_jax.bench --config=FILE [--config.KEY=VALUE ...] [--json=FILE] [--rounds=5]

With --config the train step of a configuration alone, on the first device. NAME is an operation
(`self_mod`) or the beginning of a comparison's name (`self_mod/forward`); none: all of them. Prints one line
a case: median time of a call, spread (interquartile range over median), ratio over the comparison's first
case, share of the float32 matmul peak measured in the same run, tokens/s and what they would be at that peak,
memory of temporaries and compile time, share of the time that was spent waiting for data. Figures are this
machine's: ratios and shares carry over between runs, times do not.
"""

import os
import platform
from collections.abc import Iterator

import jax
from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.output import say
from hope_jax.perf import kernel_benchmarks, loader, steps, streams
from hope_jax.perf.timing import Comparison, Timing, measure

FLAGS = flags.FLAGS
_JSON = cli.define_path("json", "File that receives all figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Samples of each case.", lower_bound=1)
cli.define_config()
_LIST = flags.DEFINE_boolean("list", False, "Print the names of the comparisons and stop.")

MODULES = (kernel_benchmarks, loader, steps, streams)
"""Each with `comparisons() -> Iterator[Comparison]`."""


def comparisons(names: list[str]) -> Iterator[Comparison]:
    """The comparisons that the names select, in order. Raises: ConfigError if a name selects none."""
    operations: dict[str, list[Comparison]] = {}
    for one in (each for module in MODULES for each in module.comparisons()):
        operations.setdefault(one.name.partition("/")[0], []).append(one)
    for name in names or sorted(operations):
        operation = name.partition("/")[0]
        there = operations.get(operation, [])
        chosen = [one for one in there if "/" not in name or one.name.startswith(name)]
        if not chosen:
            known = instead(name, [one.name for one in there] or sorted(operations))
            raise ConfigError(f"bench {name}: unknown; {known}")
        yield from chosen


def _configured(names: list[str]) -> Comparison:
    """The step of `--config`. Raises: ConfigError."""
    if names:
        raise ConfigError(f"bench {names[0]}: leave out the name, or --config, whose step alone is timed")
    config, name = cli.load_config(), f"step/{cli.config_path().stem}"
    return Comparison(name, lambda: (steps.step_case(config.model.block_variant, config),))


COLUMNS: tuple[tuple[str, str, str, int, float], ...] = (
    ("median ms", "seconds", ".2f", 10, 1e3),
    ("spread", "spread", ".1%", 7, 1),
    ("ratio", "ratio", ".2f", 7, 1),
    ("share", "share", ".1%", 7, 1),
    ("tokens/s", "tokens_per_second", ",.0f", 10, 1),
    ("at peak", "tokens_per_second_at_peak", ",.0f", 10, 1),
    ("MiB", "temporary_mib", ".1f", 8, 1),
    ("compile s", "compile_seconds", ".1f", 9, 1),
    ("waits", "wait_share", ".2%", 7, 1),
)
"""Title, key of a `Timing`, format, width, and by how much the figure is multiplied."""

HEADER = f"{'case':34} " + " ".join(f"{title:>{width}}" for title, _, _, width, _ in COLUMNS)


def line(timing: Timing) -> str:
    """One row of the table."""
    cells = [f"  {timing['case']:32}"]
    for _, name, form, width, times in COLUMNS:
        value = timing[name]
        cells.append(f"{'-' if value is None else format(value * times, form):>{width}}")
    return " ".join(cells)


def main(argv: list[str]) -> None:
    """Prints the table and writes the JSON."""
    chosen = [_configured(argv)] if cli.has_config() else list(comparisons(argv))
    if _LIST.value:
        say("\n".join(one.name for one in chosen))
        return
    target = cli.output_file("json", _JSON.value)
    machine = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    found: list[Timing] = []
    say(HEADER)
    for one in chosen:
        timings = measure(one, _ROUNDS.value)
        found += timings
        if target:  # after each comparison: an interrupted run keeps what it has measured
            cli.write_json("json", target, {"machine": machine, "timings": found})
        say(f"{one.name} (peak {timings[0]['peak_gflops']:.0f} GFLOP/s, {_ROUNDS.value} rounds)")
        say("\n".join(line(timing) for timing in timings))
        jax.clear_caches()


if __name__ == "__main__":
    cli.run_command(main)
