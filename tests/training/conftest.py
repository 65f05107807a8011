"""Fixtures of the tests of samples: they share one user a file, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import workers
from project import Project, User

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
def store(session: BackendSession, engine: Engine) -> Iterator[TensorStore]:
    store = TensorStore(session, quiet=True, engine=engine)
    yield store
    for key in store:
        del store[key]
