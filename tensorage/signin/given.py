"""Tokens that a program has from elsewhere: an application, or a flow of the SDK such as OAuth or a magic link."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from tensorage.errors import AuthenticationError, InvalidInputError
from tensorage.signin.keys import claims_of
from tensorage.signin.lending import Loan

if TYPE_CHECKING:
    from tensorage.signin.sdk import User

__all__ = ["GIVE_OTHERS", "GivenTokens", "check_tokens"]

#: Most characters of a token. A user's metadata are in it, and it has to fit the head of a request.
MAX_TOKEN_LENGTH = 32 * 1024

#: Roles of the project's own keys. Users have the role `authenticated`, or one that the project gives them.
_ROLES_OF_KEYS = ("anon", "service_role")

#: Domain of hosted projects. Tokens of one of them name it.
_HOSTED = ".supabase.co"

#: Advice about tokens that do not work.
GIVE_OTHERS = "Give new ones by session.set_session(access_token, refresh_token)"


@dataclass(frozen=True)
class GivenTokens:
    """Tokens of a user.

    Parameters
    ----------
    refresh_token
        None if the login is renewed elsewhere.
    expires_at
        End of the access token, in seconds since the epoch.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    user_id: str
    expires_at: float

    def without_refresh_token(self) -> GivenTokens:
        """Return the tokens for another process, which must not spend the refresh token."""
        return replace(self, refresh_token=None)

    def check_user(self, user: User | None) -> None:
        """Refuse another user than the one that the access token names."""
        if user is None or str(user.id) != self.user_id:
            raise AuthenticationError("the tokens that were given are of two accounts: give a pair of one")

    def loan(self) -> Loan:
        """Return the access token as a loan, after which there is no other one."""
        return Loan(
            self.access_token, self.expires_at, self.expires_at, self.user_id, _Giver(self.expires_at)
        )


@dataclass(frozen=True)
class _Giver:
    expires_at: float

    @property
    def is_elsewhere(self) -> bool:
        return False

    def next_loan(self, refused: str | None) -> NoReturn:
        del refused
        raise AuthenticationError(
            f"the access token that was given {_end_of(self.expires_at)}, and no refresh token came with it. "
            + GIVE_OTHERS
        )


def check_tokens(access_token: object, refresh_token: object, url: str) -> GivenTokens:
    """Check the form of tokens, and whose they are. Only the project can tell whether they are good.

    Parameters
    ----------
    refresh_token
        None, or an empty text, if there is none.
    url
        URL of the project.

    Raises
    ------
    InvalidInputError
        If one is no token of a user, or of another project. The message shows neither.
    AuthenticationError
        If the access token has expired and there is no refresh token.
    """
    access = _check_text("access_token", access_token)
    refresh = _check_text("refresh_token", refresh_token) if refresh_token else None
    claims = claims_of(access)
    if not claims:
        raise InvalidInputError(
            "access_token is no token of a Supabase project: it has three parts with dots between them, and the user's "
            "id in the second one"
        )
    if claims.get("role") in _ROLES_OF_KEYS:
        raise InvalidInputError(
            "access_token is not that of a user who has logged in. Is it a key of the project? That is backend_key="
        )
    try:
        user_id, expires_at = str(uuid.UUID(str(claims.get("sub")))), float(claims["exp"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError("access_token does not say which user it is of, or when it ends") from error
    _check_issuer(claims.get("iss"), url)
    if refresh is None and time.time() >= expires_at:
        raise AuthenticationError(
            f"the access token that was given {_end_of(expires_at)}, and no refresh token came with it. Give a new one"
        )
    return GivenTokens(access, refresh, user_id, expires_at)


def _check_text(name: str, token: object) -> str:
    if not isinstance(token, str):
        raise InvalidInputError(f"{name} is text, and not of the type {type(token).__name__}")
    if not token or len(token) > MAX_TOKEN_LENGTH or not all("!" <= letter <= "~" for letter in token):
        raise InvalidInputError(
            f"{name} is no token: it has {len(token)} characters, and tokens have up to {MAX_TOKEN_LENGTH}, all "
            "ASCII letters, digits and punctuation. Copy it again"
        )
    return token


def _check_issuer(issuer: object, url: str) -> None:
    """Refuse a token of another hosted project, before it is sent there. Other servers name what they like."""
    try:
        theirs, ours = urlsplit(str(issuer)).hostname or "", urlsplit(url).hostname or ""
    except ValueError:
        return
    if theirs.endswith(_HOSTED) and ours.endswith(_HOSTED) and theirs != ours:
        raise InvalidInputError(
            f"access_token is of the project https://{theirs}, and is not sent to {url}: give that URL and its key"
        )


def _end_of(expires_at: float) -> str:
    try:
        moment = f"{datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return "has expired"
    return f"has expired at {moment}"
