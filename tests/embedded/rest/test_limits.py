"""Bodies and headers without measure: what they cost is bounded, and everybody else is served."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest
from embedded.raw import MIB, growing_at_most
from embedded.rest.client import Rest, error_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tensorage.embedded import control
from tensorage.embedded.rest.bodies import (
    MAX_PARSED_HERE_BYTES,
    MAX_TEXT_BYTES,
    SUMMARY,
    JsonSummary,
    summarize_json,
)
from tensorage.embedded.rest.headers import negotiate, parse_prefer
from tensorage.embedded.tokens import Tokens, new_secret


@pytest.mark.parametrize("how", ["announced", "chunked"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "text/xml"])
def test_text_has_a_bound(rest: Rest, backend: control.Running, how: str, kind: str) -> None:
    body = b'"' + b"x" * MAX_TEXT_BYTES + b'"'
    content = body if how == "announced" else iter([body[:MIB], body[MIB:]])
    with growing_at_most(backend, 150 * MIB):
        answer = rest.post("/rpc/rest_echo_json", content=content, headers={"Content-Type": kind})
        assert error_of(answer) == (413, "54000")
        assert str(MAX_TEXT_BYTES) in answer.json()["message"]


# -- JSON -----------------------------------------------------------------------------------------------


def test_large_json_is_not_parsed_by_the_server(rest: Rest, backend: control.Running) -> None:
    """Lists in a list take 100 times their length once they are objects of Python's, and a second of everybody."""
    body = b"[" + b"[]," * MIB + b"[]]"
    kind = {"Content-Type": "application/json"}
    with growing_at_most(backend, 50 * MIB):
        assert error_of(rest.post("/rest_items", content=body, headers=kind)) == (400, "PGRST102")


def padded(body: bytes) -> bytes:
    """The same JSON, too large for the server to look at it."""
    return body + b" " * MAX_PARSED_HERE_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"1",
        b"null",
        b"[1]",
        b"[[]]",
        b'[{"a":1},{}]',
        b'[{"a":1},{"b":2}]',
        b'{"a":"\xff"}',
        b"[" * 50_000,
    ],
)
def test_large_json_is_refused_as_small_json_is(rest: Rest, body: bytes) -> None:
    kind = {"Content-Type": "application/json"}
    small, large = (
        rest.post("/rest_items", content=content, headers=kind) for content in (body, padded(body))
    )
    assert error_of(large) == error_of(small) == (400, "PGRST102")
    assert large.json() == small.json()


def test_large_json_is_taken_as_small_json_is(rest: Rest) -> None:
    kind = {"Content-Type": "application/json", "Prefer": "return=representation"}
    many = [{"name": f"n{n}", "size": n} for n in range(5000)]
    assert len(json.dumps(many)) > MAX_PARSED_HERE_BYTES
    path = "/rest_items?select=name,size"
    assert rest.post(path, content=json.dumps(many).encode(), headers=kind).json() == many
    uneven = padded(b'[{"name": "a", "size": 1}, {"name": "b"}]')
    assert error_of(rest.post(path, content=uneven, headers=kind)) == (400, "PGRST102")
    named = rest.post(f"{path}&columns=name", content=uneven, headers=kind)
    assert named.json() == [{"name": "a", "size": 7}, {"name": "b", "size": 7}]
    patched = rest.request("PATCH", f"{path}&name=eq.a", content=padded(b'{"size": 3}'), headers=kind)
    assert patched.json() == [{"name": "a", "size": 3}]
    assert rest.post("/rpc/rest_echo", json={"v": "x" * MAX_PARSED_HERE_BYTES}).json()[:2] == "xx"
    for body in (b'[1, {"a": 2}]', b'"x"', b'[{"a": 1}, 2]'):
        answer = rest.post("/rpc/rest_echo_json", content=padded(body), headers=kind)
        assert answer.json() == json.loads(body)
    nobody = rest.as_nobody()
    assert error_of(nobody.post("/rest_items", content=padded(b'{"name": "x"}'), headers=kind)) == (
        401,
        "42501",
    )


