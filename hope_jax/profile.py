"""Where a train step's time goes, by part of the model (CPU).

python -m hope_jax.profile --step=MODE/VARIANT [--top=25] [--json=FILE]
python -m hope_jax.profile --step=small/bROWS/VARIANT [--top=25] [--json=FILE]
python -m hope_jax.profile --config=FILE [--config.KEY=VALUE ...] [--top=25] [--json=FILE]

--step is the step that `python -m hope_jax.bench step/MODE/VARIANT` times, or a case of
`python -m hope_jax.bench step_small/bROWS`. Compiles the step, runs it twice,
traces a third run and joins the trace's times with the names in the compiled program. For each part: its
share of the step's wall time; of its own time, what is spent in the backward pass, in forward work done again
there, and in operations that contain a matrix product, with the rate of those. Then the operations that take
longest. A traced run is slower than others: read shares, not times.
"""

from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say

_STEP = flags.DEFINE_string(
    "step", None, "MODE/VARIANT of the benchmark `step`, for example online/titan; or small/b1/VARIANT."
)
_TOP = flags.DEFINE_integer("top", 25, "Operations listed.", lower_bound=0)
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
    mode, _, variant = str(_STEP.value).rpartition("/")
    if mode in ("small/b1", "small/b4") and variant in steps.PUBLISHED:
        return steps.small(variant, int(mode[-1]))
    variants = (steps.BASE, *steps.VARIANTS)
    if mode not in steps.MODES or variant not in variants:
        raise ConfigError(
            f"--step={_STEP.value}: want MODE/VARIANT, MODE one of {', '.join(steps.MODES)}, VARIANT one of "
            f"{', '.join(variants)}; or small/b1/VARIANT or small/b4/VARIANT, VARIANT one "
            f"of {', '.join(steps.PUBLISHED)}"
        )
    return steps.pilot_step(variant, mode)


SUMS = ("seconds", "backward", "recomputed", "products", "gflops")
"""Figures of a part; the last one is a rate."""


def profile(config: ExperimentConfig, top: int) -> dict[str, Any]:
    """Compiles, runs and traces the step of a configuration.

    Returns: seconds: of the traced step. products: FLOPs of the matrix products that ran. useful: FLOPs that
    the step's equations need (docs/speed.md). parts: the longest first, each with its wall time and, of it,
    what is backward, recomputed, or in operations with products, whose rate is gflops. top: the `top` longest
    operations, each with its part, its time in all its runs, and its source.
    """
    import jax

    from hope_jax.config import assemble
    from hope_jax.perf.op_times import traced, wall_times
    from hope_jax.perf.parts import Ops
    from hope_jax.perf.steps import StepRun

    run = StepRun(config)
    ops = Ops(run.executable.as_text())
    for _ in range(2):
        jax.block_until_ready(run())
    found = [each for each in traced(run) if each[0] in ops]
    parts: dict[str, dict[str, Any]] = {}
    operations: list[dict[str, Any]] = []
    products = 0.0
    for name, (seconds, runs) in wall_times(found, ops.is_control).items():
        op = ops[name]
        work = op.product_flops * runs / 1e9
        products += op.product_flops * runs
        part = parts.setdefault(op.part, {"part": op.part, **dict.fromkeys(SUMS, 0.0)})
        forward_again = (op.backward and not op.recomputed, op.recomputed)
        own = [seconds * share for share in (1, *forward_again, work > 0)]
        part.update({key: part[key] + value for key, value in zip(SUMS, [*own, work], strict=True)})
        row = {"name": name, "part": op.part, "seconds": seconds, "runs": runs}
        operations.append({**row, "gflops": work / seconds if seconds else 0.0, "source": op.source})
    for part in parts.values():
        part["gflops"] /= part["products"] or 1.0

    def longest(rows: Any) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: -row["seconds"])

    return {
        "seconds": sum(part["seconds"] for part in parts.values()),
        "products": products,
        "useful": assemble.flops_per_token(config) * config.data.batch_size * config.data.seq_len,
        "parts": longest(parts.values()),
        "top": longest(operations)[:top],
    }


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
