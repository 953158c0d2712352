"""The TITAN baseline relaunched at step 7 000: schedules and data go on from there.

Command:  python -m hope_jax.launch --config=configs/sweeps/titan_relaunch.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_titan_baseline_config


def get_config() -> OrderedConfig:
    config = mid_titan_baseline_config()
    config.train.step_offset = 7_000
    return config
