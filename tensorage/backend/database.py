"""The context whose new arrays are rows of the database."""

from __future__ import annotations

from typing import ClassVar

from tensorage.backend.base import BaseContext
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Engine

__all__ = ["DatabaseContext"]


@end_tracebacks_here
class DatabaseContext(BaseContext):
    """Context of one user, which keeps new arrays as rows of the database: see `tensorage.backend.blocks`."""

    engine: ClassVar[Engine] = "database"
