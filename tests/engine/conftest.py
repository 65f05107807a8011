"""Fixtures of the engines' tests: they share one user a file, and leave nothing behind.

A test that takes `store` or `engine` is of what users see, and runs for each engine; one that takes `rows` is of how
the database keeps arrays.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    return TensorStore(session, quiet=True, engine=engine)


@pytest.fixture
def rows(session: BackendSession) -> TensorStore:
    """A store whose new arrays are rows of the database."""
    return TensorStore(session, quiet=True, engine="database")


@pytest.fixture(autouse=True)
def _leaves_nothing(session: BackendSession) -> Iterator[None]:
    yield
    store = session()
    for key in store:
        del store[key]


@pytest.fixture(scope="module")
def proxy(project: Project) -> Iterator[Proxy]:
    proxy = Proxy(project.url)
    yield proxy
    proxy.close()
