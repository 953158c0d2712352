"""A plan as a table for people."""

from collections.abc import Iterator
from typing import Any

from hope_jax.planning.devices import GIB

NOTE = (
    "Compiled, not run: times are bounds from published peaks, never forecasts. Counts walk the compiled "
    "program with its loops' lengths; a conditional counts its costlier branch; no cache is assumed between "
    "kernels."
)


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """The table."""
    topology = plan["topology"]
    yield f"{plan['config']} on {topology['devices']} x {topology['title']} ({topology['name']})"
    if plan["train"]:
        yield from _train_lines(plan["train"], plan["batch_size"])
    for at, helps in enumerate(plan["remedies"]):
        yield _row("" if at else "what helps", helps)
    if plan["largest_batch"]:
        yield from _fit_lines(plan["largest_batch"])
    if plan["streaming"]:
        yield from _stream_lines(plan["streaming"])
    yield NOTE


def _train_lines(train: dict[str, Any], rows: int) -> Iterator[str]:
    yield f"train step, batch of {rows} rows, {train['tokens']} tokens; all figures per device"
    if "refused" in train:
        needed = train["refused"]
        yield _row("memory", f"does not fit: the compiler refused{f' ({_gib(needed)})' if needed else ''}")
        return
    memory, capacity = train["memory_bytes"], train["capacity_bytes"]
    room = f" of {_gib(capacity)}: {'fits' if train['fits'] else 'does NOT fit'}" if capacity else ""
    yield _row("memory, peak", f"{_gib(memory['peak'])}{room}")
    for part in ("arguments", "outputs", "aliased", "temporaries", "code"):
        yield _row(f"  {part}", _gib(memory[part]))
    flops = train["matmul_flops"]
    by_type = ", ".join(f"{dtype} {_tera(value)}" for dtype, value in sorted(flops.items()))
    yield _row("FLOPs of matrix products", f"{_tera(sum(flops.values()))} ({by_type})")
    share = f", {train['useful_share']:.0%}" if train["useful_share"] else ""
    yield _row("  useful (models/flops.py)", f"{_tera(train['useful_flops'])}{share}")
    yield _row("bytes accessed", _gib(train["bytes_accessed"]))
    for kind, each in train["collectives"].items():
        yield _row(kind, f"{each['times']:.0f} a step, {_gib(each['payload'])}, {_gib(each['sent'])} sent")
    once = train["compiler_counts_loops_once"]
    if once["flops"] is not None:
        yield _row("compiler's own count", f"{_tera(once['flops'])}, {_gib(once['bytes'])}; loops once")
    if train["loops_of_unknown_length"]:
        yield _row("loops of unknown length", f"{train['loops_of_unknown_length']}, counted once")
    if train["bound"]:
        seconds = train["bound"]["seconds"]
        parts = ", ".join(f"{part} {value:.4g} s" for part, value in seconds.items())
        yield _row("bound on the step's time", f"{train['bound']['step_seconds']:.4g} s ({parts})")
        yield _row("bound on tokens/s, in all", f"{train['bound']['tokens_per_second']:,.0f}")


def _fit_lines(fit: dict[str, Any]) -> Iterator[str]:
    largest, failing = fit["per_device"], fit["smallest_failing"]
    if failing is None:
        text = f"at least {largest} rows"
    elif fit["exact"]:
        text = f"{largest} rows ({failing} do not fit)" if largest else "none: one row does not fit"
    else:
        text = f"{largest} to {failing - 1} rows ({failing} do not fit)"
    yield _row("largest batch a device", text)


def _stream_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"streaming, one text on one device, {rows[0]['tokens']} tokens a chunk read and written; per token"
    yield f"  {'context':>9} {'GFLOP':>9} {'MiB moved':>10} {'peak memory':>12} {'bound, tokens/s':>16}"
    for row in rows:
        if "refused" in row:
            yield f"  {row['context']:>9} does not fit: the compiler refused"
            continue
        flops = sum(row["matmul_flops"].values()) / row["tokens"] / 1e9
        moved = row["bytes_accessed"] / row["tokens"] / 2**20
        rate = f"{row['bound']['tokens_per_second']:,.0f}" if row["bound"] else "-"
        fits = "" if row["fits"] is not False else "  does NOT fit"
        peak = _gib(row["memory_bytes"]["peak"])
        yield f"  {row['context']:>9} {flops:>9.3f} {moved:>10.1f} {peak:>12} {rate:>16}{fits}"


def _row(name: str, value: str) -> str:
    return f"  {name:<26} {value}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.01 * GIB else f"{size / 2**20:.3g} MiB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP"
