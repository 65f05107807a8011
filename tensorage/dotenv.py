"""The ``.env`` file of the working directory: the search for it, its trustworthiness, and its values.

The search goes from the working directory upwards, as that of python-dotenv's own command. Values are taken literally:
``$`` names no variable in them, so that a file cannot carry another secret of the process away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from tensorage.errors import ConfigurationError
from tensorage.private_files import Flaw, flaw_of_file, flaw_on_way
from tensorage.warnings import warn_once
from tensorage.wording import one_line

__all__ = ["DotEnv", "find"]

#: Most bytes that are read of a file that cannot be trusted, to find the names in it.
_MAX_DOUBTFUL_BYTES = 1 << 20


@dataclass(frozen=True)
class DotEnv:
    """A ``.env`` file that only this user and root could have written."""

    path: Path
    values: Mapping[str, str] = field(repr=False)


def find(names: frozenset[str]) -> DotEnv | None:
    """Read the nearest file that is this user's or root's.

    Parameters
    ----------
    names
        Variables that matter. A file that cannot be trusted is ignored unless it sets one of them.

    Raises
    ------
    ConfigurationError
        If others can change or replace the file, or it cannot be read.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        # The working directory was removed, so it holds no file.
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
        # A parent folder that this user may not enter has no file for this user either.
        return None
    except OSError as error:
        raise _read_error(path, error) from error
    if flaw is not None:
        _leave_out(path, flaw, names)
        return None
    try:
        with path.open("rb") as file:
            # The checks above mean that nobody else can have replaced the file since.
            return DotEnv(path, _parse(file.read().decode("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise _read_error(path, error) from error


def _leave_out(path: Path, flaw: Flaw, names: frozenset[str]) -> None:
    """Warn or raise that a file is left out, if that makes a difference. See ``docs/decisions/0017``."""
    concerned = sorted(names & _names_in(path))
    if not concerned:
        return
    if flaw.is_foreign:
        # An error would let every user who can write to /tmp stop all programs that work below it.
        warn_once(f"{path} is not read: {flaw}, and could lead this program to a project of theirs")
        return
    raise ConfigurationError(
        f"{path} sets {', '.join(concerned)} and is not read: {flaw}, so that others could lead this program to a "
        f"project of theirs. {flaw.advice('set the variables in the environment instead')}"
    )


def _names_in(path: Path) -> frozenset[str]:
    """Return the names of the variables that an untrusted file sets. Nothing else of the file is used."""
    try:
        # Without O_NONBLOCK, a pipe that took the file's place would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return frozenset()
            return frozenset(_parse(file.read(_MAX_DOUBTFUL_BYTES).decode("utf-8", "replace")))
    except OSError:
        # A file that cannot be read could not have been used either.
        return frozenset()


def _parse(text: str) -> dict[str, str]:
    # Loaded for a file that is there: most commands find none.
    from dotenv import dotenv_values

    values = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value}


def _read_error(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read ({one_line(str(error))}): make it readable, delete it, or set the variables in "
        "the environment"
    )
