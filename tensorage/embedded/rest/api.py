"""The ASGI application: one request in, one transaction, one answer out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import asyncpg

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.inflight import BusyError, Room
from tensorage.embedded.rest import errors
from tensorage.embedded.rest.answers import (
    Answer,
    Result,
    allow_answer,
    call_answer,
    check_result,
    error_answer,
    read_answer,
    write_answer,
)
from tensorage.embedded.rest.caller import ANONYMOUS, identify
from tensorage.embedded.rest.calls import CallPlan, CallRequest, plan_call
from tensorage.embedded.rest.catalogue import Catalogue
from tensorage.embedded.rest.errors import ApiError
from tensorage.embedded.rest.headers import Format, Preferences
from tensorage.embedded.rest.payload import LOOK, ClientGoneError, JsonLook, Receive, invalid_json
from tensorage.embedded.rest.query import parse_query
from tensorage.embedded.rest.request import (
    METHODS,
    MUTATIONS,
    SCHEMA,
    Look,
    Request,
    Scope,
    Send,
    call_arguments,
    named_schema,
    read_request,
    send_answer,
    table_payload,
)
from tensorage.embedded.rest.routines import routine_named
from tensorage.embedded.rest.schema_cache import SchemaCache
from tensorage.embedded.rest.sql import Statement
from tensorage.embedded.rest.tables import Write, check_put_happened, read_statement, write_statement
from tensorage.embedded.rest.terms import Query
from tensorage.embedded.tokens import Tokens

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

_NO_QUERY: Final = Query()

#: Most calls of which the SQL is remembered, and length of the longest: that of all its texts together.
_REMEMBERED_CALLS: Final = 1024
_MAX_REMEMBERED_LENGTH: Final = 1024

#: Errors by which PostgreSQL refuses JSON: it is not valid, or nested too deeply.
_NOT_JSON: Final[dict[type[Exception], Callable[[], ApiError]]] = {
    asyncpg.DataError: invalid_json,
    asyncpg.StatementTooComplexError: invalid_json,
}


@dataclass(frozen=True, slots=True)
class _Work:
    """A statement, the way to run it, and the conditions on its result."""

    statement: Statement
    form: Format
    preferences: Preferences
    read_only: bool = False
    is_put: bool = False
    settings: tuple[tuple[str, str], ...] = ()


class RestApi:
    """PostgREST's protocol over one schema.

    Parameters
    ----------
    database
        Pool of the role ``authenticator``.
    tokens
        Verifies the bearer tokens.
    """

    def __init__(self, database: Database, tokens: Tokens) -> None:
        self._database = database
        self._tokens = tokens
        self._room = Room()
        self._schema_cache = SchemaCache(database, SCHEMA)
        self._planned_for: Catalogue | None = None
        self._call_plans: dict[CallRequest, CallPlan] = {}

    async def start(self) -> None:
        """Load the schema cache and listen for ``notify pgrst, 'reload schema'``."""
        await self._schema_cache.start()

    async def stop(self) -> None:
        await self._schema_cache.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room.share() as share:
            try:
                answer = await self._answer(read_request(scope, receive, share))
            except ClientGoneError:
                return
            except BusyError:
                answer = error_answer(errors.busy())
            except ApiError as error:
                answer = error_answer(error)
            # The body is no longer needed. The answer stays in memory until the client has received it.
            share.release()
            share.hold(len(answer.body))
            await send_answer(send, answer, head=scope["method"] == "HEAD")

    async def _answer(self, request: Request) -> Answer:
        caller = identify(request.headers, self._tokens)
        # Wait for memory before any work: a request that finds none has no effect.
        await request.share.add(0)
        if request.method not in METHODS:
            raise ApiError(405, "PGRST117", f"Unsupported HTTP method: {request.method}")
        profile = named_schema(request)
        answer = await self._answer_path(request, caller)
        if profile is not None and "content-type" in answer.headers:
            return replace(answer, headers={**answer.headers, "content-profile": profile})
        return answer

    async def _answer_path(self, request: Request, caller: Caller) -> Answer:
        match request.path.removeprefix("/").split("/"):
            case [name] if name and "\0" not in name:
                return await self._answer_table(request, caller, name)
            case ["rpc", name] if name and "\0" not in name:
                return await self._answer_call(request, caller, name)
            case [""]:
                raise ApiError(404, "PGRST126", "Root endpoint metadata is disabled")
            case _:
                raise ApiError(404, "PGRST125", "Invalid path specified in request URL")

    async def _answer_table(self, request: Request, caller: Caller, name: str) -> Answer:
        table = self._schema_cache.catalogue.table(name)
        if request.method == "OPTIONS":
            return allow_answer(table.methods)
        query, preferences, form = parse_query(request.query_string), request.preferences, request.format()
        if request.is_read:
            rows = request.rows(query)
            read = _Work(
                read_statement(table, query, rows, preferences, form), form, preferences, read_only=True
            )
            result = await self._run(request, caller, read)
            return read_answer(name, query, rows, preferences=preferences, form=form, result=result)
        method = MUTATIONS[request.method]
        payload = (
            None if method == "DELETE" else await table_payload(request, query, self._look(request, caller))
        )
        write = Write(method, table, query, preferences, payload)
        work = _Work(write_statement(write, form), form, preferences, is_put=method == "PUT")
        return write_answer(write, form, await self._run(request, caller, work))

    async def _answer_call(self, request: Request, caller: Caller, name: str) -> Answer:
        if request.method == "OPTIONS":
            return allow_answer(routine_named(self._schema_cache.catalogue, name).methods)
        if not request.is_read and request.method != "POST":
            raise ApiError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        query, preferences = parse_query(request.query_string, arguments=request.is_read), request.preferences
        arguments, body = await call_arguments(request, query, self._look(request, caller))
        rows, accept = request.rows(query), request.headers.get("accept", "")
        plan = self._call_plan(CallRequest(name, arguments, query, preferences, rows, accept))
        work = _Work(
            plan.statement.with_body(body),
            plan.form,
            preferences,
            read_only=request.is_read or not plan.routine.is_volatile,
            settings=plan.routine.settings,
        )
        result = await self._run(request, caller, work)
        return call_answer(plan.routine, rows, preferences=preferences, form=plan.form, result=result)

    def _call_plan(self, asked: CallRequest) -> CallPlan:
        """Plan a call, from memory if the same call was planned before: a busy client's calls are mostly alike."""
        catalogue = self._schema_cache.catalogue
        if asked.query != _NO_QUERY or asked.length > _MAX_REMEMBERED_LENGTH:
            return plan_call(catalogue, asked)
        if self._planned_for is not catalogue or len(self._call_plans) >= _REMEMBERED_CALLS:
            # Plans of an older schema may name functions that are gone.
            self._planned_for, self._call_plans = catalogue, {}
        plan = self._call_plans.get(asked)
        if plan is None:
            plan = self._call_plans[asked] = plan_call(catalogue, asked)
        return plan

    def _look(self, request: Request, caller: Caller) -> Look:
        """Return a function that lets PostgreSQL summarize JSON, within the statement timeout of the caller."""

        async def look(text: str) -> JsonLook:
            async with self._transaction(request, caller, read_only=True, refusals=_NOT_JSON) as connection:
                (row,) = await connection.fetch(LOOK, text)
            return JsonLook(row["shape"], frozenset(row["keys"]), row["size"], row["is_even"])

        return look

    async def _run(self, request: Request, caller: Caller, work: _Work) -> Result:
        """Run a statement in its own transaction, and return its only row."""
        async with self._transaction(
            request, caller, read_only=work.read_only, settings=dict(work.settings)
        ) as connection:
            (row,) = await connection.fetch(work.statement.text, *work.statement.values)
            result = dict(row)
            # Checked inside the transaction, which a refusal rolls back.
            check_result(work.form, work.preferences, result)
            if work.is_put:
                check_put_happened(result["page_total"])
            return result

    @asynccontextmanager
    async def _transaction(
        self,
        request: Request,
        caller: Caller,
        *,
        read_only: bool,
        settings: Mapping[str, str] | None = None,
        refusals: Mapping[type[Exception], Callable[[], ApiError]] | None = None,
    ) -> AsyncIterator[Connection]:
        """Open a transaction as the caller. Errors of PostgreSQL are raised in PostgREST's words.

        Parameters
        ----------
        refusals
            Refusals for errors of PostgreSQL that mean something special in this transaction.
        """
        role_settings = self._schema_cache.catalogue.role_settings.get(caller.role, {})
        everything = request.settings | role_settings | dict(settings or {})
        try:
            async with self._database.transaction(
                caller, read_only=read_only, settings=everything
            ) as connection:
                yield connection
        except errors.CONNECTION_ERRORS as error:
            if isinstance(error, ValueError):
                raise  # asyncpg's error for a parameter of the wrong type: a bug of ours, not an outage
            raise errors.unavailable(error) from error
        except asyncpg.PostgresError as error:
            refusal = next((r for kind, r in (refusals or {}).items() if isinstance(error, kind)), None)
            raise (
                refusal() if refusal else errors.from_postgres(error, authenticated=caller.role != ANONYMOUS)
            ) from error
