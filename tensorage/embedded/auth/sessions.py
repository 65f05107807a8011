"""Sessions of users: the tables ``auth.sessions`` and ``auth.refresh_tokens``.

A login opens a session with a first refresh token. A refresh token can be used once: it is revoked, and replaced by
the next one, its child. A second use comes either from a client that asked twice at the same time, or from a thief.
The time since the first use decides between the two.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from tensorage.embedded.auth.answers import AuthError

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

#: Seconds after its first use in which a refresh token may be used again (GoTrue's default).
REUSE_INTERVAL_S = 10


@dataclass(frozen=True)
class Device:
    """Device from which a session was opened or last refreshed."""

    user_agent: str | None
    ip: IPv4Address | IPv6Address | None


@dataclass(frozen=True)
class Session:
    """A session, with the refresh token that is good for its next refresh."""

    id: UUID
    user_id: UUID
    authenticated_at: datetime
    refresh_token: str = field(repr=False)


class Use(Enum):
    """Decision about the use of a refresh token."""

    # The token was good, and is replaced by a new one.
    ROTATE = "rotate"
    # The token was used a moment ago. The answer is the token that replaced it.
    REPEAT = "repeat"
    # The token was used long ago, or the session has no good token. The sender may be a thief.
    REFUSE = "refuse"


def judge(*, revoked: bool, revoked_for_s: float, active_token: str | None) -> Use:
    """Decide about the use of a refresh token.

    Hosted Supabase is milder in one case, for clients that lost an answer: the parent of the active token may be used
    again at any age. Here it may only within the interval, like every other token.

    Parameters
    ----------
    revoked, revoked_for_s
        True if the token was used already; seconds since then.
    active_token
        The session's token that is still good, or None.
    """
    if not revoked:
        return Use.ROTATE
    if revoked_for_s <= REUSE_INTERVAL_S and active_token is not None:
        return Use.REPEAT
    return Use.REFUSE


async def open_session(connection: Connection, user_id: UUID, device: Device) -> Session:
    """Open a session of a user, in the transaction of the caller."""
    session_id = uuid.uuid4()
    authenticated_at = await connection.fetchval(
        """
        insert into auth.sessions (id, user_id, created_at, updated_at, aal, user_agent, ip)
        values ($1, $2, now(), now(), 'aal1', $3, $4)
        returning created_at
        """,
        session_id,
        user_id,
        device.user_agent,
        device.ip,
    )
    token = await _issue(connection, session_id, user_id, parent=None)
    return Session(session_id, user_id, authenticated_at, token)


async def refresh_session(connection: Connection, token: str, device: Device) -> Session:
    """Exchange a refresh token for the session's next one.

    Raises
    ------
    AuthError
        The token is malformed, is unknown, or was used too long ago. In the last case every refresh token of the
        session is revoked: a thief and the user both have to log in again.
    """
    # Refused without a query, and without the text in PostgreSQL's log.
    if not _is_token(token):
        raise AuthError(400, "validation_failed", "Refresh token is not valid")
    async with connection.transaction():
        session = await _lock_session(connection, token)
        # Judged only after the lock: another request may have used the token during the wait.
        use, next_token = await _judge_stored(connection, token, session["id"])
        # For a rotation, this revokes the used token. For a refusal, it revokes the session's good one.
        if use is not Use.REPEAT:
            await _revoke(connection, session["id"])
        if use is Use.ROTATE:
            next_token = await _issue(connection, session["id"], session["user_id"], parent=token)
            await _note_refresh(connection, session["id"], device)
    # Raised after the transaction, so that its revocations are not rolled back.
    if next_token is None:
        raise AuthError(400, "refresh_token_already_used", "Invalid Refresh Token: Already Used")
    return Session(session["id"], session["user_id"], session["created_at"], next_token)


async def has_session(connection: Connection, session_id: UUID, user_id: UUID) -> bool:
    found: bool = await connection.fetchval(
        "select exists (select from auth.sessions where id = $1 and user_id = $2)", session_id, user_id
    )
    return found


async def end_sessions(connection: Connection, user_id: UUID, session_id: UUID, scope: str) -> None:
    """End this session (``local``), the user's other ones (``others``), or all (``global``).

    The refresh tokens of a session are deleted with it.
    """
    await connection.execute(
        """
        delete from auth.sessions
        where user_id = $1
          and case $3 when 'local' then id = $2 when 'others' then id <> $2 else $3 = 'global' end
        """,
        user_id,
        session_id,
        scope,
    )


async def _lock_session(connection: Connection, token: str) -> asyncpg.Record:
    """Lock the session of a refresh token: requests that refresh or end it run one after another."""
    session = await connection.fetchrow(
        """
        select s.id, s.user_id, s.created_at, coalesce(s.not_after <= now(), false) as is_over,
               coalesce(u.banned_until > now(), false) as is_banned
        from auth.sessions s join auth.users u on u.id = s.user_id
        where s.id = (select session_id from auth.refresh_tokens where token = $1) and u.deleted_at is null
        for update of s
        """,
        token,
    )
    if session is None:
        raise _token_not_found()
    if session["is_banned"]:
        raise AuthError(400, "user_banned", "Invalid Refresh Token: User Banned")
    if session["is_over"]:
        raise AuthError(400, "session_expired", "Invalid Refresh Token: Session Expired")
    return session


async def _judge_stored(connection: Connection, token: str, session_id: UUID) -> tuple[Use, str | None]:
    """Decide about a stored refresh token. A repeated use gets the session's active token with the decision."""
    row = await connection.fetchrow(
        """
        select coalesce(revoked, false) as revoked,
               coalesce(extract(epoch from clock_timestamp() - updated_at), 'infinity')::float8 as age_s,
               (select token from auth.refresh_tokens where session_id = $2 and not revoked
                order by id desc limit 1) as active_token
        from auth.refresh_tokens where token = $1
        """,
        token,
        session_id,
    )
    if row is None:
        raise _token_not_found()
    use = judge(revoked=row["revoked"], revoked_for_s=row["age_s"], active_token=row["active_token"])
    return use, row["active_token"] if use is Use.REPEAT else None


def _token_not_found() -> AuthError:
    return AuthError(400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found")


async def _revoke(connection: Connection, session_id: UUID) -> None:
    await connection.execute(
        """
        update auth.refresh_tokens set revoked = true, updated_at = clock_timestamp()
        where session_id = $1 and not revoked
        """,
        session_id,
    )


async def _issue(connection: Connection, session_id: UUID, user_id: UUID, *, parent: str | None) -> str:
    token = str(uuid.uuid4())
    # clock_timestamp(), since now() is the begin of the transaction, before its wait for the lock.
    await connection.execute(
        """
        insert into auth.refresh_tokens
               (instance_id, token, user_id, revoked, created_at, updated_at, parent, session_id)
        values ($1, $2, $3::uuid::text, false, clock_timestamp(), clock_timestamp(), $4, $5)
        """,
        UUID(int=0),
        token,
        user_id,
        parent,
        session_id,
    )
    return token


async def _note_refresh(connection: Connection, session_id: UUID, device: Device) -> None:
    await connection.execute(
        """
        update auth.sessions
        set refreshed_at = now() at time zone 'utc', updated_at = now(), user_agent = $2, ip = $3
        where id = $1
        """,
        session_id,
        device.user_agent,
        device.ip,
    )


def _is_token(text: str) -> bool:
    """Tell whether a text has the form of our refresh tokens: 122 random bits, written as a UUID."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
