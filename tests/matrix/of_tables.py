"""Probes of every right on every table of the REST API, past the functions."""

from __future__ import annotations

from typing import Any

from matrix.operations import Operation, Outcome
from matrix.rules import Kind, Subject
from matrix.world import ROWS, ROWS_KEY, SECRET_ROWS_KEY, SHARED_KEYS, Person, World
from sql.api import new_key


def _select(
    table: str, query: str, thing: str, column: str, values: Any, *, is_private: bool = False
) -> Operation:
    """A look at the rows of an array, all columns."""

    def probe(w: World, p: Person) -> Outcome:
        dataset = getattr(w, thing) if is_private else getattr(w.things, thing)
        answer = p.caller.request("GET", f"/{table}?{query}=eq.{dataset['id']}&order={column}")
        rows = answer.json() if answer.status_code == 200 else []
        return Outcome([answer], [row[column] for row in rows] == values)

    what, kind = ("private", Kind.READ_PRIVATE) if is_private else ("shared", Kind.READ)
    needs = () if is_private else (thing,)
    return Operation(
        f"{table} select {what}", f"{table} select", kind, probe, needs, is_quiet=True, is_function=False
    )


def _select_open(table: str, thing: str, query: str) -> Operation:
    """A look at the rows of an array that everybody may use."""

    def probe(w: World, p: Person) -> Outcome:
        answer = p.caller.request("GET", f"/{table}?{query}=eq.{getattr(w.things, thing)['id']}")
        return Outcome([answer], answer.status_code == 200 and bool(answer.json()))

    name = f"{table} select open to everybody"
    return Operation(name, f"{table} select", Kind.OPEN, probe, ("open",), is_quiet=True, is_function=False)


def _select_all(table: str, column: str) -> Operation:
    """A look at the whole table: the own rows, those that are shared, and no others."""

    def probe(w: World, p: Person) -> Outcome:
        answer = p.caller.request("GET", f"/{table}?select=*&order={column}")
        rows = answer.json() if answer.status_code == 200 else None
        if p.subject is Subject.DELETED:
            return Outcome([answer], bool(rows))
        return Outcome(
            [answer],
            # REST gives a thousand rows at a time.
            rows is not None and [row[column] for row in rows] == _visible(w, p, table, column)[:1000],
        )

    return Operation(
        f"{table} select all",
        f"{table} select",
        Kind.OWN,
        probe,
        ("rows", "objects"),
        is_quiet=True,
        is_function=False,
    )


def _visible(w: World, p: Person, table: str, column: str) -> list[Any]:
    """The values of a column in all rows that a person may see."""
    number = "id" if table == "datasets" else "data_id"
    query = f"""
        select t.{column} from public.{table} t join public.datasets d on d.id = t.{number}
         where %(all)s or d.user_id = %(me)s
            or (%(reads)s and d.user_id = %(owner)s and d.state = 'committed' and d.key = any (%(keys)s)) order by 1"""
    asked = {
        "all": p.subject is Subject.SERVICE,
        "me": p.id or None,
        "reads": p.subject in (Subject.READER, Subject.WRITER),
        "owner": w.owner.id,
        "keys": list(SHARED_KEYS),
    }
    return [value for (value,) in w.database.execute(query, asked).fetchall()]


def _insert(table: str, thing: str, row: dict[str, Any], found: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        key = new_key()
        sent = dict(row) | (
            {"key": key} if table == "datasets" else {"data_id": getattr(w.things, thing)["id"]}
        )
        answer = p.caller.request("POST", f"/{table}", json={"user_id": w.owner.id, **sent})
        value = key if table == "datasets" else sent["data_id"]
        return Outcome([answer], bool(w.one(f"select count(*) from public.{table} where {found}", value)))

    return _write(table, "insert", probe, thing)


def _update(table: str, thing: str, query: str, change: dict[str, Any], found: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        number = getattr(w.things, thing)["id"]
        answer = p.caller.request("PATCH", f"/{table}?{query}=eq.{number}", json=change)
        return Outcome([answer], bool(w.one(f"select count(*) from public.{table} where {found}", number)))

    return _write(table, "update", probe, thing)


def _delete(table: str, thing: str, query: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        number = getattr(w.things, thing)["id"]
        answer = p.caller.request("DELETE", f"/{table}?{query}=eq.{number}")
        return Outcome([answer], not w.one(f"select count(*) from public.{table} where {query} = %s", number))

    return _write(table, "delete", probe, thing)


def _write(table: str, right: str, probe: Any, thing: str) -> Operation:
    return Operation(
        f"{table} {right}", f"{table} {right}", Kind.ADMINISTER, probe, (thing,), is_function=False
    )


_DATASET = {
    "writer": "00000000-0000-0000-0000-000000000000",
    "shape": [1],
    "dtype": "<i4",
    "block_size": 1,
    "state": "staged",
    "expires_at": "2100-01-01T00:00:00Z",
}

TABLES = [
    _select_open("datasets", "open_rows", "id"),
    _select_open("tensors", "open_rows", "data_id"),
    _select_open("shards", "open_objects", "data_id"),
    _select("datasets", "id", "rows", "key", [ROWS_KEY]),
    _select("datasets", "id", "secret_rows", "key", [SECRET_ROWS_KEY], is_private=True),
    _select_all("datasets", "id"),
    _insert("datasets", "rows", _DATASET, "key = %s"),
    _update("datasets", "rows", "id", {"key": "lab/taken"}, "key = 'lab/taken' and id = %s"),
    _delete("datasets", "rows", "id"),
    _select("tensors", "data_id", "rows", "index", [0, 5, 10]),
    _select("tensors", "data_id", "secret_rows", "index", [0], is_private=True),
    _select_all("tensors", "data_id"),
    _insert(
        "tensors", "rows", {"index": 1000, "count": 1, "tensor": "\\x00"}, "index = 1000 and data_id = %s"
    ),
    _update("tensors", "rows", "data_id", {"tensor": "\\x00"}, "octet_length(tensor) = 1 and data_id = %s"),
    _delete("tensors", "rows", "data_id"),
    _select("shards", "data_id", "objects", "number", [0, 1, 2, 3, 4]),
    _select("shards", "data_id", "secret_objects", "number", [0, 1, 2, 3, 4], is_private=True),
    _select_all("shards", "number"),
    _insert("shards", "objects", {"number": 99, "nbytes": 0, "index": "\\x"}, "number = 99 and data_id = %s"),
    _update("shards", "objects", "data_id", {"filled": "{}"}, "filled = '{}' and data_id = %s"),
    _delete("shards", "objects", "data_id"),
]

assert ROWS.size == 12, "the numbers of blocks above are those of twelve elements, five in a block"
