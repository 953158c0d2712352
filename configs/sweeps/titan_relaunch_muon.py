"""The TITAN baseline relaunched at step 7 000 with the pilot's Muon hybrid.

Command:  python -m hope_jax.launch --config=configs/sweeps/titan_relaunch_muon.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig, base_config
from hope_jax.config.presets import mid_titan_baseline_config


def get_config() -> OrderedConfig:
    config = mid_titan_baseline_config()
    config.train.step_offset = 7_000
    config.optim = base_config().optim  # the pilot's
    return config
