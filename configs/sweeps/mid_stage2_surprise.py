"""mid_stage2 with the published pilot's surprise gate.

Under our signal memory.surprise_threshold=0.02 lies near the mean surprise of an untrained model of this
width and teach scale, and shuts as it learns. The published gate never opened (docs/memory.md, Thresholds).

Command:  python -m hope_jax.launch --config=configs/sweeps/mid_stage2_surprise.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import PUBLISHED_THRESHOLD, mid_stage2_config


def get_config() -> OrderedConfig:
    config = mid_stage2_config()
    config.memory.surprise_threshold = PUBLISHED_THRESHOLD
    return config
