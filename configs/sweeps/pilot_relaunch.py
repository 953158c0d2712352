"""The pilot relaunched at step 231 000: schedules and data go on from there, with fresh weights.

Command:  python -m hope_jax.launch --config=configs/sweeps/pilot_relaunch.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.train.step_offset = 231_000
    return config
