"""Reading a request's query string, headers and body: the pure parts, without a server."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorage.embedded.request_memory import RequestMemory
from tensorage.embedded.rest.bodies import MAX_BODY_BYTES, ClientGoneError, parse_json, read_body
from tensorage.embedded.rest.errors import ApiError
from tensorage.embedded.rest.headers import (
    Format,
    Preferences,
    RowRange,
    negotiate,
    parse_content_type,
    parse_prefer,
    parse_range,
)
from tensorage.embedded.rest.query import parse_query
from tensorage.embedded.rest.query_model import Field, Filter, JsonStep, Logic, OrderTerm, Query, SelectItem

OWN = "application/vnd.tensorage"


def refused(call, *arguments, **named) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        call(*arguments, **named)
    assert json.loads(caught.value.body)["code"] == caught.value.code
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("*", [SelectItem(None)]),
        ("a,b", [SelectItem(Field("a")), SelectItem(Field("b"))]),
        ("x:a", [SelectItem(Field("a"), alias="x")]),
        ("a::text", [SelectItem(Field("a"), cast="text")]),
        ("x:a::double precision", [SelectItem(Field("a"), alias="x", cast="double precision")]),
        ("a::public.mood[]", [SelectItem(Field("a"), cast="public.mood[]")]),
        ("j->k->>0", [SelectItem(Field("j", (JsonStep("->", "k"), JsonStep("->>", 0))))]),
        ("j->-1", [SelectItem(Field("j", (JsonStep("->", -1),)))]),
        ("j->" + "1" * 5000, [SelectItem(Field("j", (JsonStep("->", "1" * 5000),)))]),
        ("j->0abc", [SelectItem(Field("j", (JsonStep("->", "0abc"),)))]),
        ("first-name", [SelectItem(Field("first-name"))]),
        ('"a,(b).c::d"', [SelectItem(Field("a,(b).c::d"))]),
        (r'"say \"hi\" \\"', [SelectItem(Field('say "hi" \\'))]),
        ("größe,数", [SelectItem(Field("größe")), SelectItem(Field("数"))]),
    ],
)
def test_select(text, items):
    assert parse_query("select=" + quote(text)).select == tuple(items)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "PGRST100"),
        ("a,,b", "PGRST100"),
        ("a,", "PGRST100"),
        ("a;drop", "PGRST100"),
        ("a::text)", "PGRST100"),
        ("a::", "PGRST100"),
        ("a::int(3)", "PGRST100"),
        ('a::"int"', "PGRST100"),
        ("count()", "PGRST123"),
        ("n:count()", "PGRST123"),
        ("a.sum()", "PGRST123"),
        ("lines(*)", "PGRST127"),
        ("x:lines!inner(*)", "PGRST127"),
        ("...lines(*)", "PGRST127"),
        ("a%00b", "PGRST100"),
    ],
)
def test_select_refused(text, code):
    assert refused(parse_query, f"select={text}") == (400, code)


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("n=eq.1", [Filter(Field("n"), "eq", "1")]),
        ("n=eq.", [Filter(Field("n"), "eq", "")]),
        ("n=not.eq.1", [Filter(Field("n"), "eq", "1", negated=True)]),
        ("n=gte.1&n=lt.5", [Filter(Field("n"), "gte", "1"), Filter(Field("n"), "lt", "5")]),
        ("t=eq.a,(b).c", [Filter(Field("t"), "eq", "a,(b).c")]),
        ("t=like(any).{a*,b*}", [Filter(Field("t"), "like", "{a*,b*}", argument="any")]),
        ("t=fts(english).cat", [Filter(Field("t"), "fts", "cat", argument="english")]),
        ("t=in.(a,%22b,c%22,%22d%5C%22%22)", [Filter(Field("t"), "in", ("a", "b,c", 'd"'))]),
        ("t=in.()", [Filter(Field("t"), "in", ())]),
        ("t=in.(%22%22)", [Filter(Field("t"), "in", ("",))]),
        ("t=in.(a%22b)", [Filter(Field("t"), "in", ('a"b',))]),
        ("t=is.NULL", [Filter(Field("t"), "is", "null")]),
        ("j-%3E%3Ek=eq.1", [Filter(Field("j", (JsonStep("->>", "k"),)), "eq", "1")]),
        ("%22a.b%22=eq.1", [Filter(Field("a.b"), "eq", "1")]),
        (
            "or=(a.eq.1,and(b.is.null,not.or(c.gt.2,d.in.(1,2))),t.eq.%22x,y)%22,g.cs.{1,2})",
            [
                Logic(
                    "or",
                    (
                        Filter(Field("a"), "eq", "1"),
                        Logic(
                            "and",
                            (
                                Filter(Field("b"), "is", "null"),
                                Logic(
                                    "or",
                                    (Filter(Field("c"), "gt", "2"), Filter(Field("d"), "in", ("1", "2"))),
                                    negated=True,
                                ),
                            ),
                        ),
                        Filter(Field("t"), "eq", "x,y)"),
                        Filter(Field("g"), "cs", "{1,2}"),
                    ),
                )
            ],
        ),
        (
            "not.and=(a.not.eq.1)",
            [Logic("and", (Filter(Field("a"), "eq", "1", negated=True),), negated=True)],
        ),
    ],
)
def test_conditions(text, conditions):
    assert parse_query(text).conditions == tuple(conditions)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("n=1", "PGRST100"),
        ("n=eq", "PGRST100"),
        ("n=is.maybe", "PGRST100"),
        ("n=in.1", "PGRST100"),
        ("n=in.(1", "PGRST100"),
        ("n=in.(1)x", "PGRST100"),
        ("n=eq(some).1", "PGRST100"),
        ("n=in(any).(1)", "PGRST100"),
        ("n=not.not.eq.1", "PGRST100"),
        ("or=()", "PGRST100"),
        ("or=(a.eq.1", "PGRST100"),
        ("or=(a.eq.1)x", "PGRST100"),
        ("n);drop=eq.1", "PGRST100"),
        ("=eq.1", "PGRST100"),
        ("lines.body=eq.1", "PGRST127"),
        ("lines.or=(a.eq.1)", "PGRST127"),
        ("lines.order=a", "PGRST127"),
        ("n%00=eq.1", "PGRST100"),
        ("or=" + "(and" * 200 + "(a.eq.1)" + ")" * 200, "PGRST100"),
    ],
)
def test_conditions_refused(text, code):
    assert refused(parse_query, text) == (400, code)


def test_order():
    order = parse_query("order=a,b.desc,c.asc.nullslast,j->>k.nullsfirst").order
    assert order == (
        OrderTerm(Field("a")),
        OrderTerm(Field("b"), "desc"),
        OrderTerm(Field("c"), "asc", "nullslast"),
        OrderTerm(Field("j", (JsonStep("->>", "k"),)), None, "nullsfirst"),
    )


@pytest.mark.parametrize("text", ["a.up", "a.desc.asc", "a.nullslast.desc", "a,", "a desc;"])
def test_order_refused(text):
    assert refused(parse_query, f"order={text}") == (400, "PGRST100")


def test_limit_and_offset():
    query = parse_query("limit=2&offset=3")
    assert (query.limit, query.offset) == (2, 3)
    assert refused(parse_query, "limit=-1") == (416, "PGRST103")
    assert refused(parse_query, "offset=-1") == (416, "PGRST103")
    assert refused(parse_query, "limit=many") == (400, "PGRST100")
    assert refused(parse_query, "offset=99999999999999999999") == (400, "PGRST100")


def test_arguments_of_a_call_by_get_are_what_is_no_filter():
    query = parse_query("a=1&b=eq.2&a=3&c=", arguments=True)
    assert query.arguments == (("a", "1"), ("a", "3"), ("c", ""))
    assert query.conditions == (Filter(Field("b"), "eq", "2"),)


def test_names_and_their_canonical_form():
    query = parse_query("on_conflict=b,a&columns=%22x,y%22,z&n=gt.1&n=lt.3&a b=eq.%C3%A9")
    assert query.on_conflict == ("b", "a")
    assert query.columns == ("x,y", "z")
    assert query.canonical == "a%20b=eq.%C3%A9&columns=%22x%2Cy%22%2Cz&n=gt.1,lt.3&on_conflict=b%2Ca"


def test_no_query_is_the_default_one():
    assert parse_query("") == Query()
    assert Query().wants_whole_values
    assert not parse_query("limit=1").wants_whole_values


def code_of(text: str) -> str | None:
    """Code of the error that a query string is refused with."""
    try:
        parse_query(text)
    except ApiError as error:
        return error.code
    return None


@given(st.text())
def test_any_query_string_is_parsed_or_refused(text):
    assert code_of(text) in (None, "PGRST100", "PGRST103", "PGRST123", "PGRST127")


@given(st.text(alphabet='ab."\\,()->:{}*!é\0 '), st.sampled_from(["select", "order", "or", "a", "columns"]))
def test_any_value_is_parsed_or_refused(value, name):
    assert code_of(f"{name}={quote(value)}") in (None, "PGRST100", "PGRST123", "PGRST127")


def test_prefer():
    text = "return=representation, count=exact,resolution=merge-duplicates , return=minimal"
    found = parse_prefer(text)
    assert found == Preferences("merge-duplicates", None, "representation", "exact")
    assert found.list_applied({"return", "count"}) == "return=representation, count=exact"
    assert found.list_applied({"missing"}) is None
    assert parse_prefer("nonsense, return=everything, tx=rollback") == Preferences()


def test_prefer_strictly():
    assert parse_prefer("max-affected=2").strict_max_affected is None
    assert parse_prefer("handling=strict,max-affected=2").strict_max_affected == 2
    for preference in ("nonsense", "tx=rollback", "timezone=UTC", "max-affected=two", "return="):
        assert refused(parse_prefer, f"handling=strict, {preference}") == (400, "PGRST122")
    assert refused(parse_prefer, "count=planned") == (400, "PGRST127")


@pytest.mark.parametrize(
    ("header", "offset", "limit", "rows"),
    [
        ("", None, None, RowRange(0, None)),
        ("0-9", None, None, RowRange(0, 10)),
        ("5-", None, None, RowRange(5, None)),
        ("bytes=0-9", None, None, RowRange(0, None)),
        ("0-9", 5, None, RowRange(5, 5)),
        ("0-9", None, 3, RowRange(0, 3)),
        ("0-4", 10, 3, RowRange(10, 0)),
        ("", 10, None, RowRange(10, None)),
    ],
)
def test_row_range(header, offset, limit, rows):
    assert parse_range(header).narrow(offset, limit) == rows


def test_row_range_ends():
    assert RowRange(5, None).cap(1000) == RowRange(5, 1000)
    assert RowRange(5, 10).cap(1000) == RowRange(5, 10)
    assert refused(parse_range, "5-2") == (416, "PGRST103")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format("application/json")),
        ("*/*", Format("application/json")),
        ("text/html, application/json;q=0.9", Format("application/json")),
        ("text/csv", Format("text/csv")),
        ("application/json;q=0.1, text/csv", Format("text/csv")),
        ("text/csv;q=0, application/json", Format("application/json")),
        ("application/vnd.pgrst.object+json", Format("application/vnd.pgrst.object+json", singular=True)),
        (
            "application/vnd.pgrst.array+json;nulls=stripped",
            Format("application/vnd.pgrst.array+json;nulls=stripped", nulls_stripped=True),
        ),
        (OWN, Format(OWN, raw=True)),
        (f"{OWN}, application/json;q=0.5", Format(OWN, raw=True)),
        (f"application/json, {OWN};q=0.5", Format("application/json")),
    ],
)
def test_negotiate(accept, form):
    assert negotiate(accept, own=OWN) == form


def test_negotiate_refuses():
    assert refused(negotiate, "application/x-unknown") == (406, "PGRST107")
    assert refused(negotiate, OWN) == (406, "PGRST107")
    assert refused(negotiate, "text/csv", rows=False) == (406, "PGRST107")
    assert refused(negotiate, "application/json;q=0") == (406, "PGRST107")


def test_content_type():
    assert parse_content_type("Application/JSON; charset=utf-8") == "application/json"
    assert parse_content_type("") == "application/json"


def test_json_payload():
    assert parse_json(bytearray(b'{"b": 1, "a": 2}')).keys == ("a", "b")
    many = parse_json(bytearray(b'[{"a": 1}, {"a": 2}]'))
    assert (many.shape, many.keys, many.size) == ("array", ("a",), 2)
    assert parse_json(bytearray(b"[]")).size == 0
    assert parse_json(bytearray(b'[{"a": 1}, {"b": 2}]'), any_keys=True).keys == ("a",)
    assert parse_json(bytearray(b"[1]"), any_shape=True).shape == "other"
    assert parse_json(bytearray(b'{"n": ' + b"1" * 10_000 + b"}")).keys == ("n",)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"1",
        b'"x"',
        b"null",
        b"[1]",
        b'[{"a":1},{}]',
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"a":"\0"}',
    ],
)
def test_json_payload_refused(body):
    assert refused(parse_json, bytearray(body)) == (400, "PGRST102")


def received(*messages: dict):
    async def receive() -> dict:
        return next(pieces)

    pieces = iter(messages)
    return receive


def test_a_body_is_read_into_one_buffer():
    pieces = [{"type": "http.request", "body": bytes([n]) * n, "more_body": n < 5} for n in range(1, 6)]
    whole = b"".join(piece["body"] for piece in pieces)
    for declared in (len(whole), None):
        with RequestMemory().lend() as held:
            assert asyncio.run(read_body(received(*pieces), declared, held)) == whole


def test_a_body_that_ends_early_or_is_too_large_is_none():
    pieces = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.disconnect"}]
    with RequestMemory().lend() as held, pytest.raises(ClientGoneError):
        asyncio.run(read_body(received(*pieces), 10, held))
    # Announced, it is refused before it comes; else when it does.
    for declared, message in ((MAX_BODY_BYTES + 1, []), (None, [{"type": "http.request", "body": b"abc"}])):
        most = MAX_BODY_BYTES if declared else 2
        with RequestMemory().lend() as held, pytest.raises(ApiError, match="at most") as caught:
            asyncio.run(read_body(received(*message), declared, held, max_nbytes=most))
        assert caught.value.status == 413
