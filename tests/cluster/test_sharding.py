"""Where the state lives: which axis is split, and that checkpoints do not care."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from hope_jax.cluster.sharding import WHOLE, shared

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("shape", "devices", "expected"),
    [
        ((32, 64, 64), 4, PartitionSpec(None, None, "data")),
        ((32, 128, 64), 4, PartitionSpec(None, "data")),
        ((64, 6, 9), 4, PartitionSpec("data")),  # a stack, for want of another axis
        ((1024, 64), 4, PartitionSpec("data")),
        ((4, 512), 4, PartitionSpec(None, "data")),
        ((30, 50, 62), 4, WHOLE),
        ((32, 64, 64), 1, WHOLE),
        ((8, 64), 4, WHOLE),  # small
        ((), 4, WHOLE),
    ],
)
def test_the_longest_axis_is_split_but_not_the_layers(
    shape: tuple[int, ...], devices: int, expected: PartitionSpec
) -> None:
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert shared({"w": leaf}, devices) == {"w": expected}


SCRIPT = """
import dataclasses, sys
from pathlib import Path
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
from hope_jax.core import files
from hope_jax.training import step
from hope_jax.storage.checkpoint import Checkpointer, abstract
from hope_jax.cluster.sharding import make_mesh
from hope_jax.core.types import Batch
from tests.checkpoints import small_config

memory = {"scope": "batch", "lifetime": "persistent"}
def program(devices, fsdp):
    step.make_mesh = lambda: make_mesh(jax.devices()[:devices])
    train = {"algorithm_mode": "two_pass", "compute_dtype": "float64", "fsdp": fsdp}
    return step.build_program(small_config(memory=memory, train=train, data={"batch_size": 4}), 1024)

rows = np.random.default_rng(0).integers(0, 1024, (4, 33)).astype(np.int32)
batch = Batch(rows[:, :-1], rows[:, 1:], np.ones((4, 32), np.int32))
four = program(4, True)
state, _ = four.train_step(four.init(), batch)
matrices = [x for x in jax.tree.leaves((state.params, state.opt_state, state.fast)) if x.size >= 1024]
assert len(matrices) > 10 and all(x.addressable_data(0).size == x.size // 4 for x in matrices)
losses, text = four.eval_step(state, batch), four.generate(state, rows[0, :20], 4, 0.0, 0)
assert float(losses["loss_sum"]) != float(losses["loss_sum_no_writes"])
config = small_config()
meta = {"tokenizer_digest": "x", "versions": {}}
with Checkpointer(Path(sys.argv[1]), config.checkpoint, files.as_plain(config), meta) as checkpointer:
    checkpointer.save(1, state, {}, {})
    checkpointer.wait()
    for devices, fsdp in ((1, False), (2, True), (4, False)):
        other = program(devices, fsdp)
        like = abstract(other.init())
        restored = checkpointer.restore(like).state
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, like))
        if devices == 1:
            there = other.eval_step(restored, batch)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), losses, there)
            np.testing.assert_array_equal(text, other.generate(restored, rows[0, :20], 4, 0.0, 0))
"""


def test_a_checkpoint_goes_to_other_devices_and_in_and_out_of_shares(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "checkpoints")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
