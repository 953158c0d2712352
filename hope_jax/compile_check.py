"""Compile every kernel, and steps with attention, for a device that is not here; nothing is run.

python -m hope_jax.compile_check --topology=NAME [NAME ...]

Topologies as of `hope_jax.plan`. NAME is the beginning of a row's name; none: all. Prints for each row how
long it took and which libraries and Pallas kernels the program calls, by target and number; "none" where XLA
made all of it. Exit code 1 where one does not compile.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.output import say

_TOPOLOGY = flags.DEFINE_string("topology", None, "Device to compile for.", allow_override=True)
_WIDTH = flags.DEFINE_integer("width", 512, "Of the model; the pilot's is the default.", lower_bound=16)


def main(argv: list[str]) -> int:
    """Prints a row for each."""
    if not _TOPOLOGY.value:
        raise ConfigError("--topology is missing; want for example --topology=rtx6000ada:1")
    from hope_jax.planning import devices

    topology = devices.parse_topology(str(_TOPOLOGY.value))
    found, failed = devices.find_devices(topology)[:1], 0
    rows = dict(_rows(found))
    for wanted in argv:
        if not any(name.startswith(wanted) for name in rows):
            raise ConfigError(f"compile_check {wanted}: no row's name begins so; {instead(wanted, rows)}")
    say(f"{topology.accelerator.title} ({topology.name}), compiled and not run")
    for name, lower in rows.items():
        if argv and not name.startswith(tuple(argv)):
            continue
        started = time.perf_counter()
        try:
            text = lower().compile(compiler_options=topology.accelerator.options).as_text() or ""
            told = _calls(text)
        except Exception as error:  # whatever a compiler raises: the other rows count too
            told, failed = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}", failed + 1
        say(f"{name:40} {time.perf_counter() - started:7.1f} s  {told}")
    return 1 if failed else 0


def _rows(found: list[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names, and what lowers them."""
    from hope_jax.perf.kernel_checks import checks

    for check in checks(_WIDTH.value):
        for dtype in ("float32", "bfloat16"):
            yield f"{check.name}, {dtype}", partial(_lower_kernel, check, dtype, found)
    for dtype in ("float32", "bfloat16"):
        for mode, chunk in (("two_pass", 0), ("online", 512)):
            yield f"attention, {mode}, {dtype}", partial(_lower_step, mode, chunk, dtype, found)


def _lower_kernel(check: Any, dtype: str, found: list[Any]) -> Any:
    import jax

    from hope_jax.cluster.sharding import make_mesh, replicated

    placed = replicated(make_mesh(found))
    shapes = jax.eval_shape(lambda: check.arguments(dtype))
    arguments = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=placed), shapes)
    return jax.jit(check.function()).lower(*arguments)


def _lower_step(mode: str, chunk: int, dtype: str, found: list[Any]) -> Any:
    """Two layers of attention and MLPs in rows of 2,048 tokens."""
    from hope_jax.cluster.sharding import make_mesh
    from hope_jax.config.presets import pilot_config
    from hope_jax.perf.steps import changed
    from hope_jax.planning.compile import lower_step
    from hope_jax.training.step import Step

    config = pilot_config()
    config.model.update({"block_variant": "transformer", "num_layers": 2, "dim": _WIDTH.value})
    config.train.update({"algorithm_mode": mode, "online_chunk_size": chunk, "compute_dtype": dtype})
    config.optim.name = "adamw"
    mesh = make_mesh(found)
    return lower_step(Step(changed(config, data__mixture={}), mesh), mesh, 2, config.data.seq_len)


def _calls(text: str) -> str:
    from hope_jax.planning import hlo
    from hope_jax.planning.traffic import is_kernel, target

    inside = (it for each in hlo.parse(text).computations.values() for it in each.values())
    found = Counter(target(it) for it in inside if is_kernel(it))
    return ", ".join(f"{count} x {name}" for name, count in sorted(found.items())) or "none"


if __name__ == "__main__":
    cli.run_command(main)
