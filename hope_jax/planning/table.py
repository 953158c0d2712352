"""A plan as a table for people."""

from collections.abc import Iterator
from typing import Any

from hope_jax.planning.devices import GIB

NOTE = (
    "Compiled, not run: times are bounds from published peaks, never forecasts. Counts walk the compiled "
    "program with its loops' lengths; a conditional counts its costlier branch, one under the scope `logged` "
    "its cheaper one; no cache is assumed between kernels."
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


_COMPARED = (
    ("memory, peak", ("memory_bytes", "peak")),
    ("bytes accessed", ("bytes_accessed",)),
    ("kernel launches", ("launches",)),
    ("conditionals", ("conditionals",)),
    ("bound on tokens/s", ("bound", "tokens_per_second")),
    ("  and launches", ("bound", "tokens_per_second_with_launches")),
    ("  realistic", ("bound", "tokens_per_second_realistic")),
)
"""Title, and where the figure stands in the step's plan."""


def comparison(plan: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """The step's figures beside those of a plan of before; a dash where one has none."""
    now, then = plan["train"] or {}, before["train"] or {}
    rows = list(_COMPARED)
    for key in ("by_cause", "by_part"):
        rows += [(f"  {each}", (key, each, "bytes")) for each in {**now.get(key, {}), **then.get(key, {})}]
    yield f"{'beside ' + before['config']:<28} {'before':>12} {'now':>12} {'now/before':>10}"
    for title, path in rows:
        old, new = _at(then, path), _at(now, path)
        ratio = f"{new / old:.2f}" if old and new is not None else "-"
        form = _gib if path[-1] in ("bytes", "peak", "bytes_accessed") else "{:,.0f}".format
        shown = ["-" if value is None else form(value) for value in (old, new)]
        yield f"  {title:<26} {shown[0]:>12} {shown[1]:>12} {ratio:>10}"


def _at(plan: dict[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = plan
    for key in path:
        found = (found or {}).get(key)
    return found


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
    if "Pallas kernels" in train["by_cause"]:
        runs = train["by_cause"]["Pallas kernels"]["launches"]
        yield _row("  not counted", f"those of {runs:,.0f} launches of Pallas kernels")
    yield _row("bytes accessed", _gib(train["bytes_accessed"]))
    for key, title in (("by_cause", "cause"), ("by_part", "part of the model")):
        yield f"    {'by ' + title:<26} {'GiB':>10} {'share':>7} {'launches':>10}"
        for name, sums in train[key].items():
            share = sums["bytes"] / (train["bytes_accessed"] or 1)
            yield f"    {name:<26} {sums['bytes'] / GIB:>10,.2f} {share:>7.1%} {sums['launches']:>10,.0f}"
    yield _row("kernel launches", f"{train['launches']:,.0f}")
    logged = f", {train['conditionals_logged']:,.0f} of them on logged steps alone"
    yield _row(
        "conditionals run", f"{train['conditionals']:,.0f}{logged * (train['conditionals_logged'] > 0)}"
    )
    for kind, each in train["collectives"].items():
        yield _row(kind, f"{each['times']:.0f} a step, {_gib(each['payload'])}, {_gib(each['sent'])} sent")
    once = train["compiler_counts_loops_once"]
    if once["flops"] is not None:
        yield _row("compiler's own count", f"{_tera(once['flops'])}, {_gib(once['bytes'])}; loops once")
    if train["loops_of_unknown_length"]:
        yield _row("loops of unknown length", f"{train['loops_of_unknown_length']}, counted once")
    if train["bound"]:
        yield from _bound_lines(train["bound"])
    if train["largest"]:
        yield "  the largest kernels: GiB in all, MiB each, runs, cause, part, name, source, path, results"
    for kernel in train["largest"]:
        moved, each = kernel["runs"] * kernel["bytes"] / GIB, kernel["bytes"] / 2**20
        words = [kernel[key] for key in ("cause", "part", "name", "source", "op_name")]
        shapes = " ".join(kernel["results"])[:100]
        yield f"  {moved:>9.2f} {each:>9.2f} x{kernel['runs']:<7,.0f} {', '.join((*words, shapes))}"


def _bound_lines(bound: dict[str, Any]) -> Iterator[str]:
    parts = ", ".join(f"{part} {value:.4g} s" for part, value in bound["seconds"].items())
    yield _row("bound on the step's time", f"{bound['step_seconds']:.4g} s ({parts})")
    beside = f"launches {bound['launch_seconds']:.4g} s, compute {bound['realistic_compute_seconds']:.4g} s"
    yield _row("  not in it, realistic", beside)
    for title, key in (
        ("bound on tokens/s, in all", "tokens_per_second"),
        ("  with launches", "tokens_per_second_with_launches"),
        ("  and realistic products", "tokens_per_second_realistic"),
    ):
        yield _row(title, f"{bound[key]:,.0f}" if bound[key] else "-")


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
