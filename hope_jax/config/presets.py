"""The published runs as configurations, and ours beside them; config files build on these.

Values are those of the published configuration files; those that equal the schema's defaults are not set
again (tests/config/test_shipped_files.py holds them). Where a run's own docstring does not say otherwise,
the memory semantics are ours: `online` with per-layer signals and one memory an example. So are two values
that belong to them: the bound on the SelfModifier's correction, and no surprise threshold (docs/memory.md).
"""

from hope_jax.config.experiment import OrderedConfig, base_config, level

_MIXTURE = {"refinedweb": 0.4, "wikipedia": 0.2, "c4": 0.15, "redpajama": 0.15, "code": 0.1}
_PERIODS = {"cms_fast": 1, "cms_mid": 4, "cms_slow": 32, "cms_ultra": 128}
PUBLISHED_THRESHOLD = 0.02
"""Surprise threshold of the published runs. Their signal was a mean over the batch and never reached it; ours
is a sum, whose norms grow with width and teach scale and fall while the model learns."""


def set_levels(config: OrderedConfig, periods: dict[str, int], lr: float, optimizer: str) -> None:
    """Replace the CMS levels by one for each name and period, in the given order."""
    config.cms.levels = {
        name: level(update_period=period, lr=lr, optimizer=optimizer) for name, period in periods.items()
    }


def set_size(config: OrderedConfig, dim: int, num_layers: int, heads: int) -> None:
    """Set width, depth and attention heads."""
    config.model.update({"dim": dim, "num_layers": num_layers, "heads": heads})


def set_schedule(config: OrderedConfig, warmup: int, decay_start: int, decay: int) -> None:
    """Set the teach signal's schedule, in steps: warm-up, where its decay starts, and how long that takes."""
    steps = {"warmup_steps": warmup, "decay_start": decay_start, "decay_duration": decay}
    config.teach.schedule.update(steps)


def published_base(titan_period: int, titan_lr: float, optimizer: str) -> OrderedConfig:
    """What the published runs share: mixture, bfloat16, inner optimizer's family."""
    config = base_config()
    config.titan.level = level(update_period=titan_period, lr=titan_lr, optimizer=optimizer)
    config.data.mixture = _MIXTURE
    config.train.compute_dtype = "bfloat16"
    return config


def pilot_config() -> OrderedConfig:
    """The pilot run. Its sizes and its outer optimizer are the defaults."""
    config = published_base(titan_period=8, titan_lr=6e-4, optimizer="nl_l2_precond")
    config.model.block_variant = "hope_hybrid"
    set_levels(config, _PERIODS, lr=3e-4, optimizer="nl_l2_precond")
    config.teach.clip = 5.0
    set_schedule(config, 2000, 120_000, 20_000)
    # Unbounded, the trained correction outgrows the teach signal; docs/memory.md has the figures.
    config.titan.self_modifier.clip = 0.5
    # Chosen for speed; what it costs: docs/memory.md, "The online chunk".
    config.train.update({"steps": 246_667, "online_chunk_size": 512})
    return config


def pilot_n32_config() -> OrderedConfig:
    """The pilot in online chunks of 32 tokens."""
    config = pilot_config()
    config.train.online_chunk_size = 32
    return config


def pilot_reference_config() -> OrderedConfig:
    """The pilot as near to the published run as the options go: its style, signals and persistent batch
    memory."""
    config = pilot_config()
    config.model.style = "reference"
    config.memory.surprise_threshold = PUBLISHED_THRESHOLD
    config.titan.self_modifier.clip = 0.0
    config.teach.normalize = "batch_mean"
    config.cms.delta_at = "block_output"
    config.memory.update({"scope": "batch", "lifetime": "persistent"})
    config.train.update({"algorithm_mode": "two_pass", "online_chunk_size": 0})
    return config


def pilot_smoke_config() -> OrderedConfig:
    """The pilot's mechanisms at a size that trains in minutes on two CPU cores."""
    config = pilot_config()
    set_size(config, dim=128, num_layers=2, heads=4)
    config.cms.hidden_multiplier = config.titan.hidden_multiplier = 1
    # Scale, rates, rows and outer rates are chosen for what writes gain in text that is read for the first
    # time, and for the loss with them; docs/memory.md has the table.
    config.cms.levels = {
        "cms_fast": level(update_period=4, lr=0.005, optimizer="nl_l2_precond", beta=0.0),
        "cms_mid": level(update_period=16, lr=0.1, optimizer="nl_l2_precond", beta=0.0),
        "cms_slow": level(update_period=64, lr=0.003, optimizer="nl_l2_precond", beta=0.0),
    }
    config.titan.level = level(update_period=8, lr=0.02, optimizer="nl_l2_precond", beta=0.0)
    config.titan.self_modifier.clip = 1.0
    config.teach.scale = 1.0
    set_schedule(config, 10, 0, 0)
    config.model.vocab_size = 1024
    config.data.update({"seq_len": 512, "batch_size": 4})
    config.data.mixture = {}
    config.train.update({"steps": 100, "online_chunk_size": 16, "compute_dtype": "float32"})
    config.optim.update({"lr": 0.045, "adam_lr": 8e-3, "warmup_steps": 10})
    config.eval.update({"every": 50, "batches": 8})
    config.checkpoint.every = 50
    return config


def pilot_paper_faithful_config() -> OrderedConfig:
    """The pilot under the paper's semantics: attention and CMS, every period written, partial ones too, in
    online chunks of 32 tokens. By default the memories live as long as their context, and their initial
    states are trained."""
    config = pilot_n32_config()
    config.model.block_variant = "hope_attention"
    config.cms.flush_partial_at_end = True
    return config


