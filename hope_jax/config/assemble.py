"""From the configuration to the plain values that the lower floors take."""

import dataclasses

import jax.numpy as jnp

from hope_jax.config.chunks import online_chunk, stream_chunk, truncate
from hope_jax.config.experiment import ExperimentConfig, LevelConfig
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.stream import Streamer
from hope_jax.learning.teach import TeachRule, TeachSchedule
from hope_jax.memory.cms import Bounds
from hope_jax.memory.gate import GateRule
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.self_mod import SelfMod
from hope_jax.models.flops import train_flops_per_token
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import ModelSpec
from hope_jax.optim.m3 import M3Rule
from hope_jax.optim.outer import OptimRule

REFERENCE_READ_CLIP = 1.0
"""The reference bounds each CMS level's residual branch by this norm while training."""


def model_spec(config: ExperimentConfig) -> ModelSpec:
    """The architecture that a configuration describes."""
    model, dtype = config.model, jnp.dtype(config.train.compute_dtype)
    reference = model.style == "reference"
    qk_norm = {"style": "none" if reference else "rms"}.get(model.qk_norm, model.qk_norm)
    return ModelSpec(
        block_variant=model.block_variant,
        style=model.style,
        vocab_size=model.vocab_size,
        dim=model.dim,
        num_layers=model.num_layers,
        heads=model.heads,
        mlp_hidden=model.mlp_multiplier * model.dim,
        cms_hidden=model.cms_hidden_multiplier * model.dim,
        cms_levels=tuple(_level(name, level, model.self_mod_lr) for name, level in model.cms_levels.items()),
        chunk_size=online_chunk(config),
        activation=model.activation,
        qk_norm=qk_norm,
        rope_theta=model.rope_theta,
        sliding_window=model.sliding_window,
        local_conv_window=model.local_conv_window,
        cms_connection=config.cms.connection,
        cms_norm=config.cms.norm == "layer",
        # The head's signal is one for all outputs: there is no level's own.
        own_output=config.cms.delta_at == "own_output" and config.teach.source == "per_layer",
        gate=GateRule(model.surprise_metric, model.surprise_threshold),
        bounds=Bounds(config.memory.write_clip, config.memory.delta_clip),
        flush_partial_at_end=model.cms_flush_partial_at_end,
        scope=config.memory.scope,
        reset_at_document=config.memory.reset_at_document,
        read_clip=REFERENCE_READ_CLIP if reference else None,
        titan_level=_level("titan", model.titan_level, model.self_mod_lr),
        titan_hidden=model.titan_hidden_multiplier * model.dim,
        self_modifier=model.self_mod.enabled,
        correction_clip=model.self_mod.clip,
        self_mod=_self_mod(config),
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
    )


def _self_mod(config: ExperimentConfig) -> SelfMod:
    own, model = config.model.self_modifying, config.model
    return SelfMod(
        dim=model.dim,
        online_chunk=online_chunk(config),
        chunk_size=own.chunk_size,
        chunk_size_memory=own.chunk_size_memory,
        eta_scale=model.self_mod_lr,
        adaptive_q=own.adaptive_q,
        use_alpha=own.use_alpha,
        rank1=own.rank1_precondition,
        projection_skip=own.projection_skip,
        objective=own.objective,
        stopgrad_vhat=own.stopgrad_vhat,
        momentum=own.momentum,
        value_norm=own.value_norm,
        conv_window=own.local_conv_window,
        alpha_near_one=own.alpha_init == "near_one"
        or (own.alpha_init == "style" and model.style == "modern"),
    )


def _level(name: str, level: LevelConfig, default_lr: float) -> LevelSpec:
    return LevelSpec(
        name=name,
        update_period=level.update_period,
        lr=default_lr if level.lr is None else level.lr,
        optimizer=level.optimizer,
        beta=level.beta,
        beta2=level.beta2,
        eps=level.eps,
    )


def online_rule(config: ExperimentConfig) -> OnlineRule:
    """Chunking and teach signals of the stream."""
    model = config.model
    teach = TeachRule(
        scale=model.teach_scale,
        clip=model.teach_clip,
        metric=model.surprise_metric,
        batch_mean=config.teach.normalize == "batch_mean",
        source=config.teach.source,
    )
    return OnlineRule(chunk_size=online_chunk(config), truncate=truncate(config), teach=teach)


def flops_per_token(config: ExperimentConfig) -> float:
    """Useful FLOPs of a train step per token."""
    return train_flops_per_token(
        model_spec(config),
        config.data.seq_len,
        config.train.algorithm_mode,
        truncate(config),
        per_layer=config.teach.source == "per_layer",
    )


def streamer(config: ExperimentConfig) -> Streamer:
    """Streams at inference; `config_chunks.stream_chunk` says in which chunks."""
    chunk = stream_chunk(config)
    train = dataclasses.replace(config.train, algorithm_mode="online", online_chunk_size=chunk)
    config = dataclasses.replace(config, train=train)
    return Streamer(
        HopeModel(model_spec(config)), online_rule(config)._replace(truncate=chunk, training=False)
    )


def teach_schedule(config: ExperimentConfig) -> TeachSchedule:
    """The teach signal's multiplier over outer steps."""
    schedule = config.model.teach_schedule
    return TeachSchedule(schedule.warmup_steps, schedule.decay_start, schedule.decay_duration)


def optim_rule(config: ExperimentConfig) -> OptimRule:
    """The outer optimizer."""
    optim, train = config.optim, config.train
    return OptimRule(
        name=optim.name,
        lr=optim.lr,
        adam_lr=optim.lr if optim.adam_lr is None else optim.adam_lr,
        total_steps=train.steps,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        schedule=optim.schedule,
        warmup_steps=optim.warmup_steps,
        cooldown_steps=optim.cooldown_steps,
        final_lr_fraction=optim.final_lr_fraction,
        grad_clip=optim.grad_clip,
        step_offset=train.step_offset,
        param_policy=train.param_policy,
        m3=M3Rule(**dataclasses.asdict(optim.m3)),
    )
