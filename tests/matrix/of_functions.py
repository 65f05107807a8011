"""Probes of every function of the REST API."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from matrix.operations import Operation, Outcome, Probe
from matrix.rules import Kind
from matrix.world import (
    FILE,
    OBJECTS_KEY,
    OPEN_PREFIX,
    OPEN_ROWS_KEY,
    PREFIX,
    ROWS,
    ROWS_KEY,
    SECRET_ROWS,
    SECRET_ROWS_KEY,
    Person,
    World,
)
from sql.api import Json, binary, new_key, new_operation, transaction, whole
from sql.objects import entry, metadata, name_of, parse_shards, with_tails

from tensorage.backend.wire.header import SCHEMA_VERSION

NEW_SHAPE = {"shape": [4, 3], "dtype": "<i4", "chunk": 12}
READER = "somebody@example.com"
OWN_ROWS = ROWS % 7


def _is_ok(answer: httpx.Response) -> bool:
    return answer.status_code == 200


def _json(answer: httpx.Response) -> Any:
    return answer.json() if _is_ok(answer) else None


def _member(answer: httpx.Response, name: str) -> Any:
    said = _json(answer)
    return said.get(name) if isinstance(said, dict) else None


def _one(answer: httpx.Response, is_done: bool) -> Outcome:
    return Outcome([answer], is_done)


def _call(
    function: str,
    arguments: Callable[[World, Person], Json | bytes],
    done: Callable[[World, Person, Any], Any],
) -> Probe:
    """Make a probe that calls a function once; `done` looks at what it answered, or at what it did."""

    def probe(w: World, p: Person) -> Outcome:
        answer = p.call(function, arguments(w, p))
        return _one(answer, bool(done(w, p, _json(answer))))

    return probe


def _operation(
    function: str,
    kind: Kind,
    arguments: Callable[[World, Person], Json | bytes],
    done: Callable[[World, Person, Any], Any],
    *needs: str,
    name: str = "",
    is_quiet: bool = False,
) -> Operation:
    return Operation(
        f"{function} {name}".strip(), function, kind, _call(function, arguments, done), needs, is_quiet
    )


# Reading ------------------------------------------------------------------------------------------------


def _reads(function: str, what: str, kind: Kind, arguments: Json, *needs: str) -> Operation:
    """A read of all elements of an array."""

    def probe(w: World, p: Person) -> Outcome:
        dataset, elements = (
            (w.secret_rows, SECRET_ROWS) if kind is Kind.READ_PRIVATE else (w.things.rows, ROWS)
        )
        answer = p.binary(function, data_id=dataset["id"], version=dataset["version"], **arguments)
        return _one(answer, _is_ok(answer) and answer.content == elements.tobytes())

    return Operation(f"{function} {what}", function, kind, probe, needs)


@contextmanager
def _dtype(w: World, data_id: int, dtype: str) -> Iterator[None]:
    """Give an array another dtype for a while."""
    before = w.one("select dtype from public.datasets where id = %s", data_id)
    change = "update public.datasets set dtype = %s where id = %s"
    w.database.execute(change, [dtype, data_id])
    yield
    w.database.execute(change, [before, data_id])


@contextmanager
def _ragged(w: World, data_id: int) -> Iterator[None]:
    """Let the elements of an array have any length for a while: each block begins with a table of their ends then."""
    table = "(select string_agg(int4send(4 * i), '' order by i) from generate_series(1, count) i)"
    change = "update public.tensors set tensor = {} where data_id = %s"
    w.database.execute(change.format(f"{table} || tensor"), [data_id])
    with _dtype(w, data_id, '{"ragged":"<i4","shape":[]}'):
        yield
    w.database.execute(change.format("substr(tensor, 4 * count + 1)"), [data_id])


def _reads_ragged(function: str, what: str, kind: Kind, *needs: str) -> Operation:
    """A read of an array whose elements have any length."""

    def probe(w: World, p: Person) -> Outcome:
        dataset = w.secret_rows if kind is Kind.READ_PRIVATE else w.things.rows
        with _ragged(w, dataset["id"]):
            answer = p.binary(
                function, data_id=dataset["id"], version=dataset["version"], starts=[0], lengths=[12]
            )
        return _one(answer, _is_ok(answer) and len(answer.content) > 4 * 12)

    return Operation(f"{function} {what}", function, kind, probe, needs)


def _end_ragged(w: World, p: Person) -> Outcome:
    data_id = w.things.begun["id"]
    with _dtype(w, data_id, "text"):
        answer = p.call("tensorage_end_ragged", data_id=data_id, shape=w.things.begun["shape"])
    return _one(answer, _member(answer, "id") == data_id)


def _shards(w: World, p: Person, dataset: Json, version: int | None, names: list[str]) -> Outcome:
    numbers = list(range(len(names)))
    answer = p.binary("tensorage_shards", data_id=dataset["id"], version=version, numbers=numbers)
    found = parse_shards(answer.content) if _is_ok(answer) else {}
    return _one(answer, [shard.name for shard in found.values()] == names)


def _staged_shards(w: World, p: Person) -> Outcome:
    return _shards(w, p, w.things.begun_objects, None, [name_of(w.things.begun_objects, 0)])


#: All bytes of each element, in two fields.
_HALVES = {"starts": [0, 5], "lengths": [5, 7], "offsets": [0, 2], "sizes": [2, 2]}

READING = [
    _reads(
        "tensorage_read", "shared", Kind.READ, {"rows": [0, 3, 6, 9], "runs": [0], "run_length": 3}, "rows"
    ),
    _reads("tensorage_read", "private", Kind.READ_PRIVATE, {"rows": [0], "runs": [0], "run_length": 12}),
    _reads("tensorage_read_run", "shared", Kind.READ, {"first": 0, "elements": 12}, "rows"),
    _reads("tensorage_read_run", "private", Kind.READ_PRIVATE, {"first": 0, "elements": 12}),
    _reads("tensorage_read_spans", "shared", Kind.READ, {"starts": [0, 5], "lengths": [5, 7]}, "rows"),
    _reads("tensorage_read_spans", "private", Kind.READ_PRIVATE, {"starts": [0, 5], "lengths": [5, 7]}),
    _reads("tensorage_read_fields", "shared", Kind.READ, _HALVES, "rows"),
    _reads("tensorage_read_fields", "private", Kind.READ_PRIVATE, _HALVES),
    *(
        _reads_ragged(function, what, kind, *needs)
        for function in ("tensorage_read_ragged", "tensorage_ragged_lengths")
        for what, kind, *needs in (("shared", Kind.READ, "rows"), ("private", Kind.READ_PRIVATE))
    ),
    Operation(
        "tensorage_shards shared",
        "tensorage_shards",
        Kind.READ,
        lambda w, p: _shards(w, p, w.things.objects, w.things.objects["version"], w.things.object_names),
        ("objects",),
    ),
    Operation(
        "tensorage_shards private",
        "tensorage_shards",
        Kind.READ_PRIVATE,
        lambda w, p: _shards(w, p, w.secret_objects, w.secret_objects["version"], w.secret_names),
    ),
    Operation(
        "tensorage_shards being written", "tensorage_shards", Kind.STAGED, _staged_shards, ("begun_objects",)
    ),
    _operation(
        "tensorage_has_object",
        Kind.READ,
        lambda w, p: {"data_id": w.things.objects["id"], "number": 0},
        lambda w, p, said: said,
        "objects",
        name="shared",
        is_quiet=True,
    ),
    _operation(
        "tensorage_has_object",
        Kind.READ_PRIVATE,
        lambda w, p: {"data_id": w.secret_objects["id"], "number": 0},
        lambda w, p, said: said,
        name="private",
        is_quiet=True,
    ),
]

# The catalogue ------------------------------------------------------------------------------------------


def _owned(w: World, _p: Person | None, **more: Any) -> Json:
    """Arguments that name the owner, as everybody may."""
    return {"owner": w.owner.email, **more}


def _is_shared_one(w: World, p: Person, said: Any) -> bool:
    return isinstance(said, dict) and (said.get("user_id"), said.get("key")) == (w.owner.id, ROWS_KEY)


def _own_keys(w: World, p: Person) -> list[str]:
    if not p.id:
        return []
    query = "select key from public.datasets where user_id = %s and state = 'committed' order by key"
    return [key for (key,) in w.database.execute(query, [p.id]).fetchall()]


def _visible_keys(w: World, p: Person) -> list[str]:
    """Keys of the owner that a person may see."""
    if p.id == w.owner.id:
        return _own_keys(w, p)
    return [OBJECTS_KEY, ROWS_KEY]


def _keys_of(said: Any) -> list[str]:
    return [found["key"] for found in said["entries"]] if isinstance(said, dict) else []


def _own(
    w: World, p: Person, state: str, operation: str | None = None, engine: str = "database"
) -> tuple[int, str]:
    """Id and key of a dataset that the caller's account has, put there past the functions."""
    key, zarr = new_key(), metadata((1,)) if engine == "storage" else None
    data_id = w.one(
        "insert into public.datasets (user_id, writer, key, shape, dtype, block_size, state, expires_at, operation, "
        "engine, zarr) select id, id, %s, '{1}', '<i4', 1, %s, case %s when 'staged' then timestamptz 'infinity' end, "
        "%s, %s, %s from auth.users where id::text = %s returning id",
        *(key, state, state, operation, engine, zarr, p.id),
    )
    if data_id is not None and state == "staged":
        w.database.execute("insert into tensorage.stagings (data_id) values (%s)", [data_id])
    return data_id or 0, key


