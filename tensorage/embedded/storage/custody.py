"""Which files stay: those of the versions that PostgreSQL committed, whatever happened to the server.

A version whose row is written, or taken away, is marked before the transaction and unmarked after it. Who
finds a mark asks PostgreSQL: a version that no row has loses its file. So a killed server leaves nothing
behind that the next one does not find.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tensorage.embedded.database import Caller, Database, UnreachableError
from tensorage.embedded.storage.blobs import Blobs, is_version
from tensorage.embedded.storage.database import known_versions, transaction
from tensorage.embedded.storage.errors import UNAVAILABLE, StorageError

log = logging.getLogger(__name__)


class Custody:
    """Keeps the files in step with the rows."""

    def __init__(self, blobs: Blobs, database: Database) -> None:
        self.blobs = blobs
        self._database = database

    async def start(self) -> None:
        """Finish what a killed server left undecided."""
        await asyncio.to_thread(self.blobs.prepare)
        undecided = await asyncio.to_thread(self.blobs.undecided)
        if undecided:
            log.info("%s files of the last server's uploads and removals are looked at", len(undecided))
            known = await known_versions(self._database, undecided)
            await self.drop([version for version in undecided if version not in known])
            await asyncio.to_thread(self.blobs.unmark, known)

    async def settle(self, version: str) -> bool:
        """Whether a transaction whose end was not seen did store this version. If not, its file goes."""
        known = await known_versions(self._database, [version])
        if known:
            await asyncio.to_thread(self.blobs.unmark, known)
        else:
            await self.drop([version])
        return bool(known)

    async def remove(self, caller: Caller, statement: str, *values: Any) -> list[asyncpg.Record]:
        """Run a statement that deletes objects, and then delete their files.

        Parameters
        ----------
        statement
            It returns at least ``version`` of what it deleted.

        Returns
        -------
        list of asyncpg.Record
            What the statement returned.
        """
        async with transaction(self._database, caller) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            versions = [row["version"] for row in rows if is_version(row["version"])]
            # Should this fail, the marks stay: who asks finds that the rows are still there.
            await asyncio.to_thread(self.blobs.mark, versions)
        await self.drop(versions)
        return rows

    async def release(self, version: str | None) -> list[str]:
        """Mark the version that a transaction takes away, if it is one of ours: to be dropped after it."""
        if version is None or not is_version(version):
            return []
        await asyncio.to_thread(self.blobs.mark, [version])
        return [version]

    async def drop(self, versions: Sequence[str]) -> None:
        """Delete the files of marked versions that no row has any more."""
        if not versions:
            return
        try:
            await asyncio.to_thread(self._drop, versions)
        except OSError:
            # What was asked for is done, and committed. The next start finds the marks.
            log.exception("%s files that are not needed any more are still there", len(versions))

    def _drop(self, versions: Sequence[str]) -> None:
        self.blobs.delete(versions)
        self.blobs.unmark(versions)

    @asynccontextmanager
    async def holding(self, version: str) -> AsyncIterator[None]:
        """While a transaction writes the row of a new file. Should it be rolled back, the file goes."""
        try:
            yield
        except Exception as error:
            if _is_outcome_unknown(error):
                # PostgreSQL may have committed before it was lost. The next start finds the mark, and asks.
                log.warning("whether the object of version %s was stored is not known yet", version)
            else:
                await self.drop([version])
            raise
        await asyncio.to_thread(self.blobs.unmark, [version])


def _is_outcome_unknown(error: Exception) -> bool:
    """Whether PostgreSQL was lost in a transaction, and not before it."""
    lost = isinstance(error, StorageError) and error.status == UNAVAILABLE
    return lost and not isinstance(error.__cause__, UnreachableError)
