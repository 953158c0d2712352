"""The pilot under the paper's semantics: attention and CMS, no surprise gate, partial periods flushed.

Command:  python -m hope_jax.launch --config=configs/pilot_paper_faithful.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No published figure. The paper itself uses periods of 512, 2K, 8K and 32K tokens, AdamW, and
          760M or 1.3B parameters.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_paper_faithful_config


def get_config() -> OrderedConfig:
    return pilot_paper_faithful_config()
