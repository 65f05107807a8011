"""Stores of one user a file, for each engine."""

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
def proxy(project: Project) -> Iterator[Proxy]:
    proxy = Proxy(project.url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def session(project: Project, user: User, proxy: Proxy) -> Iterator[BackendSession]:
    """Its requests are counted, also those of workers that have a copy of it."""
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        yield store.backend


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> Iterator[TensorStore]:
    store = TensorStore(session, quiet=True, engine=engine)
    yield store
    for key in store:
        del store[key]
