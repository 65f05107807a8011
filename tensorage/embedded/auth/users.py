"""Users: the tables ``auth.users`` and ``auth.identities``."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from tensorage.embedded.auth.answers import AuthError, identity_json, user_json

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

#: Other unique constraints are not about addresses: their errors are not expected.
_EMAIL_INDEX = "users_email_partial_key"


@dataclass(frozen=True)
class User:
    """A user in the Auth API's JSON, and whether the user is locked out."""

    json: dict[str, Any] = field(repr=False)
    is_banned: bool

    @property
    def id(self) -> UUID:
        return UUID(self.json["id"])

    @property
    def is_anonymous(self) -> bool:
        """True if the user has neither an address nor a password."""
        return bool(self.json["is_anonymous"])


@dataclass(frozen=True)
class Login:
    """Stored login of a user, against which a password is checked."""

    user_id: UUID
    encrypted_password: str | None = field(repr=False)
    is_banned: bool


async def find_user(connection: Connection, user_id: UUID) -> User | None:
    row = await connection.fetchrow(
        """
        select id, aud, role, email, phone, is_anonymous, coalesce(banned_until > now(), false) as is_banned,
               coalesce(raw_app_meta_data, '{}') as app_metadata,
               coalesce(raw_user_meta_data, '{}') as user_metadata,
               email_confirmed_at, confirmed_at, last_sign_in_at,
               coalesce(created_at, 'epoch') as created_at, updated_at
        from auth.users where id = $1 and deleted_at is null
        """,
        user_id,
    )
    if row is None:
        return None
    identities = await connection.fetch(
        """
        select id, provider_id, user_id, identity_data, provider, last_sign_in_at,
               coalesce(created_at, 'epoch') as created_at, updated_at, email
        from auth.identities where user_id = $1 order by created_at, id
        """,
        user_id,
    )
    user = _parse_columns(row, "app_metadata", "user_metadata")
    return User(
        user_json(user, [identity_json(_parse_columns(each, "identity_data")) for each in identities]),
        row["is_banned"],
    )


async def find_login(connection: Connection, email: str) -> Login | None:
    """Return the login of an e-mail address in lower case, or None."""
    # Users of single sign-on are left out: they have no password, and their addresses need not be unique.
    row = await connection.fetchrow(
        """
        select id, encrypted_password, coalesce(banned_until > now(), false) as is_banned
        from auth.users where lower(email) = $1 and not is_sso_user and deleted_at is null
        """,
        email,
    )
    return Login(row["id"], row["encrypted_password"], row["is_banned"]) if row is not None else None


async def find_password(connection: Connection, user_id: UUID) -> str | None:
    password: str | None = await connection.fetchval(
        "select encrypted_password from auth.users where id = $1", user_id
    )
    return password


