"""A schema for the tests of the REST API, and clients that speak plain HTTP to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from embedded.rest.client import Rest, wait_until_known

from tensorage.embedded import control

_CLEAN_UP = """
do $$ declare object record; begin
  for object in select p.oid::regprocedure as name from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname like 'rest\\_%'
  loop execute format('drop function %s', object.name); end loop;
  for object in select c.oid::regclass as name, c.relkind from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relname like 'rest\\_%' and c.relkind in ('r', 'v')
    order by c.relkind desc
  loop execute format('drop %s %s', case object.relkind when 'v' then 'view' else 'table' end, object.name);
  end loop;
end $$;
drop type public.rest_mood, public.rest_point;
drop domain public."application/vnd.rest-test", public."text/x-rest-test", public.rest_percent;
drop schema rest_secret cascade;
notify pgrst, 'reload schema';
"""


@pytest.fixture(scope="session")
def _api(backend: control.Running) -> Iterator[Rest]:
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        connection.execute(Path(__file__).with_name("schema.sql").read_text())
        limits = httpx.Limits(max_connections=40, max_keepalive_connections=40)
        with httpx.Client(
            base_url=f"{backend.api_url}/rest/v1",
            headers={"apikey": backend.anon_key},
            timeout=60,
            limits=limits,
        ) as http:
            api = Rest(http, backend.jwt_secret, None)
            wait_until_known(api, "/rpc/rest_private")
            yield api
        connection.execute(_CLEAN_UP)


@pytest.fixture
def rest(_api: Rest) -> Rest:
    """The REST API as a user of this test's own."""
    return _api.as_somebody_new()


@pytest.fixture
def other(_api: Rest) -> Rest:
    """The REST API as somebody else."""
    return _api.as_somebody_new()


@pytest.fixture
def nobody(_api: Rest) -> Rest:
    """The REST API without a token, but with the project's public key, as everybody has to have it."""
    return _api.as_nobody()
