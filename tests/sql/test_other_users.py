"""Calls of somebody else, or nobody, get and learn nothing of a user's private arrays from any function."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import jwt
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, binary, code_of, described, new_key, new_operation, transaction, whole
from sql.conftest import Register, State
from sql.kept import ARRAY, Kept, Names, assert_unmarked, keep
from sql.objects import entry, metadata, with_tails

from tensorage.embedded import control

StateOf = Callable[[Caller], State]


@pytest.fixture(scope="module")
def owner(new_user: Register) -> Caller:
    return new_user()


@pytest.fixture(scope="module")
def kept(owner: Caller) -> Kept:
    """The same for all tests of this file, each of which looks that nothing of it has changed."""
    return keep(owner)


@pytest.fixture
def nothing() -> Names:
    """Names of things that do not exist, as good as a user's."""
    return Names(
        new_key(), 2**40, 1, new_key(), 2**40 + 1, 2**40 + 2, "nobody@example.com",
        new_operation(), new_operation(), new_operation(), new_key(), *range(2**40 + 3, 2**40 + 7),
    )  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """A call with somebody else's names, and the code it is refused with; None where it does something of its own."""

    arguments: Json | bytes
    code: str | None


def assigned(n: Names, data_id: int, **meta: Any) -> bytes:
    """The request that puts other elements into all places of an array."""
    meta = {"version": n.version, "starts": [0], "lengths": [12]} | meta
    return binary((-ARRAY).tobytes(), count=12, data_id=data_id, meta=meta)


