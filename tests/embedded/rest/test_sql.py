"""The SQL that is written: names are quoted, values are parameters. The pure parts, without a server."""

from __future__ import annotations

import re
from urllib.parse import quote

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorage.embedded.rest.bodies import parse_json
from tensorage.embedded.rest.errors import ApiError, from_postgres
from tensorage.embedded.rest.headers import Format, Preferences, RowRange
from tensorage.embedded.rest.query import parse_query
from tensorage.embedded.rest.routines import Arguments, find_call
from tensorage.embedded.rest.schema import Column, Parameter, Routine, Schema, Table
from tensorage.embedded.rest.sql import identifier
from tensorage.embedded.rest.tables import Write, make_read_statement, make_write_statement

JSON = Format("application/json")
TABLE = Table(
    schema="public",
    name="things",
    columns={
        "id": Column("id", "bigint", "bigint"),
        "name": Column("name", "character varying(5)", "character varying"),
        "doc": Column("doc", "jsonb", "jsonb"),
    },
    primary_key=("id",),
    insertable=True,
    updatable=True,
    deletable=True,
)

#: Characters that a URL in UTF-8 can have.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])

#: SQL with what is inside quotation marks taken out: there, anything may stand.
QUOTED = re.compile(r'"(?:[^"]|"")*"')


def sql_of(query: str) -> str:
    return make_read_statement(TABLE, parse_query(query), RowRange(), Preferences(), JSON).text


@given(st.text(alphabet=CHARACTERS, min_size=1))
def test_any_name_is_one_identifier(name):
    assert QUOTED.fullmatch(identifier(name))
    assert identifier(name)[1:-1].replace('""', '"') == name


# A column of the table has a type of its own, by whose name its values are cast.
@given(st.text(alphabet=CHARACTERS, min_size=1, max_size=30).filter(lambda text: text not in TABLE.columns))
def test_no_value_and_no_name_is_ever_part_of_the_sql(text):
    name = quote('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    plain = QUOTED.sub("", sql_of("select=a:b&b=eq.1&order=c&d=in.(1)"))
    value = quote(text)
    assert (
        QUOTED.sub("", sql_of(f"select={name}:{name}&{name}=eq.{value}&order={name}&{name}=in.({name})"))
        == plain
    )


def test_values_are_cast_to_what_they_are_compared_with():
    statement = make_read_statement(
        TABLE,
        parse_query("id=eq.1&name=like.a*&doc->k=eq.2&doc->>k=in.(x,y)"),
        RowRange(),
        Preferences(),
        JSON,
    )
    assert '"id" = ($1::text)::bigint' in statement.text
    assert '"name" like ($2::text)::character varying' in statement.text
    assert statement.values == ("1", "a%", "k", "2", "k", ["x", "y"])


def write(method: str, query: str, body: bytes | None = None, **preferences: str) -> Write:
    payload = None if body is None else parse_json(bytearray(body))
    return Write(method, TABLE, parse_query(query), Preferences(**preferences), payload)


def test_minimal_writes_need_no_right_to_read():
    assert "returning 1)" in make_write_statement(write("POST", "", b'{"id": 1}'), JSON).text
    assert "returning 1)" in make_write_statement(write("DELETE", "id=eq.1"), JSON).text


def test_the_body_is_a_parameter_as_a_whole():
    statement = make_write_statement(write("POST", "", b'{"id": 1, "name": "x"}'), JSON)
    assert statement.values == ('{"id": 1, "name": "x"}',)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (("POST", "", b'{"nope": 1}'), (400, "PGRST204")),
        (("POST", "columns=nope", b'{"id": 1}'), (400, "PGRST204")),
        (("POST", "on_conflict=nope", b'{"id": 1}'), (400, "PGRST204")),
        (("POST", "id=eq.1", b'{"id": 1}'), (400, "PGRST127")),
        (("POST", "", b"[{}, {}]"), (400, "PGRST102")),
        (("PATCH", "limit=1", b'{"id": 1}'), (400, "PGRST127")),
        (("PATCH", "", b'[{"id": 1}, {"id": 2}]'), (400, "PGRST102")),
        (("DELETE", "order=id", None), (400, "PGRST127")),
        (("PUT", "id=eq.1&limit=1", b'{"id": 1}'), (400, "PGRST114")),
        (("PUT", "", b'{"id": 1}'), (405, "PGRST105")),
        (("PUT", "id=gt.1", b'{"id": 1}'), (405, "PGRST105")),
        (("PUT", "id=not.eq.1", b'{"id": 1}'), (405, "PGRST105")),
        (("PUT", "id=eq.1&name=eq.x", b'{"id": 1}'), (405, "PGRST105")),
        (("PUT", "or=(id.eq.1)", b'{"id": 1}'), (405, "PGRST105")),
        (("PUT", "id=eq.1", b'[{"id": 1}, {"id": 2}]'), (400, "PGRST115")),
    ],
)
def test_writes_that_are_refused(asked, answer):
    with pytest.raises(ApiError) as caught:
        make_write_statement(write(*asked), JSON)
    assert (caught.value.status, caught.value.code) == answer


