"""Answers of a project to the doctor's requests. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorage.signin.keys import Key

__all__ = ["Answer", "Inside", "Reply", "Sight", "Silence"]


@dataclass(frozen=True)
class Silence:
    """A request that got no answer."""

    reason: str


@dataclass(frozen=True)
class Reply:
    """An answer, whatever its status.

    Parameters
    ----------
    headers
        Headers of the answer, with names in lower case.
    body
        Content of JSON; else its text.
    sent_at, came_at
        Times of the request and of the answer, by the clock of this machine.
    """

    status: int
    headers: Mapping[str, str]
    body: Any
    sent_at: float
    came_at: float

    @property
    def code(self) -> str:
        """Error code of PostgREST or PostgreSQL, ``""`` if there is none."""
        return str(self.body.get("code") or "") if isinstance(self.body, dict) else ""

    @property
    def message(self) -> str:
        """Words of an error answer."""
        if isinstance(self.body, dict):
            words = self.body.get("message") or self.body.get("msg") or self.body.get("error") or ""
            return str(words)[:200]
        return str(self.body)[:200].strip()

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        return " ".join(filter(None, (f"HTTP {self.status}", self.code, self.message)))


Answer = Reply | Silence


@dataclass(frozen=True)
class Inside:
    """Answers that one caller gets from inside of the database.

    Parameters
    ----------
    caller
        "the user" or "the service key".
    doctor
        Answer of ``tensorage_doctor()``.
    version
        Answer of ``tensorage_version()``, asked if the project has no ``tensorage_doctor()``.
    """

    caller: str
    doctor: Answer
    version: Answer | None = None


@dataclass(frozen=True)
class Sight:
    """All that was asked of a project. A request that was not made is None.

    Parameters
    ----------
    key, service_key
        Kinds of the keys that were given.
    settings, health
        Answers of Auth, with the key alone.
    rest
        Answers of REST's root, with the key, and with the service key if there is one.
    version_to_anybody, tables_to_anybody
        Answers to a call of ``tensorage_version()``, and to reading each table, with the key alone.
    storage
        Answer of Storage about itself.
    no_login
        Reason why nobody was logged in, None if a user was.
    login_error, login_outage
        Words of the error of a login: of one that was refused, or of one that Auth did not serve.
    listing
        Answer of Storage to the user's listing of the own folder.
    """

    url: str
    key: Key | None
    service_key: Key | None = None
    settings: Answer | None = None
    health: Answer | None = None
    rest: tuple[Answer, ...] = ()
    version_to_anybody: Answer | None = None
    tables_to_anybody: Mapping[str, Answer] = field(default_factory=dict)
    storage: Answer | None = None
    no_login: str | None = None
    login_error: str | None = None
    login_outage: str | None = None
    listing: Answer | None = None
    inside: tuple[Inside, ...] = ()
