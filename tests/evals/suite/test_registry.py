"""Every evaluation is in the registry under its own name, and none is imported before it runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.evals import tasks
from hope_jax.evals.suite import registry
from hope_jax.evals.suite.run import Run
from tests.evals.subjects import subject

FOLDER = Path(str(tasks.__file__)).parent


def names_in_modules() -> dict[str, str]:
    """Module -> its NAME, of those that evaluate."""
    found = {}
    for path in FOLDER.glob("*.py"):
        body = ast.parse(path.read_text()).body
        evaluates = any(isinstance(node, ast.FunctionDef) and node.name == "evaluate" for node in body)
        for node in body if evaluates else ():
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "NAME":
                found[f"hope_jax.evals.tasks.{path.stem}"] = ast.literal_eval(node.value)
    return found


def test_every_evaluation_is_registered_under_its_own_name() -> None:
    assert names_in_modules() == {f"hope_jax.evals.tasks.{name}": name for name in registry.EVALS}
    assert not any(entry.module for entry in registry.EVALS.values())


def test_selection_and_needs() -> None:
    everything = dict.fromkeys(("zeroshot_data", "intents"), "there")
    assert registry.selected([], everything) == tuple(registry.EVALS)
    bare = registry.selected([], {})
    assert "zeroshot" not in bare and "class_incremental" not in bare and "passkey" in bare
    assert registry.selected(["zeroshot", "passkey"], {}) == ("passkey", "zeroshot"), "asked for by name"
    with pytest.raises(ConfigError, match="there is no evaluation 'nia'"):
        registry.selected(["nia"], {})


def test_the_command_imports_no_evaluation_before_it_runs() -> None:
    code = "import sys; from hope_jax.evals.suite import session; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "hope_jax.evals.suite.session" in loaded
    assert not loaded & {"lm_eval", "datasets", *names_in_modules()}


BAD = {
    "passkey": {"passkey_lengths": [20]},
    "niah": {"niah_tasks": ["foo"]},
    "perplexity": {"perplexity_tokens": 1},
    "zeroshot": {"zeroshot_tasks": "pica"},
    "continual": {"learned_at": ["first"]},
    "adaptation": {"learning_rates": [2.0]},
    "class_incremental": {"intents": "absent"},
    "synthetic": {"synthetic_strings": 0},
}


@pytest.mark.parametrize("name", registry.EVALS)
def test_options_that_cannot_be_are_known_before_anything_runs(name: str, tmp_path: Path) -> None:
    (key,) = BAD[name]
    with pytest.raises(ConfigError, match=key.split("_")[0]):
        registry.check(name, Run(subject(), tmp_path, options=BAD[name]))


def test_every_option_that_an_evaluation_reads_is_registered() -> None:
    """Else `--option` would refuse it: a name is a constant in `options.get("NAME", ...)` or
    `whole_number(options, "NAME", ...)`."""
    read = set[str]()
    for path in FOLDER.glob("*.py"):
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            given = [ast.unparse(call.func).removesuffix(".get"), *map(ast.unparse, call.args[:1])]
            if any(text.split(".")[-1] == "options" for text in given):
                names = (a.value for a in call.args[:2] if isinstance(a, ast.Constant))
                read |= {name for name in names if isinstance(name, str)}
    assert read == {option for entry in registry.EVALS.values() for option in entry.options}
