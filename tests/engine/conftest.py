"""Fixtures of the engine's tests: they share one user a file, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import workers
from project import Project, User
from proxy import Proxy

from tensorage import BackendSession


@pytest.fixture(scope="module")
def user(project: Project) -> User:
    """One for all tests of this file: to sign up and in takes longer than most of them do."""
    return project.register()


@pytest.fixture(scope="module")
def session(project: Project, user: User) -> Iterator[BackendSession]:
    with workers.store_of(project, user) as store:
        yield store.backend


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
