"""The pilot with every CMS period 1, and so an online chunk of one token.

Command:  python -m hope_jax.launch --config=configs/ablations/cms_nochunk.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   One loss pass a token: many times slower than the pilot, shorten it with
          --config.train.steps=N. Published at 5 000 steps: cross-entropy 46-52, above ln(32000) = 10.4:
          its memory writes had blown the model up.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.train.update({"steps": 5_000, "online_chunk_size": 1})
    for settings in config.cms.levels.values():
        settings.update_period = 1
    return config