def _own_call(
    function: str, state: str, arguments: Callable[[int, str], Json], *, engine: str = "database"
) -> Operation:
    """A call about a dataset of the caller's own, which changes it, or answers for sure."""

    def probe(w: World, p: Person) -> Outcome:
        data_id, key = _own(w, p, state, engine=engine)
        answer = p.call(function, arguments(data_id, key))
        return _one(answer, data_id > 0 and _is_ok(answer))

    return Operation(f"{function} own thing", function, Kind.OWN, probe)


def _store_over(w: World, p: Person) -> Outcome:
    """Store an array under a key that others have, too, in place of the own one."""
    answer = p.call("tensorage_store", whole(OWN_ROWS, key=ROWS_KEY, overwrite=True))
    is_done = bool(p.id) and _exists(w, p.id, ROWS_KEY)
    if p.id and p.id != w.owner.id:
        # No key and no record of the caller's own is to look as the owner's.
        for table in ("public.datasets", "tensorage.audit"):
            w.database.execute(f"delete from {table} where user_id = %s and key = %s", [p.id, ROWS_KEY])
    return _one(answer, is_done)


def _own_dataset(w: World, p: Person) -> Outcome:
    data_id, _ = _own(w, p, "staged")
    answer = p.call("tensorage_dataset", data_id=data_id)
    return _one(answer, data_id > 0 and _member(answer, "id") == data_id)


def _own_put(w: World, p: Person) -> Outcome:
    data_id, _ = _own(w, p, "staged")
    answer = p.call("tensorage_put", _put(data_id, ROWS[:1, :1], chunk=1))
    return _one(answer, data_id > 0 and bool(w.elements(data_id)))


def _own_end_ragged(w: World, p: Person) -> Outcome:
    data_id, _ = _own(w, p, "staged")
    with _dtype(w, data_id, "text"):
        answer = p.call("tensorage_end_ragged", data_id=data_id, shape=[7])
    return _one(answer, data_id > 0 and _member(answer, "shape") == [7])


def _own_share(w: World, p: Person) -> Outcome:
    _, key = _own(w, p, "committed")
    answer = p.call("tensorage_share", key=key, readers=[READER])
    is_shared = w.one("select count(*) from tensorage.shares where pattern = %s", key)
    return _one(answer, bool(is_shared))


def _own_begin(w: World, p: Person) -> Outcome:
    """Begin once more what was begun."""
    operation = new_operation()
    data_id, key = _own(w, p, "staged", operation)
    answer = p.call("tensorage_begin", key=key, operation=operation, **NEW_SHAPE)
    return _one(answer, data_id > 0 and _member(answer, "id") == data_id)


