"""Files of versions, kept in step with the rows: a file stays if PostgreSQL committed a row with its version.

A version is marked before a transaction that writes or removes its row, and unmarked after it. A mark that is found
later is settled by a question to PostgreSQL: the file of a version without a row is deleted. The next server therefore
finds all files that a killed one left undecided.
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
from tensorage.embedded.storage.database import find_known_versions, transaction
from tensorage.embedded.storage.errors import UNAVAILABLE, StorageError

#: The logger's name does not follow the module's: readers of server.log may filter by it.
log = logging.getLogger(__name__)


class VersionFiles:
    """The files of versions, kept in step with the rows of objects."""

    def __init__(self, blobs: Blobs, database: Database) -> None:
        self.blobs = blobs
        self._database = database

    async def start(self) -> None:
        """Make the folders, and settle the marks of a killed server."""
        await asyncio.to_thread(self.blobs.prepare)
        undecided = await asyncio.to_thread(self.blobs.list_marked)
        if undecided:
            log.info("%s files of the last server's uploads and removals are looked at", len(undecided))
            known = await find_known_versions(self._database, undecided)
            await self.delete_files([version for version in undecided if version not in known])
            await asyncio.to_thread(self.blobs.unmark, known)

    async def settle(self, version: str) -> bool:
        """Tell whether a transaction with an unknown outcome stored this version. Delete the file if it did not."""
        known = await find_known_versions(self._database, [version])
        if known:
            await asyncio.to_thread(self.blobs.unmark, known)
        else:
            await self.delete_files([version])
        return bool(known)

    async def delete_objects(
        self, caller: Caller, statement: str, *values: Any, operation: str = ""
    ) -> list[asyncpg.Record]:
        """Run a statement that deletes rows of objects, and then delete the files of their versions.

        Parameters
        ----------
        statement
            A DELETE that returns at least ``version``.
        operation
            Supabase Storage's name of the operation, for policies that ask for it.

        Returns
        -------
        list of asyncpg.Record
            Rows that the statement returned.
        """
        async with transaction(self._database, caller, operation=operation) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            versions = [row["version"] for row in rows if is_version(row["version"])]
            # Marked before the commit. If the transaction fails, the marks stay, and the next start finds the rows.
            await asyncio.to_thread(self.blobs.mark, versions)
        await self.delete_files(versions)
        return rows

    async def mark_replaced(self, version: str | None) -> list[str]:
        """Mark the version that a transaction replaces, if it is ours. Return it, to be deleted after the commit."""
        if version is None or not is_version(version):
            return []
        await asyncio.to_thread(self.blobs.mark, [version])
        return [version]

    async def delete_files(self, versions: Sequence[str]) -> None:
        """Delete the files of marked versions that no row has."""
        if not versions:
            return
        try:
            await asyncio.to_thread(self._delete_and_unmark, versions)
        except OSError:
            # The request itself is committed and succeeds. The next start finds the marks and tries again.
            log.exception("%s files that are not needed any more are still there", len(versions))

    def _delete_and_unmark(self, versions: Sequence[str]) -> None:
        self.blobs.delete(versions)
        self.blobs.unmark(versions)

    @asynccontextmanager
    async def keep_if_committed(self, version: str) -> AsyncIterator[None]:
        """Keep a new file if the block commits its row. If the block is rolled back, delete the file."""
        try:
            yield
        except Exception as error:
            if _is_outcome_unknown(error):
                # PostgreSQL may have committed before it was lost. The mark stays, and the next start settles it.
                log.warning("whether the object of version %s was stored is not known yet", version)
            else:
                await self.delete_files([version])
            raise
        await asyncio.to_thread(self.blobs.unmark, [version])


def _is_outcome_unknown(error: Exception) -> bool:
    """Tell whether PostgreSQL was lost during a transaction, rather than before it."""
    lost = isinstance(error, StorageError) and error.status == UNAVAILABLE
    return lost and not isinstance(error.__cause__, UnreachableError)
