"""Raw requests to the Auth API, for tests."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

PASSWORD = "correct-horse-1"


@dataclass
class Account:
    """A new user, and what the sign-up answered."""

    email: str
    session: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return self.session["user"]["id"]

    @property
    def access_token(self) -> str:
        return self.session["access_token"]

    @property
    def refresh_token(self) -> str:
        return self.session["refresh_token"]


class Api:
    """Raw requests to the Auth API."""

    def __init__(self, backend: Any) -> None:
        self.http = httpx.Client(base_url=f"{backend.api_url}/auth/v1", headers={"apikey": backend.anon_key})

    def signup(self, email: str | None = None, password: str = PASSWORD, **more: Any) -> Account:
        email = email or new_email()
        answer = self.http.post("/signup", json={"email": email, "password": password, **more})
        assert answer.status_code == 200, answer.text
        return Account(email, answer.json())

    def login(self, email: str, password: str = PASSWORD) -> httpx.Response:
        return self.http.post("/token?grant_type=password", json={"email": email, "password": password})

    def refresh(self, refresh_token: str) -> httpx.Response:
        return self.http.post("/token?grant_type=refresh_token", json={"refresh_token": refresh_token})

    def user(self, access_token: str) -> httpx.Response:
        return self.http.get("/user", headers=bearer(access_token))

    def update(self, access_token: str, **changes: Any) -> httpx.Response:
        return self.http.put("/user", json=changes, headers=bearer(access_token))

    def logout(self, access_token: str, scope: str) -> httpx.Response:
        return self.http.post("/logout", params={"scope": scope}, headers=bearer(access_token))


def bearer(access_token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {access_token}"}


def new_email() -> str:
    return f"{uuid.uuid4().hex}@example.org"


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("error_code")) == (status, code), answer.text


def at_once(count: int, call: Callable[[], Any]) -> list[Any]:
    """Return what `call` returns to each of `count` threads that start it together."""
    barrier = threading.Barrier(count)

    def one(_: int) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def wait_until_blocked(sql: psycopg.Connection, count: int) -> None:
    """Return when that many others wait for a lock, such as one that `sql` holds."""
    while sql.execute("select count(*) from pg_locks where not granted").fetchone()[0] < count:
        time.sleep(0.01)
