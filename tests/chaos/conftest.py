"""A backend apart, which dies: no other test has to wait until it is back."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Iterator

import httpx
import jwt
import pytest
from chaos.backend import Backend
from sql.api import Caller


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend whose PostgreSQL is killed by tests that speak plain HTTP."""
    backend = Backend(tmp_path_factory.mktemp("mortal") / "data")
    yield backend
    backend.stop()


@pytest.fixture
def owner(mortal: Backend) -> Iterator[Caller]:
    """A new user, logged in by a token that is signed here."""
    user_id, email = str(uuid.uuid4()), f"{secrets.token_hex(8)}@example.com"
    with mortal.sql() as database:
        database.execute("insert into auth.users (id, email) values (%s, %s)", (user_id, email))
    role = "authenticated"
    claims = {"sub": user_id, "email": email, "role": role, "aud": role, "exp": int(time.time()) + 3600}
    token = jwt.encode(claims, mortal.running.jwt_secret, algorithm="HS256")
    headers = {"apikey": mortal.running.anon_key, "Authorization": f"Bearer {token}"}
    # A client that verified servers would read all trusted certificates, for each test.
    with httpx.Client(base_url=f"{mortal.running.api_url}/rest/v1", timeout=60, verify=False) as http:
        yield Caller(http, headers, user_id, email)


@pytest.fixture
def loses(mortal: Backend) -> Callable[[Callable[[], httpx.Response]], None]:
    """Make a request that is answered, of which PostgreSQL then loses all that is not on disk yet."""

    def make(request: Callable[[], httpx.Response]) -> None:
        # The WAL writer alone writes, within 0.2 s, what nobody waits for.
        mortal.freeze_wal_writer()
        answer = request()
        mortal.kill_postgres()
        mortal.revive()
        assert answer.status_code == 200, answer.text

    return make
