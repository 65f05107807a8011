"""The ``tensorage`` command: one module a subject, loaded when a command of it is called."""

from __future__ import annotations

from tensorage.cli.program import main

__all__ = ["main"]