def routine(*parameters: Parameter) -> Routine:
    return Routine("public", "f", parameters, True, False, False, False, None, "integer")


def schema(*routines: Routine) -> Schema:
    return Schema("public", {}, {"f": routines}, {})


A, B = Parameter("a", "integer", required=True), Parameter("b", "integer", required=False)


def test_the_function_is_chosen_by_its_arguments():
    one, two = routine(A), routine(A, Parameter("b", "integer", required=True))
    assert find_call(schema(one, two), "f", Arguments(("a",), "application/json")).routine is one
    assert find_call(schema(one, two), "f", Arguments(("a", "b"), "application/json")).routine is two
    with pytest.raises(ApiError) as caught:
        find_call(schema(one, routine(A, B)), "f", Arguments(("a",), "application/json"))
    assert (caught.value.status, caught.value.code) == (300, "PGRST203")
    for names in ((), ("b",), ("a", "c"), ("",)):
        with pytest.raises(ApiError) as caught:
            find_call(schema(routine(A, B)), "f", Arguments(names, "application/json"))
        assert (caught.value.status, caught.value.code) == (404, "PGRST202")


def test_a_whole_body_goes_to_a_single_unnamed_parameter():
    takes_json, takes_bytes = (routine(Parameter("", type_, required=True)) for type_ in ("jsonb", "bytea"))
    both = schema(takes_json, takes_bytes)
    assert find_call(both, "f", Arguments(("x",), "application/json")).whole_body == "jsonb"
    binary = Arguments((), "application/octet-stream", named=False)
    assert find_call(both, "f", binary).whole_body == "bytea"
    # Named arguments win over a parameter that would take anything.
    named = routine(A)
    assert find_call(schema(takes_json, named), "f", Arguments(("a",), "application/json")).routine is named


@pytest.mark.parametrize(
    ("sqlstate", "status"),
    [
        ("PT404", 404), ("PT599", 599), ("PT000", 400), ("P0001", 400), ("P0002", 500), ("23505", 409),
        ("23503", 409), ("23514", 400), ("25006", 405), ("25001", 500), ("42501", 403), ("42P01", 404),
        ("42883", 404), ("42703", 400), ("22P02", 400), ("57014", 500), ("57P01", 503), ("08006", 503),
        ("53300", 503), ("53400", 500), ("40001", 500), ("XX000", 500), ("TS001", 400), ("21000", 500),
    ],
)  # fmt: skip
def test_status_of_sqlstate(sqlstate, status):
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "message", "D": "detail", "H": "hint"})
    answer = from_postgres(error, authenticated=True)
    assert (answer.status, answer.code, answer.details, answer.hint) == (status, sqlstate, "detail", "hint")


def test_who_showed_no_token_may_try_with_one():
    error = asyncpg.PostgresError.new({"C": "42501", "M": "permission denied"})
    answer = from_postgres(error, authenticated=False)
    assert (answer.status, answer.headers) == (401, {"www-authenticate": "Bearer"})
