"""The endpoints of the Auth API."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tensorage.embedded.auth import passwords, sessions, users
from tensorage.embedded.auth.answers import (
    API_VERSION_HEADER,
    AuthError,
    error_answer,
    json_answer,
    session_json,
    settings_json,
)
from tensorage.embedded.auth.bearer import Bearer, read_bearer, session_not_found
from tensorage.embedded.auth.params import Params, check_metadata, normalize_email, read_params
from tensorage.embedded.database import Database, UnreachableError, is_outage
from tensorage.embedded.tokens import Tokens

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

logger = logging.getLogger(__name__)

#: Features of GoTrue that this server lacks, by the first part of their path.
_NOT_SERVED = frozenset(
    (
        *("admin", "authorize", "callback", "factors", "invite", "magiclink", "oauth", "otp", "passkeys"),
        *("reauthenticate", "recover", "resend", "saml", "sso", "verify", ".well-known"),
    )
)

#: Sessions that a logout ends: see `sessions.end_sessions`.
_LOGOUT_SCOPES = ("global", "local", "others")


class AuthApi:
    """GoTrue's protocol over the ``auth`` schema, for users with an e-mail address and a password, or with neither.

    Parameters
    ----------
    database
        A pool logged in as ``supabase_auth_admin``, which owns the schema.
    tokens
        Signs and verifies the access tokens.
    jwt_lifetime_s
        Seconds for which an access token is good.
    allows_anonymous
        True if anybody may make an account without an address: GoTrue's setting ``external.anonymous_users``.
    """

    def __init__(
        self, database: Database, tokens: Tokens, *, jwt_lifetime_s: int, allows_anonymous: bool = True
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._jwt_lifetime_s = jwt_lifetime_s
        self._allows_anonymous = allows_anonymous
        self._app = Starlette(
            routes=[
                Route("/signup", self._signup, methods=["POST"]),
                Route("/token", self._token, methods=["POST"]),
                Route("/user", self._get_user, methods=["GET"]),
                Route("/user", self._put_user, methods=["PUT"]),
                Route("/logout", self._logout, methods=["POST"]),
                Route("/settings", self._settings, methods=["GET"]),
                Route("/health", _health, methods=["GET"]),
                Route("/{path:path}", self._refuse, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
            ],
            exception_handlers={
                AuthError: _answer_auth_error,
                HTTPException: _answer_http_error,
                ClientDisconnect: _answer_nobody,
                asyncpg.PostgresError: _answer_database_error,
                asyncpg.InterfaceError: _answer_database_error,
                asyncpg.InternalClientError: _answer_database_error,
                OSError: _answer_database_error,
                Exception: _answer_unexpected,
            },
        )
        # Supabase's servers do not redirect paths that end with a slash, as Starlette would.
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    # -- Getting a session ------------------------------------------------------------------------------

    async def _signup(self, request: Request) -> Response:
        params = await read_params(request)
        if not params.text("email") and not params.text("phone"):
            return await self._signup_anonymously(request, params)
        password = params.text("password")
        if not password:
            raise AuthError(400, "validation_failed", "Signup requires a valid password")
        passwords.check_strength(password)
        if params.text("phone"):
            raise AuthError(400, "phone_provider_disabled", "Phone signups are disabled")
        email = normalize_email(params.text("email") or "")
        metadata = check_metadata(params.object("data") or {})
        async with self._database.connection() as connection:
            # Spares the hash of most refused requests. `create_user` checks again, in its transaction.
            if await users.find_login(connection, email) is not None:
                raise users.user_already_exists()
        # Hashing takes long: no connection of the pool is held meanwhile.
        encrypted_password = await passwords.hash_password(password)
        async with self._database.connection() as connection, connection.transaction():
            user_id = await users.create_user(connection, email, encrypted_password, metadata)
            session = await sessions.open_session(connection, user_id, _read_device(request))
            return json_answer(await self._make_session_json(connection, session))

    async def _signup_anonymously(self, request: Request, params: Params) -> Response:
        if not self._allows_anonymous:
            message = "Anonymous sign-ins are disabled"
            raise AuthError(422, "anonymous_provider_disabled", message)
        metadata = check_metadata(params.object("data") or {})
        async with self._database.connection() as connection, connection.transaction():
            user_id = await users.create_anonymous_user(connection, metadata)
            session = await sessions.open_session(connection, user_id, _read_device(request))
            return json_answer(await self._make_session_json(connection, session))

    async def _token(self, request: Request) -> Response:
        grants: dict[str, Callable[[Request, Params], Awaitable[Response]]] = {
            "password": self._password_grant,
            "refresh_token": self._refresh_token_grant,
        }
        grant = grants.get(request.query_params.get("grant_type", ""))
        if grant is None:
            raise AuthError(400, "invalid_credentials", "unsupported_grant_type")
        return await grant(request, await read_params(request))

    async def _password_grant(self, request: Request, params: Params) -> Response:
        email, password = params.text("email"), params.text("password") or ""
        if params.text("phone"):
            raise AuthError(422, "phone_provider_disabled", "Phone logins are disabled")
        if not email:
            raise AuthError(400, "validation_failed", "missing email or phone")
        async with self._database.connection() as connection:
            login = await users.find_login(connection, email.lower())
        # Checked for an unknown address, too: the time of an answer must not tell which addresses have a user.
        matches = await passwords.is_password(password, login.encrypted_password if login else None)
        if login is None or not matches:
            raise _invalid_credentials()
        if login.is_banned:
            raise AuthError(400, "user_banned", "User is banned")
        async with self._database.connection() as connection, connection.transaction():
            if not await users.note_login(connection, login):
                raise _invalid_credentials()
            session = await sessions.open_session(connection, login.user_id, _read_device(request))
            return json_answer({**await self._make_session_json(connection, session), "weak_password": None})

    async def _refresh_token_grant(self, request: Request, params: Params) -> Response:
        token = params.text("refresh_token") or ""
        async with self._database.connection() as connection:
            session = await sessions.refresh_session(connection, token, _read_device(request))
            return json_answer(await self._make_session_json(connection, session))

    async def _make_session_json(self, connection: Connection, session: sessions.Session) -> dict[str, Any]:
        user = (await _require_user(connection, session.user_id)).json
        access_token, expires_at = self._tokens.make_access_token(
            user, str(session.id), self._jwt_lifetime_s, authenticated_at=session.authenticated_at
        )
        return session_json(
            user, access_token, session.refresh_token, expires_in=self._jwt_lifetime_s, expires_at=expires_at
        )

    # -- Having one -------------------------------------------------------------------------------------

    async def _get_user(self, request: Request) -> Response:
        bearer = self._read_bearer(request)
        async with self._database.connection() as connection:
            return json_answer((await _authenticate(connection, bearer)).json)

    async def _put_user(self, request: Request) -> Response:
        bearer = self._read_bearer(request)
        async with self._database.connection() as connection:
            user = await _authenticate(connection, bearer)
        params = await read_params(request)
        if params.object("app_metadata") is not None:
            raise AuthError(403, "not_admin", "Updating app_metadata requires admin privileges")
        if params.text("phone"):
            raise AuthError(400, "phone_provider_disabled", "Phone logins are disabled")
        email = normalize_email(text) if (text := params.text("email")) else None
        metadata = params.object("data")
        if user.is_anonymous and email is None and params.text("password") is not None:
            message = "Updating password of an anonymous user without an email or phone is not allowed"
            raise AuthError(422, "validation_failed", message)
        encrypted_password = await self._hash_new_password(user, params.text("password"))
        async with self._database.connection() as connection, connection.transaction():
            # Checked again: the user may have been logged out while the password was hashed.
            await _authenticate(connection, bearer)
            if encrypted_password is not None:
                await users.change_password(connection, user.id, encrypted_password)
                # Log out everybody else: one of them may have learned the old password.
                await sessions.end_sessions(connection, user.id, bearer.session_id, "others")
            if metadata is not None:
                await users.change_metadata(connection, user.id, metadata)
            if email is not None and email != user.json["email"]:
                await users.change_email(connection, user.id, email)
                if user.is_anonymous:
                    await users.end_anonymity(connection, user.id, email)
            changed = (await _require_user(connection, user.id)).json
            if metadata is not None:
                # Checked with the merged metadata. A refusal here rolls the whole change back.
                check_metadata(changed["user_metadata"])
            return json_answer(changed)

    async def _hash_new_password(self, user: users.User, password: str | None) -> str | None:
        """Return the hash of a user's new password, checked; None if the request has no password."""
        if password is None:
            return None
        passwords.check_strength(password)
        async with self._database.connection() as connection:
            old = await users.find_password(connection, user.id)
        if await passwords.is_password(password, old):
            message = "New password should be different from the old password."
            raise AuthError(422, "same_password", message)
        return await passwords.hash_password(password)

    async def _logout(self, request: Request) -> Response:
        bearer = self._read_bearer(request)
        scope = request.query_params.get("scope") or "global"
        async with self._database.connection() as connection, connection.transaction():
            user = await _authenticate(connection, bearer)
            if scope not in _LOGOUT_SCOPES:
                raise AuthError(400, "validation_failed", f'Unsupported logout scope "{scope}"')
            await sessions.end_sessions(connection, user.id, bearer.session_id, scope)
        return Response(status_code=204)

    async def _settings(self, _request: Request) -> Response:
        return json_answer(settings_json(allows_anonymous=self._allows_anonymous))

    # -- Everything else --------------------------------------------------------------------------------

    async def _refuse(self, request: Request) -> Response:
        path: str = request.path_params["path"]
        if path.split("/", maxsplit=1)[0] in _NOT_SERVED:
            message = (
                f"The embedded backend does not support /{path}: its users have an e-mail address and "
                "a password, and there is no mail and no administration"
            )
            raise AuthError(501, "feature_disabled", message)
        # Only users learn which paths there are.
        self._read_bearer(request)
        raise AuthError(404, "not_found", f"The Auth API has no {request.method} /{path}")

    def _read_bearer(self, request: Request) -> Bearer:
        return read_bearer(request.headers.get("authorization"), self._tokens)


