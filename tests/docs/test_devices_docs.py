"""The commands of "Several devices" in docs/training.md, at a small size."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "model.dim": 16, "model.heads": 2, "model.num_layers": 1, "model.vocab_size": 1024, "data.seq_len": 32,
    "data.mixture": "{}", "train.steps": 2, "train.compute_dtype": "float32", "eval.batches": 1,
    "eval.generate_tokens": 0, "optim.warmup_steps": 0, "log.tensorboard": False,
    "cms.levels": "{'fast': {'update_period': 16, 'lr': 0.001}}",
}  # fmt: skip


def commands() -> list[str]:
    text = (ROOT / "docs/training.md").read_text()
    section = text.split("## Several devices")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)\n```", section)


@pytest.mark.parametrize(("command", "words"), zip(commands(), ["eval_loss", "all-gather"], strict=True))
def test_a_command_does_what_the_page_says(command: str, words: str, tmp_path: Path) -> None:
    *settings, line = re.split(r" (?=python)", command)
    environment = dict(setting.split("=", 1) for setting in settings)
    flags = f"{environment.pop('XLA_FLAGS', '')} {os.environ['XLA_FLAGS']}"
    arguments = [re.sub("^--workdir=.*", f"--workdir={tmp_path}", word) for word in shlex.split(line)[1:]]
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    done = subprocess.run(
        [sys.executable, *arguments, *small],
        cwd=ROOT, env={**os.environ, **environment, "XLA_FLAGS": flags},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    if "hope_jax.launch" in command:
        assert "devices: cpu x 2" in done.stderr
