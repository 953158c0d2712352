"""The paper's HOPE at the pilot's size: self-modifying Titans (chunks of 8 and 64), then CMS.

Command:  python -m hope_jax.launch --config=configs/pilot_selfmod_paper_faithful.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No published figure. Not run at this size.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_selfmod_paper_faithful_config


def get_config() -> OrderedConfig:
    return pilot_selfmod_paper_faithful_config()
