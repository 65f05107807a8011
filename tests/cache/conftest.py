"""Stores that may overwrite, and one whose requests are seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import workers
from project import Project, User
from proxy import Proxy

from tensorage import BackendSession, TensorStore
from tensorage.types import Engine


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> TensorStore:
    return TensorStore(session, quiet=True, engine=engine, allow_overwrite=True)


@pytest.fixture
def rows(session: BackendSession) -> TensorStore:
    """A store whose new arrays are blocks of the database."""
    return TensorStore(session, quiet=True, engine="database", allow_overwrite=True)


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
