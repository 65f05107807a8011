"""A backend whose statements may not take long, as hosted Supabase's: requests become smaller."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
import servers

import tensorage
from tensorage.embedded import control

#: With two seconds for a statement, and a third of one for each block, eight blocks are too many and four are not.
SLOW = """
create function public.be_slow() returns trigger language plpgsql as
$$ begin perform pg_sleep(0.35); return new; end $$;
create trigger be_slow before insert on public.tensors for each row execute function public.be_slow();
alter role authenticated set statement_timeout = '2s';
notify pgrst, 'reload schema';
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """Data folder of such a backend, its own."""
    data_dir = tmp_path / "data"
    with psycopg.connect(servers.start(data_dir).superuser_url, autocommit=True) as connection:
        connection.execute(SLOW)
    # Started anew, so that the setting of the role is sure to be known.
    control.stop(data_dir)
    servers.start(data_dir)
    yield data_dir
    control.stop(data_dir)


def test_a_write_that_takes_too_long_goes_in_smaller_pieces(slow: Path) -> None:
    session = tensorage.local(slow)
    # Nine blocks of a mebibyte: more than a request holds, so that they are staged.
    array = np.random.default_rng(0).integers(0, 255, (9, 1024, 1024), dtype="u1")
    store = session()
    assert len(store) == 0
    pool = session.transfer.http.connections().connection_from_url(session.transfer.base_url)
    before = pool.num_requests
    store["x"] = array
    # Begin; eight blocks, refused; twice four of them; the ninth; commit.
    assert pool.num_requests == before + 6
    np.testing.assert_array_equal(store["x"], array)
    session.logout()
    with psycopg.connect(servers.start(slow).superuser_url, autocommit=True) as connection:
        count = connection.execute("select count(*), sum(count) from public.tensors").fetchone()
    assert count == (9, array.size)