def _begin_of_another(w: World, p: Person) -> Outcome:
    """Begin an array by the id of an operation of the owner's: it is another one for each user."""
    answer = p.call("tensorage_begin", key=new_key(), operation=w.things.begun["operation"], **NEW_SHAPE)
    return _one(answer, _is_ok(answer) and _member(answer, "user_id") == p.id)


@contextmanager
def _kept(w: World, user_id: str | None) -> Iterator[str]:
    """Id of an operation of a spool that a user has done, put there past the functions for a while."""
    operation = str(uuid.UUID(int=uuid.UUID(new_operation()).int & ~(0xF << 76) | 8 << 76))
    w.database.execute(
        "insert into tensorage.operations (user_id, id, owner, answer, finished_at) "
        "select id, %s, id, '{}', 'infinity' from auth.users where id::text = %s",
        (operation, user_id),
    )
    yield operation
    w.database.execute("delete from tensorage.operations where id = %s", (operation,))


def _answered(w: World, p: Person) -> Outcome:
    """Look for operations of a spool among those of all users."""
    everything = {"first": str(uuid.UUID(int=0)), "last": str(uuid.UUID(int=2**128 - 1))}
    with _kept(w, w.owner.id) as theirs, _kept(w, p.id) as own:
        answer = p.call("tensorage_answered", **everything)
    found = set(_json(answer) or [])
    return _one(answer, own in found and (theirs in found) == (p.id == w.owner.id))


def _acknowledge(w: World, p: Person) -> Outcome:
    """Let an operation of the owner's and one of the own be forgotten."""
    with _kept(w, w.owner.id) as theirs, _kept(w, p.id) as own:
        answer = p.call("tensorage_acknowledge", operations=[theirs, own])
        kept = w.one("select finished_at = 'infinity' from tensorage.operations where id = %s", theirs)
    return _one(answer, _json(answer) == (2 if p.id == w.owner.id else 1) and kept == (p.id != w.owner.id))


OWN = [
    Operation("tensorage_answered", "tensorage_answered", Kind.OWN, _answered),
    Operation("tensorage_acknowledge", "tensorage_acknowledge", Kind.OWN, _acknowledge),
    Operation("tensorage_store over the own one", "tensorage_store", Kind.OWN, _store_over, ("rows",)),
    _own_call("tensorage_abort", "staged", lambda data_id, key: {"data_id": data_id}),
    _own_call("tensorage_rename", "committed", lambda data_id, key: {"key": key, "new_key": new_key()}),
    _own_call(
        "tensorage_rename_all", "committed", lambda data_id, key: {"prefix": key, "new_prefix": new_key()}
    ),
    _own_call("tensorage_remove", "committed", lambda data_id, key: {"key": key}),
    _own_call("tensorage_compact", "committed", lambda data_id, key: {"key": key}),
    _own_call(
        "tensorage_create",
        "staged",
        lambda data_id, key: {"key": key, "shape": [10**6], "dtype": "<i4", "chunk": 9, "fill": "AAAAAA=="},
    ),
    _own_call(
        "tensorage_resize",
        "committed",
        lambda data_id, key: {"data_id": data_id, "base_rows": 1, "rows": 0, "fill": "AAAAAA=="},
    ),
    _own_call(
        "tensorage_commit",
        "staged",
        lambda data_id, key: {"data_id": data_id, "shards": [entry(0, None)]},
        engine="storage",
    ),
    _own_call(
        "tensorage_shards",
        "staged",
        lambda data_id, key: {"data_id": data_id, "version": None, "numbers": []},
        engine="storage",
    ),
    _own_call(
        "tensorage_begin_append",
        "committed",
        lambda data_id, key: {"data_id": data_id, "shape": [1], "base_rows": 1},
        engine="storage",
    ),
    _own_call(
        "tensorage_append_tails",
        "committed",
        lambda data_id, key: {"data_id": data_id, "shape": [0], "base_rows": 1, "shards": []},
        engine="storage",
    ),
    Operation("tensorage_dataset own", "tensorage_dataset", Kind.OWN, _own_dataset),
    Operation("tensorage_put own", "tensorage_put", Kind.OWN, _own_put),
    Operation("tensorage_end_ragged own", "tensorage_end_ragged", Kind.OWN, _own_end_ragged),
    Operation("tensorage_share own", "tensorage_share", Kind.OWN, _own_share),
    Operation("tensorage_begin own, again", "tensorage_begin", Kind.OWN, _own_begin),
    Operation(
        "tensorage_begin by another's operation", "tensorage_begin", Kind.OWN, _begin_of_another, ("begun",)
    ),
]


