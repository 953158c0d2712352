"""Eq. 53's landscape under momentum and under delta momentum: prints the tables of docs/delta_momentum.md and
writes docs/delta_momentum.png.

python docs/delta_momentum.py
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hope_jax.memory.levels import Level
from hope_jax.memory.rules import make_inner_optimizer

jax.config.update("jax_enable_x64", True)

START = np.array([-3.5, 2.0])
STEPS, EARLY, NEAR = 300, 60, 0.1
RATES = np.geomspace(1e-3, 1.0, 25)


class Landscape(NamedTuple):
    """psi(r, theta) = r^2 + k (r - theta + alpha sin(omega r))^2 (Eq. 53), least at (0, 0)."""

    k: float = 1.0
    alpha: float = 1.0
    omega: float = 1.0

    def __call__(self, point: jax.Array) -> jax.Array:
        """psi at a point of any shape with 2 elements."""
        r, theta = point.reshape(2)
        return r**2 + self.k * (r - theta + self.alpha * jnp.sin(self.omega * r)) ** 2


class Rule(NamedTuple):
    """label: in tables. optimizer: its name in `rules.OPTIMIZERS`. shape: of the parameter, [in, out]."""

    label: str
    optimizer: str
    shape: tuple[int, ...]


MOMENTUM = Rule("momentum", "momentum", (2, 1))
DELTA = Rule("delta momentum", "delta_momentum", (2, 1))
DELTA_VECTOR = Rule("delta momentum, vector", "delta_momentum", (2,))
RULES = (MOMENTUM, DELTA, DELTA_VECTOR)

PLAIN, STEEP, WAVY = Landscape(), Landscape(k=5.0), Landscape(k=2.0, omega=2.0)
BETA, SIZE = 0.9, 1.0
SHOWN_RATE = 0.03


def loss_scale(landscape: Landscape, size: float) -> float:
    """The factor on psi with which the first gradient has this norm."""
    return size / float(jnp.linalg.norm(_gradient(landscape, jnp.asarray(START))))


@jax.jit
def _gradient(landscape: Landscape, point: jax.Array) -> jax.Array:
    return jax.grad(landscape)(point)


@partial(jax.jit, static_argnums=(0, 1))
def paths(rule: Rule, beta: float, landscape: Landscape, scale: float, rates: jax.Array) -> jax.Array:
    """The points [rates, STEPS + 1, 2] of W <- W + m from START, m's rate on psi itself being `rates`.

    psi is multiplied by scale and the rate divided by it, so scale changes nothing for momentum.
    """
    optimizer = make_inner_optimizer(Level(1, 1.0, rule.optimizer, beta=beta))
    # Our momentum is an average: (1 - beta) times the sum m <- beta m - rate g of Eq. 48.
    gain = 1 / (1 - beta) if rule.optimizer == "momentum" else 1.0

    def one(rate: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple:
            point, state = carry
            update, state = optimizer.update(scale * _gradient(landscape, point), state)
            return (point - rate / scale * gain * update, state), point

        start = jnp.asarray(START).reshape(rule.shape)
        (end, _), before = jax.lax.scan(step, (start, optimizer.init(start)), None, STEPS)
        return jnp.concatenate([before, end[None]]).reshape(-1, 2)

    return jax.vmap(one)(rates)


class Outcome(NamedTuple):
    """Of one path. steps: after which it stays within NEAR of the minimum; STEPS + 1: never. length: of the
    path, inf where it runs away. rate: that it was made with. distance: to the minimum after EARLY steps."""

    steps: int
    length: float
    rate: float
    distance: float


def outcome(path: np.ndarray, rate: float) -> Outcome:
    """Figures of a path [STEPS + 1, 2]."""
    with np.errstate(over="ignore", invalid="ignore"):
        distances = np.linalg.norm(path, axis=1)
        length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    away = np.flatnonzero(~(distances <= NEAR))
    length = float(length) if np.isfinite(length) else np.inf
    return Outcome(int(away[-1]) + 1, length, rate, float(distances[EARLY]))


def outcomes(
    rule: Rule, beta: float, landscape: Landscape, size: float, rates: np.ndarray = RATES
) -> list[Outcome]:
    """One outcome a rate."""
    found = np.asarray(paths(rule, beta, landscape, loss_scale(landscape, size), jnp.asarray(rates)))
    return [outcome(path, float(rate)) for path, rate in zip(found, rates, strict=True)]


def best(rule: Rule, beta: float, landscape: Landscape, size: float) -> Outcome:
    """The outcome at that of RATES which needs the fewest steps; of equals that of the shortest path."""
    return min(outcomes(rule, beta, landscape, size))


def _cell(found: Outcome, last: str) -> str:
    if not np.isfinite(found.length):
        return "runs away"
    steps = "never" if found.steps > STEPS else found.steps
    return f"{steps} / {found.length:.1f} / {last}"


def _table(keys: list[str], rows: list[list[str]]) -> str:
    """Markdown: the keys of a row, then a cell for each rule."""
    lines = [[*keys, *(rule.label for rule in RULES)], ["---"] * (len(keys) + len(RULES)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def same_rates() -> str:
    """Steps, path and distance after EARLY steps: the rules at the same rates, beta = BETA, on PLAIN."""
    rates = np.array([0.003, 0.01, 0.03, 0.1, 0.2])
    by_rule = [outcomes(rule, BETA, PLAIN, SIZE, rates) for rule in RULES]
    rows = [
        [f"{rate:g}", *(_cell(o, f"{o.distance:.2f}") for o in found)]
        for rate, *found in zip(rates, *by_rule, strict=True)
    ]
    return _table(["rate"], rows)


def _best_cells(beta: float, landscape: Landscape, size: float) -> list[str]:
    found = (best(rule, beta, landscape, size) for rule in RULES)
    return [_cell(o, f"{o.rate:.3f}") for o in found]


def best_rates() -> str:
    """Steps, path and rate: each rule at its best rate, for several beta and landscapes."""
    rows = [
        [", ".join(f"{x:g}" for x in landscape), f"{beta:g}", *_best_cells(beta, landscape, SIZE)]
        for landscape in (PLAIN, STEEP, WAVY)
        for beta in (0.5, 0.8, 0.9, 0.95)
    ]
    return _table(["k, alpha, omega", "beta"], rows)


def loss_scales() -> str:
    """Steps, path and rate: each rule at its best rate, beta = BETA, on PLAIN times several factors."""
    sizes = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    return _table(["first gradient"], [[f"{size:g}", *_best_cells(BETA, PLAIN, size)] for size in sizes])


TABLES = {"same rates": same_rates, "best rates": best_rates, "loss scales": loss_scales}

COLORS = {MOMENTUM: "#3b6ea8", DELTA: "#c8553d", DELTA_VECTOR: "#e0a458"}


def _draw_paths(axes: Axes) -> None:
    r, theta = np.meshgrid(np.linspace(-4.2, 4.2, 200), np.linspace(-4.2, 4.2, 200))
    points = jnp.asarray(np.stack([r, theta], -1).reshape(-1, 2))
    heights = np.asarray(jax.vmap(PLAIN)(points)).reshape(r.shape)
    axes.contour(r, theta, heights, np.geomspace(0.1, 80, 14), colors="#c3cad0", linewidths=0.7)
    for rule in RULES:
        path = paths(rule, BETA, PLAIN, loss_scale(PLAIN, SIZE), jnp.array([SHOWN_RATE]))[0]
        axes.plot(*np.asarray(path).T, color=COLORS[rule], lw=1.1, marker=".", ms=2.5, label=rule.label)
    axes.plot(*START, "o", color="#22303c", ms=5)
    axes.plot(0, 0, "+", color="#22303c", ms=9)
    axes.set(xlabel="r", ylabel="theta", title=f"beta {BETA}, rate {SHOWN_RATE}")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_distances(axes: Axes) -> None:
    lines = [(rule, BETA, "-") for rule in RULES] + [(MOMENTUM, 0.5, "--")]
    for rule, beta, style in lines:
        rate = best(rule, beta, PLAIN, SIZE).rate
        path = np.asarray(paths(rule, beta, PLAIN, loss_scale(PLAIN, SIZE), jnp.array([rate])))[0]
        label = f"{rule.label}, beta {beta}, rate {rate:.3f}"
        axes.semilogy(np.linalg.norm(path, axis=1), style, color=COLORS[rule], lw=1.2, label=label)
    axes.axhline(NEAR, color="#7a8691", lw=0.8)
    axes.set(xlim=(0, 120), ylim=(1e-4, 12), xlabel="step", ylabel="distance to the minimum")
    axes.set_title("each at its best rate")
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def draw() -> Figure:
    """Paths at one rate, and distances at each rule's best rate."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_paths(left)
    _draw_distances(right)
    return figure


if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=110)
