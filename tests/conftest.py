"""Fixtures of every test: one embedded backend, and a way to its PostgreSQL that goes round our code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tensorage.embedded import control


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A running backend, shared by all tests: make users and keys of your own in it."""
    data_dir = tmp_path_factory.mktemp("backend")
    yield control.start(data_dir)
    control.stop(data_dir)


@pytest.fixture
def database(backend: control.Running) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Straight to the backend's PostgreSQL, as its superuser; every statement commits."""
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        yield connection
