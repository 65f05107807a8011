"""The ``.env`` file of the working directory: whether it is there, whether it can be believed, and its values.

Searched from the working directory upwards, as python-dotenv's own command does. Values are taken as they stand: ``$``
names no variable in them, so that a file cannot carry another secret of the process away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values

from tensorage.errors import ConfigurationError
from tensorage.ownership import Flaw, flaw_of_file, flaw_on_way
from tensorage.warnings import warn_once

__all__ = ["DotEnv", "find"]

#: Bytes read of a file that is only looked into for names.
_MAX_DOUBTFUL_BYTES = 1 << 20


@dataclass(frozen=True)
class DotEnv:
    """A file that only this user and root could have written."""

    path: Path
    values: Mapping[str, str] = field(repr=False)


def find(names: frozenset[str]) -> DotEnv | None:
    """Read the nearest file that is this user's or root's.

    Parameters
    ----------
    names
        Variables that matter. A file that cannot be believed matters only if it sets one of them.

    Raises
    ------
    ConfigurationError
        If that file can be changed or replaced by others, or cannot be read.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        # It was removed, and can hold no file any more.
        return None
    for folder in (here, *here.parents):
        if (found := _read(folder / ".env", names)) is not None:
            return found
    return None


def _read(path: Path, names: frozenset[str]) -> DotEnv | None:
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            return None
        flaw = flaw_of_file(path, status)
        if flaw is None or not flaw.is_foreign:
            flaw = flaw_on_way(path) or flaw
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        # In a folder above that this user may not enter, there is no file for this user either.
        return None
    except OSError as error:
        raise _read_error(path, error) from error
    if flaw is not None:
        _leave_out(path, flaw, names)
        return None
    try:
        with path.open("rb") as file:
            # Nobody else can have put another file there since it was looked at.
            return DotEnv(path, _parse(file.read().decode("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise _read_error(path, error) from error


def _leave_out(path: Path, flaw: Flaw, names: frozenset[str]) -> None:
    """Say that a file is left out, if that makes a difference. See ``docs/decisions/0017``."""
    concerned = sorted(names & _names_in(path))
    if not concerned:
        return
    if flaw.is_foreign:
        # No error: whoever can write to /tmp could stop every program that works below it.
        warn_once(f"{path} is not read: {flaw}, and could lead this program to a project of theirs")
        return
    raise ConfigurationError(
        f"{path} sets {', '.join(concerned)} and is not read: {flaw}, so that others could lead this program to a "
        f"project of theirs. {flaw.advice('set the variables in the environment instead')}"
    )


def _names_in(path: Path) -> frozenset[str]:
    """Variables that a file sets which others may have written. Nothing else of it is looked at."""
    try:
        # Not waited for, should it be a pipe by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return frozenset()
            return frozenset(_parse(file.read(_MAX_DOUBTFUL_BYTES).decode("utf-8", "replace")))
    except OSError:
        # It could not have been used either.
        return frozenset()


def _parse(text: str) -> dict[str, str]:
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value}


def _read_error(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read ({error}): make it readable, delete it, or set the variables in the environment"
    )
