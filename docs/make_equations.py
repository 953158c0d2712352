"""Writes docs/equations.md: each equation, the function that computes it, its oracle, and their test.

python docs/make_equations.py
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("equations.md")

HEAD = """# Equations, functions, oracles, tests

Made by `python docs/make_equations.py`; do not edit. `tests/docs/test_equations_docs.py` checks that
everything named here exists, and that every equation that the code cites is listed.

*NL* is Nested Learning (arXiv 2512.24695), *Titans* arXiv 2501.00663, *GDN* Gated DeltaNet
(arXiv 2412.06464); *published* rules are those of the
PyTorch code behind the golden files (docs/golden.md), *own* ones are described where they stand. The
oracles of `tests/oracle` are naive, token by token, and import nothing of the package;
`parity_tests/torch_reference` says the same in torch; golden files hold the published code's numbers.
Agreement is to 1e-9 in float64.
"""

GOLDEN = "parity_tests/test_production_golden.py::test_verdict"
TORCH = "parity_tests/test_torch_reference.py::test_streams_and_their_outer_gradients"
MEMORY, LEARNING, KERNELS = "hope_jax/memory/", "hope_jax/learning/", "kernels/"
ORACLE, TESTS = "tests/oracle/", "tests/"


class Equation(NamedTuple):
    """One row. source: whose. number: as cited there. computes: in words or a formula.

    functions, oracles, tests: `path::name`, a method as `path::Class.method`, a golden file by its path.
    """

    source: str
    number: str
    computes: str
    functions: tuple[str, ...]
    oracles: tuple[str, ...]
    tests: tuple[str, ...]


def golden(*names: str) -> tuple[str, ...]:
    """Golden files as oracles."""
    return tuple(f"parity_tests/data/{name}.npz" for name in names)


EQUATIONS = (
    Equation(
        "NL",
        "48-49",
        "delta momentum: m <- m (alpha I - g^T g) - eta g, W <- W + m",
        (MEMORY + "rules.py::delta_momentum",),
        (ORACLE + "writes.py::delta_momentum",),
        (TESTS + "memory/test_delta_rules.py::test_writes_match_naive_periods",),
    ),
    Equation(
        "NL",
        "53",
        "the landscape r^2 + k (r - theta + alpha sin(omega r))^2 under momentum and delta momentum",
        ("docs/delta_momentum.py::Landscape", "docs/delta_momentum.py::paths"),
        (),
        (
            TESTS + "docs/test_delta_momentum_docs.py::test_tables_are_those_of_the_script",
            TESTS + "docs/test_delta_momentum_docs.py::test_scale_is_what_the_page_says",
        ),
    ),
    Equation(
        "NL",
        "56-57, 113-121",
        "delta gradient descent: W <- W (I - eta' x x^T) - eta' g x^T",
        (MEMORY + "rules.py::delta_gradient_descent",),
        (ORACLE + "cms.py::drawn_gradient",),
        (
            TESTS + "memory/test_delta_rules.py::test_one_token_of_norm_one_is_equation_57",
            TESTS + "memory/test_delta_rules.py::test_factors_match_the_linear_system_and_skip_masked_tokens",
            TESTS + "memory/test_delta_rules.py::test_writes_match_naive_periods",
        ),
    ),
    Equation(
        "NL",
        "70",
        "the chain of levels y = MLP_k(... MLP_1(x))",
        (MEMORY + "cms.py::Cms.read", MEMORY + "mlp_memory.py::read"),
        (
            ORACLE + "cms.py::read",
            ORACLE + "cms.py::level_read",
            *golden("cms_forward_ln", "cms_forward_noln"),
        ),
        (TESTS + "memory/test_cms.py::test_read_and_gradient_match_naive_level", GOLDEN),
    ),
    Equation(
        "NL",
        "71",
        "a level's write every C tokens, theta <- theta - eta opt(sum_t m_t d<delta_t, y_t>/dtheta)",
        (
            MEMORY + "cms.py::Cms.write",
            MEMORY + "period_write.py::PeriodWriter.write",
            MEMORY + "mlp_memory.py::write_factors",
            MEMORY + "mlp_memory.py::write_gradient",
        ),
        (
            ORACLE + "cms.py::Cms.write_chunk",
            ORACLE + "writes.py::Memory.close",
            ORACLE + "cms.py::level_gradient",
            "parity_tests/torch_reference/periods.py::write_level",
        ),
        (
            TESTS + "memory/test_cms.py::test_writes_match_naive_periods",
            "parity_tests/test_production_golden.py::test_cms_write_of_the_fast_weights",
            TORCH,
        ),
    ),
    Equation(
        "NL",
        "71",
        "the same for all periods of a chunk at once, under linear inner optimizers",
        (KERNELS + "cms_write/gram.py::write_periods",),
        ("kernels/cms_write/test_cms_write.py::one_by_one",),
        (KERNELS + "cms_write/test_cms_write.py::test_matches_naive",),
    ),
    Equation(
        "NL",
        "72",
        "nested levels: a slower level learns where the next faster one starts",
        (MEMORY + "cms_nested.py::NestedCms",),
        (ORACLE + "cms.py::Cms.end_of_token",),
        (TESTS + "memory/test_cms_connections.py::test_nested_writes_match_naive_levels",),
    ),
    Equation(
        "NL",
        "74",
        "independent levels: y = sum_l softmax(w)_l MLP_l(x)",
        (MEMORY + "cms.py::Cms.read",),
        (ORACLE + "cms.py::read",),
        (TESTS + "memory/test_cms_connections.py::test_independent_reads_match_naive_average",),
    ),
    Equation(
        "NL",
        "83-93",
        "self-modifying Titans: keys, values, rates and decays from memories that are written with them",
        (MEMORY + "self_mod.py::SelfMod.read",),
        (
            ORACLE + "self_mod.py::Stream.read",
            "parity_tests/torch_reference/self_mod.py::read",
            *golden("smt_default_1_1", "smt_grad_vhat_3_5", "smt_dot_mom_adaptq"),
        ),
        (
            TESTS + "memory/test_self_mod.py::test_outputs_and_memories_match_the_loop_over_tokens",
            TESTS
            + "memory/test_self_mod.py::test_gradients_through_the_writes_match_differences_of_the_loop",
            "parity_tests/test_other_files.py::test_self_modifying_calls",
            GOLDEN,
        ),
    ),
    Equation(
        "NL",
        "83-93",
        "the write of a chunk, M <- M (alpha_t I - eta_t k_t k_t^T) - eta_t grad_t, in closed form",
        (KERNELS + "self_mod/chunked.py::write_chunk",),
        (ORACLE + "self_mod.py::written",),
        (
            KERNELS + "self_mod/test_self_mod.py::test_chunked_matches_naive",
            KERNELS + "self_mod/test_self_mod.py::test_gradients_match_naive_with_tokens_left_out",
        ),
    ),
    Equation(
        "NL",
        "Algorithm 1",
        "M3: fast and slow momentum, orthogonalised, over a second moment",
        ("hope_jax/optim/m3.py::scale_by_m3",),
        (TESTS + "optim/test_outer.py::numpy_newton_schulz", *golden("optim_m3")),
        (
            TESTS + "optim/test_outer.py::test_m3_is_algorithm_1",
            "parity_tests/test_other_files.py::test_m3_of_a_tensor_with_decay",
            GOLDEN,
        ),
    ),
    Equation(
        "GDN",
        "gated delta rule",
        "S <- alpha S (I - beta k k^T) + beta v k^T, o = S q, in chunks by the WY form",
        ("kernels/gated_deltanet/chunked.py::gated_delta", MEMORY + "gated_deltanet.py::GatedDeltaNet.read"),
        (ORACLE + "gated_deltanet.py::step", ORACLE + "gated_deltanet.py::read"),
        (
            "kernels/gated_deltanet/test_gated_deltanet.py::test_matches_the_recurrence_with_gradients",
            TESTS + "memory/test_gated_deltanet.py::test_outputs_states_and_gradients_match_the_loop",
        ),
    ),
    Equation(
        "Titans",
        "write rule",
        "S_t = eta_t S_{t-1} - theta_t g_t, M_t = (1 - alpha_t) M_{t-1} + S_t, gates from the data",
        (MEMORY + "titans_rule.py::TitansWriter", MEMORY + "titans_rule.py::token_gates"),
        (ORACLE + "writes.py::Memory.titans", ORACLE + "writes.py::gates"),
        (
            TESTS + "memory/test_titan.py::test_stream_of_writes",
            TESTS + "memory/test_titan.py::test_maps_of_periods_compose",
        ),
    ),
    Equation(
        "own",
        "TITAN memory",
        "1/2 sum m_t |mem(key_t) - target_t|^2, target = mem + SelfModifier - delta",
        (
            MEMORY + "titan.py::Titan.write",
            MEMORY + "titan.py::Titan.read",
            MEMORY + "titan.py::self_modifier_read",
        ),
        (
            ORACLE + "titan.py::gradient",
            ORACLE + "titan.py::mem",
            *golden("titan_memory", "model_titan_only"),
        ),
        (
            TESTS + "memory/test_titan.py::test_stream_of_writes",
            TESTS + "memory/test_titan.py::test_gradients_through_writes_are_finite_differences",
            GOLDEN,
        ),
    ),
    Equation(
        "published",
        "inner optimizers",
        "`momentum`, `preconditioned`, `muon`, `dmgd`, `l2_objective`, `nl_l2_precond`",
        (MEMORY + "rules.py::make_inner_optimizer",),
        (
            ORACLE + "writes.py::inner_step",
            "parity_tests/published_update.py::update",
            *golden("cms_update_muon", "cms_update_nl_l2_precond"),
        ),
        (
            TESTS + "memory/test_inner_optim.py::test_updates_and_state_match_recurrence",
            "parity_tests/test_other_files.py::test_cms_update",
            GOLDEN,
        ),
    ),
    Equation(
        "own",
        "teach signal",
        "delta_t = d(sum of cross-entropies)/dh_t, at the head in closed form, at blocks and levels by taps",
        (
            KERNELS + "xent_teach/chunked.py::cross_entropy",
            LEARNING + "teach.py::process",
        ),
        (
            ORACLE + "model.py::head_signal",
            ORACLE + "stream.py::process",
            *golden("teach_plain", "teach_ignore"),
        ),
        (
            TESTS + "learning/test_teach.py::test_taps_give_naive_signals",
            TESTS + "learning/test_teach.py::test_global_signal_is_the_heads_pulled_back_for_all_layers",
            KERNELS + "xent_teach/test_xent_teach.py::test_blocks_match_naive",
            GOLDEN,
        ),
    ),
    Equation(
        "own",
        "surprise gate",
        "a period is written if its mean surprise reaches the threshold",
        (
            MEMORY + "period_write.py::PeriodWriter.decided",
            MEMORY + "state.py::WriteSignal.mask",
            MEMORY + "period_write.py::PeriodWriter.count",
        ),
        (ORACLE + "stream.py::surprise", ORACLE + "writes.py::Memory.close"),
        (TESTS + "learning/test_online.py::test_online_matches_naive_stream",),
    ),
    Equation(
        "own",
        "online mode",
        "chunks read with what earlier chunks wrote; the outer gradient on the way",
        (LEARNING + "modes.py::online",),
        (ORACLE + "stream.py::online", "parity_tests/torch_reference/stream.py::outer_gradient"),
        (TESTS + "learning/test_online.py::test_online_matches_naive_stream", TORCH),
    ),
    Equation(
        "own",
        "two-pass mode",
        "the sequence is one chunk, written after the outer step",
        (LEARNING + "modes.py::two_pass",),
        (ORACLE + "stream.py::online", "parity_tests/torch_reference/stream.py::whole_sequence"),
        (
            TESTS
            + "learning/test_streams.py::test_two_pass_matches_naive_and_its_reads_equal_one_online_chunk",
            "parity_tests/test_torch_reference.py::test_two_pass_gradient_and_writes",
        ),
    ),
    Equation(
        "own",
        "through writes",
        "the outer gradient through every write and every teach signal",
        (LEARNING + "modes.py::through_writes",),
        (TESTS + "learning/test_through_writes.py::looped_loss",),
        (
            TESTS
            + "learning/test_through_writes.py::"
            + "test_gradient_is_that_of_the_plain_loop_and_the_stream_that_of_online",
        ),
    ),
    Equation(
        "own",
        "streaming",
        "a document fed in any split leaves the same logits and state",
        (LEARNING + "stream.py::Streamer.feed", LEARNING + "stream.py::Streamer.finish"),
        (ORACLE + "stream.py::online", "parity_tests/torch_reference/stream.py::stream"),
        (
            TESTS + "learning/test_stream.py::test_any_split_gives_the_same_logits_and_state",
            "parity_tests/test_torch_reference.py::test_a_stream_in_pieces",
        ),
    ),
)


def missing() -> list[str]:
    """What the table names and the repository does not have."""
    return sorted(
        {ref for e in EQUATIONS for ref in (*e.functions, *e.oracles, *e.tests) if not _exists(ref)}
    )


def _exists(ref: str) -> bool:
    path, _, name = ref.partition("::")
    if not (ROOT / path).is_file():
        return False
    return not name or name in set(_definitions(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def _definitions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{sub.name}" for sub in node.body if isinstance(sub, ast.FunctionDef))


def numbers(text: str) -> set[int]:
    """The equation numbers in a list like "48-49, 53"."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def cited() -> dict[int, str]:
    """Equation numbers that the package and its kernels cite, and a file that does."""
    found = {}
    for folder in ("hope_jax", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for listed in re.findall(r"Eqs?\.\s+([\d\-, ]+)", path.read_text(encoding="utf-8")):
                found.update({number: str(path.relative_to(ROOT)) for number in numbers(listed)})
    return found


def render() -> str:
    """The whole page."""
    lines = [HEAD, "| equation | computes | function | oracle | test |", "|---|---|---|---|---|"]
    for e in EQUATIONS:
        cells = [f"{e.source}: {e.number}" if e.source == "own" else f"{e.source} {e.number}"]
        cells.append(e.computes.replace("|", r"\|"))
        cells += ["<br>".join(_link(ref) for ref in refs) for refs in (e.functions, e.oracles, e.tests)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _link(ref: str) -> str:
    path, _, name = ref.partition("::")
    return f"[`{name or Path(path).stem}`](../{path})"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
