"""Requests to a project's Auth server without the Supabase SDK, which takes longer to load than most commands take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tensorage.backend.wire.faults import Fault
from tensorage.backend.wire.http import Http, Request
from tensorage.backend.wire.patience import Patience
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    InvalidInputError,
    PermissionDeniedError,
)
from tensorage.wording import MAX_QUOTED, cut, sentences

__all__ = ["AuthServer", "EndedError", "SignedIn", "no_project"]

#: Status of the gateway, which looks at the key before the Auth server sees a request.
_OF_GATEWAY = 401

#: Most characters of the two tokens of a login. An access token holds the user's metadata, of 32 KiB at most here.
_MAX_TOKEN_LENGTH = 128 * 1024

#: Longest life of an access token, in seconds: Supabase allows a week.
_LONGEST_LIFE_S = 10 * 365 * 86400

_CHECK = "Check the e-mail, the password and the key"


class EndedError(AuthenticationError):
    """A login has ended: the Auth server says so, and not the gateway, which looks at the key."""


@dataclass(frozen=True)
class SignedIn:
    """Tokens and account that the Auth server answers a login with.

    Parameters
    ----------
    expires_in
        Seconds for which the access token is good.
    user
        The account, as Auth describes it.
    """

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: float
    user: Mapping[str, Any] = field(repr=False)

    @property
    def email(self) -> str | None:
        """Address of the account; None for an anonymous one."""
        return self.user.get("email") or None

    @property
    def user_id(self) -> str:
        return str(self.user["id"])


@dataclass
class _Key:
    """Headers of requests before anybody is logged in."""

    key: str = field(repr=False)

    def headers(self) -> dict[str, str]:
        return {"apikey": self.key}

    def renew(self, refused: str) -> None:
        del refused


class AuthServer:
    """The Auth server of one project. An outage is not waited out.

    Parameters
    ----------
    url
        URL of the project, without a slash at its end.
    key
        Publishable key of the project.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._http = Http(url, _Key(key), patience=Patience(0.0, url))

    def log_in(self, email: str, password: str) -> SignedIn:
        """Log in with e-mail and password.

        Raises
        ------
        AuthenticationError
            If the login is refused.
        """
        words = {"email": email, "password": password}
        return self._sign_in("token?grant_type=password", words, f"logging in as {cut(email, MAX_QUOTED)}")

    def register(self, email: str, password: str) -> SignedIn:
        """Register a new account."""
        words = {"email": email, "password": password}
        return self._sign_in("signup", words, f"registering {cut(email, MAX_QUOTED)}")

    def make_anonymous(self) -> SignedIn:
        """Make a new account that has neither an address nor a password."""
        advice = "The owner of the project allows anonymous sign-ins in its settings, under Authentication"
        return self._sign_in("signup", {"data": {}}, "making an anonymous account", advice=advice)

    def refresh(self, refresh_token: str) -> SignedIn:
        """Exchange a refresh token for new tokens. It is spent thereby.

        Raises
        ------
        EndedError
            If the Auth server refuses the token.
        """
        words = {"refresh_token": refresh_token}
        return self._sign_in(
            "token?grant_type=refresh_token", words, "refreshing the login", advice="", refusal=EndedError
        )

    def user(self, access_token: str) -> Mapping[str, Any]:
        """Return the account of an access token, whose login must not have ended.

        Raises
        ------
        AuthenticationError
            If the token is refused.
        """
        user = self._ask(("GET", "user", None), "asking for the account", token=access_token)
        if not isinstance(user, dict) or "id" not in user:
            raise no_project("asking for the account", self.url)
        return user

    def end(self, access_token: str) -> None:
        """End the login of an access token, and no other of its user's.

        Raises
        ------
        EndedError
            If the Auth server refuses the token.
        """
        request = ("POST", "logout?scope=local", None)
        self._ask(request, "logging out", refusal=EndedError, token=access_token)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _sign_in(
        self,
        path: str,
        words: Mapping[str, Any],
        asked: str,
        *,
        advice: str = _CHECK,
        refusal: type[AuthenticationError] = AuthenticationError,
    ) -> SignedIn:
        answer = self._ask(("POST", path, words), asked, advice=advice, refusal=refusal)
        try:
            return _parse_login(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise no_project(asked, self.url) from error

    def _ask(
        self,
        request: tuple[str, str, Mapping[str, Any] | None],
        asked: str,
        *,
        advice: str = "",
        refusal: type[AuthenticationError] = AuthenticationError,
        token: str | None = None,
    ) -> Any:
        """Make a request, given as its method, path and JSON, and return the JSON of the answer."""
        method, path, words = request
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        faults: list[Fault] = []

        def note(status: int, body: bytes, retry_after: str | None) -> Fault:
            fault = Fault.parse(status, body, retry_after)
            if not fault.code and status < 429 and body.lstrip().startswith(b"{"):
                # Older Auth servers name an error without a code, which would be taken for another server's.
                fault = replace(fault, code=str(status))
            faults.append(fault)
            return fault

        body = [] if words is None else [json.dumps(words).encode()]
        made = Request(method, f"/auth/v1/{path}", headers, body, read_fault=note)
        try:
            answer = self._http.ask(made, asked).body
            return json.loads(answer) if answer else None
        except (InvalidInputError, AuthenticationError, PermissionDeniedError) as error:
            kind = AuthenticationError if faults[-1].status == _OF_GATEWAY else refusal
            raise kind(sentences(f"{asked}: {faults[-1].said}", advice)) from error
        except ValueError as error:
            raise no_project(asked, self.url) from error


def _parse_login(answer: Any) -> SignedIn:
    """Check an answer to a login: it has to be readable again once it is kept, and the refresh token is spent.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is none.
    """
    access, refresh, user = answer["access_token"], answer["refresh_token"], answer["user"]
    expires_in = float(answer.get("expires_in", 3600))
    email = user.get("email") or "none"
    if not all(isinstance(text, str) and text for text in (access, refresh, user["id"], email)):
        raise ValueError("a token or a name of the account is no text")
    if len(access) + len(refresh) > _MAX_TOKEN_LENGTH or not 0 <= expires_in <= _LONGEST_LIFE_S:
        raise ValueError("the tokens are too long, or last for no time that there is")
    return SignedIn(access, refresh, expires_in, {**user})


def no_project(asked: str, url: str) -> BackendUnavailableError:
    """Return the error about an answer that no Supabase project gives."""
    return BackendUnavailableError(
        f"{asked}: {url} does not answer as a Supabase project does. Check the URL"
    )
