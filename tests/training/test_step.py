"""The real program: relaunch offsets, logits' width, the parameter split, and the memory that persists."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config import assemble
from hope_jax.config import experiment as c
from hope_jax.core.errors import ConfigError
from hope_jax.core.program import TrainProgram
from hope_jax.core.types import Batch, FrozenMapping
from hope_jax.data.batches import TrainIterator
from hope_jax.data.corpus import Document
from hope_jax.data.pipeline import training_rows
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.learning.teach import Teach
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.memory.titan import TitanOptions
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import Architecture
from hope_jax.optim import outer as optim
from hope_jax.optim.outer import Optim
from hope_jax.training.step import Step, build_program

LEVELS = {"fast": Level(update_period=4, lr=0.1), "slow": Level(update_period=32, lr=0.1)}
MODEL = Architecture(vocab_size=32, dim=16, num_layers=2, heads=2)
CMS = CmsOptions(FrozenMapping(LEVELS), hidden_multiplier=1)
OPTIM = Optim(lr=0.01, warmup_steps=0, schedule="cosine")


def settings(**train: object) -> c.ExperimentConfig:
    memory = train.pop("memory", MemoryOptions())
    return c.ExperimentConfig(
        model=MODEL,
        cms=CMS,
        memory=memory,
        optim=OPTIM,
        data=c.DataConfig(seq_len=16, batch_size=2),
        train=c.TrainConfig(online_chunk_size=8, **train),
    )


def rows(seed: int) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, 32, (2, 17)).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones((2, 16), np.int32))


def test_a_relaunch_stands_where_its_schedules_say() -> None:
    config = settings(steps=20, step_offset=10)
    program = build_program(config, 32)
    start = program.init()
    assert int(start.step) == 0
    state, metrics = program.train_step(start._replace(step=start.step + 10), rows(0))
    assert int(state.step) == 11
    expected = 0.01 * float(optim.lr_fraction(assemble.optim_rule(config))(10))
    assert float(metrics["lr"]) == pytest.approx(expected) and expected < 0.009


def test_logits_are_float32_under_bfloat16_compute() -> None:
    model = HopeModel(assemble.model_spec(settings(compute_dtype="bfloat16")))
    params = model.init_params(jax.random.key(0))
    out = model.read(params, {}, None, *[jnp.ones((1, 4), jnp.int32)] * 2)
    assert out.hidden.dtype == jnp.bfloat16 and model.logits(params, out.hidden).dtype == jnp.float32
    assert params["embed"].dtype == jnp.float32


def test_muon_takes_the_stacked_matrices_and_nothing_else() -> None:
    params = HopeModel(assemble.model_spec(settings())).init_params(jax.random.key(0))
    groups = optim.parameter_groups(params)
    matrices = {name for name, group in groups["blocks"]["attn"].items() if group == optim.MATRIX}
    assert matrices == {"w_q", "w_k", "w_v", "w_out"}
    assert groups["embed"] == groups["final_norm"]["scale"] == optim.OTHER
    assert groups["blocks"]["cms"]["fast"] == {
        "ln_scale": optim.OTHER, "ln_bias": optim.OTHER, "w_up": optim.MATRIX, "w_down": optim.MATRIX
    }  # fmt: skip
    # attention 2 x 4 x 16 x 16, two levels of 2 x 2 x 16 x 16
    assert "muon updates 4,096 parameters" in optim.describe_groups(assemble.optim_rule(settings()), params)


@pytest.mark.nightly
def test_documents_of_one_chunk_never_see_a_write_if_memories_start_afresh() -> None:
    """Padded rows from the pipeline through an evaluation and a training step."""
    tokenizer = Tokenizer.load("embedded")
    documents = [Document(text, "x.txt", i) for i, text in enumerate("abcdefg")]
    stream = training_rows(documents, tokenizer, seq_len=16, batch_size=2, seed=0, document_multiple=8)
    batch = next(TrainIterator(stream, batch_size=2))
    assert (batch.segment_ids[:, 0] != batch.segment_ids[:, 8]).all()
    config = settings(steps=9, memory=MemoryOptions(reset_at_document=True))
    model = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    program = build_program(dataclasses.replace(config, model=model), tokenizer.vocab_size)
    state = program.init()
    losses = program.eval_step(state, batch)
    without_writes = pytest.approx(float(losses["loss_sum_no_writes"]), rel=1e-7)
    assert float(losses["loss_sum"]) == without_writes
    state, metrics = program.train_step(state, batch)
    assert float(metrics["loss"] * metrics["tokens"]) == without_writes
    assert np.isfinite(float(metrics["grad_norm"])) and int(state.step) == 1
    assert (np.asarray(metrics["writes"]["fast"]["updates_applied"]) > 0).all()


def test_a_persistent_memory_lives_over_steps_and_writes_its_long_level() -> None:
    memory = MemoryOptions(scope="batch", lifetime="persistent")
    program: TrainProgram = build_program(settings(steps=9, algorithm_mode="two_pass", memory=memory), 32)
    state, written = program.init(), []
    for i in range(4):
        state, metrics = program.train_step(state, rows(i))
        written.append(float(metrics["writes"]["slow"]["updates_applied"][0]))
    # A period of 32 tokens over sequences of 16: every second step.
    assert written == [0, 1, 0, 1]
    assert float(jnp.abs(state.fast[0]["cms"]["slow"].delta["w_up"]).max()) > 0


def test_the_first_step_says_which_attention_it_has(caplog: pytest.LogCaptureFixture) -> None:
    program = build_program(settings(steps=9), 32)
    state, batch = program.init(), Batch(*(np.ones((2, 32), np.int32),) * 3)
    with caplog.at_level("INFO", "hope_jax.training"), jax.log_compiles():
        for _ in range(2):
            state, _ = program.train_step(state, batch)
    assert [r.message for r in caplog.records if "attention" in r.message] == ["attention: XLA"]
    compiled = [r for r in caplog.records if r.message.startswith("Finished XLA compilation of jit(train)")]
    assert len(compiled) == 1


def test_writes_that_no_read_sees_are_computed_where_a_row_tells_of_them() -> None:
    """The first step, the last, logged ones and those that are evaluated: see `hooks.after_step`."""
    config = settings(steps=7, algorithm_mode="two_pass")
    config = dataclasses.replace(config, log=c.LogConfig(every=3), eval=c.EvalConfig(every=4))
    program = build_program(config, 32)
    state, written = program.init(), []
    for i in range(7):
        state, metrics = program.train_step(state, rows(i))
        written.append(float(metrics["writes"]["fast"]["periods"][0]) > 0)
    assert written == [True, False, True, True, False, True, True]


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.vocab_size=32 .* set --config.model.vocab_size=33"):
        build_program(settings(), 33)


def selfmod(**values: object) -> c.ExperimentConfig:
    """hope_selfmod under two_pass: chunks of 4 and, unless said otherwise, 4 tokens in sequences of 16."""
    own = {"chunk_size": 4, "chunk_size_memory": 4, "eta_scale": 0.3, **values}
    return dataclasses.replace(
        settings(algorithm_mode="two_pass"),
        model=dataclasses.replace(MODEL, block_variant="hope_selfmod"),
        self_modifying_titans=SelfModifyingTitans(**own),
    )


@pytest.mark.nightly
def test_evaluation_reads_with_the_writes_that_training_makes_within_a_sequence() -> None:
    step = Step(selfmod())
    state = step.init()
    sums = jax.jit(step.evaluate)(state, jax.tree.map(jnp.asarray, rows(0)))
    _, metrics = jax.jit(step.train)(state, jax.tree.map(jnp.asarray, rows(0)))
    assert float(sums["loss_sum"] / sums["tokens"]) == pytest.approx(float(metrics["loss"]), abs=1e-6)
    assert abs(float(sums["loss_sum"] - sums["loss_sum_no_writes"])) > 1e-3


@pytest.mark.parametrize(
    ("config", "untrained"),
    [
        (selfmod(), ()),
        (selfmod(chunk_size_memory=16), ("k", "v", "eta", "alpha", "b_alpha")),
        (selfmod(chunk_size_memory=16, adaptive_q=True), ()),
        (selfmod(chunk_size_memory=16, use_alpha=False), ("k", "v", "eta")),
    ],
)
def test_generators_whose_writes_are_never_read_are_left_out(
    config: c.ExperimentConfig, untrained: tuple[str, ...]
) -> None:
    assert Step(config).untrained == tuple(f"blocks/self_mod/{name}" for name in untrained)


def test_a_self_modifier_is_trained_where_its_writes_are_read_again() -> None:
    def hybrid(mode: str, **values: object) -> tuple[str, ...]:
        model = dataclasses.replace(MODEL, block_variant="hope_hybrid")
        return Step(dataclasses.replace(settings(algorithm_mode=mode), model=model, **values)).untrained

    left_out = ("blocks/titan/self_modifier",)
    assert hybrid("online") == ()
    assert hybrid("two_pass") == left_out
    assert hybrid("online", teach=Teach(scale=0.0)) == left_out
    assert hybrid("online", titan=TitanOptions(Level(16, 1e-3))) == left_out
    titans = Level(update_period=8, lr=0.0, optimizer="titans")
    assert hybrid("online", titan=TitanOptions(titans)) == left_out, "the gates still decay"