async def create_user(
    connection: Connection, email: str, encrypted_password: str, metadata: dict[str, Any]
) -> UUID:
    """Create a user, whose address counts as confirmed: the server sends no mail.

    Raises
    ------
    AuthError
        The address has a user already, perhaps since a moment ago.
    """
    user_id = uuid.uuid4()
    # In GoTrue, too, the user's metadata calls the address verified, and the identity's data does not.
    claims = {"sub": str(user_id), "email": email, "email_verified": False, "phone_verified": False}
    try:
        # GoTrue's rows have the instance zero, and empty texts rather than nulls in the columns of tokens.
        await connection.execute(
            """
            insert into auth.users (
                instance_id, id, aud, role, email, encrypted_password, email_confirmed_at, last_sign_in_at,
                raw_app_meta_data, raw_user_meta_data, created_at, updated_at,
                confirmation_token, recovery_token, email_change, email_change_token_new)
            values (
                $1, $2, 'authenticated', 'authenticated', $3, $4, now(), now(),
                '{"provider": "email", "providers": ["email"]}', $5, now(), now(), '', '', '', '')
            """,
            UUID(int=0),
            user_id,
            email,
            encrypted_password,
            json.dumps({**metadata, **claims, "email_verified": True}),
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != _EMAIL_INDEX:
            raise
        raise user_already_exists() from error
    await _add_identity(connection, user_id, {**metadata, **claims})
    return user_id


async def create_anonymous_user(connection: Connection, metadata: dict[str, Any]) -> UUID:
    """Create a user without an address, a password or an identity."""
    user_id = uuid.uuid4()
    await connection.execute(
        """
        insert into auth.users (
            instance_id, id, aud, role, last_sign_in_at, is_anonymous,
            raw_app_meta_data, raw_user_meta_data, created_at, updated_at,
            confirmation_token, recovery_token, email_change, email_change_token_new)
        values (
            $1, $2, 'authenticated', 'authenticated', now(), true, '{}', $3, now(), now(), '', '', '', '')
        """,
        UUID(int=0),
        user_id,
        json.dumps(metadata),
    )
    return user_id


async def end_anonymity(connection: Connection, user_id: UUID, email: str) -> None:
    """Make an anonymous user, whose address was just set, one like others."""
    await connection.execute(
        """
        update auth.users
        set is_anonymous = false,
            raw_app_meta_data = raw_app_meta_data || '{"provider": "email", "providers": ["email"]}'
        where id = $1
        """,
        user_id,
    )
    await _add_identity(connection, user_id, {"sub": str(user_id), "email": email, "email_verified": False})


async def _add_identity(connection: Connection, user_id: UUID, data: dict[str, Any]) -> None:
    await connection.execute(
        """
        insert into auth.identities
               (provider_id, user_id, identity_data, provider, last_sign_in_at, created_at, updated_at)
        values ($1::uuid::text, $1, $2, 'email', now(), now(), now())
        """,
        user_id,
        json.dumps(data),
    )


async def note_login(connection: Connection, login: Login) -> bool:
    """Record a login, unless the password has changed meanwhile. Return whether it was recorded.

    Runs in the transaction that opens the session. A change of the password at the same time either waits for that
    transaction and then ends the new session, or comes first and is found here.
    """
    user_id: UUID | None = await connection.fetchval(
        """
        update auth.users set last_sign_in_at = now(), updated_at = now()
        where id = $1 and encrypted_password = $2 and deleted_at is null
        returning id
        """,
        login.user_id,
        login.encrypted_password,
    )
    # Without a user id, this changes nothing.
    await connection.execute(
        "update auth.identities set last_sign_in_at = now(), updated_at = now() where user_id = $1", user_id
    )
    return user_id is not None


async def change_password(connection: Connection, user_id: UUID, encrypted_password: str) -> None:
    await connection.execute(
        "update auth.users set encrypted_password = $2, updated_at = now() where id = $1",
        user_id,
        encrypted_password,
    )


async def change_email(connection: Connection, user_id: UUID, email: str) -> None:
    """Change a user's address. The new one counts as confirmed."""
    claims = json.dumps({"email": email})
    try:
        await connection.execute(
            """
            update auth.users
            set email = $2, email_confirmed_at = now(), updated_at = now(),
                raw_user_meta_data = coalesce(raw_user_meta_data, '{}') || $3
            where id = $1
            """,
            user_id,
            email,
            claims,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != _EMAIL_INDEX:
            raise
        message = "A user with this email address has already been registered"
        raise AuthError(422, "email_exists", message) from error
    await connection.execute(
        """
        update auth.identities set identity_data = identity_data || $2, updated_at = now()
        where user_id = $1 and provider = 'email'
        """,
        user_id,
        claims,
    )


async def change_metadata(connection: Connection, user_id: UUID, changes: dict[str, Any]) -> None:
    """Merge changes into a user's metadata. A null removes its key."""
    await connection.execute(
        """
        update auth.users
        set raw_user_meta_data = (coalesce(raw_user_meta_data, '{}') || $2) - $3::text[], updated_at = now()
        where id = $1
        """,
        user_id,
        json.dumps({key: value for key, value in changes.items() if value is not None}),
        [key for key, value in changes.items() if value is None],
    )


def user_already_exists() -> AuthError:
    return AuthError(422, "user_already_exists", "User already registered")


def _parse_columns(row: asyncpg.Record, *columns: str) -> dict[str, Any]:
    """Return a row with some columns parsed: the driver gives jsonb as text."""
    return {**row, **{column: json.loads(row[column]) for column in columns}}
