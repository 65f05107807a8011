"""The project that the client's tests work with: an embedded backend, or any other Supabase."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

import httpx
import pytest

from tensorage import BackendSession
from tensorage.backend.wire.http import tls_context
from tensorage.config import ENVIRONMENT, SERVICE_KEY_VARIABLE

#: The environment that pytest was started with; the tests themselves see one without it.
ELSEWHERE = {name: os.environ.get(name, "") for name in ("SUPABASE_URL", "SUPABASE_KEY", "DB_URL")}

#: Set both to run the client's tests against another Supabase; DB_URL to let them look into its tables too.
IS_ELSEWHERE = bool(ELSEWHERE["SUPABASE_URL"] and ELSEWHERE["SUPABASE_KEY"])

CONFIGURATION_VARIABLES = (*ENVIRONMENT.values(), SERVICE_KEY_VARIABLE)


@dataclass(frozen=True)
class User:
    """A registered user of a project."""

    email: str
    password: str = field(repr=False)
    id: str


@dataclass(frozen=True)
class Project:
    """URL and key of a project, and what tests do there without the client."""

    url: str
    key: str = field(repr=False)

    def register(self, email: str | None = None, password: str | None = None) -> User:
        """Sign up a user, by default a new one; the e-mail address must need no confirmation."""
        email = email or new_email()
        password = password or secrets.token_urlsafe(12)
        # Without the shared settings, httpx would read the trusted certificates anew: longer work than a sign-up's.
        with httpx.Client(base_url=self.url, timeout=30, verify=tls_context(self.url)) as http:
            answer = http.post(
                "/auth/v1/signup",
                json={"email": email, "password": password},
                headers={"apikey": self.key},
            )
            assert answer.status_code == 200, answer.text
            signed_up = answer.json()
            assert signed_up.get("access_token"), f"{self.url} asks for a confirmation of e-mail addresses"
            _log_out(self, http, signed_up["access_token"])
        return User(email, password, signed_up["user"]["id"])

    def session(self, user: User) -> BackendSession:
        """A session of the user that is not logged in yet."""
        return BackendSession(user.email, user.password, self.url, self.key)

    def require_anonymous_accounts(self) -> None:
        """Skip the test if the owner of the project does not allow accounts without an address."""
        with httpx.Client(base_url=self.url, timeout=30, verify=tls_context(self.url)) as http:
            settings = http.get("/auth/v1/settings", headers={"apikey": self.key}).json()
        if IS_ELSEWHERE and not settings["external"].get("anonymous_users"):
            pytest.skip("the project that SUPABASE_URL names allows no anonymous accounts")


def new_email() -> str:
    return f"{secrets.token_hex(8)}@example.com"


def _log_out(project: Project, http: httpx.Client, token: str) -> None:
    """End the login that comes with a sign-up, so that tests can count those which the client makes."""
    headers = {"apikey": project.key, "Authorization": f"Bearer {token}"}
    answer = http.post("/auth/v1/logout", headers=headers)
    assert answer.status_code == 204, answer.text
