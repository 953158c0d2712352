"""The page of a device check: what was compared, how fast it was, and what is wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hope_jax.report import page
from hope_jax.report.page import number

GIB = 2**30


def failures(found: dict[str, Any]) -> list[str]:
    """Parts that failed. found: part -> its result."""
    return [name for name, part in found.items() if part.get("ok") is False or "error" in part]


def write(out: Path, found: dict[str, Any], absent: list[str]) -> None:
    """Writes `report.html` and `report.md` into a folder. absent: parts that have not been run."""
    title = found.get("versions", {}).get("devices", "devices unknown")
    page.write(out, "Device check", title, list(_blocks(found, absent)))


def _blocks(found: dict[str, Any], absent: list[str]) -> Iterator[page.Block]:
    for name in failures(found):
        yield page.Warn(f"{name}: {found[name].get('error', 'differs by more than its tolerance')}")
    if absent:
        yield page.Note(f"Not run: {', '.join(absent)}.")
    yield page.Heading("Speed")
    yield page.Note(
        "One device. Useful share: of the published bfloat16 peak. Bounds are those of hope_jax.plan for the "
        "program that ran; with launches: if no step is shorter than its kernel launches."
    )
    yield page.Table(*_speeds(found))
    yield page.Heading("Agreement with the CPU, and of two devices with one")
    yield page.Table(*_agreement(found))
    for name, part in found.items():
        if "profile" in part:
            yield page.Heading(f"{name}: below the wanted share of its bound")
            for kind in ("part", "cause"):
                sums = sorted(part["profile"][kind].items(), key=lambda item: -item[1])
                yield page.Table((kind, "ms"), [(key, number(1e3 * value)) for key, value in sums])
    yield page.Heading("Machine")
    yield page.Values(found.get("versions", {}))


def _speeds(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["step", "tokens/s", "useful share", "bound, tokens/s", "with launches", "share of bound"]
    head += ["peak memory, GiB", "plan's, GiB", "compile s", "attention", "remark"]
    rows = []
    for name, part in found.items():
        if not name.startswith(("pilot/", "size/", "torch")):
            continue
        plan = part.get("plan") or {}
        bound = plan.get("bound") or {}
        attention = part.get("attention", {})
        path = next(
            (each for each in ("attention kernels", "Pallas kernels", "products") if each in attention), None
        )
        remark = part.get("refused") or part.get("absent") or part.get("error") or ""
        cells = [part.get("tokens_per_second"), part.get("useful_share"), bound.get("tokens_per_second")]
        cells += [bound.get("tokens_per_second_with_launches"), part.get("share_of_bound")]
        cells += [_gib(part.get("peak_bytes")), _gib(plan.get("memory_bytes", {}).get("peak"))]
        cells += [plan.get("compile_seconds"), path, remark]
        rows.append([name, *(number(cell) for cell in cells)])
    return head, rows


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GIB


def _agreement(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["what", "dtype", "largest relative difference", "tolerance", "agrees"]
    rows = []
    for name, part in found.items():
        for row in part.get("rows", ()):
            agrees = "yes" if row["ok"] else "NO"
            figures = [number(row["error"]), number(row["tolerance"]), agrees]
            rows.append([name, row["dtype"], *figures])
    return head, rows
