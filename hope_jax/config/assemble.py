"""From the configuration to the plain values that the lower floors take."""

import dataclasses

import jax.numpy as jnp

from hope_jax.config.chunks import online_chunk, stream_chunk, truncate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.stream import Streamer
from hope_jax.models.flops import train_flops_per_token
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import ModelSpec
from hope_jax.optim.outer import OptimRule


def model_spec(config: ExperimentConfig) -> ModelSpec:
    """The architecture that a configuration describes."""
    return ModelSpec(
        **vars(config.model),
        chunk_size=online_chunk(config),
        cms=config.cms,
        titan=config.titan,
        self_modifying_titans=config.self_modifying_titans,
        memory=config.memory,
        per_layer=config.teach.source == "per_layer",
        remat=config.train.remat == "layers",
        dtype=jnp.dtype(config.train.compute_dtype),
    )


def online_rule(config: ExperimentConfig) -> OnlineRule:
    """Chunking and teach signals of the stream."""
    return OnlineRule(online_chunk(config), truncate(config), config.teach)


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
    """Streams at inference; `config.chunks.stream_chunk` says in which chunks."""
    chunk = stream_chunk(config)
    train = dataclasses.replace(config.train, algorithm_mode="online", online_chunk_size=chunk)
    config = dataclasses.replace(config, train=train)
    return Streamer(
        HopeModel(model_spec(config)), online_rule(config)._replace(truncate=chunk, training=False)
    )


def optim_rule(config: ExperimentConfig) -> OptimRule:
    """The outer optimizer of the run."""
    train = config.train
    return OptimRule(
        **vars(config.optim),
        total_steps=train.steps,
        step_offset=train.step_offset,
        param_policy=train.param_policy,
    )
