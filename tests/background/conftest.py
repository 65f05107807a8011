"""Fixtures of background writers' tests: they share one user a file, and a store's requests can be held back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import workers
from gate import Gate
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


@pytest.fixture(autouse=True)
def _leaves_nothing(session: BackendSession) -> Iterator[None]:
    yield
    store = session()
    for key in store:
        del store[key]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(project: Project, user: User, engine: Engine, gate: Gate) -> Iterator[TensorStore]:
    """A store of the user's whose requests all go through the gate. What it needs to ask once, it has asked."""
    proxy = Proxy(project.url, changes=gate)
    session = Project(proxy.url, project.key).session(user)
    session.login_by_mail()
    store = TensorStore(session, quiet=True, engine=engine)
    store["warm"] = [1]
    del store["warm"]
    yield store
    gate.open()
    session.logout()
    proxy.close()
