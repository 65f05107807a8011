"""Callers of the REST API, and what the tables hold."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import psycopg
import pytest
import servers
from sql.api import Caller
from sql.kept import Kept, keep

from tensorage.embedded import control

#: Everything of one user that tensorage keeps, blocks as their digests.
_STATE_OF_USER = """
select 'dataset', to_jsonb(d)::text from public.datasets d where d.user_id = %(user)s
union all
select 'block', (to_jsonb(t) - 'tensor')::text || md5(t.tensor) from public.tensors t where t.user_id = %(user)s
union all
select 'shard', to_jsonb(s)::text from public.shards s where s.user_id = %(user)s
union all
select 'object', (to_jsonb(o) - 'last_accessed_at')::text from storage.objects o
 where o.bucket_id = 'tensors' and starts_with(o.name, %(user)s::text || '/')
union all
select 'operation', to_jsonb(o)::text from tensorage.operations o where o.user_id = %(user)s
union all
select 'quota', to_jsonb(q)::text from tensorage.quotas q where q.user_id = %(user)s
union all
select 'settings', to_jsonb(s)::text from tensorage.settings s
order by 1, 2
"""

State = list[tuple[Any, ...]]

#: Makes a user who is logged in.
Register = Callable[[], Caller]


def wait_for_waiter(holder: psycopg.Connection[tuple[Any, ...]], waiters: int = 1) -> None:
    """Return when other connections wait for a lock that `holder` has, or for each other behind it."""
    asked = (
        "select count(*) filter (where pg_backend_pid() = any (pg_blocking_pids(pid))) > 0 "
        "and count(*) filter (where cardinality(pg_blocking_pids(pid)) > 0) >= %s from pg_stat_activity"
    )
    while holder.execute(asked, (waiters,)).fetchone() != (True,):
        holder.execute("select pg_stat_clear_snapshot(), pg_sleep(0.01)")


@pytest.fixture(scope="session")
def backend(backend: control.Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend apart: arrays that are shared here would be in the list of every user of the other tests."""
    data_dir = tmp_path_factory.mktemp("backend")
    assert data_dir != backend.data_dir
    yield servers.start(data_dir)
    control.stop(data_dir)


@pytest.fixture(scope="session")
def _rest(backend: control.Running) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=40, max_keepalive_connections=40)
    with httpx.Client(base_url=f"{backend.api_url}/rest/v1", timeout=60, limits=limits) as http:
        yield http


@pytest.fixture(scope="session")
def new_user(backend: control.Running, _rest: httpx.Client) -> Iterator[Callable[[], Caller]]:
    """Make a user who is logged in.

    Hashing a password takes longer than most of these tests: there is none, and the token is signed here.
    """
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:

        def register() -> Caller:
            user_id, email = str(uuid.uuid4()), f"{secrets.token_hex(8)}@example.com"
            connection.execute(
                "insert into auth.users (id, email, email_confirmed_at) values (%s, %s, now())",
                (user_id, email),
            )
            role = "authenticated"
            claims = {
                "sub": user_id,
                "email": email,
                "role": role,
                "aud": role,
                "exp": int(time.time()) + 3600,
            }
            token = jwt.encode(claims, backend.jwt_secret, algorithm="HS256")
            headers = {"apikey": backend.anon_key, "Authorization": f"Bearer {token}"}
            return Caller(_rest, headers, user_id, email)

        yield register


@pytest.fixture
def sign_up(backend: control.Running, _rest: httpx.Client) -> Callable[[], Caller]:
    """Make a user in the way users do it, with a password, and a token from the Auth API."""

    def make() -> Caller:
        answer = httpx.post(
            f"{backend.api_url}/auth/v1/signup",
            json={"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_urlsafe(12)},
            headers={"apikey": backend.anon_key},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        login = answer.json()
        headers = {"apikey": backend.anon_key, "Authorization": f"Bearer {login['access_token']}"}
        return Caller(_rest, headers, login["user"]["id"], login["user"]["email"])

    return make


@pytest.fixture
def owner(new_user: Callable[[], Caller]) -> Caller:
    return new_user()


@pytest.fixture
def other(new_user: Callable[[], Caller]) -> Caller:
    return new_user()


@pytest.fixture
def kept(owner: Caller) -> Kept:
    return keep(owner)


@pytest.fixture(scope="session")
def strangers(backend: control.Running, _rest: httpx.Client) -> dict[str, Caller]:
    """Callers without a login: with the project's public key, in both ways of sending it, and without any."""
    key = backend.anon_key
    return {
        "anon": Caller(_rest, {"apikey": key, "Authorization": f"Bearer {key}"}),
        "only apikey": Caller(_rest, {"apikey": key}),
        "nobody": Caller(_rest, {}),
    }


@pytest.fixture
def state_of(database: psycopg.Connection[tuple[Any, ...]]) -> Callable[[Caller], State]:
    """Look up all that is kept of a user, straight in PostgreSQL."""

    def look_up(caller: Caller) -> State:
        return database.execute(_STATE_OF_USER, {"user": caller.id}).fetchall()

    return look_up