CATALOGUE = [
    _operation(
        "tensorage_open",
        Kind.READ,
        lambda w, p: _owned(w, p, key=ROWS_KEY),
        _is_shared_one,
        "rows",
        name="shared",
    ),
    _operation(
        "tensorage_open",
        Kind.READ,
        lambda w, p: {"key": OBJECTS_KEY, "owner": w.owner.id},
        lambda w, p, said: said and said["id"] == w.things.objects["id"],
        "objects",
        name="shared, by the owner's id",
    ),
    _operation(
        "tensorage_open",
        Kind.READ_PRIVATE,
        lambda w, p: _owned(w, p, key=SECRET_ROWS_KEY),
        lambda w, p, said: said and said["attrs"],
        name="private",
    ),
    _operation(
        "tensorage_open",
        Kind.MANAGE,
        lambda w, p: {"key": ROWS_KEY},
        lambda w, p, said: said and said["id"] == w.things.rows["id"],
        "rows",
        name="without an owner",
    ),
    _operation(
        "tensorage_dataset",
        Kind.STAGED,
        lambda w, p: {"data_id": w.things.begun["id"]},
        lambda w, p, said: said and said["id"] == w.things.begun["id"],
        "begun",
        name="being written",
    ),
    _operation(
        "tensorage_dataset",
        Kind.MANAGE,
        lambda w, p: {"data_id": w.things.rows["id"]},
        _is_shared_one,
        "rows",
        name="shared",
    ),
    _operation(
        "tensorage_list",
        Kind.READ,
        _owned,
        lambda w, p, said: said and said == _visible_keys(w, p),
        "rows",
        "objects",
        name="of the owner",
        is_quiet=True,
    ),
    _operation(
        "tensorage_list",
        Kind.OWN,
        lambda w, p: {},
        lambda w, p, said: said == _own_keys(w, p),
        "rows",
        name="own",
    ),
    _operation(
        "tensorage_count",
        Kind.READ,
        _owned,
        lambda w, p, said: said and said == len(_visible_keys(w, p)),
        "rows",
        "objects",
        name="of the owner",
        is_quiet=True,
    ),
    _operation(
        "tensorage_count",
        Kind.OWN,
        lambda w, p: {},
        lambda w, p, said: said == len(_own_keys(w, p)),
        "rows",
        name="own",
    ),
    *(
        Operation(
            f"tensorage_catalogue of the owner, {words}",
            "tensorage_catalogue",
            Kind.READ,
            # An answer without entries is one that tells nothing: the probe hands on the entries alone.
            _call(
                "tensorage_catalogue",
                lambda w, p, asked=asked: _owned(w, p, **asked),
                lambda w, p, said: (
                    (found := _keys_of(said)) and ROWS_KEY in found and set(found) <= {*_visible_keys(w, p)}
                ),
            ),
            ("rows", "objects"),
            is_quiet=True,
        )
        for words, asked in (
            ("all", {}),
            ("by a glob", {"glob": "**r**"}),
            ("by attributes", {"attrs": {"note": "the shared note"}}),
        )
    ),
    _operation(
        "tensorage_catalogue",
        Kind.READ_PRIVATE,
        lambda w, p: _owned(w, p, attrs={"note": "the secret note"}),
        lambda w, p, said: SECRET_ROWS_KEY in _keys_of(said),
        name="of the owner, by attributes of private arrays",
        is_quiet=True,
    ),
    _operation(
        "tensorage_catalogue",
        Kind.OWN,
        lambda w, p: {},
        lambda w, p, said: said is not None and _keys_of(said) == _own_keys(w, p),
        "rows",
        name="own",
    ),
    *(
        _operation(
            "tensorage_annotate",
            Kind.WRITE,
            lambda w, p, which=which: {"data_id": getattr(w.things, which)["id"], "attrs": {"by": p.name}},
            lambda w, p, said, which=which: (
                w.one(
                    "select attrs ->> 'by' from public.datasets where id = %s", getattr(w.things, which)["id"]
                )
                == p.name
            ),
            which,
            name=which,
        )
        for which in ("rows", "objects")
    ),
    _operation(
        "tensorage_annotate",
        Kind.READ_PRIVATE,
        lambda w, p: {"data_id": w.secret_rows["id"], "attrs": {"note": "the secret note"}},
        lambda w, p, said: said,
        name="private",
    ),
]

# Sharing, usage, records --------------------------------------------------------------------------------


def _has_share(w: World, pattern: str, reader: str) -> bool:
    query = "select count(*) from tensorage.shares where user_id = %s and pattern = %s and reader = %s"
    return bool(w.one(query, w.owner.id, pattern, reader))


def _are_all_mine(w: World, p: Person, said: Any) -> bool:
    if not isinstance(said, list) or any(share["owner_id"] != p.id for share in said):
        return False
    return p.id != w.owner.id or w["write sharee"].email in [share["reader"] for share in said]


def _received(w: World, p: Person, said: Any) -> bool:
    """True if a list of what is shared with a person is right."""
    wanted = w.database.execute(
        "select pattern from tensorage.shares where user_id = %s and reader = %s and "
        "(expires_at is null or expires_at > now()) order by id",
        [w.owner.id, p.caller.email],
    ).fetchall()
    return isinstance(said, list) and [share["key"] for share in said] == [key for (key,) in wanted]


SHARING = [
    _operation(
        "tensorage_shares",
        Kind.OWN,
        lambda w, p: {},
        _are_all_mine,
        "rows",
        name="all",
    ),
    _operation(
        "tensorage_shares",
        Kind.OWN,
        lambda w, p: {"key": ROWS_KEY},
        _are_all_mine,
        "rows",
        name="of a key",
    ),
    *(
        _operation(
            "tensorage_share",
            Kind.MANAGE,
            lambda w, p, key=key: {"key": key, "readers": [READER], "can_write": True},
            lambda w, p, said, key=key: _has_share(w, key, READER),
            "rows",
            "objects",
            "file",
            name=key,
        )
        for key in (ROWS_KEY, OBJECTS_KEY, FILE, PREFIX)
    ),
    _operation(
        "tensorage_unshare",
        Kind.MANAGE,
        lambda w, p: {"key": ROWS_KEY},
        lambda w, p, said: not _has_share(w, ROWS_KEY, w["read sharee"].email),
        "rows",
        name="a key",
    ),
    _operation(
        "tensorage_unshare",
        Kind.MANAGE,
        lambda w, p: {"key": PREFIX, "readers": [w["prefix sharee"].email]},
        lambda w, p, said: not _has_share(w, PREFIX, w["prefix sharee"].email),
        "rows",
        name="a prefix",
    ),
    _operation("tensorage_shared_with_me", Kind.OWN, lambda w, p: {}, _received, "rows"),
    _operation(
        "tensorage_sharer",
        Kind.READ,
        lambda w, p: {"who": w.owner.email},
        lambda w, p, said: said == w.owner.id,
        "rows",
    ),
    _operation(
        "tensorage_usage",
        Kind.OWN,
        lambda w, p: {},
        lambda w, p, said: (
            said
            and said["arrays"] == len(_own_keys(w, p))
            and said["bytes"]
            == (w.one("select bytes::float from tensorage.usage where user_id = %s", p.id) or 0)
        ),
        "rows",
    ),
    *(
        _operation(
            "tensorage_audit",
            Kind.OWN,
            lambda w, p, asked=asked: asked,
            lambda w, p, said: (
                isinstance(said, list)
                and [record["id"] for record in said if record["key"] == ROWS_KEY]
                == [
                    number
                    for (number,) in w.database.execute(
                        "select id from tensorage.audit where user_id = %s and key = %s order by id desc",
                        [p.id, ROWS_KEY],
                    )
                ]
            ),
            "rows",
            name=words,
        )
        for words, asked in (("all", {}), ("of a key", {"key": ROWS_KEY}))
    ),
    _operation(
        "tensorage_set_quota",
        Kind.ADMINISTER,
        lambda w, p: {"who": w.owner.email, "max_bytes": 10**15, "max_arrays": None},
        lambda w, p, said: (
            w.one("select max_bytes from tensorage.quotas where user_id = %s", w.owner.id) == 10**15
        ),
        "no_quota",
        name="of the owner",
    ),
    _operation(
        "tensorage_set_quota",
        Kind.ADMINISTER,
        lambda w, p: {"who": None, "max_bytes": 10**15, "max_arrays": None},
        lambda w, p, said: w.one("select default_quota_bytes from tensorage.settings") == 10**15,
        "no_quota",
        name="of everybody",
    ),
    *(
        _operation(
            "tensorage_quotas",
            Kind.ADMINISTER,
            lambda w, p, who=who: {"who": w.owner.email if who == "the owner" else None},
            lambda w, p, said: said and w.owner.id in [user["user_id"] for user in said["users"]],
            name=f"of {who}",
        )
        for who in ("the owner", "everybody")
    ),
    _operation(
        "tensorage_doctor",
        Kind.PROJECT,
        lambda w, p: {},
        lambda w, p, said: said and said["schema_version"] == SCHEMA_VERSION,
        "rows",
    ),
    _operation("tensorage_version", Kind.VERSION, lambda w, p: {}, lambda w, p, said: said == SCHEMA_VERSION),
]

