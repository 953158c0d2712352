"""A model of which only some memories or layers are written; the others stay as they were."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.types import PyTree
from hope_jax.models.lm import Fast, HopeModel, ReadOutput


@dataclass(frozen=True)
class SelectiveModel(HopeModel):
    """`HopeModel` whose writes to memories and layers that are not selected are undone.

    paths: memories (`titan`, `cms`, `self_mod`) or levels of a CMS; (): all. layers: from 0; (): all.
    A memory that writes while it reads is set back after each online chunk: within one it reads what it has
    just written.
    """

    paths: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    def read(self, params: PyTree, fast: Fast | dict[str, PyTree], *rest: Any, **named: Any) -> ReadOutput:
        """As `HopeModel.read`."""
        out = super().read(params, fast, *rest, **named)
        kept = self._kept(fast, out.fast) if isinstance(fast, tuple) else out.fast
        return out._replace(fast=kept, stats=self._counted(out.stats))

    def write(
        self, params: PyTree, norms: Any, fast: Fast, *rest: Any, **named: Any
    ) -> tuple[Fast, dict[str, Any]]:
        """As `HopeModel.write`."""
        new, stats = super().write(params, norms, fast, *rest, **named)
        return self._kept(fast, new), self._counted(stats)

    def _kept(self, old: Fast, new: Fast) -> Fast:
        """`new` where it is selected, else `old`."""
        return tuple(
            self._kept_layer(before, after) if not self.layers or i in self.layers else before
            for i, (before, after) in enumerate(zip(old, new, strict=True))
        )

    def _kept_layer(self, old: dict[str, PyTree], new: dict[str, PyTree]) -> dict[str, PyTree]:
        kept = {}
        for name, state in new.items():
            if _by_level(state, self.level_names()[name]):
                kept[name] = {
                    level: (state if self._written(name, level) else old[name])[level] for level in state
                }
            else:
                kept[name] = state if self._written(name, name) else old[name]
        return kept

    def _counted(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Statistics [L, B] of what is selected, zeros of the rest."""
        layers = np.array([not self.layers or i in self.layers for i in range(self.spec.num_layers)])

        def counted(on: bool, counts: Any) -> Any:
            return jax.tree.map(lambda t: jnp.where(layers[:, None] & on, t, 0), counts)

        return {
            name: {level: counted(self._written(name, level), counts) for level, counts in levels.items()}
            for name, levels in stats.items()
        }

    def _written(self, name: str, level: str) -> bool:
        return not self.paths or name in self.paths or level in self.paths


def paths_of(model: HopeModel) -> tuple[str, ...]:
    """What may be selected of a model: its memories, and the levels of those that hold them one by one."""
    fast = jax.eval_shape(lambda key: model.init_fast_state(model.init_params(key), 1), jax.random.key(0))
    names: dict[str, None] = {}
    for name, levels in model.level_names().items():
        names[name] = None
        if _by_level(fast[0][name], levels):
            names.update(dict.fromkeys(levels))
    return tuple(names)


def check_selection(model: HopeModel, paths: Iterable[str], layers: Iterable[int]) -> None:
    """Raises ConfigError for a memory or a layer that the model does not have."""
    known, count = paths_of(model), model.spec.num_layers
    for path in paths:
        if path not in known:
            known_here = instead(path, known, "its own:")
            raise ConfigError(f"--memorize_paths: the model has no memory {path!r}; {known_here}")
    for layer in layers:
        if not 0 <= layer < count:
            raise ConfigError(f"--memorize_layers: {layer} is no layer; the model has 0 to {count - 1}")


def _by_level(state: PyTree, levels: Iterable[str]) -> bool:
    return isinstance(state, dict) and set(state) == set(levels)
