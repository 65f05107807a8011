"""The session of these tests, whose requests are counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import workers
from project import Project, User
from proxy import Proxy

from tensorage import BackendSession


@pytest.fixture(scope="module")
def login(project: Project, user: User, proxy: Proxy) -> Iterator[BackendSession]:
    """Its requests are counted, also those of workers that have a copy of it."""
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        yield store.backend