async def _health(_request: Request) -> Response:
    return json_answer(
        {
            "version": f"tensorage-{version('tensorage')}",
            "name": "GoTrue",
            "description": "GoTrue is a user registration and authentication API",
        }
    )


async def _authenticate(connection: Connection, bearer: Bearer) -> users.User:
    """Return the token's user, whose session must not have ended since the token was signed."""
    user = await _require_user(connection, bearer.user_id)
    if not await sessions.has_session(connection, bearer.session_id, bearer.user_id):
        raise session_not_found()
    if user.is_banned:
        raise AuthError(403, "user_banned", "User is banned")
    return user


async def _require_user(connection: Connection, user_id: UUID) -> users.User:
    user = await users.find_user(connection, user_id)
    if user is None:
        raise AuthError(403, "user_not_found", "User from sub claim in JWT does not exist")
    return user


def _invalid_credentials() -> AuthError:
    return AuthError(400, "invalid_credentials", "Invalid login credentials")


def _read_device(request: Request) -> sessions.Device:
    ip = ip_address(request.client.host) if request.client else None
    return sessions.Device(request.headers.get("user-agent"), ip)


async def _answer_auth_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AuthError)
    return error_answer(error, request.headers.get(API_VERSION_HEADER))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = AuthError(error.status_code, "unknown", error.detail)
    return error_answer(refusal, request.headers.get(API_VERSION_HEADER))


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    # The client hung up while it was sending. Nothing was done, and nobody reads this answer.
    return Response(status_code=400)


async def _answer_database_error(request: Request, error: Exception) -> Response:
    # The log gets neither the error's details nor its trace: they may quote values, such as a token.
    cause = error.__cause__ if isinstance(error, UnreachableError) else error
    sqlstate = getattr(cause, "sqlstate", None)
    logger.error("%s %s: %s, SQLSTATE %s", request.method, request.url.path, type(cause).__name__, sqlstate)
    if is_outage(error):
        # Clients repeat a request after 503. After 500 the SDK stops renewing its token, and the user is logged out.
        refusal = AuthError(503, "unexpected_failure", "The connection to the database was lost")
        return error_answer(refusal, request.headers.get(API_VERSION_HEADER))
    return await _answer_unexpected(request, error)


async def _answer_unexpected(request: Request, _error: Exception) -> Response:
    message = "Unexpected failure, please check server logs for more information"
    refusal = AuthError(500, "unexpected_failure", message)
    return error_answer(refusal, request.headers.get(API_VERSION_HEADER))
