"""Models and streams that the torch reference and production are compared on.

27 tokens in online chunks of 8 (the last has 3); levels whose periods divide the chunk, equal it and span
two; every variant in both styles; every inner optimizer, gate, bound and source of signals somewhere.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hope_jax.core.types import Batch
from parity_tests import torch_bridge as bridge
from parity_tests.torch_reference.settings import Arch, Level, Rules, SelfMod
from parity_tests.torch_reference.stream import Example

TOKENS, CHUNK = 27, 8
LEVELS = (Level("fast", 4, 0.2), Level("mid", 8, 0.02, "preconditioned"), Level("slow", 16, 0.1, beta=0.5))
SELF_MOD = SelfMod(chunk=4, chunk_memory=16, eta_scale=0.05)


@dataclass(frozen=True)
class Case:
    """A model and how its streams are read and written. conv: taps of its convolution, 0: none."""

    arch: Arch
    rules: Rules = Rules(CHUNK)
    conv: int = 0


def modern(variant: str, levels: tuple[Level, ...] = (), **values: Any) -> Arch:
    return Arch(variant, "modern", 2, levels, **values)


def published(variant: str, levels: tuple[Level, ...] = (), **values: Any) -> Arch:
    return Arch(variant, "reference", 2, levels, qk_norm="l2", read_clip=1.0, **values)


CASES = {
    "attention": Case(modern("hope_attention", LEVELS[::2], window=10), conv=3),
    "attention_published_all_rules": Case(
        published(
            "hope_attention",
            (
                Level("fast", 2, 0.3, "muon"),
                Level("mid", 8, 0.1, "nl_l2_precond"),
                Level("slow", 16, 0.2, "dmgd"),
            ),
        ),
        Rules(
            CHUNK,
            teach_scale=0.7,
            schedule=0.8,
            teach_clip=0.4,
            own_output=False,
            threshold=0.9,
            write_clip=0.02,
            delta_clip=0.03,
            flush=True,
        ),
    ),
    "attention_global_loss_gate": Case(
        modern(
            "hope_attention",
            (
                Level("fast", 4, 0.1, "nl_l2_precond"),
                Level("mid", 8, 0.1, "sgd"),
                Level("slow", 16, 0.05, "l2_objective"),
            ),
            qk_norm="none",
        ),
        Rules(CHUNK, source="global", own_output=False, metric="loss", threshold=2.3, flush=True),
    ),
    "selfmod": Case(modern("hope_selfmod", LEVELS, self_mod=SELF_MOD), conv=3),
    "selfmod_published": Case(
        published(
            "hope_selfmod",
            LEVELS[::2],
            self_mod=replace(SELF_MOD, chunk=2, adaptive_q=True, stopgrad_vhat=False, momentum=0.5),
        ),
        Rules(CHUNK, metric="logit_entropy", threshold=0.87),
    ),
    "selfmod_dot_without_decay": Case(
        modern(
            "hope_selfmod",
            (Level("only", 8, 0.1),),
            self_mod=replace(
                SELF_MOD,
                chunk=16,
                chunk_memory=8,
                objective="dot",
                use_alpha=False,
                rank1=False,
                qk_norm=False,
            ),
        ),
    ),
    "hybrid": Case(
        modern("hope_hybrid", LEVELS[::2], titan=Level("titan", 4, 0.1, "preconditioned")),
        Rules(CHUNK, threshold=0.5),
    ),
    "hybrid_published_titans": Case(
        published("hope_hybrid", LEVELS[:1], titan=Level("titan", 8, 0.1, "titans")),
        Rules(CHUNK, write_clip=0.2, delta_clip=0.3, own_output=False, flush=True),
    ),
    "nested": Case(
        modern("hope_attention", LEVELS, connection="nested"), Rules(CHUNK, threshold=0.9, flush=True)
    ),
    "nested_published_dgd": Case(
        published(
            "hope_attention",
            (
                Level("fast", 2, 0.1, "momentum"),
                Level("slow", 8, 0.1, "dgd"),
                Level("mid", 4, 0.1, "momentum"),
            ),
            connection="nested",
        ),
        Rules(CHUNK, write_clip=0.05, delta_clip=0.1),
    ),
    "titan": Case(
        modern("titan", titan=Level("titan", 16, 0.2, "titans"), self_modifier=False),
        Rules(CHUNK, flush=True),
    ),
    "titan_published": Case(
        published("titan", titan=Level("titan", 8, 0.2, "nl_l2_precond"), correction_clip=0.5)
    ),
    "independent_delta_rules": Case(
        modern(
            "hope_attention",
            (
                Level("fast", 4, 0.2, "dgd"),
                Level("mid", 8, 0.1, "delta_momentum", beta=0.5),
                Level("slow", 16, 0.1),
            ),
            connection="independent",
        ),
        Rules(CHUNK, teach_scale=0.3),
    ),
    "delta_rules_published": Case(
        published(
            "hope_hybrid",
            (Level("fast", 8, 0.1, "delta_momentum", beta=0.5),),
            titan=Level("titan", 4, 0.2, "dgd"),
        ),
        Rules(CHUNK, teach_scale=0.3),
    ),
    "transformer": Case(modern("transformer", window=5), conv=3),
    "transformer_published": Case(published("transformer")),
    "transformer_pp": Case(modern("transformer_pp")),
    "transformer_pp_published": Case(published("transformer_pp")),
}


@cache
def setup(name: str) -> tuple[Any, Any, list[Example], Batch]:
    case = CASES[name]
    model, rows = bridge.hope_model(case.arch, case.rules, case.conv), bridge.examples(2, TOKENS)
    return model, bridge.random_params(model), rows, bridge.batch_of(rows)