def pilot_selfmod_paper_faithful_config() -> OrderedConfig:
    """The paper's HOPE: self-modifying Titans in place of attention, under the paper's semantics. Their
    chunks of 8 and 64 tokens, fixed queries and convolution over 4 tokens are the defaults."""
    config = pilot_paper_faithful_config()
    config.model.block_variant = "hope_selfmod"
    config.self_modifying_titans.projection_skip = False
    return config


def mid_stage2_config() -> OrderedConfig:
    """The stage-2 run at middle size."""
    config = published_base(titan_period=16, titan_lr=8e-4, optimizer="preconditioned")
    config.model.block_variant = "hope_hybrid"
    set_size(config, dim=768, num_layers=18, heads=12)
    set_levels(config, _PERIODS, lr=4e-4, optimizer="preconditioned")
    config.teach.update({"scale": 0.05, "clip": 5.0})
    set_schedule(config, 20, 80, 40)
    config.train.update({"steps": 100, "fsdp": True})
    config.data.batch_size = 8
    config.optim.update({"name": "adamw", "lr": 3e-5})
    config.checkpoint.every = 100
    return config


def mid_titan_baseline_config() -> OrderedConfig:
    """The TITAN baseline at middle size: no CMS."""
    config = published_base(titan_period=16, titan_lr=8e-4, optimizer="preconditioned")
    config.model.block_variant = "titan"
    config.cms.levels = {}
    set_size(config, dim=768, num_layers=18, heads=12)
    config.teach.clip = 4.0
    set_schedule(config, 60, 140, 80)
    config.train.steps = 25_000
    config.data.batch_size = 4
    config.optim.update({"name": "adamw", "lr": 1e-5})
    return config


def synthetic_config(task: str, seq_len: int, vocab_size: int) -> OrderedConfig:
    """The transformer baseline of a synthetic task: two layers, AdamW, minutes on one core."""
    config = base_config()
    config.model.update({"block_variant": "transformer_pp", "vocab_size": vocab_size})
    set_size(config, dim=64, num_layers=2, heads=4)
    config.data.update({"source": f"synthetic:{task}", "seq_len": seq_len, "batch_size": 32})
    config.optim.update({"name": "adamw", "lr": 1e-3, "b2": 0.99, "warmup_steps": 50, "weight_decay": 0.01})
    config.eval.update({"every": 250, "batches": 8, "generate_tokens": 0})
    config.checkpoint.every = 500
    config.log.tensorboard = False
    return config


def synthetic_hope_attention_config(task: str, seq_len: int, vocab_size: int) -> OrderedConfig:
    """HOPE-attention on a synthetic task, with a convolution before its attention. The row is one online
    chunk, and the CMS (rate 0) is an MLP."""
    config = synthetic_config(task, seq_len, vocab_size)
    config.model.update({"block_variant": "hope_attention", "local_conv_window": 4})
    set_levels(config, {"cms": seq_len}, lr=0.0, optimizer="sgd")
    config.train.update({"steps": 300, "online_chunk_size": seq_len})
    config.optim.lr = 4e-3
    return config


def synthetic_hope_config(task: str, seq_len: int, vocab_size: int) -> OrderedConfig:
    """HOPE on a synthetic task: one narrow layer whose self-modifying memories write after every token, at
    rates that can turn a state's sign. The row is one online chunk, so teach signals write nothing that is
    read: the CMS is an MLP."""
    config = synthetic_config(task, seq_len, vocab_size)
    config.model.block_variant = "hope_selfmod"
    config.self_modifying_titans.eta_scale = 0.3
    set_size(config, dim=16, num_layers=1, heads=2)
    set_levels(config, {"cms": seq_len}, lr=0.0, optimizer="sgd")
    config.self_modifying_titans.update(
        {"chunk_size": 1, "chunk_size_memory": 1, "local_conv_window": 0, "value_norm": 0.5}
    )
    config.data.batch_size = 16
    config.train.online_chunk_size = seq_len
    config.optim.update({"lr": 3e-3, "weight_decay": 0.0})
    config.eval.every = 50
    config.checkpoint.every = 100
    return config


_PAPER_PERIODS = {"cms_fast": 512, "cms_mid": 2048, "cms_slow": 8192, "cms_ultra": 32768}


def paper_size_config(dim: int, heads: int, tokens: float) -> OrderedConfig:
    """The paper's Hope (self-modifying Titans, then CMS) at one of its sizes, trained on `tokens` tokens.

    From the paper: CMS periods, vocabulary, AdamW, tokens for 760M and 1.3B. Ours: the rest. A CMS of four
    levels of hidden width D has the parameters of the one MLP of width 4 D that it stands for; with it, 17
    layers of width 1024, 1536 and 2048 come near to 340M, 760M and 1.3B parameters. Rows of 4,096 tokens and
    batches of half a million are those of the Titans paper's runs.
    """
    config = base_config()
    config.model.block_variant = "hope_selfmod"
    config.cms.hidden_multiplier = 1
    set_size(config, dim=dim, num_layers=17, heads=heads)
    set_levels(config, _PAPER_PERIODS, lr=3e-4, optimizer="nl_l2_precond")
    config.teach.clip = 5.0
    config.data.update({"seq_len": 4096, "batch_size": 128})
    steps = round(tokens / (4096 * 128))
    config.train.update({"steps": steps, "online_chunk_size": 512, "compute_dtype": "bfloat16"})
    config.train.accumulate = 16  # on eight devices one row at a time
    config.optim.update({"name": "adamw", "lr": 4e-4, "weight_decay": 0.1, "warmup_steps": 1000})
    return config