def attempts(n: Names) -> Mapping[str, list[Attempt]]:
    """Calls of every function of the REST API. A function that is not here fails a test below."""
    selection = {"rows": [0], "runs": [0], "run_length": 12}
    new = {"shape": [4, 3], "dtype": "<i4", "chunk": 12}
    one_byte, no_byte = ({"offsets": [0], "sizes": [size]} for size in (1, 0))
    return {
        "tensorage_version": [Attempt({}, None)],
        "tensorage_open": [
            Attempt({"key": n.key}, "TS001"),
            Attempt({"key": n.staged_key}, "TS001"),
            Attempt({"key": n.key, "owner": n.owner}, "TS001"),
            Attempt({"key": n.objects_key}, "TS001"),
        ],
        "tensorage_dataset": [
            Attempt({"data_id": data_id}, "TS001")
            for data_id in (n.id, n.staged, n.objects, n.writing, n.growing)
        ],
        "tensorage_list": [
            Attempt({}, None),
            Attempt({"prefix": n.key}, None),
            Attempt({"prefix": n.key, "owner": n.owner}, None),
        ],
        "tensorage_count": [Attempt({}, None), Attempt({"owner": n.owner}, None)],
        "tensorage_read": [
            Attempt({"data_id": n.id, "version": n.version, **selection}, "TS003"),
            Attempt({"data_id": n.staged, "version": 1, **selection}, "TS003"),
            Attempt({"data_id": n.id, "version": n.version, **selection, "rows": []}, "TS003"),
        ],
        "tensorage_read_spans": [
            Attempt({"data_id": n.id, "version": n.version, "starts": [0], "lengths": [12]}, "TS003"),
            Attempt({"data_id": n.staged, "version": 1, "starts": [0], "lengths": [12]}, "TS003"),
            Attempt({"data_id": n.id, "version": n.version, "starts": [], "lengths": []}, "TS003"),
        ],
        "tensorage_read_run": [
            Attempt({"data_id": n.id, "version": n.version, "first": 0, "elements": 12}, "TS003"),
            Attempt({"data_id": n.staged, "version": 1, "first": 0, "elements": 12}, "TS003"),
            Attempt({"data_id": n.id, "version": n.version, "first": 0, "elements": 0}, "TS003"),
        ],
        "tensorage_read_fields": [
            Attempt(
                {"data_id": n.id, "version": n.version, "starts": [0], "lengths": [12], **one_byte}, "TS003"
            ),
            Attempt({"data_id": n.staged, "version": 1, "starts": [0], "lengths": [12], **one_byte}, "TS003"),
            Attempt(
                {"data_id": n.id, "version": n.version, "starts": [0], "lengths": [12], **no_byte}, "TS003"
            ),
        ],
        **{
            function: [
                Attempt({"data_id": n.id, "version": n.version, "starts": [0], "lengths": [12]}, "TS003"),
                Attempt({"data_id": n.staged, "version": 1, "starts": [0], "lengths": [12]}, "TS003"),
                Attempt({"data_id": n.id, "version": n.version, "starts": [], "lengths": []}, "TS003"),
            ]
            for function in ("tensorage_read_ragged", "tensorage_ragged_lengths")
        },
        "tensorage_end_ragged": [
            Attempt({"data_id": data_id, "shape": [4, 3]}, "TS001")
            for data_id in (n.staged, n.id, n.assigning)
        ],
        "tensorage_assign": [
            Attempt(assigned(n, n.id, operation=new_operation()), "TS003"),
            Attempt(assigned(n, n.id, operation=n.appended_by), "TS003"),
            Attempt(assigned(n, n.staged), "TS003"),
        ],
        "tensorage_begin_assign": [
            Attempt({"data_id": n.id, "version": n.version}, "TS003"),
            Attempt({"data_id": n.id, "version": n.version, "operation": n.begun_by}, "TS003"),
            Attempt({"data_id": n.staged, "version": 1}, "TS003"),
            Attempt({"data_id": n.objects, "version": 1, "engine": "storage"}, "TS003"),
        ],
        "tensorage_patch": [
            Attempt(assigned(n, n.assigning), "TS001"),
            Attempt(assigned(n, n.staged), "TS001"),
            Attempt(assigned(n, n.id), "TS001"),
        ],
        "tensorage_create": [
            Attempt({"key": n.key, **new, "fill": "AAAAAA==", "overwrite": True}, None),
            Attempt({"key": n.staged_key, **new, "fill": "AAAAAA==", "operation": n.stored_by}, None),
        ],
        "tensorage_resize": [
            Attempt({"data_id": data_id, "base_rows": 4, "rows": rows, "fill": "AAAAAA=="}, "TS003")
            for data_id in (n.id, n.staged, n.objects)
            for rows in (0, 9)
        ],
        "tensorage_compact": [
            Attempt({"key": n.key}, "TS001"),
            Attempt({"key": n.staged_key, "after": 1}, "TS001"),
        ],
        "tensorage_annotate": [
            Attempt({"data_id": n.id, "attrs": {"note": "another"}}, "TS003"),
            Attempt({"data_id": n.id, "replace": True}, "TS003"),
            Attempt({"data_id": n.staged, "removed": ["note"]}, "TS003"),
            Attempt({"data_id": n.id, "dims": ["a", "b"], "set_dims": True}, "TS003"),
            Attempt({"data_id": n.objects, "attrs": {"note": "another"}}, "TS003"),
        ],
        "tensorage_rename": [
            Attempt({"key": n.key, "new_key": "mine"}, "TS001"),
            Attempt({"key": n.staged_key, "new_key": n.key, "overwrite": True}, "TS001"),
            Attempt({"key": n.key, "new_key": "mine", "operation": n.stored_by}, "TS001"),
            Attempt({"key": n.objects_key, "new_key": "mine"}, "TS001"),
        ],
        "tensorage_begin": [
            Attempt({"key": n.key, **new, "append": True}, "TS001"),
            Attempt({"key": n.key, **new, "operation": n.begun_by}, None),
            Attempt({"key": n.staged_key, **new, "overwrite": True, "operation": n.stored_by}, None),
            Attempt(
                {"key": n.objects_key, **new, "engine": "storage", "zarr": metadata(), "overwrite": True},
                None,
            ),
        ],
        "tensorage_put": [
            Attempt(binary(ARRAY.tobytes(), count=12, chunk=10, data_id=n.staged), "TS001"),
            Attempt(binary(ARRAY.tobytes(), count=12, chunk=12, data_id=n.id), "TS001"),
        ],
        "tensorage_commit": [
            Attempt({"data_id": n.staged}, "TS001"),
            Attempt({"data_id": n.id}, "TS001"),
            Attempt({"data_id": n.staged, "operation": n.stored_by}, "TS001"),
            Attempt({"data_id": n.assigning}, "TS001"),
            *(
                Attempt({"data_id": data_id, "shards": [entry(4, None, based_on="")]}, "TS001")
                for data_id in (n.objects, n.writing, n.growing, n.changing)
            ),
        ],
        "tensorage_abort": [
            Attempt({"data_id": n.staged}, None),
            Attempt({"data_id": n.id}, None),
            Attempt({"data_id": n.assigning}, None),
            Attempt({"data_id": n.writing}, None),
            Attempt({"data_id": n.growing}, None),
        ],
        "tensorage_store": [
            Attempt(whole(-ARRAY, key=n.key, operation=n.stored_by), None),
            Attempt(whole(-ARRAY, key=n.staged_key, operation=n.begun_by, overwrite=True), None),
        ],
        "tensorage_store_tails": [
            Attempt(with_tails([b"mine"] * 5, key=n.objects_key, operation=n.stored_by), None),
            Attempt(with_tails([b"mine"] * 5, key=n.staged_key, operation=n.begun_by, overwrite=True), None),
        ],
        "tensorage_append": [
            Attempt(whole(ARRAY, key=n.key, operation=n.appended_by), "TS001"),
            Attempt(whole(ARRAY, key=n.key, operation=new_operation()), "TS001"),
        ],
        "tensorage_transact": [
            Attempt(transaction(("tensorage_append", whole(ARRAY, key=n.key))), "TS001"),
            Attempt(
                transaction(("tensorage_remove", {"key": n.key}), keys=[n.key], replaced=[n.key]), "TS001"
            ),
            Attempt(transaction(("tensorage_commit", {"data_id": n.staged}), staged=[n.staged]), "TS001"),
            Attempt(
                transaction(
                    ("tensorage_assign", assigned(n, n.id)),
                    assigned=[{"data_id": n.id, "version": n.version}],
                ),
                "TS003",
            ),
            Attempt(transaction(("tensorage_assign", assigned(n, n.id))), "TS003"),
            Attempt(transaction(operation=n.stored_by), None),
        ],
        "tensorage_read_many": [
            Attempt({"keys": [n.key], "owner": n.owner}, "TS001"),
            Attempt({"keys": [n.key]}, "TS001"),
            Attempt({"below": n.key, "owner": n.owner}, None),
        ],
        "tensorage_remove": [
            Attempt({"key": n.key}, "TS001"),
            Attempt({"key": n.staged_key}, "TS001"),
            Attempt({"key": n.key, "operation": n.stored_by}, "TS001"),
            Attempt({"key": n.objects_key}, "TS001"),
        ],
        "tensorage_share": [
            Attempt({"key": n.objects_key}, "TS001"),
            Attempt({"key": n.key}, "TS001"),
            Attempt({"key": n.key, "readers": ["reader@lab.org"], "can_write": True}, "TS001"),
        ],
        "tensorage_unshare": [
            Attempt({"key": n.objects_key}, "TS006"),
            Attempt({"key": n.key, "readers": ["reader@lab.org"]}, "TS006"),
        ],
        "tensorage_shares": [Attempt({}, None), Attempt({"key": n.key}, None)],
        "tensorage_shared_with_me": [Attempt({}, None)],
        "tensorage_sharer": [Attempt({"who": n.owner}, "TS001")],
        "tensorage_usage": [Attempt({}, None)],
        "tensorage_set_quota": [
            Attempt({"who": n.owner, "max_bytes": 1, "max_arrays": 1}, "42501"),
            Attempt({"who": None, "max_bytes": 1, "max_arrays": 1}, "42501"),
        ],
        "tensorage_quotas": [Attempt({}, "42501"), Attempt({"who": n.owner}, "42501")],
        "tensorage_doctor": [Attempt({}, None)],
        "tensorage_audit": [Attempt({}, None), Attempt({"key": n.key}, None)],
        "tensorage_catalogue": [
            Attempt({}, None),
            Attempt({"prefix": n.key}, None),
            Attempt({"attrs": {"note": "the owner's note"}}, None),
            Attempt({"owner": n.owner}, None),
            Attempt({"owner": n.owner, "attrs": {"note": "the owner's note"}}, None),
        ],
        "tensorage_remove_all": [Attempt({"prefix": n.key}, None)],
        "tensorage_rename_all": [Attempt({"prefix": n.key, "new_prefix": "mine"}, "TS001")],
        "tensorage_sweep": [Attempt({}, None)],
        "tensorage_answered": [
            Attempt({"first": str(uuid.UUID(int=0)), "last": str(uuid.UUID(int=2**128 - 1))}, None)
        ],
        "tensorage_acknowledge": [Attempt({"operations": [n.begun_by]}, None)],
        "tensorage_begin_append": [
            Attempt({"data_id": n.objects, "shape": [1, 3], "base_rows": 9}, "TS003"),
            Attempt({"data_id": n.objects, "shape": [1, 4], "base_rows": 9}, "TS003"),
            Attempt(
                {"data_id": n.objects, "shape": [1, 3], "base_rows": 9, "operation": n.begun_by}, "TS003"
            ),
            Attempt({"data_id": n.writing, "shape": [1, 3], "base_rows": 9}, "TS003"),
            Attempt({"data_id": n.id, "shape": [1, 3], "base_rows": 5}, "TS003"),
            Attempt({"data_id": n.staged, "shape": [1, 3], "base_rows": 4}, "TS003"),
        ],
        "tensorage_append_tails": [
            Attempt({"data_id": data_id, "shape": shape, "base_rows": rows, "shards": shards} | more, "TS003")
            for data_id, rows in ((n.objects, 9), (n.writing, 9), (n.id, 5), (n.staged, 4))
            for shape, shards in (([0, 3], []), ([1, 3], [entry(4, None, tail="AAAA", based_on="")]))
            for more in ({}, {"operation": n.begun_by})
        ],
        "tensorage_put_shards": [
            Attempt({"data_id": data_id, "shards": shards}, "TS001")
            for data_id in (n.objects, n.writing, n.growing, n.changing, n.staged, n.id)
            for shards in ([], [entry(0, None)], [entry(4, None, low=8, high=9, before="")], [5])
        ],
        "tensorage_shards": [
            Attempt({"data_id": n.id, "version": n.version, "numbers": [0]}, "TS003"),
            Attempt({"data_id": n.objects, "version": 1, "numbers": [0]}, "TS003"),
            Attempt({"data_id": n.objects, "version": 1, "numbers": []}, "TS003"),
            *(
                Attempt({"data_id": data_id, "version": None, "numbers": [0, 4]}, "TS001")
                for data_id in (n.objects, n.writing, n.growing, n.changing, n.staged)
            ),
        ],
        "tensorage_has_object": [
            Attempt({"data_id": n.id, "number": 0}, None),
            Attempt({"data_id": n.objects, "number": 0}, None),
            Attempt({"data_id": n.writing, "number": 0}, None),
        ],
        "tensorage_sweep_objects": [Attempt({}, None), Attempt({"max_objects": 1}, None)],
    }