def test_a_key_that_is_there_twice_counts_once(database: psycopg.Connection[tuple[Any, ...]]) -> None:
    for text in ('[{"a":1,"a":2},{}]', '[{"a":1,"a":2},{"b":1,"b":2}]', '[{"a":1,"a":2},{"a":1}]'):
        _, size, is_even, keys = database.execute(SUMMARY.replace("$1", "%s"), [text]).fetchone()
        own = summarize_json(json.loads(text))
        assert (size, is_even, frozenset(keys)) == (own.size, own.is_even, own.keys)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values)
@example([{}, {"a": 1}])
@example([{"a": 1}, {}])
@example([{}, {}])
@example([{"b": 1, "a": 2}, {"a": 1, "b": 2}])
@example([])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_postgresql_looks_at_json_as_the_server_does(
    database: psycopg.Connection[tuple[Any, ...]], value: Any
) -> None:
    shape, size, is_even, keys = database.execute(SUMMARY.replace("$1", "%s"), [json.dumps(value)]).fetchone()
    own = summarize_json(value)
    assert (shape, frozenset(keys)) == (own.shape, own.keys)
    if shape == "array":
        assert JsonSummary(shape, frozenset(keys), size, is_even) == own


# -- Caches ---------------------------------------------------------------------------------------------


def test_no_long_header_is_remembered() -> None:
    short, long = "count=exact", "count=exact," + "x," * 200
    assert parse_prefer(short) is parse_prefer("".join(short))
    assert parse_prefer(long) == parse_prefer(short)
    assert parse_prefer(long) is not parse_prefer(long)
    short, long = "application/json", "application/json," + "x/y," * 200
    assert negotiate(short) is negotiate("".join(short))
    assert negotiate(long) == negotiate(short)
    assert negotiate(long) is not negotiate(long)


def test_no_long_token_is_remembered() -> None:
    tokens = Tokens(new_secret())
    claims = {"role": "authenticated", "exp": int(time.time()) + 60}
    short, long = tokens.sign(claims), tokens.sign(claims | {"user_metadata": "x" * 5000})
    assert tokens.verify(short) is tokens.verify(short)
    assert tokens.verify(long) == tokens.verify(long)
    assert tokens.verify(long) is not tokens.verify(long)


def test_no_call_with_long_names_is_remembered(rest: Rest, backend: control.Running) -> None:
    """A function that takes any JSON takes any names."""
    kind = {"Content-Type": "application/json"}
    calls = [json.dumps({f"{n}{'x' * 2 * MIB}": n}).encode() for n in range(40)]
    with growing_at_most(backend, 50 * MIB):
        for body in calls:
            assert rest.post("/rpc/rest_echo_json", content=body, headers=kind).status_code == 200


def test_names_without_an_end_are_not_repeated(rest: Rest) -> None:
    body = json.dumps({f"argument{n}": 1 for n in range(100_000)}).encode()
    answer = rest.post("/rpc/rest_echo", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer) == (404, "PGRST202")
    assert len(answer.content) < 10_000


# -- Others ---------------------------------------------------------------------------------------------


def test_a_change_to_every_row_is_refused(rest: Rest, backend: control.Running) -> None:
    """Hosted Supabase loads PostgreSQL's `safeupdate` for requests of the API, which refuses it, too."""
    rest.insert({"name": "a", "size": 1}, {"name": "b", "size": 2})
    service = Rest(rest.http, rest.jwt_secret, backend.service_role_key)
    for caller in (rest, service):
        for method, query, command in (
            ("DELETE", "", "DELETE"),
            ("DELETE", "?select=id", "DELETE"),
            ("PATCH", "", "UPDATE"),
            ("PATCH", "?columns=size", "UPDATE"),
        ):
            options = {} if method == "DELETE" else {"json": {"size": 9}}
            answer = caller.request(method, f"/rest_items{query}", **options)
            assert error_of(answer) == (400, "21000")
            assert answer.json()["message"] == f"{command} requires a WHERE clause"
    assert [row["size"] for row in rest.rows("/rest_items?order=name")] == [1, 2]
    assert rest.request("PATCH", "/rest_items?size=gte.0", json={"size": 5}).status_code == 204
    assert rest.request("DELETE", "/rest_items?or=(size.eq.5,name.eq.x)").status_code == 204
    assert rest.rows("/rest_items") == []
