"""The README's Python example runs as it stands. Its shell commands are steps of .ci/run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_runs_and_prints_a_loss_near_chance() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Untrained weights over 1024 tokens: near ln 1024 = 6.93 nats.
    assert 6.5 < float(done.stdout) < 7.5