FUNCTIONS = sorted(attempts(Names("", 0, 0, "", 0, 0, "", "", "", "", "", 0, 0, 0, 0)))


def test_every_function_of_the_rest_api_is_attempted(
    database: psycopg.Connection[tuple[Any, ...]],
) -> None:
    exposed = database.execute(
        "select proname from pg_proc where pronamespace = 'public'::regnamespace and proname like '%tensorage%'"
    ).fetchall()
    assert sorted(name for (name,) in exposed) == FUNCTIONS


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_user_gets_nothing_from_a_function(
    function: str, kept: Kept, nothing: Names, other: Caller, state_of: StateOf
) -> None:
    before = state_of(kept.owner)
    for attempt, on_nothing in zip(attempts(kept.names)[function], attempts(nothing)[function], strict=True):
        answer = other.call(function, attempt.arguments)
        assert_unmarked(answer, kept)
        if attempt.code is None:
            assert answer.status_code == 200, answer.text
            assert _owner_in(answer) in (None, other.id)
        else:
            assert code_of(answer) == attempt.code
            # The error does not tell that there is something.
            assert _without(answer, kept.names) == _without(
                other.call(function, on_nothing.arguments), nothing
            )
        assert state_of(kept.owner) == before


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_user_gets_nothing_by_get(function: str, kept: Kept, other: Caller, state_of: StateOf) -> None:
    before = state_of(kept.owner)
    for attempt in attempts(kept.names)[function]:
        arguments = attempt.arguments if isinstance(attempt.arguments, dict) else {}
        query = {name: _in_query(value) for name, value in arguments.items()}
        for method in ("GET", "HEAD"):
            answer = other.request(method, f"/rpc/{function}", params=query)
            assert_unmarked(answer, kept)
            assert answer.status_code < 500
            assert attempt.code is None or answer.status_code >= 400
    assert state_of(kept.owner) == before


