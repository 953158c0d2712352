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

import json
from collections import defaultdict
from typing import Any, NamedTuple

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


class PartTime(NamedTuple):
    """seconds: wall time. backward, recomputed, products: of it, in the backward pass; in forward work done
    again; in operations with a matrix product. gflops: rate of the latter."""

    part: str
    seconds: float
    backward: float
    recomputed: float
    products: float
    gflops: float


class TopOp(NamedTuple):
    """One operation; runs: how often it ran."""

    name: str
    part: str
    seconds: float
    runs: int
    gflops: float
    source: str


class Profile(NamedTuple):
    """seconds: of the traced step. parts, top: the longest first. products: FLOPs of the matrix products that
    ran. useful: FLOPs that the step's equations need (docs/speed.md)."""

    seconds: float
    products: float
    useful: float
    parts: list[PartTime]
    top: list[TopOp]


def main(argv: list[str]) -> None:
    """Prints the tables and writes the JSON."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; every option is a flag (--help)")
    target = cli.output_file("json", _JSON.value)
    found = profile(_config(), _TOP.value)
    if target:
        plain = {
            "seconds": found.seconds,
            "products": found.products,
            "useful": found.useful,
            "parts": [part._asdict() for part in found.parts],
            "top": [op._asdict() for op in found.top],
        }
        cli.write_files("json", {target: (json.dumps(plain, indent=1) + "\n").encode()})
    say("\n".join(lines(found)))


def _config() -> ExperimentConfig:
    from hope_jax.perf import small_step as step_small
    from hope_jax.perf import step_benchmark as step

    if not _STEP.value:
        return cli.load_config()
    if cli.has_config():
        raise ConfigError("--step names a step whose configuration is given; leave out --config")
    mode, _, variant = str(_STEP.value).rpartition("/")
    if mode in ("small/b1", "small/b4") and variant in step_small.PUBLISHED:
        return step_small.config(variant, int(mode[-1]))
    if mode not in step.MODES or variant not in (step.BASE, *step.VARIANTS):
        raise ConfigError(
            f"--step={_STEP.value}: want MODE/VARIANT, MODE one of {', '.join(step.MODES)}, VARIANT one of "
            f"{', '.join((step.BASE, *step.VARIANTS))}; or small/b1/VARIANT or small/b4/VARIANT, VARIANT one "
            f"of {', '.join(step_small.PUBLISHED)}"
        )
    return step.config(variant, mode)


def profile(config: ExperimentConfig, top: int) -> Profile:
    """Compiles, runs and traces the step of a configuration."""
    import jax

    from hope_jax.config import assemble
    from hope_jax.perf.op_times import traced, wall_times
    from hope_jax.perf.parts import Ops
    from hope_jax.perf.runs import StepRun, compile_step

    compiled = compile_step(config)
    ops = Ops(compiled.executable.as_text())
    run = StepRun(compiled)
    for _ in range(2):
        jax.block_until_ready(run())
    times = wall_times((each for each in traced(run) if each.name in ops), ops.is_control)
    useful = assemble.flops_per_token(config) * config.data.batch_size * config.data.seq_len
    return summarise({name: (ops[name], time) for name, time in times.items()}, useful, top)


def summarise(times: dict[str, tuple[Any, Any]], useful: float, top: int) -> Profile:
    """times: operation -> (`parts.Op`, `op_times.OpTime`)."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for op, time in times.values():
        work = op.product_flops * time.runs
        own = (1, op.backward and not op.recomputed, op.recomputed, op.product_flops > 0)
        added = [time.seconds * share for share in own]
        sums[op.part] = [a + b for a, b in zip(sums[op.part], [*added, work], strict=True)]
    parts = [
        PartTime(name, total, backward, again, products, work / products / 1e9 if products else 0.0)
        for name, (total, backward, again, products, work) in sums.items()
    ]
    listed = [
        TopOp(name, op.part, time.seconds, time.runs, _rate(op, time), op.source)
        for name, (op, time) in times.items()
    ]
    listed.sort(key=lambda op: -op.seconds)
    parts.sort(key=lambda part: -part.seconds)
    products = sum(op.product_flops * time.runs for op, time in times.values())
    return Profile(sum(part.seconds for part in parts), products, useful, parts, listed[:top])


def _rate(op: Any, time: Any) -> float:
    return op.product_flops * time.runs / time.seconds / 1e9 if time.seconds else 0.0


def lines(found: Profile) -> list[str]:
    """The two tables."""
    columns = "".join(f"{c:>10}" for c in ("ms", "share", "backward", "again", "products", "GFLOP/s"))
    out = [f"{'part':28}{columns}"]
    for part in found.parts:
        inner = [x / part.seconds if part.seconds else 0.0 for x in (part.backward, part.recomputed)]
        inner.append(part.products / part.seconds if part.seconds else 0.0)
        shares = "".join(f"{x:>10.1%}" for x in (part.seconds / found.seconds, *inner))
        out.append(f"{part.part:28}{part.seconds * 1e3:>10.1f}{shares}{part.gflops:>10.0f}")
    out.append(
        f"{'step':28}{found.seconds * 1e3:>10.1f}  {found.products / 1e9:.1f} GFLOP in products, "
        f"{found.products / found.useful:.2f} times the useful"
    )
    if found.top:
        out += ["", f"{'operation':44}{'ms':>9}{'runs':>7}{'GFLOP/s':>9}  part, source"]
    for op in found.top:
        head = f"{op.name:44}{op.seconds * 1e3:>9.1f}{op.runs:>7}{op.gflops:>9.0f}"
        out.append(f"{head}  {op.part}, {op.source}")
    return out


if __name__ == "__main__":
    cli.run_command(main)
