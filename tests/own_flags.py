"""Flags of one command in a test process that has imported others."""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from absl import flags


@contextlib.contextmanager
def own_flags(module: ModuleType, *names: str) -> Iterator[None]:
    """Within the block the flags `names` are those of `module`, not another command's of the same name."""
    before = {name: flags.FLAGS[name] for name in names}
    importlib.reload(module)
    for name in names:
        flags.FLAGS[name].unparse()  # absl keeps the flag of an earlier block, and what was given there
    try:
        yield
    finally:
        for name, flag in before.items():
            flags.FLAGS[name] = flag
