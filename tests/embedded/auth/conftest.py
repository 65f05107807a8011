"""Ways to the Auth API and to what it stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import psycopg
import pytest
from embedded.auth.client import Api

from supabase import Client, ClientOptions, create_client


@pytest.fixture(scope="module")
def api(backend) -> Iterator[Api]:
    api = Api(backend)
    with api.http:
        yield api


@pytest.fixture(scope="module")
def sql(backend) -> Iterator[psycopg.Connection]:
    """The project's own `postgres` role, as an application's SQL editor has it."""
    with psycopg.connect(backend.db_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def sdk(backend) -> Iterator[Callable[[], Client]]:
    # A client that verified servers would read all trusted certificates, for each test.
    with httpx.Client(verify=False) as http:
        options = ClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
        yield lambda: create_client(backend.api_url, backend.anon_key, options)