@pytest.mark.parametrize("function", FUNCTIONS)
def test_strangers_cannot_call_a_function(
    function: str, kept: Kept, strangers: dict[str, Caller], state_of: StateOf
) -> None:
    before = state_of(kept.owner)
    for stranger in strangers.values():
        for attempt in attempts(kept.names)[function]:
            answer = stranger.call(function, attempt.arguments)
            assert answer.status_code == 401, answer.text
            assert_unmarked(answer, kept)
    assert state_of(kept.owner) == before


def test_inner_functions_cannot_be_called(
    kept: Kept, other: Caller, state_of: StateOf, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    inner = database.execute(
        "select distinct proname from pg_proc where pronamespace = 'tensorage'::regnamespace"
    ).fetchall()
    assert ("insert_blocks",) in inner
    before = state_of(kept.owner)
    for (name,) in inner:
        for profile, code in ((None, "PGRST202"), ("public", "PGRST202"), ("tensorage", "PGRST106")):
            headers = {} if profile is None else {"Content-Profile": profile}
            body = {"d": {"id": kept.names.id}, "operation": kept.names.stored_by, "max_blocks": 100}
            for answer in (
                other.request("POST", f"/rpc/{name}", json=body, headers=headers),
                other.request("POST", f"/rpc/tensorage.{name}", json=body, headers=headers),
            ):
                assert code_of(answer) == code
    assert state_of(kept.owner) == before


def test_tokens_that_this_project_did_not_sign_are_nobodys(
    kept: Kept, backend: control.Running, state_of: StateOf
) -> None:
    before = state_of(kept.owner)
    claims = {"sub": kept.owner.id, "role": "authenticated", "exp": 4_000_000_000}
    forged = [
        jwt.encode(claims, "another secret, as long as one has to be", algorithm="HS256"),
        jwt.encode(claims, None, algorithm="none"),
        jwt.encode(claims | {"exp": 1_000_000_000}, backend.jwt_secret, algorithm="HS256"),
    ]
    for token in forged:
        caller = replace(kept.owner, headers={**kept.owner.headers, "Authorization": f"Bearer {token}"})
        answers = [
            caller.request("GET", "/datasets"),
            caller.call("tensorage_open", key=kept.names.key),
            caller.call("tensorage_remove", key=kept.names.key),
        ]
        for answer in answers:
            assert answer.status_code == 401, answer.text
            assert_unmarked(answer, kept)
    assert state_of(kept.owner) == before


def test_same_key_of_two_users_is_two_arrays(sign_up: Callable[[], Caller]) -> None:
    owner, other, key = sign_up(), sign_up(), new_key()
    mine, theirs = owner.store(key, ARRAY), other.store(key, -ARRAY)
    other.append(key, -ARRAY)
    assert owner.open(key) == described(mine)
    assert np.array_equal(owner.read(mine), ARRAY.reshape(-1))
    assert np.array_equal(other.read(theirs), -ARRAY.reshape(-1))
    assert other.call("tensorage_remove", key=key).status_code == 200
    assert np.array_equal(owner.read(owner.open(key)), ARRAY.reshape(-1))


def _without(answer: httpx.Response, names: Names) -> tuple[int, str]:
    """An error without the names that the caller used."""
    said = answer.text
    for name in (names.staged_key, names.key, names.objects_key, names.owner):
        said = said.replace(name, "...")
    numbers = (
        names.staged,
        names.assigning,
        names.id,
        names.objects,
        names.writing,
        names.growing,
        names.changing,
    )
    return answer.status_code, re.sub(rf"\b({'|'.join(map(str, numbers))})\b", "...", said)


def _owner_in(answer: httpx.Response) -> str | None:
    said = answer.json()
    return str(said["user_id"]) if isinstance(said, dict) and "user_id" in said else None


def _in_query(value: Any) -> str:
    return "{" + ",".join(map(str, value)) + "}" if isinstance(value, list) else str(value)
