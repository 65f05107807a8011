"""Tables by any REST call: they give nobody what is not theirs, and take nothing from anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from sql.api import Caller, Json, code_of
from sql.conftest import State
from sql.kept import Kept, assert_unmarked

StateOf = Callable[[Caller], State]

_PREFERENCES = (
    "return=representation",
    "return=minimal,tx=commit",
    "return=headers-only,missing=default",
    "resolution=merge-duplicates,return=representation",
    "resolution=ignore-duplicates,return=representation",
    "count=exact,return=representation,handling=lenient",
)


def _rows_of(table: str, kept: Kept, writer: Caller) -> list[Json]:
    """Rows as somebody would like them: in place of the owner's, beside them, and in the owner's name."""
    n = kept.names
    if table == "datasets":
        row: Json = {"key": n.key, "shape": [1], "dtype": "<i4", "block_size": 1, "state": "committed"}
        return [
            row,
            {"id": n.id, **row, "user_id": writer.id},
            {"id": n.staged, **row, "user_id": kept.owner.id, "share_at_commit": True},
        ]
    if table == "shards":
        shard: Json = {"data_id": n.objects, "number": 0, "nbytes": 0, "index": "\\x"}
        return [shard | {"user_id": writer.id}, shard | {"user_id": kept.owner.id, "number": 5}]
    block: Json = {"data_id": n.id, "index": 0, "count": 1, "tensor": "\\x00000000"}
    return [block | {"user_id": writer.id}, block | {"user_id": kept.owner.id, "index": 12}]


def _ids_of(table: str, kept: Kept) -> tuple[int, int]:
    """Numbers of a committed and of a staged dataset, which have rows in the table."""
    n = kept.names
    return (n.objects, n.writing) if table == "shards" else (n.id, n.staged)


#: Columns that a row of each table is known by.
_KEYS = {"datasets": "id", "tensors": "data_id,index", "shards": "data_id,number"}


def _writes(caller: Caller, table: str, kept: Kept) -> Iterator[httpx.Response]:
    """Answers to every way of writing a table."""
    name = "id" if table == "datasets" else "data_id"
    rows = _rows_of(table, kept, caller)
    committed, _ = _ids_of(table, kept)
    everywhere = ("", f"?{name}=eq.{committed}", f"?user_id=eq.{kept.owner.id}", f"?{name}=gt.0")
    conflicts = ("", f"?on_conflict={_KEYS[table]}", "?columns=user_id")
    for prefer in _PREFERENCES:
        headers = {"Prefer": prefer}
        for where in conflicts:
            for body in (*rows, [rows[0], rows[0]]):
                yield caller.request("POST", f"/{table}{where}", json=body, headers=headers)
        for where in everywhere:
            yield caller.request(
                "PATCH", f"/{table}{where}", json={"user_id": caller.id or kept.owner.id}, headers=headers
            )
            yield caller.request("DELETE", f"/{table}{where}", headers=headers)
    if table == "datasets":
        yield caller.request("PATCH", f"/{table}?id=eq.{kept.names.id}", json={"share_at_commit": True})
        yield caller.request("PUT", f"/{table}?id=eq.{kept.names.id}", json={"id": kept.names.id, **rows[0]})
    else:
        of, column = ("index", "tensor") if table == "tensors" else ("number", "index")
        where = f"?data_id=eq.{committed}&{of}=eq.0"
        yield caller.request("PATCH", f"/{table}{where}", json={column: "\\x"})
        yield caller.request("PUT", f"/{table}{where}", json=rows[0])


@pytest.mark.parametrize("table", ["datasets", "tensors", "shards"])
def test_nobody_writes_a_table(
    table: str, kept: Kept, other: Caller, strangers: dict[str, Caller], state_of: StateOf
) -> None:
    """The owner does not, either: the functions store and count it."""
    before = state_of(kept.owner), state_of(other)
    for caller, status in ((other, 403), (kept.owner, 403), (strangers["anon"], 401)):
        for answer in _writes(caller, table, kept):
            refusals = [(status, "42501")]
            if b'"id"' in answer.request.content:
                # PostgreSQL minds an id that is given before it minds who gives it.
                refusals.append((400, "428C9"))
            if answer.request.method in ("PATCH", "DELETE") and not answer.request.url.query:
                # A change to every row is refused whoever asks for it.
                refusals = [(400, "21000")]
            assert (answer.status_code, answer.json()["code"]) in refusals, answer.request
            assert_unmarked(answer, kept)
    assert (state_of(kept.owner), state_of(other)) == before


@pytest.mark.parametrize("table", ["datasets", "tensors", "shards"])
def test_other_user_sees_no_row(table: str, kept: Kept, other: Caller) -> None:
    name = "id" if table == "datasets" else "data_id"
    committed, staged = _ids_of(table, kept)
    aimed = (
        f"{name}=eq.{committed}",
        f"{name}=in.({committed},{staged})",
        f"user_id=eq.{kept.owner.id}",
        f"or=({name}.eq.{committed},{name}.eq.{staged})",
        f"select={name}&{name}=gte.{committed}&{name}=lte.{staged}&user_id=neq.{other.id}",
    )
    for query in aimed:
        answer = other.request("GET", f"/{table}?{query}", headers={"Prefer": "count=exact"})
        assert answer.json() == []
        counted = other.request("HEAD", f"/{table}?{query}", headers={"Prefer": "count=exact"})
        assert counted.headers["Content-Range"] == "*/0"
    for query in (
        "",
        f"?order={name}.desc",
        "?select=*,tensors(*)",
        "?select=*,datasets(*)",
        "?select=*,shards(*)",
    ):
        for accept in ("application/json", "text/csv", "application/octet-stream"):
            answer = other.request("GET", f"/{table}{query}", headers={"Accept": accept})
            assert answer.status_code < 500
            assert_unmarked(answer, kept)


@pytest.mark.parametrize("table", ["datasets", "tensors", "shards"])
def test_owner_sees_their_rows(table: str, kept: Kept) -> None:
    """The marks that the tests above look for would have been found."""
    name = "id" if table == "datasets" else "data_id"
    committed, staged = _ids_of(table, kept)
    answer = kept.owner.request("GET", f"/{table}?{name}=in.({committed},{staged})")
    assert {row[name] for row in answer.json()} == {committed, staged}
    assert any(mark in answer.text for mark in kept.marks)


@pytest.mark.parametrize("table", ["datasets", "tensors", "shards"])
def test_strangers_cannot_read_a_table(table: str, kept: Kept, strangers: dict[str, Caller]) -> None:
    for stranger in strangers.values():
        for method in ("GET", "HEAD"):
            answer = stranger.request(method, f"/{table}")
            assert answer.status_code == 401
            assert_unmarked(answer, kept)


@pytest.mark.parametrize("table", ["quotas", "settings", "operations", "datasets", "tensors", "shards"])
def test_inner_schema_is_not_reachable(
    table: str, kept: Kept, other: Caller, strangers: dict[str, Caller], state_of: StateOf
) -> None:
    before = state_of(kept.owner)
    body = {"user_id": other.id, "max_bytes": 2**60, "default_quota_bytes": 0}
    for caller in (other, kept.owner, strangers["anon"]):
        for method in ("GET", "POST", "PATCH", "DELETE"):
            for profile in ("tensorage", "auth", "pg_catalog"):
                headers = {"Accept-Profile": profile, "Content-Profile": profile}
                options = {} if method in ("GET", "DELETE") else {"json": body}
                answer = caller.request(method, f"/{table}", headers=headers, **options)
                assert code_of(answer) == "PGRST106"
            if table not in ("datasets", "tensors", "shards"):
                for path in (f"/{table}", f"/tensorage.{table}"):
                    assert code_of(caller.request(method, path, **options)) == "PGRST205"
    assert state_of(kept.owner) == before
