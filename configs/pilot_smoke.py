"""The pilot in small, on the embedded corpus.

Command:  python -m hope_jax.launch --config=configs/pilot_smoke.py
Hardware: 2 CPU cores
Time:     3 to 4 minutes
Expect:   Held-out loss at most 0.85 times the corpus's unigram entropy, which is printed beside it, and
          0.03 nats more without the memories' writes (docs/memory.md).
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_smoke_config


def get_config() -> OrderedConfig:
    return pilot_smoke_config()
