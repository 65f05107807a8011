"""A store whose requests can be held back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gate import Gate
from project import Project, User
from proxy import Proxy

from tensorage import TensorStore
from tensorage.types import Engine


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(project: Project, user: User, engine: Engine, gate: Gate) -> Iterator[TensorStore]:
    """A store of the user's whose requests all go through the gate. It has asked already for all that it asks once."""
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
