"""Callers of the Storage API, and a way to its files that goes round our code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from embedded.storage.client import Files, Storage

from tensorage.embedded import control


@pytest.fixture(scope="session")
def _http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as http:
        yield http


@pytest.fixture
def owner(_http: httpx.Client, backend: control.Running) -> Storage:
    return Storage(_http, backend)


@pytest.fixture
def other(_http: httpx.Client, backend: control.Running) -> Storage:
    """Another user, with a good login of their own."""
    return Storage(_http, backend)


@pytest.fixture
def service(_http: httpx.Client, backend: control.Running) -> Storage:
    return Storage(_http, backend, token=backend.service_role_key)


@pytest.fixture
def anon(_http: httpx.Client, backend: control.Running) -> Storage:
    return Storage(_http, backend, token=backend.anon_key)


@pytest.fixture
def files(backend: control.Running) -> Files:
    return Files(Path(backend.data_dir) / "storage")