# Storing and deleting -----------------------------------------------------------------------------------


def _exists(w: World, user_id: str, key: str, state: str = "committed") -> bool:
    query = "select count(*) from public.datasets where user_id = %s and key = %s and state = %s"
    return bool(w.one(query, user_id, key, state))


def _store(w: World, p: Person) -> Outcome:
    key = new_key()
    answer = p.call("tensorage_store", whole(OWN_ROWS, key=key))
    data_id = _member(answer, "id")
    done = _exists(w, p.id, key) if p.id else False
    return _one(answer, done and data_id is not None and w.elements(data_id) == OWN_ROWS.tobytes())


def _store_tails(w: World, p: Person) -> Outcome:
    key = new_key()
    answer = p.call("tensorage_store_tails", with_tails([OWN_ROWS.tobytes()] * 5, key=key))
    query = "select count(*) from public.shards where data_id = %s and tail = %s and user_id = %s"
    found = w.one(query, _member(answer, "id"), OWN_ROWS.tobytes(), p.id or None)
    return _one(answer, bool(p.id) and _exists(w, p.id, key) and found == 5)


def _begin(w: World, p: Person) -> Outcome:
    key = new_key()
    answer = p.call("tensorage_begin", key=key, **NEW_SHAPE)
    return _one(answer, bool(p.id) and _exists(w, p.id, key, "staged"))


def _begin_objects(w: World, p: Person) -> Outcome:
    key = new_key()
    asked = {**NEW_SHAPE, "engine": "storage", "zarr": metadata()}
    answer = p.call("tensorage_begin", key=key, **asked)
    return _one(answer, bool(p.id) and _exists(w, p.id, key, "staged"))


def _begun_by(w: World, p: Person, column: str, target: Json, answer: httpx.Response) -> Outcome:
    """True if somebody has begun to write to an array."""
    found = _member(answer, "id")
    query = f"select {column} from public.datasets where id = %s and user_id = %s and writer = %s"
    is_begun = found is not None and w.one(query, found, w.owner.id, p.id) == target["id"]
    return _one(answer, is_begun)


def _no_rows(objects: Json) -> Json:
    """Append no rows to an array of Storage."""
    return {"data_id": objects["id"], "shape": [0, 3], "base_rows": 9, "shards": []}


def _remove_all(w: World, p: Person) -> Outcome:
    answer = p.call("tensorage_remove_all", prefix="lab/ro")
    is_owner = p.id == w.owner.id
    return _one(answer, not _exists(w, w.owner.id, ROWS_KEY) if is_owner else _member(answer, "keys") == 0)


