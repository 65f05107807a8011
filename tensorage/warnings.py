"""Warnings of the package."""

from __future__ import annotations

import sys
import warnings

__all__ = ["SecurityWarning", "warn", "warn_once"]


class SecurityWarning(UserWarning):
    """Something works although others could read or change it, or is left out for that. Given once a process."""


#: Messages that were given in this process.
given_messages: set[str] = set()


def warn_once(message: str) -> None:
    """Give a `SecurityWarning` once in a process, at the caller's line outside of this package."""
    if message in given_messages:
        return
    warn(message, SecurityWarning)
    # Noted only now: if warnings are errors, each call is to raise one.
    given_messages.add(message)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Give a warning at the caller's line outside of this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "tensorage":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
