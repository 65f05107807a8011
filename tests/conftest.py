"""Fixtures of every test: a project with users of its own, and a way to its PostgreSQL round the client.

The project is an embedded backend that is started for the tests, or the Supabase that ``SUPABASE_URL`` and
``SUPABASE_KEY`` name. There, the tests that need the embedded server itself are skipped, and those that need
SQL too unless ``DB_URL`` says where PostgreSQL is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from project import CONFIGURATION_VARIABLES, ELSEWHERE, IS_ELSEWHERE, Project, User

from tensorage import BackendSession, TensorStore
from tensorage.embedded import control
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE
from tensorage.types import Engine

# Every server that a test starts, in whatever process, ends with this one, also when this one is killed.
os.environ[ENDS_WITH_VARIABLE] = str(os.getpid())


@pytest.fixture(autouse=True)
def _without_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor what the developer's own `link_to` saved decides what a test talks to."""
    for name in (*CONFIGURATION_VARIABLES, "DB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A running backend, shared by all tests: make users and keys of your own in it."""
    if IS_ELSEWHERE:
        pytest.skip("SUPABASE_URL names another Supabase, and this test needs the embedded server")
    data_dir = tmp_path_factory.mktemp("backend")
    yield control.start(data_dir)
    control.stop(data_dir)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Straight to the project's PostgreSQL, past every policy; every statement commits."""
    if IS_ELSEWHERE and not ELSEWHERE["DB_URL"]:
        pytest.skip("SUPABASE_URL names another Supabase, and no DB_URL says where its PostgreSQL is")
    url = ELSEWHERE["DB_URL"] if IS_ELSEWHERE else request.getfixturevalue("backend").superuser_url
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def project(request: pytest.FixtureRequest) -> Project:
    """The project that the client's tests work with."""
    if IS_ELSEWHERE:
        return Project(ELSEWHERE["SUPABASE_URL"], ELSEWHERE["SUPABASE_KEY"])
    running: control.Running = request.getfixturevalue("backend")
    return Project(running.api_url, running.anon_key)


@pytest.fixture
def user(project: Project) -> User:
    """A new user: nothing is stored, nobody is logged in."""
    return project.register()


@pytest.fixture
def session(project: Project, user: User) -> Iterator[BackendSession]:
    """A session that is logged in as the new user."""
    session = project.session(user)
    session.login_by_mail()
    yield session
    session.logout()


@pytest.fixture(params=["database", "storage"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Where new arrays are kept. What users see does not depend on it: tests of that take each in turn."""
    kept: Engine = request.param
    return kept


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    """The store of the new user."""
    return session()