STORING = [
    Operation("tensorage_store own", "tensorage_store", Kind.OWN, _store, ("rows",)),
    Operation("tensorage_store_tails own", "tensorage_store_tails", Kind.OWN, _store_tails, ("objects",)),
    Operation("tensorage_begin own", "tensorage_begin", Kind.OWN, _begin),
    Operation("tensorage_begin own, of Storage", "tensorage_begin", Kind.OWN, _begin_objects),
    _operation(
        "tensorage_begin",
        Kind.CLOSED,
        lambda w, p: _owned(w, p, key="lab/made by others", **NEW_SHAPE),
        lambda w, p, said: said,
        name="for others",
    ),
    Operation(
        "tensorage_begin append",
        "tensorage_begin",
        Kind.WRITE,
        lambda w, p: _begun_by(
            w,
            p,
            "append_to",
            w.things.rows,
            p.call("tensorage_begin", _owned(w, p, key=ROWS_KEY, append=True, **NEW_SHAPE)),
        ),
        ("rows",),
    ),
    Operation(
        "tensorage_begin_assign rows",
        "tensorage_begin_assign",
        Kind.WRITE,
        lambda w, p: _begun_by(w, p, "assign_to", w.things.rows, p.caller.ask_to_assign(w.things.rows)),
        ("rows",),
    ),
    Operation(
        "tensorage_begin_assign objects",
        "tensorage_begin_assign",
        Kind.WRITE,
        lambda w, p: _begun_by(
            w, p, "assign_to", w.things.objects, p.caller.ask_to_assign(w.things.objects, engine="storage")
        ),
        ("objects",),
    ),
    Operation(
        "tensorage_begin_append objects",
        "tensorage_begin_append",
        Kind.WRITE,
        lambda w, p: _begun_by(
            w,
            p,
            "append_to",
            w.things.objects,
            p.call("tensorage_begin_append", data_id=w.things.objects["id"], shape=[1, 3], base_rows=9),
        ),
        ("objects",),
    ),
    _operation(
        "tensorage_begin_append",
        Kind.READ_PRIVATE,
        lambda w, p: {"data_id": w.secret_objects["id"], "shape": [1, 3], "base_rows": 9},
        lambda w, p, said: said,
        name="private",
    ),
    Operation(
        "tensorage_append_tails objects",
        "tensorage_append_tails",
        Kind.WRITE,
        lambda w, p: _one(
            p.call("tensorage_append_tails", _no_rows(w.things.objects)),
            w.one("select version from public.datasets where id = %s", w.things.objects["id"])
            > w.things.objects["version"],
        ),
        ("objects",),
    ),
    _operation(
        "tensorage_append_tails",
        Kind.READ_PRIVATE,
        lambda w, p: _no_rows(w.secret_objects),
        lambda w, p, said: said,
        name="private",
    ),
    _operation(
        "tensorage_append",
        Kind.WRITE,
        lambda w, p: whole(-ROWS[:1], key=ROWS_KEY, owner=w.owner.email, operation=new_operation()),
        lambda w, p, said: w.elements(w.things.rows["id"]) == ROWS.tobytes() + (-ROWS[:1]).tobytes(),
        "rows",
    ),
    _operation(
        "tensorage_append",
        Kind.READ_PRIVATE,
        lambda w, p: whole(SECRET_ROWS[:0], key=SECRET_ROWS_KEY, owner=w.owner.email),
        lambda w, p, said: said,
        name="private",
    ),
    _operation(
        "tensorage_assign",
        Kind.WRITE,
        lambda w, p: _assigned(w.things.rows["id"], w.things.rows["version"]),
        lambda w, p, said: w.elements(w.things.rows["id"]) == (-ROWS).tobytes(),
        "rows",
    ),
    _operation(
        "tensorage_assign",
        Kind.READ_PRIVATE,
        lambda w, p: _assigned(
            w.secret_rows["id"],
            w.one("select version from public.datasets where id = %s", w.secret_rows["id"]),
            SECRET_ROWS,
        ),
        lambda w, p, said: said,
        name="private",
    ),
    _operation(
        "tensorage_resize",
        Kind.MANAGE,
        lambda w, p: {"data_id": w.things.rows["id"], "base_rows": 4, "rows": 2, "fill": "AAAAAA=="},
        lambda w, p, said: w.elements(w.things.rows["id"]) == ROWS[:2].tobytes(),
        "rows",
    ),
    _operation(
        "tensorage_resize",
        Kind.READ_PRIVATE,
        lambda w, p: {"data_id": w.secret_rows["id"], "base_rows": 4, "rows": 4, "fill": "AAAAAA=="},
        lambda w, p, said: said,
        name="private",
    ),
    _operation(
        "tensorage_compact",
        Kind.MANAGE,
        lambda w, p: {"key": ROWS_KEY},
        lambda w, p, said: said is not None and said["after"] is None,
        "rows",
    ),
    _operation(
        "tensorage_rename",
        Kind.MANAGE,
        lambda w, p: {"key": ROWS_KEY, "new_key": "lab/renamed", "overwrite": True},
        lambda w, p, said: _exists(w, w.owner.id, "lab/renamed") and not _exists(w, w.owner.id, ROWS_KEY),
        "rows",
    ),
    _operation(
        "tensorage_rename_all",
        Kind.MANAGE,
        lambda w, p: {"prefix": "lab/ro", "new_prefix": f"lab/{new_key()}"},
        lambda w, p, said: not _exists(w, w.owner.id, ROWS_KEY),
        "rows",
    ),
    _operation(
        "tensorage_remove",
        Kind.MANAGE,
        lambda w, p: {"key": ROWS_KEY},
        lambda w, p, said: not _exists(w, w.owner.id, ROWS_KEY),
        "rows",
    ),
    Operation("tensorage_remove_all", "tensorage_remove_all", Kind.OWN, _remove_all, ("rows",)),
    _operation(
        "tensorage_sweep",
        Kind.OWN,
        lambda w, p: {},
        lambda w, p, said: said == 0 and (p.id != w.owner.id or not w.elements(w.things.leftover)),
        "leftover",
    ),
    _operation(
        "tensorage_sweep_objects",
        Kind.OWN,
        lambda w, p: {},
        lambda w, p, said: (
            isinstance(said, list) and (p.id != w.owner.id or set(w.things.object_names) & set(said))
        ),
        "removed_objects",
    ),
]


def _assigned(data_id: int, version: int, elements: np.ndarray[Any, Any] = -ROWS) -> bytes:
    meta = {"version": version, "starts": [0], "lengths": [12]}
    return binary(elements.tobytes(), count=12, data_id=data_id, meta=meta)


# Transactions -------------------------------------------------------------------------------------------


def _transact(w: World, p: Person) -> Outcome:
    """Store an array, append to it, and delete another one, in one step."""
    _, gone = _own(w, p, "committed")
    key = new_key()
    request = transaction(
        ("tensorage_store", whole(OWN_ROWS, key=key)),
        ("tensorage_append", whole(OWN_ROWS, key=key)),
        ("tensorage_remove", {"key": gone}),
        keys=[key, gone],
        replaced=[gone],
        open_for=0,
        operation=new_operation(),
    )
    answer = p.call("tensorage_transact", request)
    is_done = bool(p.id) and _exists(w, p.id, key) and not _exists(w, p.id, gone)
    return _one(answer, is_done and _member(answer, "steps") == 3)


def _transact_over(w: World, p: Person) -> Outcome:
    """Replace an array under a key that the owner has, too, in a transaction that has been open for long."""
    request = transaction(
        ("tensorage_store", whole(OWN_ROWS, key=ROWS_KEY, overwrite=True)),
        keys=[ROWS_KEY],
        replaced=[ROWS_KEY],
        open_for=0 if p.id == w.owner.id else 10**6,
    )
    answer = p.call("tensorage_transact", request)
    is_done = bool(p.id) and _exists(w, p.id, ROWS_KEY)
    if p.id and p.id != w.owner.id:
        for table in ("public.datasets", "tensorage.audit"):
            w.database.execute(f"delete from {table} where user_id = %s and key = %s", [p.id, ROWS_KEY])
    return _one(answer, is_done)


