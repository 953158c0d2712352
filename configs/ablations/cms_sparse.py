"""A smaller pilot whose CMS levels are narrower (hidden width 2 x dim) and written more rarely.

Command:  python -m hope_jax.launch --config=configs/ablations/cms_sparse.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Published at 5 000 steps: cross-entropy about 25.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config, set_levels, set_size


def get_config() -> OrderedConfig:
    config = pilot_config()
    set_size(config, dim=384, num_layers=8, heads=6)
    periods = {"cms_fast": 8, "cms_mid": 32, "cms_slow": 128, "cms_ultra": 512}
    set_levels(config, periods, lr=3e-4, optimizer="nl_l2_precond")
    config.cms.hidden_multiplier = 2
    config.data.update({"seq_len": 1024, "batch_size": 2})
    config.train.steps = 5_000
    return config
