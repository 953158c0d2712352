"""The exported weights of release bundles, held against the checkpoint."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hope_jax.release import bundle
from hope_jax.storage import arrays, stored, weights
from hope_jax.storage.digests import BadFileError
from tests.release.bundles import first_bad, reseal


def test_weights_are_held_against_the_checkpoint_bit_for_bit(copy: Path) -> None:
    path = copy / "weights.safetensors"
    good, head = load_file(path), {"hope_jax": json.dumps(weights.load(path)[0])}
    embed = good["embed"]
    moved = embed.copy()
    moved[3, 4] = np.nextafter(moved[3, 4], 9)
    changes: list[tuple[dict[str, np.ndarray], str]] = [
        ({**good, "embed": moved}, "has another embed"),
        ({**good, "embed": embed.astype(np.float64)}, r".*: embed: want float32\[1024, 16\], got float64\["),
        ({**good, "embed": embed.T.copy()}, r".*: embed: want float32\[1024, 16\], got float32\[16, 1024\]"),
        ({**good, "more": embed}, ".*: more: want nothing, got"),
        ({name: array for name, array in good.items() if name != "embed"}, ".*: embed: want .* got nothing"),
    ]
    for content, message in changes:
        save_file(content, path, metadata=head)
        reseal(copy)
        with pytest.raises(BadFileError, match=rf"weights\.safetensors: {message}"):
            bundle.verify(copy)
    for entry in ("null", "{", '{"format": "hope_jax weights", "version": 2, "step": 2}'):
        save_file(good, path, metadata={"hope_jax": entry})
        reseal(copy)
        assert first_bad(copy) == "weights.safetensors"
    save_file(good, path)
    reseal(copy)
    assert first_bad(copy) == "weights.safetensors"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_safetensors_are_refused(
    made: Path, loaded: stored.LoadedCheckpoint, tmp_path: Path, data: st.DataObject
) -> None:
    """Any bytes, huge declared sizes, and bits flipped in the header."""
    path, good = tmp_path / "weights.safetensors", (made / "weights.safetensors").read_bytes()
    huge = b'{"a":{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,9223372036854775807]}}'
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, 300))] ^= 1 << data.draw(st.integers(0, 7))
    choices = [
        data.draw(st.binary(max_size=60)),
        (2**63).to_bytes(8, "little") + good[8:],
        len(huge).to_bytes(8, "little") + huge,
        good[: data.draw(st.integers(0, len(good) - 1))],
        bytes(flipped),
    ]
    path.write_bytes(data.draw(st.sampled_from(choices)))
    try:
        weights.check(path, loaded.state["params"], loaded.step)
    except BadFileError as error:
        assert error.path == path
    else:  # a flip in the words that describe an array
        assert path.read_bytes()[-1000:] == good[-1000:]


def test_exported_arrays_are_the_checkpoints_bit_for_bit(
    made: Path, loaded: stored.LoadedCheckpoint, tmp_path: Path
) -> None:
    params = arrays.named(loaded.state["params"])
    header, found = weights.load(made / "weights.safetensors")
    assert found.keys() == params.keys() == header["arrays"].keys() and header["step"] == 2
    for name, array in load_file(made / "weights.safetensors").items():
        assert array.dtype == params[name].dtype and array.tobytes() == params[name].tobytes()
        assert len(header["arrays"][name]["axes"]) == array.ndim
    rng = np.random.default_rng(0)
    for dtype in (jnp.bfloat16, np.float64):
        tree = {
            "embed": rng.normal(size=(5, 3)).astype(dtype).T,  # not as it lies in memory
            "blocks": {"self_mod": {"b_alpha": np.asarray([np.nan, -0.0]).astype(dtype)}},
        }
        digest = weights.save(tmp_path / "w", tree, 1)
        weights.check(tmp_path / "w", tree, 1)
        again = weights.load(tmp_path / "w")[1]
        assert arrays.digest(again) == digest == arrays.digest(arrays.named(tree))
        assert again["embed"].dtype == dtype and np.array_equal(again["embed"], tree["embed"])