def _change_rows(w: World, p: Person) -> bytes:
    rows = w.things.rows
    return transaction(
        ("tensorage_assign", _assigned(rows["id"], rows["version"])),
        ("tensorage_append", whole(-ROWS[:1], key=ROWS_KEY, owner=w.owner.email)),
        ("tensorage_assign", _assigned(rows["id"], rows["version"])),
        assigned=[{"data_id": rows["id"], "version": rows["version"]}],
        appended=[{"key": ROWS_KEY, "owner": w.owner.email}],
    )


def _reads_many(what: str, kind: Kind, keys: list[str], elements: bytes, *needs: str) -> Operation:
    def probe(w: World, p: Person) -> Outcome:
        answer = p.binary("tensorage_read_many", keys=keys, owner=w.owner.email)
        return _one(answer, _is_ok(answer) and answer.content.endswith(elements))

    return Operation(f"tensorage_read_many {what}", "tensorage_read_many", kind, probe, needs)


TOGETHER = [
    Operation("tensorage_transact own", "tensorage_transact", Kind.OWN, _transact, ("rows",)),
    Operation(
        "tensorage_transact over the own one", "tensorage_transact", Kind.OWN, _transact_over, ("rows",)
    ),
    _operation(
        "tensorage_transact",
        Kind.OWN,
        lambda w, p: transaction(),
        lambda w, p, said: said is not None and said["steps"] == 0,
        "rows",
        name="of nothing",
    ),
    _operation(
        "tensorage_transact",
        Kind.WRITE,
        _change_rows,
        lambda w, p, said: w.elements(w.things.rows["id"]) == (-ROWS).tobytes() + (-ROWS[:1]).tobytes(),
        "rows",
        name="shared",
    ),
    _operation(
        "tensorage_transact",
        Kind.READ_PRIVATE,
        lambda w, p: transaction(
            (
                "tensorage_append",
                whole(SECRET_ROWS[:0], key=SECRET_ROWS_KEY, owner=w.owner.email),
            ),
        ),
        lambda w, p, said: said,
        name="private, without locks",
    ),
    _operation(
        "tensorage_transact",
        Kind.MANAGE,
        lambda w, p: transaction(("tensorage_remove", {"key": ROWS_KEY}), keys=[ROWS_KEY]),
        lambda w, p, said: not _exists(w, w.owner.id, ROWS_KEY),
        "rows",
        name="that deletes",
    ),
    _operation(
        "tensorage_transact",
        Kind.CLOSED,
        lambda w, p: transaction(("tensorage_set_quota", {"key": ROWS_KEY})),
        lambda w, p, said: said,
        name="of something else",
    ),
    _reads_many("shared", Kind.READ, [ROWS_KEY], ROWS.tobytes(), "rows"),
    _reads_many("private", Kind.READ_PRIVATE, [SECRET_ROWS_KEY], SECRET_ROWS.tobytes()),
    _reads_many(
        "private, beside shared",
        Kind.READ_PRIVATE,
        [ROWS_KEY, SECRET_ROWS_KEY],
        SECRET_ROWS.tobytes(),
        "rows",
    ),
]

# Going on with what the owner is writing ----------------------------------------------------------------


def _is_staged(w: World, data_id: int) -> bool:
    query = "select state = 'staged' and expires_at > now() from public.datasets where id = %s"
    return bool(w.one(query, data_id))


def _put(data_id: int, elements: np.ndarray[Any, Any], index: int = 0, chunk: int = 3) -> bytes:
    return binary(elements.tobytes(), count=elements.size, chunk=chunk, data_id=data_id, index=index)


def _commit(w: World, p: Person) -> Outcome:
    answer = p.call("tensorage_commit", data_id=w.things.begun["id"])
    state = w.one("select state from public.datasets where id = %s", w.things.begun["id"])
    return _one(answer, state == "committed")


STAGED = [
    _operation(
        "tensorage_put",
        Kind.STAGED,
        lambda w, p: _put(w.things.begun["id"], -ROWS[:2]),
        lambda w, p, said: w.elements(w.things.begun["id"]) == (-ROWS[:2]).tobytes(),
        "begun",
    ),
    Operation("tensorage_end_ragged", "tensorage_end_ragged", Kind.STAGED, _end_ragged, ("begun",)),
    Operation("tensorage_commit", "tensorage_commit", Kind.STAGED, _commit, ("filled",)),
    _operation(
        "tensorage_abort",
        Kind.STAGED,
        lambda w, p: {"data_id": w.things.begun["id"]},
        lambda w, p, said: not _is_staged(w, w.things.begun["id"]),
        "begun",
        is_quiet=True,
    ),
    _operation(
        "tensorage_patch",
        Kind.STAGED,
        lambda w, p: binary(
            (-ROWS[:1]).tobytes(),
            count=3,
            data_id=w.things.assigning["id"],
            meta={"starts": [0], "lengths": [3]},
        ),
        lambda w, p, said: w.elements(w.things.assigning["id"]).startswith((-ROWS[:1]).tobytes()),
        "assigning",
    ),
    _operation(
        "tensorage_put_shards",
        Kind.STAGED,
        lambda w, p: {"data_id": w.things.begun_objects["id"], "shards": [entry(1, None)]},
        lambda w, p, said: w.one(
            "select count(*) from public.shards where data_id = %s and number = 1",
            w.things.begun_objects["id"],
        ),
        "begun_objects",
    ),
]

# Going on after a share has ended -----------------------------------------------------------------------


def _interrupted(
    function: str, thing: str, words: str, arguments: Callable[[Json], Json | bytes], *, reads: bool = False
) -> Operation:
    """A request of a former sharee who was writing when the share ended; of others, with the same names."""

    def probe(w: World, p: Person) -> Outcome:
        found = w.things.interrupted.get((p.name, thing), w.things.interrupted["ex-sharee", thing])
        before = w.elements(w.things.rows["id"])
        answer = p.call(function, arguments(found))
        state = w.one("select state from public.datasets where id = %s", found["id"])
        is_changed = w.elements(w.things.rows["id"]) != before or state is None
        return _one(answer, is_changed or _is_ok(answer))

    return Operation(f"{function} {words}", function, Kind.CLOSED, probe, ("interrupted",), names_keys=True)


