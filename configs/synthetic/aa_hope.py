"""(aa)* by HOPE (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/aa_hope.py
Hardware: 1 CPU core
Time:     1 minute beside other processes
Expect:   All strings right, also those twice as long.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_config


def get_config() -> OrderedConfig:
    config = synthetic_hope_config("aa", seq_len=50, vocab_size=3)
    config.self_modifying_titans.eta_scale = 0.5  # the others' rates diverge here
    config.train.steps = 400
    config.optim.lr = 1e-2
    return config
