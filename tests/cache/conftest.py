"""Fixtures of the local cache's tests: they share one user a file, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import workers
from project import Project, User
from proxy import Proxy

from tensorage import BackendSession, TensorStore
from tensorage.types import Engine


@pytest.fixture(scope="module")
def user(project: Project) -> User:
    """One for all tests of this file: to sign up and in takes longer than most of them do."""
    return project.register()


@pytest.fixture(scope="module")
def session(project: Project, user: User) -> Iterator[BackendSession]:
    with workers.store_of(project, user) as store:
        yield store.backend


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> TensorStore:
    return TensorStore(session, quiet=True, engine=engine, allow_overwrite=True)


@pytest.fixture
def rows(session: BackendSession) -> TensorStore:
    """A store whose new arrays are rows of the database."""
    return TensorStore(session, quiet=True, engine="database", allow_overwrite=True)


@pytest.fixture(autouse=True)
def _leaves_nothing(session: BackendSession) -> Iterator[None]:
    yield
    store = session()
    for key in store:
        del store[key]


@pytest.fixture
def proxy(project: Project) -> Iterator[Proxy]:
    proxy = Proxy(project.url)
    yield proxy
    proxy.close()


@pytest.fixture
def watched(proxy: Proxy, project: Project, user: User, engine: Engine) -> Iterator[TensorStore]:
    """A store of a session of its own, whose requests the proxy sees."""
    with workers.store_of(
        Project(proxy.url, project.key), user, engine=engine, allow_overwrite=True
    ) as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"
