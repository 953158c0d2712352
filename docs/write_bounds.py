"""What the bounds on writes do: trains a small model at several inner rates, with and without bounds, and
prints the table of docs/health.md. Runs go to the folder RUNS; those that are there already are not repeated.

python docs/write_bounds.py RUNS
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

CASES = (("reference", 0.03), ("reference", 30.0), ("modern", 0.03), ("modern", 1000.0), ("reference", 1.0))
BOUNDS = {"on": (0.02, 0.5), "off": (0.0, 0.0)}
SMALL = {
    "model.block_variant": "hope_attention",
    "model.dim": 64,
    "model.heads": 2,
    "model.surprise_threshold": None,
    "model.teach_schedule.warmup_steps": 0,
    "data.seq_len": 128,
    "data.batch_size": 4,
    "train.steps": 150,
    "eval.every": 0,
    "eval.generate_tokens": 0,
    "checkpoint.every": 0,
    "log.every": 50,
    "log.tensorboard": False,
}


def command(workdir: Path, style: str, rate: float, bounds: tuple[float, float]) -> list[str]:
    """One run: a level of that rate, every period written from the first step on."""
    levels = {"cms_fast": {"update_period": 4, "lr": rate}}
    limits = {"memory.write_clip": bounds[0], "memory.delta_clip": bounds[1]}
    values: dict[str, Any] = SMALL | limits | {"model.style": style, "model.cms_levels": levels}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    launch = [sys.executable, "-m", "hope_jax.launch", "--config=configs/pilot_smoke.py"]
    return [*launch, f"--workdir={workdir}", *flags]


def row(runs: Path, style: str, rate: float, name: str) -> list[str]:
    """Of the table, from the last row of the run."""
    workdir = runs / f"{style}-{rate:g}-{name}"
    if not (workdir / "summary.json").exists():
        subprocess.run(command(workdir, style, rate, BOUNDS[name]), capture_output=True, check=True)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    written = last["writes"]["cms_fast"]
    numbers = [last["loss"], last["eval_loss"], last["eval_loss_no_writes"]]
    numbers += [max(written[key]) for key in ("write_norm", "delta_norm")]
    return [style, f"{rate:g}", name, *(f"{n:.3g}" for n in numbers), "yes" if last["alarm"] else "no"]


if __name__ == "__main__":
    print(f"ln V = {math.log(1024):.3g}")
    head = [
        "style",
        "rate",
        "bounds",
        "training",
        "held-out",
        "without writes",
        "write",
        "all writes",
        "alarm",
    ]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for style, rate in CASES:
        for name in BOUNDS:
            print("| " + " | ".join(row(Path(sys.argv[1]), style, rate, name)) + " |", flush=True)