INTERRUPTED = [
    _interrupted("tensorage_put", "append", "after the share", lambda d: _put(d["id"], -ROWS, chunk=5)),
    _interrupted("tensorage_commit", "append", "after the share", lambda d: {"data_id": d["id"]}),
    _interrupted(
        "tensorage_commit", "assign", "of an assignment, after the share", lambda d: {"data_id": d["id"]}
    ),
    _interrupted(
        "tensorage_commit", "objects", "of objects, after the share", lambda d: {"data_id": d["id"]}
    ),
    _interrupted(
        "tensorage_patch",
        "assign",
        "after the share",
        lambda d: binary(
            (-ROWS[:1]).tobytes(), count=3, data_id=d["id"], meta={"starts": [0], "lengths": [3]}
        ),
    ),
    _interrupted(
        "tensorage_put_shards", "objects", "after the share", lambda d: {"data_id": d["id"], "shards": []}
    ),
    _interrupted(
        "tensorage_shards",
        "objects",
        "of what was being written, after the share",
        lambda d: {"data_id": d["id"], "version": None, "numbers": [0]},
    ),
]


def _again(
    function: str,
    thing: str,
    arguments: Callable[[World, Json], Json | bytes],
    kind: Kind = Kind.WRITE,
) -> Operation:
    """An operation of a former sharee, sent once more: its answer was kept, and tells nothing that is new."""

    def probe(w: World, p: Person) -> Outcome:
        found = w.things.interrupted.get((p.name, thing), w.things.interrupted["ex-sharee", thing])
        answer = p.call(function, arguments(w, found))
        return _one(answer, _is_ok(answer))

    return Operation(f"{function} again, after the share", function, kind, probe, ("interrupted",))


AGAIN = [
    # The owner sees what others are writing to the own arrays.
    _again("tensorage_dataset", "append", lambda w, d: {"data_id": d["id"]}, Kind.STAGED),
    _again(
        "tensorage_append",
        "done",
        lambda w, d: whole(ROWS[:0], key=ROWS_KEY, owner=w.owner.email, operation=d["operation"]),
    ),
    _again(
        "tensorage_begin",
        "append",
        lambda w, d: _owned(
            w, None, key=ROWS_KEY, append=True, operation=d["operation"], **NEW_SHAPE | {"chunk": 5}
        ),
    ),
]

# Shared with everybody: with those who are signed in, and with nobody else -------------------------------


def _of_open(function: str, probe: Probe) -> Operation:
    return Operation(f"{function} open to everybody", function, Kind.OPEN, probe, ("open",))


def _calls(function: str, arguments: Callable[[World], Json | bytes]) -> Operation:
    """A call that answers with something if it is let through."""

    def probe(w: World, p: Person) -> Outcome:
        answer = p.call(function, arguments(w))
        return _one(answer, _is_ok(answer) and bool(answer.json()))

    return _of_open(function, probe)


def _open_read(w: World, p: Person) -> Outcome:
    d = w.things.open_rows
    whole_array = {"rows": [0], "runs": [0], "run_length": 12}
    answer = p.binary("tensorage_read", data_id=d["id"], version=d["version"], **whole_array)
    return _one(answer, answer.content == ROWS.tobytes())


def _open_shards(w: World, p: Person) -> Outcome:
    d = w.things.open_objects
    return _shards(w, p, d, d["version"], w.things.open_names)


def _open_received(w: World, p: Person) -> Outcome:
    answer = p.call("tensorage_shared_with_me")
    keys = [share["key"] for share in answer.json()] if _is_ok(answer) else []
    return _one(answer, _is_ok(answer) and (p.id == w.owner.id or OPEN_PREFIX in keys))


def _open_commit(w: World, p: Person) -> Outcome:
    """Assign in several requests, from the beginning to the commit."""
    begun = p.caller.ask_to_assign(w.things.open_rows)
    if not _is_ok(begun):
        return _one(begun, is_done=False)
    patched = p.caller.patch(begun.json()["id"], -ROWS[:1], [0], [3])
    committed = p.caller.commit(begun.json()["id"])
    is_done = w.elements(w.things.open_rows["id"]).startswith((-ROWS[:1]).tobytes())
    return Outcome([begun, patched, committed], is_done)


OPEN = [
    _of_open("tensorage_read", _open_read),
    _of_open("tensorage_shards", _open_shards),
    _of_open("tensorage_shared_with_me", _open_received),
    _of_open("tensorage_commit", _open_commit),
    _calls("tensorage_open", lambda w: _owned(w, None, key=OPEN_ROWS_KEY)),
    *(
        _calls(function, lambda w: _owned(w, None))
        for function in ("tensorage_list", "tensorage_count", "tensorage_catalogue")
    ),
    _calls("tensorage_has_object", lambda w: {"data_id": w.things.open_objects["id"], "number": 0}),
    _calls("tensorage_sharer", lambda w: {"who": w.owner.email}),
    _calls("tensorage_append", lambda w: whole(ROWS[:1], key=OPEN_ROWS_KEY, owner=w.owner.email)),
    _calls("tensorage_annotate", lambda w: {"data_id": w.things.open_rows["id"], "attrs": {"by": new_key()}}),
    _calls("tensorage_assign", lambda w: _assigned(w.things.open_rows["id"], w.things.open_rows["version"])),
    _calls("tensorage_begin", lambda w: _owned(w, None, key=OPEN_ROWS_KEY, append=True, **NEW_SHAPE)),
    _calls(
        "tensorage_begin_append",
        lambda w: {"data_id": w.things.open_objects["id"], "shape": [1, 3], "base_rows": 9},
    ),
    _calls("tensorage_append_tails", lambda w: _no_rows(w.things.open_objects)),
]

FUNCTIONS = [*OWN, *READING, *CATALOGUE, *SHARING, *STORING, *TOGETHER, *STAGED, *INTERRUPTED, *AGAIN, *OPEN]
