"""Translation of the backend's error answers to errors of the package. No I/O.

SQLSTATEs of class TS are raised by tensorage's own SQL. Other codes are PostgreSQL's and PostgREST's (``PGRSTnnn``).
Answers of the gateway in front of them have no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorage.backend.wire.header import FIRST_RELEASED_SCHEMA, SCHEMA_VERSION
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ChangedError,
    DTypeError,
    IncompleteTensorError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    SchemaError,
    TensorageError,
)
from tensorage.wording import MAX_QUOTED, MAX_SAID, cut, one_line, sentences

__all__ = [
    "HOW_TO_MIGRATE",
    "UNREACHABLE",
    "BackendAnswerError",
    "Fault",
    "RestartedError",
    "check_version",
    "error_of",
    "flaw_of_version",
    "missing_schema",
]


class BackendAnswerError(Exception):
    """The backend's own error, chained to an error of the package as its cause."""


# These two subclasses carry the array's description, so that the engine needs no request to correct itself.
class OtherDTypeError(DTypeError):
    """Rows were sent in another dtype than their array has. Never leaves the engine.

    Attributes
    ----------
    description
        The array, as the functions of the database describe it.
    """

    description: Mapping[str, Any] | None = None


class StoredElsewhereError(InvalidInputError):
    """Rows were sent for an array that is kept in Storage. Never leaves the engine.

    Attributes
    ----------
    description
        The array, as the functions of the database describe it.
    """

    description: Mapping[str, Any] | None = None


class RestartedError(ChangedError):
    """The database failed and came back while an array was being written. The writer begins anew, if it can."""


ERRORS_BY_CODE: dict[str, tuple[type[TensorageError], str]] = {
    "TS001": (KeyNotFoundError, "list(store) shows what there is, store.shared_with_me() what others share."),
    "TS002": (KeyExistsError, "Choose another key, or use a store with allow_overwrite=True."),
    "TS003": (ChangedError, "Open it again."),
    "TS004": (IncompleteTensorError, ""),
    "TS005": (QuotaExceededError, "Delete arrays, or ask the project's administrator for more room."),
    "TS006": (InvalidInputError, ""),
    "TS007": (PermissionDeniedError, "Ask its owner for a share that lets you write."),
    "TS009": (OtherDTypeError, ""),
    "TS010": (StoredElsewhereError, ""),
    # PostgREST answers 413. The client asks for less then, down to a single element.
    "PT413": (InvalidInputError, ""),
    "42501": (PermissionDeniedError, "Log in as a user who may."),
    # Supabase makes a database read-only that has outgrown its plan or its disk.
    "25006": (
        QuotaExceededError,
        "The project's database is read-only, perhaps since it is full: its owner makes room.",
    ),
    "23514": (InvalidInputError, ""),
    "23505": (KeyExistsError, ""),
}

#: Codes of an answer that a project gives if it does not know a function, table or column of tensorage.
SCHEMA_CODES = frozenset({"PGRST202", "PGRST205", "PGRST204", "42P01", "42883", "42703", "PGRST106"})


#: Stands for the HTTP status if there was no answer.
UNREACHABLE = 599

#: Statuses of gateways whose server is away (Cloudflare's too), of Storage without its database, of too many requests.
_OUTAGE_STATUSES = frozenset({429, 502, 503, 504, 520, 521, 522, 523, 524, 530, 544, UNREACHABLE})

#: Codes of PostgREST without a connection, and of PostgreSQL while it starts or stops.
_OUTAGE_CODES = frozenset({"PGRST000", "PGRST001", "PGRST002", "PGRST003", "57P01", "57P02", "57P03"})


@dataclass(frozen=True, slots=True)
class Fault:
    """An error answer of the backend.

    Parameters
    ----------
    status
        HTTP status.
    code
        SQLSTATE or PGRST code, ``""`` if the answer has none.
    retry_after_s
        Seconds that ``Retry-After`` asks for. None if there is no such header, or it holds a date.
    """

    status: int
    code: str
    message: str
    details: str = ""
    hint: str = ""
    retry_after_s: float | None = None

    @classmethod
    def parse(cls, status: int, body: bytes, retry_after: str | None = None) -> Fault:
        """Read an answer: its status, its body, and its header ``Retry-After``."""
        # A date in ``Retry-After`` would need this machine's clock to be right.
        wait_s = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
        try:
            answer: Any = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            # A gateway answers with a page of HTML, from which the status is enough.
            message = one_line(body[:2000].decode("utf-8", "replace"), MAX_QUOTED) or "an empty answer"
            return cls(status, "", message, retry_after_s=wait_s)
        text = {name: str(value) for name, value in answer.items() if value is not None}
        # Bounded, for an answer may repeat the values of the request.
        message = cut(text.get("message") or text.get("msg") or text.get("error") or "no message", MAX_SAID)
        code, details, hint = (
            text.get("code", ""),
            text.get("details", ""),
            cut(text.get("hint", ""), MAX_SAID),
        )
        return cls(status, code, message, details, hint, wait_s)

    @property
    def said(self) -> str:
        """Message in one line, without a full stop, to stand within a sentence."""
        return one_line(self.message)

    @property
    def is_expired_login(self) -> bool:
        """True if the token is refused, as an expired one is, so that a new one may help."""
        return self.status == 401 and self.code in {"PGRST301", "PGRST302", "PGRST303"}

    @property
    def is_too_much(self) -> bool:
        """True if the request was too large or took too long, so that a smaller one may pass."""
        return self.status == 413 or self.code == "57014"

    @property
    def is_passing(self) -> bool:
        """True if the same request may pass a moment later."""
        # Class 53: the disk or the memory is full. That passes only for 53300, too many connections.
        is_full = self.code[:2] == "53" and self.code != "53300"
        return self.status == 429 or (self.status >= 500 and not self.is_too_much and not is_full)

    @property
    def is_unreachable(self) -> bool:
        """True if nobody answered."""
        return self.status == UNREACHABLE

    @property
    def is_outage(self) -> bool:
        """True if the backend as a whole does not serve, or asks to be left alone. It may come back in a minute."""
        return self.is_passing and (self.status in _OUTAGE_STATUSES or self.code in _OUTAGE_CODES)

    @classmethod
    def unreachable(cls, base_url: str, error: BaseException) -> Fault:
        """Make the fault of a request that got no answer."""
        reason = getattr(error, "reason", None) or error
        return cls(UNREACHABLE, "", f"{base_url} cannot be reached: {reason}")

    def __str__(self) -> str:
        if self.is_unreachable:
            return self.message
        code = f" {self.code}" if self.code else ""
        return f"HTTP {self.status}{code}: {self.said}" + (
            f" ({one_line(self.details)})" if self.details else ""
        )


