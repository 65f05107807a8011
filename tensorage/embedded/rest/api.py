"""The ASGI application: one request in, one transaction, one answer out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import asyncpg

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.request_memory import BusyError, RequestMemory
from tensorage.embedded.rest import errors
from tensorage.embedded.rest.answers import (
    Answer,
    Result,
    answer_call,
    answer_error,
    answer_options,
    answer_read,
    answer_write,
    check_result,
)
from tensorage.embedded.rest.bodies import SUMMARY, ClientGoneError, JsonSummary, Receive, invalid_json
from tensorage.embedded.rest.caller import ANONYMOUS, identify
from tensorage.embedded.rest.calls import CallPlan, CallRequest, plan_call
from tensorage.embedded.rest.errors import ApiError
from tensorage.embedded.rest.headers import Format, Preferences
from tensorage.embedded.rest.query import parse_query
from tensorage.embedded.rest.query_model import Query
from tensorage.embedded.rest.request import (
    METHODS,
    MUTATIONS,
    SCHEMA,
    Request,
    Scope,
    Send,
    Summarize,
    check_schema,
    read_call_arguments,
    read_request,
    read_table_body,
    send_answer,
)
from tensorage.embedded.rest.routines import find_routine
from tensorage.embedded.rest.schema import Schema
from tensorage.embedded.rest.schema_cache import SchemaCache
from tensorage.embedded.rest.sql import Statement
from tensorage.embedded.rest.tables import (
    Write,
    check_put_happened,
    make_read_statement,
    make_write_statement,
)
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
        self._memory = RequestMemory()
        self._schema_cache = SchemaCache(database, SCHEMA)
        self._planned_for: Schema | None = None
        self._call_plans: dict[CallRequest, CallPlan] = {}

    async def start(self) -> None:
        """Load the schema cache and listen for ``notify pgrst, 'reload schema'``."""
        await self._schema_cache.start()

    async def stop(self) -> None:
        await self._schema_cache.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._memory.lend() as memory:
            try:
                answer = await self._answer(read_request(scope, receive, memory))
            except ClientGoneError:
                return
            except BusyError:
                answer = answer_error(errors.busy())
            except ApiError as error:
                answer = answer_error(error)
            # The body is no longer needed. The answer stays in memory until the client has received it.
            memory.release()
            memory.hold(len(answer.body))
            await send_answer(send, answer, head=scope["method"] == "HEAD")

    async def _answer(self, request: Request) -> Answer:
        caller = identify(request.headers, self._tokens)
        # Wait for memory before any work: a request that finds none has no effect.
        await request.memory.add(0)
        if request.method not in METHODS:
            raise ApiError(405, "PGRST117", f"Unsupported HTTP method: {request.method}")
        profile = check_schema(request)
        answer = await self._answer_path(request, caller)
        if profile is not None and "content-type" in answer.headers:
            return replace(answer, headers={**answer.headers, "content-profile": profile})
        return answer

    async def _answer_path(self, request: Request, caller: Caller) -> Answer:
        match request.path.removeprefix("/").split("/"):
            # PostgreSQL has no names with a NUL.
            case [name] if name and "\0" not in name:
                return await self._answer_table(request, caller, name)
            case ["rpc", name] if name and "\0" not in name:
                return await self._answer_call(request, caller, name)
            case [""]:
                raise ApiError(404, "PGRST126", "Root endpoint metadata is disabled")
            case _:
                raise ApiError(404, "PGRST125", "Invalid path specified in request URL")

    async def _answer_table(self, request: Request, caller: Caller, name: str) -> Answer:
        table = self._schema_cache.schema.find_table(name)
        if request.method == "OPTIONS":
            return answer_options(table.methods)
        query, preferences, form = parse_query(request.query_string), request.preferences, request.format()
        if request.is_read:
            rows = request.rows(query)
            read = _Work(
                make_read_statement(table, query, rows, preferences, form), form, preferences, read_only=True
            )
            result = await self._run(request, caller, read)
            return answer_read(name, query, rows, preferences=preferences, form=form, result=result)
        method = MUTATIONS[request.method]
        body = (
            None
            if method == "DELETE"
            else await read_table_body(request, query, self._make_summarizer(request, caller))
        )
        write = Write(method, table, query, preferences, body)
        work = _Work(make_write_statement(write, form), form, preferences, is_put=method == "PUT")
        return answer_write(write, form, await self._run(request, caller, work))

    async def _answer_call(self, request: Request, caller: Caller, name: str) -> Answer:
        if request.method == "OPTIONS":
            return answer_options(find_routine(self._schema_cache.schema, name).methods)
        if not request.is_read and request.method != "POST":
            raise ApiError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        query, preferences = parse_query(request.query_string, arguments=request.is_read), request.preferences
        arguments, body = await read_call_arguments(request, query, self._make_summarizer(request, caller))
        rows, accept = request.rows(query), request.headers.get("accept", "")
        plan = self._plan_call(CallRequest(name, arguments, query, preferences, rows, accept))
        work = _Work(
            plan.statement.with_body(body),
            plan.form,
            preferences,
            read_only=request.is_read or not plan.routine.is_volatile,
            settings=plan.routine.settings,
        )
        result = await self._run(request, caller, work)
        return answer_call(plan.routine, rows, preferences=preferences, form=plan.form, result=result)

    def _plan_call(self, call: CallRequest) -> CallPlan:
        """Plan a call, from memory if the same call was planned before: a busy client's calls are mostly alike."""
        schema = self._schema_cache.schema
        # Calls with filters or columns rarely come twice. Long ones would fill the memory.
        if call.query != _NO_QUERY or call.length > _MAX_REMEMBERED_LENGTH:
            return plan_call(schema, call)
        if self._planned_for is not schema or len(self._call_plans) >= _REMEMBERED_CALLS:
            # Plans of an older schema may name functions that are gone.
            self._planned_for, self._call_plans = schema, {}
        plan = self._call_plans.get(call)
        if plan is None:
            plan = self._call_plans[call] = plan_call(schema, call)
        return plan

    def _make_summarizer(self, request: Request, caller: Caller) -> Summarize:
        """Return a function that lets PostgreSQL summarize JSON, within the statement timeout of the caller."""

        async def summarize(text: str) -> JsonSummary:
            async with self._transaction(request, caller, read_only=True, refusals=_NOT_JSON) as connection:
                (row,) = await connection.fetch(SUMMARY, text)
            return JsonSummary(row["shape"], frozenset(row["keys"]), row["size"], row["is_even"])

        return summarize

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
        role_settings = self._schema_cache.schema.role_settings.get(caller.role, {})
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
