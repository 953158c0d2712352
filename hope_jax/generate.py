"""Continue a text, with the memories carried from call to call.

python -m hope_jax.generate --checkpoint=PATH --prompt=TEXT [--memory=FILE] [--save_memory=FILE]
    [--write=prompt|all|none] [--max_tokens=N] [--temperature=X] [--seed=S]

Prints the continuation, without the prompt. A stream without --memory begins as documents do in training,
with BOS. With --memory the prompt goes on where the saved stream stopped, in the same document, or after
EOS in a new one; without a prompt the text itself goes on. A drawn EOS ends the text.

--write says which tokens are targets, from whose loss teach-driven memories (CMS, TITAN) learn. Memories
that write while they read (self-modifying Titans) write on every token under each of the three.

--save_memory keeps the stream after the last token, unfinished chunk included: two calls give the text of
one, as the draws depend on the seed and on a token's position in its stream. It is saved too where the text
can no longer be printed (then of all of it), and after Ctrl-C (of the tokens until then).
"""

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from hope_jax import cli
from hope_jax.config.check import validate
from hope_jax.config.values import resolve
from hope_jax.core.errors import ConfigError, UserError
from hope_jax.core.output import say
from hope_jax.learning.sampling import continue_stream
from hope_jax.storage import memory_file
from hope_jax.storage.stored import load_checkpoint
from hope_jax.storage.trained import Trained, prepare, read_text

_CHECKPOINT = cli.define_checkpoint()
_PROMPT = flags.DEFINE_string("prompt", "", "Text to continue; may be left out with --memory.")
_MEMORY = cli.define_path("memory", "Saved memory to go on from.")
_SAVE_MEMORY = cli.define_path("save_memory", "File for the memory after the last token.")
_WRITE = flags.DEFINE_enum(
    "write", "prompt", ["prompt", "all", "none"], "Targets: the prompt's tokens, drawn ones too, or none."
)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "Tokens to draw at most.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Of the draws; 0: the likeliest token.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**32 - 1)

logger = logging.getLogger("hope_jax.generate")


def main(argv: list[str]) -> None:
    """Reads the prompt, prints what follows, saves the memory."""
    cli.refuse_arguments(argv, "every option is a flag, --prompt too")
    if not _CHECKPOINT.value:
        raise ConfigError(
            "--checkpoint is missing; want a workdir, for example --checkpoint=runs/pilot_smoke"
        )
    if not _PROMPT.value and not _MEMORY.value:
        raise ConfigError("--prompt is empty; want text to continue, or --memory=FILE to go on from")
    if not math.isfinite(_TEMPERATURE.value):
        raise ConfigError(f"--temperature={_TEMPERATURE.value}: want a finite number")
    if _SAVE_MEMORY.value and Path(_SAVE_MEMORY.value).is_dir():
        raise ConfigError(f"--save_memory={_SAVE_MEMORY.value} is a folder; name a file in it")
    loaded = load_checkpoint(Path(_CHECKPOINT.value), ("params", "fast"))
    config = resolve(loaded.config)
    validate(config)
    if config.train.compute_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    _run(prepare(loaded, config))


def _run(model: Trained) -> None:
    streamer, path, target = model.streamer, _MEMORY.value, _SAVE_MEMORY.value
    owner = memory_file.owner_of(streamer, model.params) if path or target else None
    if path and owner:
        stream = memory_file.load_memory(Path(path), streamer, model.params, owner)
        if len(stream.chunk.tokens) != 1:
            raise ConfigError(f"--memory={path} holds {len(stream.chunk.tokens)} streams; want one")
    else:
        stream = streamer.begin(model.params, 1, 0, model.fast)
    write, room = _WRITE.value, _MAX_TOKENS.value
    stream = read_text(model, stream, _PROMPT.value, targets=write != "none", more=room)
    drawn = continue_stream(
        *(streamer, model.params, stream),
        max_tokens=room,
        temperature=_TEMPERATURE.value,
        seed=_SEED.value,
        targets=write == "all",
    )

    def until_eos() -> Iterator[int]:
        nonlocal stream
        for step in drawn:
            stream = step.state
            if step.token == model.tokenizer.eos_id:
                return
            yield step.token

    lost: BaseException | None
    try:
        lost = _show(model.tokenizer.decode_stream(stream.recent.tokens[0], until_eos()), bool(target))
    except KeyboardInterrupt as error:
        lost = error
    if target and owner:
        digest = memory_file.save_memory(Path(target), streamer, stream, owner)
        logger.info("memory of %d tokens in %s, digest %s", stream.position, target, digest)
    if lost:
        raise lost


def _show(pieces: Iterator[str], to_the_end: bool) -> UserError | None:
    """Prints a text as it comes. to_the_end: where the output fails it is still drawn to its end, and the
    error comes back instead of being raised."""
    lost: UserError | None = None
    for piece in itertools.chain(pieces, "\n"):
        try:
            if lost is None:
                say(piece, end="")
        except UserError as error:
            if not to_the_end:
                raise
            lost = error
    return lost


if __name__ == "__main__":
    cli.run_command(main)
