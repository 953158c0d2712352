"""Compiles the rows of docs/plan.md for devices that need not be here, and writes its tables.

python docs/make_plan.py [--json=FOLDER] [--tables] [ROW ...]

A row is minutes of compiling. Each leaves a JSON in FOLDER (default: docs/plan). One that is there is not
compiled again: delete the file for that, or start the script again where it was stopped. ROW is the beginning
of rows' names, `pilot/rtx6000ada:1/`; none: all. --tables only writes the page. Rows that have no JSON are
named in the page.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("plan.md")
BEGIN, END = "<!-- made by docs/make_plan.py -->", "<!-- end -->"
GIB = 2**30


class Row(NamedTuple):
    """One command. flags: besides --config, --topology and --json."""

    config: str
    mode: str
    topology: str
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """CONFIG/TOPOLOGY/MODE."""
        return f"{self.config}/{self.topology}/{self.mode}"

    @property
    def command(self) -> list[str]:
        """Arguments of `python`."""
        head = ["-m", "hope_jax.plan", f"--config=configs/{self.config}.py", f"--topology={self.topology}"]
        return [*head, *self.flags]


def _set(**values: object) -> tuple[str, ...]:
    """Overrides: `train__steps=3` is train.steps."""
    return tuple(f"--config.{key.replace('__', '.')}={value}" for key, value in values.items())


_MODES = {
    **{f"online, N {n}": ("pilot", _set(train__online_chunk_size=n)) for n in (512, 128, 32)},
    "two_pass": ("pilot", _set(train__algorithm_mode="two_pass", train__online_chunk_size=0)),
    "two_pass, scope=batch": (
        "pilot",
        _set(train__algorithm_mode="two_pass", train__online_chunk_size=0, memory__scope="batch"),
    ),
    "pilot_reference": ("pilot_reference", ()),
}
_CONTEXTS = "--contexts=2048,32768,1048576"


def _train(rows: int) -> tuple[str, ...]:
    return ("--nolargest_batch", *_set(data__batch_size=rows))


def rows() -> Iterator[Row]:
    """All, the most telling first."""
    for topology, batch in (("rtx6000ada:1", 6), ("h100:1", 6), ("rtx6000ada:2", 6), ("v5e:4x4", 16)):
        for mode, (config, flags) in _MODES.items():
            yield Row(config, mode, topology, (*_train(batch), *flags))
    # Sixteen devices take the file's 128 rows in eight parts, as sixteen would leave some without a row.
    for topology, flags in (("rtx6000ada:2", ()), ("h100:8", ()), ("v5e:4x4", _set(train__accumulate=8))):
        for config in ("hope_340m", "hope_760m", "hope_1300m"):
            yield Row(config, "as its file", topology, ("--nolargest_batch", *flags))
    yield Row("mid_stage2", "as its file", "rtx6000ada:2", ("--nolargest_batch",))
    for variant, window in (("hope_hybrid", 2048), *((each, 0) for each in _STREAMED)):
        streamed = _set(
            model__block_variant=variant, model__sliding_window=window, train__online_chunk_size=32
        )
        mode = f"stream, {variant}, N 32, {f'window {window:,}' if window else 'no window'}"
        yield Row("pilot", mode, "rtx6000ada:1", ("--notrain", "--streaming", _CONTEXTS, *streamed))


_STREAMED = ("hope_selfmod", "hope_attention", "hope_hybrid")


def compile_row(row: Row, target: Path, commit: str) -> bool:
    """Runs its command and leaves the plan in `target`. Returns: whether it could."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        command = [sys.executable, *row.command, f"--json={plan}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            return False
        found = json.loads(plan.read_text())
    found["made"] = {"date": datetime.date.today().isoformat(), "commit": commit}
    for part in (found["train"] or {}, *(found["streaming"] or ())):
        part.pop("largest", None)
    text = json.dumps(found, indent=1) + "\n"
    target.with_suffix(".part").write_text(text)
    target.with_suffix(".part").replace(target)
    return True


def file_of(row: Row, folder: Path) -> Path:
    """Where its plan is kept."""
    return folder / (re.sub(r"\W+", "-", row.name) + ".json")


