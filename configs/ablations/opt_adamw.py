"""The pilot with AdamW as its outer optimizer, 5 000 steps.

Command:  python -m hope_jax.launch --config=configs/ablations/opt_adamw.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Published: cross-entropy 39-50.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.optim.name = "adamw"
    config.train.steps = 5_000
    return config
