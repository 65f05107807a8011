"""The exposed schema, loaded when the server starts, and again when the database notifies of a change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

import asyncpg

from tensorage.embedded.rest.errors import CONNECTION_ERRORS
from tensorage.embedded.rest.schema import Schema, load_schema

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection, Database

#: Channel and payloads that ask for a reload: ``notify pgrst, 'reload schema'``. PostgREST takes the empty one, too.
CHANNEL: Final = "pgrst"
_RELOADS: Final = frozenset({"", "reload schema", "reload config"})

#: Seconds between attempts to listen again, after the connection was lost.
_RETRY_DELAY_S: Final = 0.2

_log = logging.getLogger(__name__)


class SchemaCache:
    """Keeper of the newest :class:`~tensorage.embedded.rest.schema.Schema`.

    One connection of the pool is held, to listen for notifications.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._newest: Schema | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def schema(self) -> Schema:
        assert self._newest is not None, "the schema cache is loaded when the server starts"
        return self._newest

    async def start(self) -> None:
        """Load the schema and listen for notifications. Returns when both are done."""
        self._loaded = asyncio.get_running_loop().create_future()
        self._watcher = asyncio.create_task(self._watch(self._loaded))
        await self._loaded

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None

    async def _watch(self, loaded: asyncio.Future[None]) -> None:
        while True:
            try:
                async with self._database.connection() as connection:
                    await self._listen(connection, loaded)
            except (asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
                if not loaded.done():
                    # Without a first schema the server cannot start.
                    loaded.set_exception(error)
                    return
                _log.warning("The schema cache lost its connection, trying again: %r", error)
            await asyncio.sleep(_RETRY_DELAY_S)

    async def _listen(self, connection: Connection, loaded: asyncio.Future[None]) -> None:
        """Reload the schema on every notification, until the connection is lost."""
        wake, gone = asyncio.Event(), asyncio.Event()

        def on_notification(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            if payload in _RELOADS:
                wake.set()

        def on_termination(_connection: object) -> None:
            gone.set()
            wake.set()

        connection.add_termination_listener(on_termination)
        await connection.add_listener(CHANNEL, on_notification)
        try:
            while not gone.is_set():
                # Cleared before loading: a notification that comes during the load causes another load.
                wake.clear()
                self._newest = await load_schema(connection, self._name)
                if not loaded.done():
                    loaded.set_result(None)
                await wake.wait()
            _log.warning("The schema cache lost its connection, and takes another")
        finally:
            if not gone.is_set():
                connection.remove_termination_listener(on_termination)
                await connection.remove_listener(CHANNEL, on_notification)
