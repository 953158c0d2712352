"""A device without room: the error names the keys that help, and what was saved stays."""

import jax
import jax.numpy as jnp
import pytest

from hope_jax.core.errors import NoRoomError
from hope_jax.storage.stored import load_checkpoint
from tests.training.toy import rows_of, toy_train


def allocate(number: int, at: int) -> None:
    """At one step asks the device for a petabyte."""
    if number == at:
        jax.block_until_ready(jnp.zeros(1 << 50, jnp.int8))


def test_the_error_names_keys_and_the_run_goes_on_when_there_is_room(tmp_path):
    match = r"asks for 1,048,576.00 GiB at once. .* goes on from checkpoint 8\. .*model.num_layers"
    with pytest.raises(NoRoomError, match=match):
        toy_train(tmp_path / "short", on_step=lambda number: allocate(number, 11))
    assert load_checkpoint(tmp_path / "short").step == 8
    assert toy_train(tmp_path / "short")["steps"] == 20
    toy_train(tmp_path / "straight")
    assert rows_of(tmp_path / "short") == rows_of(tmp_path / "straight")


def test_the_first_step_may_lack_it(tmp_path):
    with pytest.raises(NoRoomError, match="goes on from the beginning"):
        toy_train(tmp_path, on_step=lambda number: allocate(number, 1))


def test_other_errors_of_the_device_stay_what_they_are(tmp_path):
    def fail(number: int) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: another matter")

    with pytest.raises(jax.errors.JaxRuntimeError, match="another matter"):
        toy_train(tmp_path, on_step=fail)
