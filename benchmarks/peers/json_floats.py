"""A table with a row of JSON numbers for each sample, which is how people keep arrays in Supabase today.

The table has row-level security. Requests use the SDK as its documentation shows, have the fastest size, and ask for no
rows in the answer to an insert.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import postgrest

import tensorage
from benchmarks.straight import Straight

#: Rows of 784 numbers in one insert (the best of 50 to 1000), and in one answer (the most that Supabase gives).
INSERT_ROWS = 250
PAGE_ROWS = 1000

TABLE = "json_floats"
_SCHEMA = f"""
    create table public.{TABLE} (
      user_id uuid not null default auth.uid(), key text not null, index int not null, data float4[] not null,
      primary key (user_id, key, index));
    alter table public.{TABLE} enable row level security;
    create policy own on public.{TABLE} to authenticated
      using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
    grant select, insert, delete on public.{TABLE} to authenticated;
    notify pgrst, 'reload schema'"""


class JsonFloats:
    """The table, and a session's SDK client to work with it."""

    def __init__(self, session: tensorage.BackendSession, straight: Straight) -> None:
        self._client = session.client
        straight.execute(_SCHEMA)
        while not self._is_known():
            time.sleep(0.05)

    def write(self, images: npt.NDArray[np.float32]) -> None:
        rows = images.reshape(len(images), -1)
        for at in range(0, len(rows), INSERT_ROWS):
            batch = [
                {"key": "images", "index": at + i, "data": row.tolist()}
                for i, row in enumerate(rows[at : at + INSERT_ROWS])
            ]
            self._table.insert(batch, returning="minimal").execute()

    def clear(self) -> None:
        self._table.delete(returning="minimal").eq("key", "images").execute()

    def read(self, out: npt.NDArray[np.float32]) -> None:
        rows = out.reshape(len(out), -1)
        for at in range(0, len(rows), PAGE_ROWS):
            query = self._table.select("index,data").eq("key", "images").order("index")
            for row in query.range(at, at + PAGE_ROWS - 1).execute().data:
                rows[row["index"]] = row["data"]

    def batch(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return rows in any order, which is restored here."""
        query = self._table.select("index,data").eq("key", "images").in_("index", indices.tolist())
        found = {row["index"]: row["data"] for row in query.execute().data}
        return np.array([found[index] for index in indices.tolist()], np.float32).reshape(-1, 28, 28)

    @property
    def _table(self) -> Any:
        return self._client.table(TABLE)

    def _is_known(self) -> bool:
        try:
            self._table.select("index").limit(1).execute()
        except postgrest.APIError as error:
            if error.code == "PGRST205":
                return False
            raise
        return True
