"""Parity by HOPE: self-modifying Titans that write after every symbol (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/parity_hope.py
Hardware: 1 CPU core
Time:     1 minute beside other processes
Expect:   Of 20 seeds 11 learn (1, 2, 4, 9 to 14, 18, 19); 8 diverge, 0 among them (docs/evals/synthetic.md).
          Seeds 1, 2 and 4 read all parities of 1 to 50 symbols right, and 69 to 100 % of those of 51 to 100.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_config


def get_config() -> OrderedConfig:
    return synthetic_hope_config("parity", seq_len=50, vocab_size=4)
