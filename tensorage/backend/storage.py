"""Arrays and files as objects of Supabase Storage."""

from __future__ import annotations

from typing import ClassVar

from tensorage.backend.base import BaseContext
from tensorage.backend.files.folder import Files
from tensorage.backend.transfer import Project
from tensorage.types import Engine

__all__ = ["StorageContext"]


class StorageContext(BaseContext, Files):
    """New arrays as objects of Storage, and files beside them, as the user of one session.

    See `tensorage.backend.zarr` for how arrays are kept. All objects are in the user's own folder of the private
    bucket ``tensors``.
    """

    engine: ClassVar[Engine] = "storage"

    def __init__(self, backend: Project) -> None:
        BaseContext.__init__(self, backend)
        Files.__init__(self, backend)
