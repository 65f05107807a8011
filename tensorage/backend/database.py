"""Arrays as rows of a table, over PostgREST."""

from __future__ import annotations

from typing import ClassVar

from tensorage.backend.base import BaseContext
from tensorage.types import Engine

__all__ = ["DatabaseContext"]


class DatabaseContext(BaseContext):
    """New arrays as rows of the database, as the user of one session.

    See `tensorage.backend.blocks` for how.
    """

    engine: ClassVar[Engine] = "database"
