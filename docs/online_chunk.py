"""What the length N of an online chunk does to a small model: trains the arms, evaluates them, and prints the
tables of docs/memory.md. docs/online_chunk.json keeps the results; --table_only prints them without runs.

python docs/online_chunk.py [--workdirs=runs/online_chunk] [--table_only]

A run that is finished is not run again. One that diverges has no losses, and the table counts it.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hope_jax.evals import statistics

ROOT, RESULTS = Path(__file__).parents[1], Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
# As many steps and tokens as configs/pilot_smoke.py has, in rows of 2,048 tokens; the whole held-out text.
SETTINGS = {
    "data.seq_len": 2048, "data.batch_size": 1, "train.steps": 100, "checkpoint.every": 100,
    "eval.every": 0, "eval.batches": 0, "eval.generate_tokens": 0, "log.tensorboard": False,
}  # fmt: skip
MEASURES = {
    "with_writes": "held-out loss",
    "without_writes": "without writes",
    "gain": "writes change",
    "continual": "continual loss",
}


class Arm(NamedTuple):
    """chunk: N. cut: K, tokens after which gradients are cut."""

    chunk: int
    cut: int

    def __str__(self) -> str:
        return f"N {self.chunk}" + (f", K {self.cut}" if self.cut != self.chunk else "")


ARMS = SMALL, MIDDLE, LARGE, CUT_LATE = Arm(32, 32), Arm(256, 256), Arm(512, 512), Arm(32, 512)
PAIRS = ((MIDDLE, SMALL), (LARGE, SMALL), (LARGE, MIDDLE), (CUT_LATE, SMALL))


def run(arm: Arm, seed: int, workdirs: Path) -> dict[str, Any]:
    """Trains and evaluates one arm on one seed. Raises: CalledProcessError if the evaluation fails."""
    workdir = workdirs / f"n{arm.chunk}_k{arm.cut}_seed{seed}"
    own = {"train.online_chunk_size": arm.chunk, "train.truncate_tokens": arm.cut, "train.seed": seed}
    flags = [f"--config.{key}={value}" for key, value in (SETTINGS | own).items()]
    found: dict[str, Any] = {**arm._asdict(), "seed": seed}
    summary = workdir / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["interrupted"]:
        config = ROOT / "configs" / "pilot_smoke.py"
        _python("hope_jax.launch", f"--config={config}", f"--workdir={workdir}", *flags, check=False)
    logged = workdir / "metrics.jsonl"
    if not logged.exists():
        raise SystemExit(f"{workdir}: the run left no metrics; its messages stand above")
    rows = [json.loads(line) for line in logged.read_text().splitlines()]
    found["alarms"] = sorted({row["alarm"] for row in rows if row["alarm"]})
    if rows[-1].get("eval_loss") is None:
        return found
    found |= {"with_writes": rows[-1]["eval_loss"], "without_writes": rows[-1]["eval_loss_no_writes"]}
    found["gain"] = found["with_writes"] - found["without_writes"]
    kept = workdir / "kept"
    if not (kept / "continual.json").exists():
        _python("hope_jax.evals.suite", f"--checkpoint={workdir}", f"--out={kept}", "--only=continual")
    metrics = json.loads((kept / "continual.json").read_text())["metrics"]
    return found | {"continual": metrics["all/nats_per_token/baseline"]["value"]}


def _python(module: str, *flags: str, check: bool = True) -> None:
    subprocess.run([sys.executable, "-m", module, *flags], check=check, cwd=ROOT)


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, and differences of PAIRS, paired by seed, with their 95 % intervals."""
    by_arm = {
        arm: {r["seed"]: r for r in results if (r["chunk"], r["cut"]) == arm and "continual" in r}
        for arm in ARMS
    }
    means, differences = [], []
    for arm, own in by_arm.items():
        ran = sum((r["chunk"], r["cut"]) == arm for r in results)
        if not ran:
            continue
        if not own:
            means.append([str(arm), f"0 of {ran}", *("–" for _ in MEASURES)])
            continue
        values = ([r[key] for r in own.values()] for key in MEASURES)
        means.append([str(arm), f"{len(own)} of {ran}", *(f"{statistics.mean(v).value:.4f}" for v in values)])
    for a, b in PAIRS:
        seeds = [seed for seed in by_arm[a] if seed in by_arm[b]]
        if seeds:
            cells = (_difference(by_arm[a], by_arm[b], seeds, key) for key in MEASURES)
            differences.append([f"{a} less {b}", str(len(seeds)), *cells])
    heads = list(MEASURES.values())
    first = _table(["arm", "finished", *heads], means)
    return first + "\n\n" + _table(["paired", "seeds", *heads], differences)


def _difference(a: dict[int, Any], b: dict[int, Any], seeds: list[int], key: str) -> str:
    found = statistics.paired([a[s][key] for s in seeds], [b[s][key] for s in seeds])
    interval = "" if math.isnan(found.low) else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.delta:+.4f}{interval}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Runs what has not been run, stores after each run, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdirs", type=Path, default=ROOT / "runs" / "online_chunk")
    parser.add_argument("--table_only", action="store_true")
    asked = parser.parse_args()
    if not asked.table_only:
        stored = {(r["chunk"], r["cut"], r["seed"]): r for r in json.loads(RESULTS.read_text())}
        # The arm that separates the cut from the writes is the slowest, and comes last.
        for arm, seed in [(a, s) for s in SEEDS for a in ARMS[:-1]] + [(CUT_LATE, s) for s in SEEDS]:
            stored[(*arm, seed)] = run(arm, seed, asked.workdirs.resolve())
            RESULTS.write_text(json.dumps(list(stored.values()), indent=1) + "\n")
    print(tables(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
