"""Keys that no file below `configs/` changes: why each is there, and the test that turns it on.

`docs/config.md` shows them (`make_config_reference.py`); `tests/config/test_key_users.py` holds that each key
has a shipped file or an entry here, and that no entry is left over.
"""

_OWN = "tests/memory/test_self_mod.py::test_outputs_and_memories_match_the_loop_over_tokens"
_UNREAD = "tests/training/test_step.py::test_generators_whose_writes_are_never_read_are_left_out"
_INNER = "tests/memory/test_inner_optim.py::test_updates_and_state_match_recurrence"
_BOUNDS = "tests/memory/test_cms.py::test_writes_match_naive_periods"
_OTHERS = "tests/models/test_lm.py::test_gradients_of_other_activations_without_layer_norm"
_READS = "tests/models/test_lm.py::test_reads_match_naive_forward_whole_and_in_pieces"
_ADAM = "tests/optim/test_outer.py::test_adamw_has_its_constants_behind_the_clip"
_SCHEDULES = "tests/optim/test_outer.py::test_schedules_end_at_a_tenth"
_M3 = "tests/optim/test_outer.py::test_m3_is_algorithm_1"
_WANDB = "tests/training/test_loop.py::test_wandb_gets_every_row"

UNSET = {
    "model.mlp_multiplier": (
        "a Transformer of as many parameters as a HOPE",
        "tests/models/test_flops.py::test_a_level_is_an_mlp_and_its_write_an_outer_product_a_matrix",
    ),
    "model.activation": ("MLPs of trained models have ReLU or SiLU", _OTHERS),
    "model.qk_norm": ("the published attention is without, or has l2", _READS),
    "model.rope_theta": ("trained models have other bases; long rows want larger ones", _READS),
    "model.sliding_window": (
        "a cache that does not grow, so that memory has something to replace",
        "tests/models/test_attention_window.py::test_any_calls_read_what_the_whole_cache_reads",
    ),
    "cms.levels.NAME.beta2": ("of two inner rules; the published value is the default", _INNER),
    "cms.levels.NAME.eps": ("of three inner rules; the published value is the default", _INNER),
    "cms.connection": ("the paper's other two connections", _OTHERS),
    "cms.norm": (
        "published option; an MLP that becomes a level has its norm before it",
        "tests/models/test_lm.py::test_parameters_have_the_documented_tree",
    ),
    "titan.level.beta2": ("as of a CMS level", _INNER),
    "titan.level.eps": ("as of a CMS level", _INNER),
    "self_modifying_titans.objective": ("the other inner loss of the paper", _OWN),
    "self_modifying_titans.stopgrad_vhat": ("published option", _OWN),
    "self_modifying_titans.rank1_precondition": ("what DGD adds to gradient descent, to ablate", _OWN),
    "self_modifying_titans.momentum": ("published option", _OWN),
    "self_modifying_titans.adaptive_q": ("published option: queries from a memory of their own", _UNREAD),
    "self_modifying_titans.use_alpha": ("published option: memories that forget nothing", _UNREAD),
    "self_modifying_titans.alpha_init": (
        "one style's start in the other style",
        "tests/models/test_lm.py::test_retention_starts_as_its_key_says",
    ),
    "self_modifying_titans.qk_norm": (
        "the published whole model is without",
        "tests/memory/test_self_mod.py::test_keys_and_queries_keep_their_length_without_the_norm",
    ),
    "teach.source": (
        "published option: one signal for all layers",
        "tests/learning/test_teach.py::test_global_signal_is_the_heads_pulled_back_for_all_layers",
    ),
    "memory.surprise_metric": (
        "published metrics; no shipped threshold is chosen for them",
        "tests/learning/test_online.py::test_online_matches_naive_stream",
    ),
    "memory.write_clip": (
        "how bounds are studied (docs/health.md); weights trained without memories want tighter ones",
        _BOUNDS,
    ),
    "memory.delta_clip": ("as `write_clip`", _BOUNDS),
    "memory.reset_at_document": (
        "packed rows whose documents must not learn from each other",
        "tests/learning/test_reset.py::test_documents_packed_in_a_row_learn_as_in_rows_of_their_own",
    ),
    "train.truncate_tokens": (
        "longer credit through cache and self-modifying memories, for memory and time",
        "tests/learning/test_cut.py::test_the_gradient_reaches_as_far_as_truncate_tokens",
    ),
    "train.seed": ("repetitions", "tests/data/test_pipeline.py::test_seed_alone_decides_the_order"),
    "train.resume": (
        "a script that must not continue an old run",
        "tests/training/test_loop.py::test_resume_never_refuses_a_used_workdir_and_changes_nothing",
    ),
    "train.param_policy": (
        "memories added to trained weights, or weights around trained memories",
        "tests/optim/test_outer.py::test_what_the_policy_freezes_keeps_its_value_and_has_no_state",
    ),
    "train.remat": (
        "longer rows than fit into a device's memory",
        "tests/training/test_memory_keys.py::test_layers_that_are_read_again_give_what_they_gave",
    ),
    "train.profile": (
        "to see where a step's time goes",
        "tests/training/test_loop.py::test_profile_leaves_a_trace_that_viewers_read",
    ),
    "optim.momentum": (
        "the published value is the default",
        "tests/optim/test_outer.py::test_muon_is_optax_muon",
    ),
    "optim.b1": ("the published value is the default", _ADAM),
    "optim.momentum_dtype": (
        "larger models on devices of little memory",
        "tests/optim/test_outer.py::test_momentum_in_bfloat16_takes_half_the_bytes_and_nearly_the_same_steps",
    ),
    "optim.eps": ("above the noise of small gradients, to compare runs on other devices", _ADAM),
    "optim.schedule": ("runs whose end is not known yet", _SCHEDULES),
    "optim.cooldown_steps": ("the end of such a run", _SCHEDULES),
    "optim.grad_clip": ("0 for what is compared exactly, less for what diverges", _ADAM),
    "optim.m3.slow_chunk": ("a constant of Algorithm 1", _M3),
    "optim.m3.beta1": ("a constant of Algorithm 1", _M3),
    "optim.m3.beta2": ("a constant of Algorithm 1", _M3),
    "optim.m3.beta3": ("a constant of Algorithm 1", _M3),
    "optim.m3.alpha": ("a constant of Algorithm 1", _M3),
    "optim.m3.ns_steps": ("a constant of Algorithm 1", _M3),
    "optim.m3.eps": ("a constant of Algorithm 1", _M3),
    "data.tokenizer": (
        "a model of one's own text (docs/data.md)",
        "tests/data/test_tokenizer.py::test_the_key_names_another_model",
    ),
    "data.prefetch": (
        "waiting for data against the host's memory",
        "tests/data/test_pipeline.py::test_prefetch_runs_in_the_background_and_close_ends_it",
    ),
    "data.workers": (
        "rows whose making takes longer than a step",
        "tests/data/test_pipeline.py::test_workers_prepare_the_same_batches",
    ),
    "data.verify_shards": (
        "corpora that take long to read through",
        "tests/data/test_inputs.py::test_damaged_shards_are_refused",
    ),
    "eval.alarm": (
        "unattended runs that shall end, experiments that shall blow up",
        "tests/training/test_health.py::test_stop_saves_a_checkpoint_and_the_run_can_go_on",
    ),
    "checkpoint.keep_every": (
        "a run's course, kept for later",
        "tests/storage/test_checkpoint.py::test_last_n_and_every_mth_are_kept",
    ),
    "checkpoint.verify": (
        "large checkpoints on a disk that is trusted",
        "tests/storage/test_seal.py::test_a_flipped_bit_is_found_on_restore_unless_verification_is_off",
    ),
    "log.every": (
        "rows of a very short or very long run",
        "tests/training/test_loop.py::test_rows_hold_losses_rates_and_writes",
    ),
    "log.wandb": ("for those who keep their runs there", _WANDB),
    "log.wandb_project": ("as `log.wandb`", _WANDB),
}
"""Key: (why it is there, the test that turns it on)."""
