"""Every key has a user: a shipped file that sets it, or a reason to be there and a test that turns it on."""

import ast
import re
import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest

from hope_jax.config.values import key_paths

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "make_config_reference.py"))
UNSET: Mapping[str, tuple[str, str]] = REFERENCE["UNSET"]


def test_every_key_has_a_shipped_file_or_else_a_reason_and_a_test() -> None:
    unused = {key for key, files in REFERENCE["users"]().items() if not files}
    assert not unused - set(UNSET), "give it a shipped file, an entry in docs/unset_keys.py, or delete it"


def test_no_entry_is_left_over() -> None:
    users = REFERENCE["users"]()
    assert not set(UNSET) - {path for path, *_ in key_paths()}, "these keys are gone"
    used = {key: files for key in UNSET if (files := users[key])}
    assert not used, "these have shipped files by now"


@pytest.mark.parametrize("key", UNSET)
def test_the_named_test_is_there_and_its_file_sets_the_key(key: str) -> None:
    """Itself, or through the oracles' bridge, under the option's name."""
    reason, test = UNSET[key]
    path, _, name = test.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    functions = [each.name for each in ast.walk(ast.parse(text)) if isinstance(each, ast.FunctionDef)]
    assert reason and name.startswith("test_") and name in functions
    if "tests.oracle import bridge" in text:
        text += (ROOT / "tests/oracle/bridge.py").read_text(encoding="utf-8")
    option = key.rsplit(".", 1)[1]
    assert re.search(rf"""(?<!\w){option}(=|["'][:,)])""", text), f"{path} does not set {option}"
