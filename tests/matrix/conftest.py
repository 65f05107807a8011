"""A backend of its own: shares made here would be in the list of every user of the other tests."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import servers
from matrix.world import World, http_of
from project import IS_ELSEWHERE, Project

from tensorage.embedded import control


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    if IS_ELSEWHERE:
        pytest.skip("SUPABASE_URL names another Supabase, and this test signs tokens and changes policies")
    data_dir = tmp_path_factory.mktemp("matrix")
    yield servers.start(data_dir)
    control.stop(data_dir)


@pytest.fixture(scope="session")
def project(backend: control.Running) -> Project:
    return Project(backend.api_url, backend.anon_key)


@pytest.fixture(scope="module")
def world(backend: control.Running) -> Iterator[World]:
    """The people and the owner's things, made once for a file."""
    with (
        psycopg.connect(backend.superuser_url, autocommit=True) as database,
        http_of(backend) as http,
    ):
        yield World(backend, database, http)
