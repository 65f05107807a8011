"""Errors as HTTP answers: PostgREST's codes, PostgreSQL's SQLSTATEs, and the HTTP status of each."""

from __future__ import annotations

import json
import re
from typing import Any

import asyncpg

#: ``raise sqlstate 'PT404'`` answers 404: the last three characters are the HTTP status.
_STATUS_OF_SQLSTATE = re.compile(r"^PT([1-5]\d\d)$")

#: HTTP status by SQLSTATE, or by the first two characters of one. Without an entry the status is 400.
_STATUS_BY_PREFIX = {
    "08": 503,  # connection
    "09": 500,  # triggered action
    "0L": 403,  # invalid grantor
    "0P": 403,  # invalid role
    "21": 500,  # cardinality
    "23503": 409,  # foreign key
    "23505": 409,  # unique
    "25": 500,  # transaction state
    "25006": 405,  # a write in a read-only transaction: a GET that is no read
    "28": 403,  # authorization
    "2D": 500,  # transaction termination
    "38": 500,  # external routine
    "39": 500,  # external routine invocation
    "3B": 500,  # savepoint
    "40": 500,  # rollback
    "42883": 404,  # undefined function
    "42P01": 404,  # undefined table
    "42P17": 500,  # infinite recursion, in a policy for example
    "53": 503,  # resources
    "53400": 500,  # a configured limit
    "54": 500,  # too complex
    "55": 500,  # object state
    "57": 500,  # operator intervention: cancelled, timed out
    "57P01": 503,  # shutting down
    "57P02": 503,  # crashed
    "57P03": 503,  # starting
    "58": 500,  # system
    "F0": 500,  # configuration file
    "HV": 500,  # foreign data
    "P0": 500,  # PL/pgSQL
    "P0001": 400,  # raise without a SQLSTATE
    "XX": 500,  # internal
}

_NOT_ALLOWED = "42501"

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: Headers that only the HTTP server may set, since they frame the answer.
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection"})

#: Errors of asyncpg when PostgreSQL is away or was lost. The last one is raised by a connection that PostgreSQL has
#: ended, and whose stream has not been closed yet.
CONNECTION_ERRORS = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


def is_header(name: Any, value: Any) -> bool:
    """Tell whether a function may set this header: it is valid, and does not frame the answer."""
    if not isinstance(name, str) or not isinstance(value, str) or name.lower() in _FRAMING:
        return False
    return bool(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value))


class ApiError(Exception):
    """An error in PostgREST's JSON.

    Parameters
    ----------
    status
        HTTP status.
    code
        PostgREST's ``PGRSTnnn``, or PostgreSQL's SQLSTATE.
    message, details, hint
        Fields of the answer's JSON.
    headers
        Additional headers of the answer, with names in lower case.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: str | None = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.hint = hint
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        fields = {"code": self.code, "details": self.details, "hint": self.hint, "message": self.message}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def not_implemented(what: str) -> ApiError:
    """Return the refusal of a feature that PostgREST has and this server lacks."""
    return ApiError(400, "PGRST127", "Feature not implemented", details=what)


def invalid_body(message: str) -> ApiError:
    return ApiError(400, "PGRST102", message)


def invalid_token(code: str, message: str, details: str | None = None) -> ApiError:
    """Return the refusal of a bearer token."""
    challenge = f'Bearer error="invalid_token", error_description="{message}"'
    return ApiError(401, code, message, details=details, headers={"www-authenticate": challenge})


def unavailable(error: Exception) -> ApiError:
    """Return the answer to one of `CONNECTION_ERRORS`: PostgreSQL cannot be reached, or was lost."""
    if isinstance(error, OSError):
        code, message = "PGRST000", "Database connection error. Retrying the connection."
    else:
        code, message = "PGRST001", "Database client error. Retrying the connection."
    return ApiError(503, code, message, details=str(error))


def busy() -> ApiError:
    """Return the answer to a request that found no memory in time."""
    message = "The server holds as many bytes of requests and answers in memory as it may"
    return ApiError(503, "53200", message, hint="Try again in a moment", headers={"retry-after": "1"})


def no_filter_error(method: str) -> ApiError:
    """Return the refusal of a change to every row, which hosted Supabase's `safeupdate` refuses, too."""
    command = {"PATCH": "UPDATE", "DELETE": "DELETE"}[method]
    return ApiError(400, "21000", f"{command} requires a WHERE clause")


def from_postgres(error: asyncpg.PostgresError, *, authenticated: bool) -> ApiError:
    """Return the answer to an error of PostgreSQL.

    Parameters
    ----------
    authenticated
        True if the caller has a user's token. Without one the answer is 401 rather than 403: logging in may help.
    """
    sqlstate, message = error.sqlstate or "XX000", error.message or str(error)
    if sqlstate == "PGRST":
        return _parse_raised(message, error.detail)
    status = _choose_status(sqlstate, message, authenticated=authenticated)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    return ApiError(status, sqlstate, message, details=error.detail, hint=error.hint, headers=headers)


def _choose_status(sqlstate: str, message: str, *, authenticated: bool) -> int:
    own = _STATUS_OF_SQLSTATE.match(sqlstate)
    if own:
        return int(own[1])
    if sqlstate == _NOT_ALLOWED:
        return 403 if authenticated else 401
    if sqlstate == "22023" and message.startswith("role ") and message.endswith("does not exist"):
        return 401  # the token's role does not exist
    if sqlstate == "21000" and message.endswith("requires a WHERE clause"):
        return 400  # raised by `safeupdate`, if PostgreSQL has loaded it
    for length in (5, 2):
        status = _STATUS_BY_PREFIX.get(sqlstate[:length])
        if status is not None:
            return status
    return 400


def _parse_raised(message: str, detail: str | None) -> ApiError:
    """Return the answer that a function raised itself: SQLSTATE ``PGRST`` with JSON in message and detail."""
    try:
        fields, answer = json.loads(message), json.loads(detail or "")
        raised = ApiError(
            int(answer["status"]),
            str(fields["code"]),
            str(fields["message"]),
            details=_text_or_none(fields.get("details")),
            hint=_text_or_none(fields.get("hint")),
            headers={name.lower(): value for name, value in answer["headers"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _impossible_answer(f"{type(error).__name__}: {error}")
    headers = (("proxy-status", raised.code), *raised.headers.items())
    if not 200 <= raised.status <= 599 or not all(is_header(name, value) for name, value in headers):
        return _impossible_answer("HTTP has no such status, code or header.")
    return raised


def _impossible_answer(details: str) -> ApiError:
    return ApiError(
        500,
        "PGRST121",
        "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error",
        details=details,
        hint='MESSAGE needs "code" and "message", DETAIL needs "status" and "headers".',
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
