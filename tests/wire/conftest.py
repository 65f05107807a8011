"""A backend of its own for the replay of PostgREST's answers: its schema is the one they were recorded on."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import servers

from tensorage.embedded import control

_NEW_PUBLIC_SCHEMA = "drop schema public cascade; create schema public;"


@pytest.fixture(scope="module")
def recorded_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend whose schema ``public`` is that of ``postgrest.sql`` and nothing else."""
    data_dir = tmp_path_factory.mktemp("recorded")
    running = servers.start(data_dir)
    try:
        schema = Path(__file__).with_name("postgrest.sql").read_text()
        with psycopg.connect(running.superuser_url, autocommit=True) as connection:
            connection.execute(_NEW_PUBLIC_SCHEMA + schema)
            connection.execute("notify pgrst, 'reload schema'")
        _wait_until_known(running, "/rest/v1/rpc/nothing")
        yield running
    finally:
        control.stop(data_dir)


def _wait_until_known(running: control.Running, path: str, timeout_s: float = 20.0) -> None:
    """Wait for the reload, which a notification asks for but does not wait for."""
    connection = http.client.HTTPConnection(urlsplit(running.api_url).netloc)
    deadline = time.monotonic() + timeout_s
    while True:
        connection.request("OPTIONS", path, headers={"apikey": running.anon_key})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            connection.close()
            return
        assert json.loads(body)["code"] in ("PGRST202", "PGRST205"), body
        assert time.monotonic() < deadline, f"{path} is still not known: {body!r}"
        time.sleep(0.02)
