"""aⁿbⁿcⁿ by HOPE (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/anbncn_hope.py
Hardware: 1 CPU core
Time:     3 minutes beside other processes
Expect:   All strings right; of those up to twice as long one in eight.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_config


def get_config() -> OrderedConfig:
    return synthetic_hope_config("anbncn", seq_len=150, vocab_size=7)
