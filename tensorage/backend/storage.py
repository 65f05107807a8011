"""The context whose new arrays are objects of Storage, with files beside them."""

from __future__ import annotations

from typing import ClassVar

from tensorage.backend.base import BaseContext
from tensorage.backend.files.folder import Files
from tensorage.backend.transfer import Project
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Engine

__all__ = ["StorageContext"]


@end_tracebacks_here
class StorageContext(BaseContext, Files):
    """Context of one user, which keeps new arrays as objects of Storage, with files beside them.

    See `tensorage.backend.zarr` for the form of the objects. All objects are in the user's own folder of the private
    bucket ``tensors``.
    """

    engine: ClassVar[Engine] = "storage"

    def __init__(self, backend: Project) -> None:
        BaseContext.__init__(self, backend)
        Files.__init__(self, backend)
