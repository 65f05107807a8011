"""A request can not smuggle SQL, become somebody else, or leave something behind for the next one."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import jwt
import psycopg
import pytest
from embedded.rest.client import Rest, error_of, wait_until_known

from tensorage.embedded import control

#: Each would give away or destroy something, or raise an error of its own (599), if it were taken for SQL.
INJECTIONS = [
    "rest_trip()",
    "name,rest_trip()",
    'name", rest_trip(), "name',
    "name\"='a' or rest_trip() or \"name",
    "a' or rest_trip() or 'a' = 'a",
    "1 or rest_trip()",
    "1) or rest_trip() or (1=1",
    "1' :: text) or rest_trip() or ('1' = '1",
    "k', 'x') or rest_trip() or ('a' = 'a",
    "text), rest_trip(), cast('1' as text",
    "text) || rest_trip()::text || cast('1' as text",
    "int), rest_trip(), cast(1 as int",
    "english, 'a') or rest_trip() or to_tsvector('a",
    "id from rest_secret.treasure; --",
    'id" from rest_secret.treasure; --',
    "id') from rest_secret.treasure; --",
    "(select what from rest_secret.treasure)",
    "name,(select what from rest_secret.treasure)::text",
    "a'; drop table public.rest_items; --",
    'a"; drop table public.rest_items; --',
    "a\\'; drop table public.rest_items; --",
    "$1; reset role; select 1",
    "1); set role service_role; --",
    "text) from rest_secret.treasure --",
    "text); reset role; select (1",
    "/**/union/**/select/**/what/**/from/**/rest_secret.treasure",
    "\u02bc; drop table public.rest_items; --",
]

#: Every place of a request where a name or a value can stand.
PLACES = [
    "/rest_items?select={}",
    "/rest_items?select=x:{}",
    "/rest_items?select={}:name",
    "/rest_items?select=name::{}",
    "/rest_items?select=doc->{}",
    "/rest_items?select=doc->>{}",
    "/rest_items?{}=eq.1",
    "/rest_items?name=eq.{}",
    "/rest_items?id=eq.{}",
    "/rest_items?id=in.({})",
    "/rest_items?tags=cs.{}",
    "/rest_items?id=eq(any).{}",
    "/rest_items?name=like.{}",
    "/rest_items?id=is.{}",
    "/rest_items?id=isdistinct.{}",
    "/rest_items?words=fts({}).a",
    "/rest_items?words=fts.{}",
    "/rest_items?doc->{}=eq.1",
    "/rest_items?or=({}.eq.1)",
    "/rest_items?or=(name.eq.{})",
    "/rest_items?order={}",
    "/rest_items?order=name.{}",
    "/rest_items?order=doc->{}",
    "/rest_items?limit={}",
    "/rest_items?offset={}",
    "/{}",
    "/rpc/{}",
    "/rpc/rest_echo?{}=1",
    "/rpc/rest_numbers?up_to={}",
    "/rpc/rest_table?up_to=1&select={}",
    "/rpc/rest_table?up_to=1&{}=eq.1",
    "/rpc/rest_table?up_to=1&order={}",
]


def encoded(text: str) -> str:
    return quote(text, safe="")


@pytest.fixture
def mine(rest: Rest) -> Rest:
    rest.insert({"name": "mine", "size": 1})
    return rest


def check_nothing_happened(rest: Rest, database: psycopg.Connection) -> None:
    assert [row["name"] for row in rest.rows("/rest_items")] == ["mine"]
    assert database.execute("select what from rest_secret.treasure").fetchall() == [("gold",)]
    assert rest.call("rest_settings")["role"] == "authenticated"


@pytest.mark.parametrize("place", PLACES)
def test_sql_in_a_url_is_not_sql(mine: Rest, database: psycopg.Connection, place: str):
    for injection in INJECTIONS:
        answer = mine.get(place.replace("{}", encoded(injection)))
        assert b"gold" not in answer.content, injection
        assert answer.status_code < 500, (injection, answer.text)
        if answer.status_code >= 300:
            error_of(answer)
    check_nothing_happened(mine, database)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_sql_in_a_body_or_header_is_not_sql(mine: Rest, database: psycopg.Connection, injection: str):
    quoted = encoded(json.dumps(injection, ensure_ascii=False))
    returned, merged = {"Prefer": "return=representation"}, {"Prefer": "resolution=merge-duplicates"}
    answers = [
        mine.post("/rest_items", json={injection: 1, "name": "x"}),
        mine.post("/rpc/rest_echo", json={injection: 1}),
        mine.post(f"/rest_items?columns={quoted}", json={"name": "x"}),
        mine.post(f"/rest_items?on_conflict={quoted}", json={"name": "x"}, headers=merged),
        mine.request("PATCH", "/rest_items", json={injection: 1}),
        mine.request("PATCH", f"/rest_items?{quoted}=eq.1", json={"size": 2}, headers=returned),
        mine.request("DELETE", f"/rest_items?{quoted}=eq.1"),
        mine.get(f"/rest_items?select={quoted}"),
        mine.get(f"/rest_items?order={quoted}"),
    ]  # fmt: skip
    for answer in answers:
        assert error_of(answer)[0] in (400, 404), answer.text
    assert mine.call("rest_echo", v=injection) == injection
    for header in ("Accept-Profile", "Range", "Prefer", "Accept", "X-Something"):
        answer = mine.get("/rest_items?select=name", headers={header: injection.encode()})
        assert answer.status_code in (200, 406)
    check_nothing_happened(mine, database)


def test_an_alias_is_a_name_whatever_it_says(mine: Rest):
    for name in ('a"b', "a'b", "a)b;--", "日本", "a\\b"):
        rows = mine.rows(f"/rest_items?select={encoded(json.dumps(name, ensure_ascii=False))}:name")
        assert rows == [{name: "mine"}]


@pytest.mark.parametrize(
    ("role", "answer"),
    [
        ("postgres", (403, "42501")),
        ("supabase_admin", (403, "42501")),
        ("authenticator'; reset role; --", (401, "22023")),
        ("none", None),
        ("a\0b", (401, "PGRST303")),
        ("", (401, "PGRST303")),
        (5, (401, "PGRST303")),
        (None, (401, "PGRST303")),
        ({"a": 1}, (401, "PGRST303")),
    ],
)
def test_a_token_cannot_name_just_any_role(rest: Rest, role: object, answer: tuple[int, str] | None):
    refused = rest.post("/rpc/rest_private", json={}, token=rest.signed(role=role))
    assert error_of(refused) == (answer or (403, "42501"))


def test_claims_are_data(rest: Rest):
    claims = {"sub": rest.user_id, "note": "'; reset role; --\\ \" 日本"}
    answer = rest.post("/rpc/rest_settings", json={}, token=rest.signed(**claims))
    assert answer.json()["claims"]["note"] == claims["note"]


def test_no_secret_schema(rest: Rest):
    assert error_of(rest.get("/treasure", headers={"Accept-Profile": "rest_secret"})) == (406, "PGRST106")
    assert error_of(rest.post("/treasure", json={}, headers={"Content-Profile": "rest_secret"})) == (
        406,
        "PGRST106",
    )
    assert error_of(rest.get("/rest_secret.treasure")) == (404, "PGRST205")


def test_the_api_key_speaks_for_who_shows_nothing_else(nobody: Rest, backend: control.Running):
    def role(**headers: str) -> str:
        return nobody.post("/rpc/rest_settings", json={}, headers=headers).json()["role"]

    assert role() == "anon"
    assert role(apikey=backend.anon_key) == "anon"
    assert role(apikey=backend.service_role_key) == "service_role"
    assert role(apikey=backend.service_role_key, Authorization=f"Bearer {backend.anon_key}") == "anon"


def test_many_at_once_and_everyone_is_themselves(rest: Rest):
    everybody = [rest.as_somebody_new() for _ in range(8)] + [rest.as_nobody()]

    def ask(n: int) -> None:
        somebody = everybody[n % len(everybody)]
        if n % 7 == 0:
            assert (
                somebody.post(
                    "/rpc/rest_set", json={"name": "statement_timeout", "value": "61000"}
                ).status_code
                == 204
            )
        if n % 11 == 0:
            assert somebody.get("/rest_items?id=eq.x").status_code == 400
        seen = somebody.call("rest_settings_volatile")
        assert seen["sub"] == somebody.user_id
        assert seen["role"] == ("authenticated" if somebody.user_id else "anon")
        assert seen["timeout"] == ("8s" if somebody.user_id else "3s")

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, range(400)))


def test_nothing_is_left_for_the_next_request(rest: Rest, nobody: Rest, backend: control.Running):
    for name, value in (
        ("request.jwt.claims", "{}"),
        ("role", "anon"),
        ("response.status", "202"),
        ("my.own", "x"),
    ):
        rest.post("/rpc/rest_set", json={"name": name, "value": value})
    claims_of_the_key = jwt.decode(backend.anon_key, backend.jwt_secret, algorithms=["HS256"])
    for _ in range(30):
        seen = nobody.call("rest_settings_volatile")
        assert (seen["role"], seen["sub"], seen["claims"]) == ("anon", None, claims_of_the_key)
        assert not seen["status"]


def test_a_timeout_of_one_function_is_not_that_of_the_next(rest: Rest, backend: control.Running):
    service = replace(rest, token=backend.service_role_key)
    usual = service.call("rest_settings")["timeout"]
    for _ in range(30):
        assert rest.call("rest_quick") == "1234ms"
        assert service.call("rest_settings")["timeout"] == usual != "1234ms"


def test_an_error_leaves_every_connection_usable(rest: Rest):
    for _ in range(15):
        assert error_of(
            rest.post("/rpc/rest_echo_json", content=b"{", headers={"Content-Type": "application/json"})
        )
        assert error_of(rest.get("/rest_items?id=eq.x")) == (400, "22P02")
        assert error_of(rest.get("/rest_items?nope=eq.x")) == (400, "42703")
        assert rest.call("rest_echo", v="ok") == "ok"


def test_a_statement_that_takes_too_long_is_stopped(rest: Rest, nobody: Rest):
    assert error_of(nobody.post("/rpc/rest_sleep", json={"s": 30})) == (500, "57014")
    assert nobody.call("rest_echo", v="ok") == "ok"


def test_a_connection_that_dies_is_replaced(rest: Rest):
    for _ in range(3):
        assert error_of(rest.post("/rpc/rest_die", json={}))[0] == 503
        assert rest.call("rest_echo", v="ok") == "ok"


def test_connections_that_died_unused_are_replaced(rest: Rest, database: psycopg.Connection):
    rest.call("rest_echo", v="warm")
    ended = database.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'authenticator'"
    ).fetchall()
    assert len(ended) >= 2
    answers = [rest.post("/rpc/rest_echo", json={"v": "ok"}) for _ in range(12)]
    lost = [error_of(answer)[0] for answer in answers if answer.status_code != 200]
    assert lost in ([], [503] * len(lost))
    assert answers[-1].json() == "ok"
    # The cache's own connection is back too: a reload is heard.
    database.execute("create function public.rest_later() returns int language sql as 'select 1'")
    deadline = time.monotonic() + 20
    while rest.request("OPTIONS", "/rpc/rest_later").status_code != 200:
        assert time.monotonic() < deadline
        database.execute("notify pgrst, 'reload schema'")
        time.sleep(0.05)


def test_the_schema_cache_is_reloaded_when_told(rest: Rest, database: psycopg.Connection):
    assert error_of(rest.get("/rest_new")) == (404, "PGRST205")
    database.execute(
        "create table public.rest_new (n int); grant select on public.rest_new to authenticated;"
        "create function public.rest_changing(a int) returns int language sql as 'select 1';"
        "notify pgrst, 'reload schema'"
    )
    wait_until_known(rest, "/rest_new")
    assert rest.rows("/rest_new") == []
    assert rest.call("rest_changing", a=1) == 1
    database.execute(
        "drop function public.rest_changing; alter table public.rest_new add m text;"
        "create function public.rest_changing(a text) returns text language sql as 'select a';"
        "notify pgrst, 'reload schema'"
    )
    database.execute("insert into public.rest_new values (1, 'x')")
    assert rest.rows("/rest_new") == [{"n": 1, "m": "x"}]
    database.execute("drop table public.rest_new; notify pgrst, 'reload schema'")
    wait_until_known(rest, "/rest_new", known=False)
    assert rest.call("rest_changing", a="text") == "text"
