"""Production self-modifying Titans reproduce the recorded numbers of the published code."""

import numpy as np
import pytest

from parity_tests.golden_file import DATA, GoldenMismatch, golden
from parity_tests.replay_smt import replay

FILES = sorted(path.stem for path in DATA.glob("smt_*.npz"))


@pytest.mark.parametrize("name", FILES)
def test_replay(name: str) -> None:
    replay(golden(name))


def test_files_are_there_and_a_wrong_number_is_found() -> None:
    assert len(FILES) >= 8
    g = golden("smt_momentum_carry")
    g.outputs["call.1.state.memory.m_w2"] = g.outputs["call.1.state.memory.m_w2"] + np.float64(1e-6)
    with pytest.raises(GoldenMismatch, match=r"call\.1\.state\.memory\.m_w2"):
        replay(g)
