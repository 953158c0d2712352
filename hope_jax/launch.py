"""Train a model, or resume the run of a workdir.

python -m hope_jax.launch --config=FILE [--config.KEY=VALUE ...] [--workdir=DIR]
    [--compilation_cache=DIR|none]

Progress goes to stderr; the last line of stdout is a JSON object with eval_loss, unigram_entropy,
tokens_per_sec and train_seconds.
"""

import json
import logging
from pathlib import Path

from absl import flags

from hope_jax import cli, compilation_cache
from hope_jax.config_check import validate, warnings
from hope_jax.errors import ConfigError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<name of the config file>.")
cli.define_config()

logger = logging.getLogger("hope_jax.launch")

SUMMARY_KEYS = ("eval_loss", "unigram_entropy", "tokens_per_sec", "train_seconds")


def main(argv: list[str]) -> None:
    """Reads and checks the configuration, the cheap checks first, then trains."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; every option is a flag (--help)")
    config = cli.load_config()
    validate(config)
    workdir = Path(_WORKDIR.value or Path("runs") / cli.config_path().stem)

    # From here on JAX is needed, which takes seconds to import.
    import jax

    compilation_cache.use()
    from hope_jax.memory import inner_optim
    from hope_jax.models import registry

    if config.train.compute_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    validate(
        config,
        device_count=jax.device_count(),
        built_variants=registry.VARIANTS,
        inner_optimizers=inner_optim.VARIANTS,
    )
    from hope_jax.training.loop import run

    for warning in warnings(config):
        logger.warning("warning: %s", warning)
    summary = run(config, workdir)
    print(json.dumps({key: summary[key] for key in SUMMARY_KEYS}), flush=True)


if __name__ == "__main__":
    cli.run_command(main)