def tables(folder: Path) -> str:
    """What stands between the page's markers, from the plans in `folder`."""
    plans = {
        row: json.loads(file_of(row, folder).read_text()) for row in rows() if file_of(row, folder).exists()
    }
    absent = [row.name for row in rows() if row not in plans]
    trained = {row: plan for row, plan in plans.items() if plan["train"]}
    own = {row: plan["train"] for row, plan in trained.items() if row.topology == "rtx6000ada:1"}
    parts = [_train_table(trained)]
    for key, title in (("by_cause", "What causes the traffic"), ("by_part", "Whose traffic it is")):
        parts.append(f"### {title}\n\nGiB a step on rtx6000ada:1.\n\n{_sums(own, key)}")
    parts.append(
        f"### Streams\n\n{_stream_table({row: plan for row, plan in plans.items() if plan['streaming']})}"
    )
    if absent:
        parts.append("Not compiled: " + "; ".join(f"`{name}`" for name in absent) + ".\n")
    return "\n".join(parts)


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _train_table(plans: dict[Row, dict[str, Any]]) -> str:
    head = ["step", "devices", "rows", "peak, GiB", "TFLOP", "useful", "GiB moved", "GiB sent", "launches"]
    head += ["tokens/s at most", "with launches", "realistic", "made"]
    body = []
    for row, plan in plans.items():
        train, devices = plan["train"], plan["topology"]["devices"]
        made = f"{plan['made']['date']}, {plan['made']['commit']}"
        name = row.mode if row.config.startswith("pilot") else row.config
        cells = [name, row.topology, f"{plan['batch_size'] / devices:g}"]
        if "refused" in train:
            needed = train["refused"]
            cells += [f"{f'{needed / GIB:.1f}, ' if needed else ''}refused: does not fit", *["–"] * 8, made]
        else:
            room, bound = train["capacity_bytes"], train["bound"]
            fits = f" of {room / GIB:.1f}" if train["fits"] else ", does not fit"
            flops = sum(train["matmul_flops"].values()) / 1e12
            cells += [f"{train['memory_bytes']['peak'] / GIB:.1f}{fits}", f"{flops:.1f}"]
            cells += [f"{train['useful_share']:.0%}", f"{train['bytes_accessed'] / GIB:,.0f}"]
            sent = sum(each["sent"] for each in train["collectives"].values())
            cells += [f"{sent / GIB:.2f}", f"{train['launches']:,.0f}", f"{bound['tokens_per_second']:,.0f}"]
            cells += [f"{bound[f'tokens_per_second_{key}']:,.0f}" for key in ("with_launches", "realistic")]
            cells += [made]
        body.append(cells)
    return _table(head, body)


def _sums(plans: dict[Row, dict[str, Any]], key: str) -> str:
    own = {row.mode: train[key] for row, train in plans.items() if key in train}
    names = list(dict.fromkeys(name for sums in own.values() for name in sums))
    body = [
        [name, *(f"{sums[name]['bytes'] / GIB:,.0f}" if name in sums else "–" for sums in own.values())]
        for name in names
    ]
    return _table([key.replace("_", " "), *own], body)


def _stream_table(plans: dict[Row, dict[str, Any]]) -> str:
    head = [
        "stream",
        "context",
        "GFLOP",
        "MiB moved",
        "launches",
        "peak, GiB",
        "tokens/s at most",
        "with launches",
    ]
    body = []
    for row, plan in plans.items():
        for each in plan["streaming"]:
            cells = [row.mode.removeprefix("stream, "), f"{each['context']:,}"]
            if "refused" in each:
                body.append([*cells, *["refused: does not fit"], *["–"] * 5])
                continue
            tokens, bound = each["tokens"], each["bound"]
            cells += [f"{sum(each['matmul_flops'].values()) / tokens / 1e9:.3g}"]
            cells += [f"{each['bytes_accessed'] / tokens / 2**20:,.0f}", f"{each['launches'] / tokens:,.0f}"]
            cells += [f"{each['memory_bytes']['peak'] / GIB:.2f}{'' if each['fits'] else ', does not fit'}"]
            cells += [f"{bound[f'tokens_per_second{key}']:,.0f}" for key in ("", "_with_launches")]
            body.append(cells)
    return _table(head, body)


def renewed(page: str, made: str) -> str:
    """The page with other tables."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Compiles what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=PAGE.with_suffix(""))
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("rows", nargs="*")
    asked = parser.parse_args()
    asked.json.mkdir(parents=True, exist_ok=True)
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    failed = []
    for row in rows() if not asked.tables else ():
        wanted = not asked.rows or any(row.name.startswith(name) for name in asked.rows)
        if wanted and not file_of(row, asked.json).exists():
            print(f"== {row.name}", flush=True)
            if not compile_row(row, file_of(row, asked.json), commit):
                failed.append(row.name)
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), tables(asked.json)), encoding="utf-8")
    sys.exit(f"not compiled: {', '.join(failed)}" if failed else None)


if __name__ == "__main__":
    main()
