"""The rehearsal of mid_stage2: 12 layers of width 512, 60 steps.

Command:  python -m hope_jax.launch --config=configs/mid_stage2_smoke.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_stage2_smoke_config


def get_config() -> OrderedConfig:
    return mid_stage2_smoke_config()
