"""The pilot with M3 (the paper's Algorithm 1) as its outer optimizer, 5 000 steps.

Command:  python -m hope_jax.launch --config=configs/ablations/opt_m3.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No published figure. M3 divides by the root of a sum of squared gradients, so its rate has the
          gradient's unit and is not Muon's.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.optim.name = "m3"
    config.train.steps = 5_000
    return config
