"""Storing objects as the caller: asked before any bytes are received, and done when they are there."""

from __future__ import annotations

from typing import Final

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.caller import SERVICE
from tensorage.embedded.storage.custody import Custody
from tensorage.embedded.storage.database import Bucket, become, find_bucket, transaction
from tensorage.embedded.storage.errors import UNIQUE, key_already_exists
from tensorage.embedded.storage.placement import NewObject, Placed, place, try_to_place

_REFUSALS: Final = {UNIQUE: key_already_exists}


class Storing:
    """Writer of objects' rows, for all ways to upload: the policies decide before and after the content comes."""

    def __init__(self, database: Database, custody: Custody) -> None:
        self._database = database
        self._custody = custody

    async def check(
        self, caller: Caller, bucket_id: str, name: str, *, upsert: bool, size: int | None = None
    ) -> Bucket:
        """Refuse an object before its content is received, if its row would be refused. Return its bucket.

        Parameters
        ----------
        size
            Bytes of the object, if known: triggers may refuse an object as too large.
        """
        async with transaction(self._database, SERVICE, refusals=_REFUSALS) as connection:
            bucket = await find_bucket(connection, bucket_id)
            await become(connection, caller)
            await try_to_place(connection, caller, bucket_id, name, upsert=upsert, size=size)
        return bucket

    async def store(self, caller: Caller, new: NewObject, *, upsert: bool) -> Placed:
        """Write the row of an object with a marked file. If the row is refused, the file is deleted."""
        async with (
            self._custody.holding(new.version),
            transaction(self._database, caller, refusals=_REFUSALS) as connection,
        ):
            placed = await place(connection, caller, new, upsert=upsert)
            replaced = await self._custody.release(placed.replaced)
        await self._custody.drop(replaced)
        return placed
