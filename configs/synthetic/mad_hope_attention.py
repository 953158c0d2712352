"""A task of MAD by HOPE-attention (docs/evals/synthetic.md); in-context recall is recall_hope_attention.py.

Compression is after MAD: attention looks back. Selective copying is of half of MAD's symbols.

Command:  python -m hope_jax.launch --config=configs/synthetic/mad_hope_attention.py:task=fuzzy_recall
          (memorization: python -m hope_jax.launch --config=configs/synthetic/mad_hope_attention.py)
Hardware: 1 CPU core
Time:     half a minute (memorization) to 5 (fuzzy_recall), beside other processes
Expect:   memorization, compression: all answers right. fuzzy_recall: 98 % of the answers, 93 % of the
          strings. selective_copying: 97 % of the answers, 81 % of the strings.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config
from hope_jax.core.errors import ConfigError, instead

SIZES = {
    "memorization": (32, 255),
    "compression": (63, 17),
    "fuzzy_recall": (128, 14),
    "selective_copying": (64, 16),
}
"""Tokens of a string, and symbols."""

STEPS = {"fuzzy_recall": 600, "selective_copying": 900}
"""Of the tasks that take longer than the others."""


def get_config(task: str = "memorization") -> OrderedConfig:
    if task not in SIZES:
        raise ConfigError(f"task={task}: unknown; {instead(task, SIZES)}")
    seq_len, symbols = SIZES[task]
    config = synthetic_hope_attention_config(task, seq_len=seq_len, vocab_size=symbols)
    config.train.steps = STEPS.get(task, config.train.steps)
    if task == "selective_copying":
        config.data.task_options = {"length": 64, "copied": 8}
    return config
