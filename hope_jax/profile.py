"""Where a train step's time goes, by part of the model (CPU).

python -m hope_jax.profile --step=NAME [--top=25] [--json=FILE]
python -m hope_jax.profile --config=FILE [--config.KEY=VALUE ...] [--top=25] [--json=FILE]

--step is the step that `python -m hope_jax.bench step/NAME` times. Compiles the step, runs it twice,
traces a third run and joins the trace's times with the names in the compiled program. For each part: its
share of the time of all operations (which may overlap); of its own time, what is spent in the backward pass,
in forward work done again there, and in operations that contain a matrix product, with the rate of those.
Then the operations that take longest. A traced run is slower than others: read shares, not times.
"""

from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say

_STEP = flags.DEFINE_string("step", None, "NAME of a benchmark `step/NAME`, for example online-512.")
_TOP = flags.DEFINE_integer("top", 25, "Operations listed.", lower_bound=0, allow_override=True)
_JSON = cli.define_path("json", "File for the figures as JSON.")
cli.define_config()


def main(argv: list[str]) -> None:
    """Prints the tables and writes the JSON."""
    cli.refuse_arguments(argv)
    target = cli.output_file("json", _JSON.value)
    found = profile(_config(), _TOP.value)
    if target:
        cli.write_json("json", target, found)
    say("\n".join(lines(found)))


def _config() -> ExperimentConfig:
    from hope_jax.perf import steps

    if not _STEP.value:
        return cli.load_config()
    if cli.has_config():
        raise ConfigError("--step names a step whose configuration is given; leave out --config")
    names = (steps.BASE, *steps.STEPS)
    if _STEP.value not in names:
        raise ConfigError(f"--step={_STEP.value}: want one of {', '.join(names)}")
    return steps.pilot_step(str(_STEP.value))


SUMS = ("seconds", "backward", "recomputed", "products", "gflops")
"""Figures of a part; the last one is a rate."""


def profile(config: ExperimentConfig, top: int) -> dict[str, Any]:
    """Compiles, runs and traces the step of a configuration.

    Returns: seconds: of all operations. products: FLOPs of the matrix products that ran. useful: FLOPs that
    the step's equations need (docs/speed.md). parts: the longest first, each with its seconds and, of them,
    what is backward, recomputed, or in operations with products, whose rate is gflops. top: the `top` longest
    operations, each with its part, its time in all its runs, and its source.
    """
    import jax

    from hope_jax.config import assemble
    from hope_jax.perf.op_times import traced
    from hope_jax.perf.steps import StepRun
    from hope_jax.planning.parts import operations

    run = StepRun(config)
    for _ in range(2):
        jax.block_until_ready(run())
    times = traced(run)
    parts: dict[str, dict[str, Any]] = {}
    rows = []
    for name, op in operations(run.executable.as_text() or "", times).items():
        seconds, runs = times[name]
        work = op.product_flops * runs / 1e9
        part = parts.setdefault(op.part, {"part": op.part, **dict.fromkeys(SUMS, 0.0)})
        shares = (1, op.backward and not op.recomputed, op.recomputed, work > 0)
        for key, value in zip(SUMS, (*(seconds * share for share in shares), work), strict=True):
            part[key] += value
        row = {"name": name, "part": op.part, "seconds": seconds, "runs": runs}
        rows.append({**row, "gflops": work / seconds if seconds else 0.0, "source": op.source})
    products = 1e9 * sum(part["gflops"] for part in parts.values())
    for part in parts.values():
        part["gflops"] /= part["products"] or 1.0
    return {
        "seconds": sum(part["seconds"] for part in parts.values()),
        "products": products,
        "useful": assemble.flops_per_token(config) * config.data.batch_size * config.data.seq_len,
        "parts": sorted(parts.values(), key=_longest),
        "top": sorted(rows, key=_longest)[:top],
    }


def _longest(row: dict[str, Any]) -> float:
    return -float(row["seconds"])


def lines(found: dict[str, Any]) -> list[str]:
    """The two tables."""
    columns = "".join(f"{c:>10}" for c in ("ms", "share", "backward", "again", "products", "GFLOP/s"))
    out = [f"{'part':28}{columns}"]
    for part in found["parts"]:
        own = part["seconds"] or 1.0
        inner = (part[key] / own for key in ("backward", "recomputed", "products"))
        shares = "".join(f"{x:>10.1%}" for x in (part["seconds"] / found["seconds"], *inner))
        out.append(f"{part['part']:28}{part['seconds'] * 1e3:>10.1f}{shares}{part['gflops']:>10.0f}")
    out.append(
        f"{'step':28}{found['seconds'] * 1e3:>10.1f}  {found['products'] / 1e9:.1f} GFLOP in products, "
        f"{found['products'] / found['useful']:.2f} times the useful"
    )
    if found["top"]:
        out += ["", f"{'operation':44}{'ms':>9}{'runs':>7}{'GFLOP/s':>9}  part, source"]
    for op in found["top"]:
        head = f"{op['name']:44}{op['seconds'] * 1e3:>9.1f}{op['runs']:>7}{op['gflops']:>9.0f}"
        out.append(f"{head}  {op['part']}, {op['source']}")
    return out


if __name__ == "__main__":
    cli.run_command(main)
