"""The pilot without the CMS: attention and the TITAN memory alone.

Command:  python -m hope_jax.launch --config=configs/ablations/cms_off.py
Hardware: one RTX 6000 Ada (48 GB), as the other ablations
Time:     unrun here
Expect:   Unpublished for the pilot. The paper's Hope has a perplexity of 12.24, and 13.04 without CMS.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.cms.levels = {}
    config.train.steps = 5_000
    return config
