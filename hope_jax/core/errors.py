"""Errors that a user can cause and mend; the front turns each into one paragraph and an exit code."""

import difflib
import re
from collections.abc import Iterable


def instead(name: str, known: Iterable[str], having: str = "known:") -> str:
    """How an error about an unknown name goes on: with all known names, and the nearest if one is near."""
    names = {each.lower(): each for each in known}
    near = [names[key] for key in difflib.get_close_matches(name.lower(), names, n=1)]
    guess = f"; did you mean {near[0]}?" if near and near[0] != name else ""
    return f"{having} {', '.join(names.values()) or 'none'}{guess}"


class UserError(Exception):
    """A problem that the user can mend. The message names the key, the value and the remedy."""

    exit_code = 1


class ConfigError(UserError):
    """Bad usage or configuration, found before any compute starts."""

    exit_code = 2


class NoRoomError(UserError):
    """A device has too little memory for a program."""


def lack_of_room(error: Exception) -> str:
    """What is wrong, if XLA says that a device's memory does not suffice, with the figure that it gives;
    empty for any other error."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return ""
    asked = re.search(r"allocat\w* +([\d.]+) *([KMGT]?i?B|bytes)", text)
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", text)
    figure = ""
    if asked:
        amount, unit = asked.groups()
        figure = f"{float(amount) / 2**30:,.2f} GiB" if unit == "bytes" else f"{amount} {unit}"
        figure = f": it asks for {figure} at once"
    elif used:
        figure = ": it needs {} {}iB of {} {}iB".format(*used.groups())
    return f"the device has too little memory for this program{figure}"


class DataError(UserError):
    """Unusable input data."""


class CheckpointError(UserError):
    """A checkpoint that is missing, unfinished, or does not fit the run."""


class WorkdirError(UserError):
    """The workdir cannot be written: no room, no permission, or a file system that is read-only."""


class OutputError(UserError):
    """A result that cannot be written."""


class ClosedOutput(UserError):
    """Whoever read the output has gone: nothing is left to say. The code is a shell's for SIGPIPE."""

    exit_code = 141


class BundleError(UserError):
    """A release bundle that cannot be made."""


class MemoryFileError(UserError):
    """A saved memory that is missing, damaged, or another model's, or that cannot be written."""


class GuardError(UserError):
    """A measure that became worse than its guard allows."""


class AlarmError(UserError):
    """The memories do harm, and `eval.alarm` is "stop"."""


class DivergenceError(UserError):
    """The loss or a state became non-finite."""


class ProcessError(UserError):
    """Processes of one run that cannot find each other."""
