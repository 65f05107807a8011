"""The look at what a store holds, and at what the project keeps of it behind the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import leftovers
import numpy as np
from chaos.backend import Backend, Sql
from chaos.model import Seen, State, Stored, Unreadable

from tensorage import TensorStore
from tensorage.backend import staging
from tensorage.errors import TensorageError

#: Arrays whose blocks do not follow each other from the first element to the last, or hold another number of bytes.
_BROKEN_ROWS = """
select d.key from public.datasets d
  left join lateral (
    select sum(t.count) as elements, min(t.index) as first, max(t.index + t.count) as last,
           bool_and(octet_length(t.tensor) = t.count * d.itemsize) as are_whole
      from public.tensors t where t.data_id = d.id) b on true
 where d.user_id = %s and d.state = 'committed' and d.engine = 'database' and tensorage.elements(d.shape) > 0
   and (case when d.fill is null then b.elements = tensorage.elements(d.shape) and b.first = 0 and b.last = b.elements
             else coalesce(b.last, 0) <= tensorage.elements(d.shape) and not exists (
               select from (select * from public.tensors t where t.data_id = d.id) t
                 full join (select * from tensorage.written w where w.data_id = d.id) w on w.number = t.index
                where t.index is null or w.number is null) and not exists (
               select from (select t.index + t.count as behind, lead(t.index) over (order by t.index) as next
                              from public.tensors t where t.data_id = d.id) t where t.behind > t.next) end
        and coalesce(b.are_whole, d.fill is not null)) is not true
"""

#: Arrays of Storage that lack shards, or whose objects are not those that the catalogue means.
_BROKEN_OBJECTS = """
select d.key from public.datasets d
 where d.user_id = %s and d.state = 'committed' and d.engine = 'storage'
   and (d.fill is null and (select count(*) from public.shards s where s.data_id = d.id and s.filled is null)
                             <> tensorage.elements(tensorage.shard_grid(d.zarr, d.shape))
        or d.fill is not null and exists (
          select from (select * from public.shards s where s.data_id = d.id) s
            full join (select * from tensorage.written w where w.data_id = d.id) w on w.number = s.number
           where s.number is null or w.number is null or s.filled is not null)
        or exists (
          select from public.shards s
            left join storage.objects o on o.bucket_id = 'tensors' and o.name = s.name collate "default"
           where s.data_id = d.id and s.name is not null
             and (o.metadata ->> 'size')::bigint is distinct from s.nbytes))
"""

_EXPIRED_ANSWERS = """
select count(*) from tensorage.operations where user_id = %s and finished_at < now() - interval '1 day'
"""

#: Bytes of all datasets of a user, also of those that nobody sees.
_BYTES = "select coalesce(sum(d.nbytes), 0)::bigint from public.datasets d where d.user_id = %s"


def look(store: TensorStore, prefix: str) -> Seen:
    """Read all arrays whose keys begin with `prefix`, whole and by handles that know nothing of before."""
    seen: dict[str, Stored | Unreadable] = {}
    for key in store.keys(prefix):
        try:
            tensor = store.open(key)
            seen[key] = Stored(np.asarray(tensor[...]), dict(tensor.attrs), tensor.engine)
        except TensorageError as error:
            seen[key] = Unreadable(f"{type(error).__name__}: {error}")
    return seen


def let_a_day_pass(database: Sql, user_id: str) -> None:
    """Make what was staged, and answers that are kept for those who ask again, a day older."""
    database.execute(
        "update public.datasets set expires_at = expires_at - interval '1 day' "
        "where user_id = %s and state = 'staged' and isfinite(expires_at)",
        [user_id],
    )
    database.execute(
        "update tensorage.operations set finished_at = finished_at - interval '1 day' where user_id = %s",
        [user_id],
    )


def sweep(store: TensorStore) -> None:
    """Delete what was given up, as whoever writes next does."""
    transfer = store.backend.transfer
    staging.sweep_rows(transfer)
    staging.sweep_objects(transfer)


def leftovers_of(backend: Backend, database: Sql, states: Mapping[str, State]) -> list[str]:
    """Tell what is kept beyond the arrays that are there, or lacks.

    Parameters
    ----------
    states
        Arrays of each user id. There are no other users.
    """
    found = []
    for user_id, state in states.items():
        beyond = leftovers.beyond_arrays(database, user_id)
        found += [f"left of user {user_id}: {what}" for what in beyond]
        for query in (_BROKEN_ROWS, _BROKEN_OBJECTS):
            found += [f"{row[0]!r} is broken" for row in database.execute(query, [user_id])]
        expected = sum(stored.array.nbytes for stored in state.values())
        if (counted := _number(database, _BYTES, user_id)) != expected:
            found.append(f"the quota counts {counted} bytes of user {user_id} instead of {expected}")
        found += _wrong_totals(database, user_id)
        if kept := _number(database, _EXPIRED_ANSWERS, user_id):
            found.append(f"{kept} answers of user {user_id} are kept for longer than a day")
    found += _wrong_files(backend, database)
    return found


def _wrong_files(backend: Backend, database: Sql) -> list[str]:
    """Compare the files of objects with the objects."""
    known = {str(row[0]) for row in database.execute("select version from storage.objects")}
    files, undecided = backend.files(), backend.undecided()
    found = []
    # PostgreSQL may have died while an object was stored or deleted: the server asks when it starts again.
    if strangers := files - known - undecided:
        found.append(f"files without an object: {sorted(strangers)}")
    if missing := known - files:
        found.append(f"objects without a file: {sorted(missing)}")
    return found


def _wrong_totals(database: Sql, user_id: str) -> list[str]:
    """Compare the running total of a user's bytes with one counted anew, and look for room that is kept free."""
    total = _number(
        database, "select coalesce((select bytes from tensorage.usage where user_id = %s), 0)", user_id
    )
    counted = _number(database, "select tensorage.recount(%s)", user_id)
    reserved = _number(database, "select count(*) from tensorage.reservations where user_id = %s", user_id)
    found = []
    if total != counted:
        found.append(f"the total of user {user_id} is {total} bytes, and counted anew {counted}")
    if reserved:
        found.append(f"room is reserved for {reserved} arrays of user {user_id} that nobody writes")
    return found


def _number(database: Sql, query: str, user_id: str) -> int:
    row: tuple[Any, ...] | None = database.execute(query, [user_id]).fetchone()
    assert row is not None
    return int(row[0])