def error_of(fault: Fault, asked: str) -> TensorageError:
    """Translate a fault to an error of the package, with the backend's own error as its cause.

    Parameters
    ----------
    asked
        Wish of the user, for the message: ``reading 'weather'``.
    """
    error = _error_of(fault, asked)
    error.__cause__ = BackendAnswerError(str(fault))
    return error


def _error_of(fault: Fault, asked: str) -> TensorageError:
    known = ERRORS_BY_CODE.get(fault.code)
    if fault.code == "TS003" and fault.details == "restarted":
        return RestartedError(sentences(f"{asked}: {fault.said}", fault.hint))
    if known is not None:
        kind, advice = known
        if fault.code == "TS005" and not fault.details:
            # The quota of another user, whose amounts are told to nobody else: the writer can delete nothing there.
            advice = fault.hint
        error = kind(sentences(f"{asked}: {fault.said}", advice or fault.hint))
        if isinstance(error, OtherDTypeError | StoredElsewhereError):
            error.description = json.loads(fault.details or "null")
        return error
    if fault.code in SCHEMA_CODES:
        return missing_schema(fault.said)
    return _error_of_status(fault, asked)


def _error_of_status(fault: Fault, asked: str) -> TensorageError:
    if fault.status in {401, 403} or fault.is_expired_login:
        return AuthenticationError(
            f"{asked}: the backend refuses the login ({fault.said}). Check the key of the project, and log in again."
        )
    if fault.is_too_much:
        return BackendUnavailableError(
            f"{asked}: even a small request is too large or too slow for this backend ({fault.said}). "
            "Use a smaller chunk_size, or raise the statement timeout of the project."
        )
    # A function of the database may answer with this status, too, by a code of its own: PT402.
    if fault.status == 402 and not fault.code.startswith("PT"):
        return BackendUnavailableError(
            f"{asked}: the project is restricted, since its organization has used up its plan ({fault.said}). Its "
            "owner upgrades it, or waits for the next month."
        )
    # PostgREST gives a code with every error. An answer without a code comes from another server.
    if 400 <= fault.status < 500 and fault.status != 429 and fault.code:
        return InvalidInputError(sentences(f"{asked}: {fault.said}", one_line(fault.details), fault.hint))
    if fault.status < 500 and fault.status != 429:
        return BackendUnavailableError(
            f"{asked}: this is not what a Supabase project answers ({fault}). Check the URL of the project."
        )
    return BackendUnavailableError(f"{asked}: the backend fails ({fault}). Try again later.")


def check_version(version: Any) -> None:
    """Refuse the answer of a project's ``tensorage_version()`` unless it is this client's version.

    Raises
    ------
    SchemaError
        The message says which of the two is older, and how to bring it up to the other.
    """
    flaw = flaw_of_version(version)
    if flaw is not None:
        raise SchemaError(". ".join(flaw))


def flaw_of_version(version: Any) -> tuple[str, str] | None:
    """Tell what is wrong with a project's version, and the remedy; None if it is this client's version."""
    if version == SCHEMA_VERSION:
        return None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        age, remedy = "newer", "Upgrade the client: pip install -U 'tensorage>=0.2'"
    elif isinstance(version, int) and version < FIRST_RELEASED_SCHEMA:
        age, remedy = "older", _NEVER_RELEASED
    else:
        age, remedy = "older", f"Apply the new migrations: {HOW_TO_MIGRATE}"
    return f"the project's schema has version {version}, {age} than this client's {SCHEMA_VERSION}", remedy


HOW_TO_MIGRATE = (
    "run `tensorage migrations apply --db-url URL` with the URL of its database, or `supabase db push` on a checkout "
    "of this version of tensorage, or paste the output of `tensorage migrations --sql` into the SQL editor"
)

_NEVER_RELEASED = (
    "It was never released, and no migration leads from it: read what you need with the checkout of tensorage "
    'that made it. Then remove that schema (the page "Troubleshooting" of the documentation has the SQL) or '
    f"reset the database, and apply the migrations: {HOW_TO_MIGRATE}"
)


def missing_schema(why: str) -> SchemaError:
    """Make the error that tells how to migrate a project."""
    return SchemaError(
        f"this project does not have the tables and functions of tensorage ({why}). Apply the migrations: "
        + HOW_TO_MIGRATE
    )
