"""Imports run down the floors, never up or round, and the middle floors touch neither files nor flags."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from hope_jax.memory import rules
from hope_jax.models import blocks

Node = TypeVar("Node", bound=ast.AST)
ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": 0,
    "kernels": 1,
    "memory": 2,
    "models": 3,
    "learning": 4,
    "optim": 4,
    "config": 5,
    "data": 6,
    "report": 6,
    "cluster": 7,
    "storage": 7,
    "training": 8,
    "planning": 9,
    "perf": 9,
    "release": 9,
    "evals": 9,
}
FRONT = 10
FRONT_WITHIN = {
    "data.build",
    "data.coverage",
    "data.train_tokenizer",
    "evals.suite.__main__",
    "evals.passkey_smoke",
}
FORBIDDEN = (
    "absl",
    "ml_collections",
    "pathlib",
    "os",
    "io",
    "shutil",
    "time",
    "hope_jax.config.experiment",
    "hope_jax.config.presets",
)


def modules() -> dict[str, Path]:
    """Dotted name below hope_jax -> file, `hope_jax.kernels` from its folder at the top."""
    found = {}
    for folder, prefix in ((ROOT / "hope_jax", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            if path.name.startswith("test_") or path.name == "conftest.py":
                continue
            parts = [*prefix, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def floor(module: str) -> int:
    if not module:
        return 0
    return FRONT if module in FRONT_WITHIN else FLOORS.get(module.split(".")[0], FRONT)


def imported_names(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Every dotted name that the source imports, `from a import b` as a.b."""
    package = ["hope_jax", *module.split(".")] if module else ["hope_jax"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def local_imports(module: str) -> set[str]:
    """Modules of this package that a module imports."""
    path, found = MODULES[module], set()
    for name in imported_names(module, path.read_text(), path.name == "__init__.py"):
        parts = name.split(".")
        if parts[0] != "hope_jax":
            continue
        below = ".".join(parts[1:])
        found.add(below if below in MODULES else ".".join(parts[1:-1]))
    return found - {module}


def upward(module: str, imports: set[str]) -> set[str]:
    return {name for name in imports if floor(name) > floor(module)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names along a circle of imports; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for below in sorted(graph.get(name, ())):
            if found := visit(below, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_runs_upward(module: str) -> None:
    assert not upward(module, local_imports(module))


def test_no_import_runs_round() -> None:
    """Neither from module to module, nor from room to room."""
    graph = {module: local_imports(module) for module in MODULES}
    assert not circle(graph)
    rooms: dict[str, set[str]] = {}
    for module, below in graph.items():
        room = module.split(".")[0]
        rooms.setdefault(room, set()).update({name.split(".")[0] for name in below} - {room})
    assert not circle(rooms)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if 1 <= floor(m) <= 4))
def test_middle_floors_touch_neither_files_nor_flags(module: str) -> None:
    path = MODULES[module]
    source = path.read_text()
    names = set(imported_names(module, source, path.name == "__init__.py"))
    assert not {n for n in names for f in FORBIDDEN if n == f or n.startswith(f + ".")}
    opened = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    assert "open" not in {n.func.id for n in opened if isinstance(n.func, ast.Name)}


CORE_ROOMS = ("kernels", "memory", "models", "learning", "optim")
LINES, CLASSES = 6900, 75
"""Limits of the core: what a person reads in an afternoon."""

FILE_LINES, FUNCTION_LINES = 350, 60
"""Limits of the package."""


def core() -> dict[str, Path]:
    """The core's modules."""
    return {name: path for name, path in MODULES.items() if name.split(".")[0] in CORE_ROOMS}


def nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    """All nodes of a kind in the core, with the module that they stand in."""
    for module, path in core().items():
        yield from (
            (module, node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kind)
        )


def test_the_core_is_read_in_an_afternoon() -> None:
    assert sum(len(path.read_text().splitlines()) for path in core().values()) <= LINES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_is_one_idea_and_a_function_one_screen(module: str) -> None:
    source = MODULES[module].read_text()
    assert len(source.splitlines()) <= FILE_LINES
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= FUNCTION_LINES]


def test_the_core_has_few_classes_and_none_twice() -> None:
    names = [node.name for _, node in nodes(ast.ClassDef)]
    assert len(names) <= CLASSES
    assert len(set(names)) == len(names)


def test_inner_rules_and_blocks_are_asked_for_in_their_tables_alone() -> None:
    named = {*rules.RULES, *blocks.BLOCKS}

    def compared(node: ast.Compare) -> set[str]:
        strings = (part for side in (node.left, *node.comparators) for part in ast.walk(side))
        return {s.value for s in strings if isinstance(s, ast.Constant) and s.value in named}

    # The outer optimizer's names are its own.
    found = [(module, compared(node)) for module, node in nodes(ast.Compare) if module != "optim.outer"]
    assert not [each for each in found if each[1]]


def test_every_floor_is_seen() -> None:
    assert {*FLOORS.values(), FRONT} <= {floor(module) for module in MODULES}


def test_the_checks_find_what_they_look_for() -> None:
    assert upward("memory.cms", {"models.lm", "kernels", "core.types"}) == {"models.lm"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    source = "from ..models import lm\nfrom . import gate\nimport hope_jax.config.experiment"
    names = set(imported_names("memory.cms", source, is_package=False))
    assert names == {"hope_jax.models.lm", "hope_jax.memory.gate", "hope_jax.config.experiment"}
