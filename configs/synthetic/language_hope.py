"""A formal language by HOPE: self-modifying Titans that write after every symbol (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/language_hope.py:language=anbn
          (parity: python -m hope_jax.launch --config=configs/synthetic/language_hope.py)
Hardware: 1 CPU core
Time:     1 minute (parity) to 3 (anbncn), beside other processes
Expect:   parity: of 20 seeds 11 learn (1, 2, 4, 9 to 14, 18, 19); 8 diverge, 0 among them. Seeds 1, 2 and 4
          read all parities of 1 to 50 symbols right, and 69 to 100 % of those of 51 to 100.
          abab, anbn, anbncn: all strings right; of those up to twice as long a third, of anbncn one in eight.
          shuffle2: 96 % of the strings right; of those up to twice as long 13 %.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_config
from hope_jax.core.errors import ConfigError, instead

SIZES = {"parity": (50, 4), "abab": (50, 5), "anbn": (100, 5), "anbncn": (150, 7), "shuffle2": (50, 8)}
"""Tokens of the longest string, and symbols. (aa)* has rates of its own: aa_hope.py."""


def get_config(language: str = "parity") -> OrderedConfig:
    if language not in SIZES:
        raise ConfigError(f"language={language}: unknown; {instead(language, SIZES)}")
    seq_len, symbols = SIZES[language]
    return synthetic_hope_config(language, seq_len=seq_len, vocab_size=symbols)
