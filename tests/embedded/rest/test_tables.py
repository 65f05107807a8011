"""Reading and changing tables over HTTP: values of every kind, and what PostgREST promises about changes."""

from __future__ import annotations

import json

import pytest
from embedded.rest.client import Rest, error_of

REPRESENTATION = {"Prefer": "return=representation"}
ODD = 'odd "name", with (all) of it'
VERY_LARGE = 9223372036854775807


def prefer(*preferences: str) -> dict[str, str]:
    return {"Prefer": ", ".join(preferences)}


@pytest.mark.parametrize(
    ("column", "value", "filters"),
    [
        ("name", "日本語 ñ 🎈 \\ ' \" % _ , ( ) . {}", ["eq.日本語 ñ 🎈 \\ ' \" % _ , ( ) . {}"]),
        ("size", VERY_LARGE, [f"eq.{VERY_LARGE}", f"gte.{VERY_LARGE}", f"in.({VERY_LARGE})"]),
        ("size", -9223372036854775808, ["eq.-9223372036854775808", "lt.0"]),
        ("code", "ab", ["eq.ab", "like.a*", "ilike.A*", "in.(ab,cd)", "eq(any).{ab}", "match.^a"]),
        ("char", "ab ", ["eq.ab", "in.(ab)"]),
        (ODD, "x", []),
        ("mood", "happy", ["eq.happy", "gt.sad", "in.(happy)"]),
        ("share", 12.25, ["eq.12.25", "lte.100", "in.(12.25)"]),
        ("tags", ["a", 'b,"c"', "é", None], ["cs.{a}", "ov.{a,z}", "not.cd.{a}"]),
        ("doc", {"k": [1, {"x": "y"}], "n": None}, ['cs.{"k":[1]}', 'eq.{"k":[1,{"x":"y"}],"n":null}']),
        ("doc_json", {"b": 1, "a": [2.50]}, ["not.is.null"]),
        ("raw", "\\x00ff10", ["eq.\\x00ff10"]),
        ("span", "[1,5)", ["cs.[3,4)", "sl.[7,9)", "adj.[5,6)", "ov.[4,5)"]),
        ("seen", "2026-01-02T03:04:05.678901+00:00", ["eq.2026-01-02T03:04:05.678901Z", "lt.2027-01-01"]),
        ("words", "'cat' 'fat'", ["fts.cat", "plfts(english).fat cats", "phfts(simple).cat"]),
        ("words", "'cat'", ["wfts.cat or dog"]),
        ("position", {"x": 1, "y": 2}, ["eq.(1,2)"]),
    ],
)  # fmt: skip
def test_a_value_goes_in_comes_out_and_is_found(rest: Rest, column: str, value: object, filters: list[str]):
    (row,) = rest.insert({"name": "it", column: value})
    assert row[column] == value
    for text in filters:
        found = rest.rows("/rest_items", params={column: text, "select": "id"})
        assert found == [{"id": row["id"]}], text
        assert rest.rows("/rest_items", params={column: f"not.{text}".replace("not.not.", "")}) == [], text


def test_json_paths(rest: Rest):
    doc = {"k": [10, {"é": "x"}]}
    rest.insert(
        {"name": "a", "doc": doc, "doc_json": {"n": 1}, "tags": ["p", "q"], "position": {"x": 5}},
        {"name": "b", "doc": {"k": []}, "doc_json": {"n": 2}, "tags": [], "position": {"x": 4}},
    )
    select = "name,doc->k->1->>é,first:doc->k->0,doc_json->n,tags->1,x:position->x"
    rows = rest.rows("/rest_items", params={"select": select, "order": "doc_json->>n"})
    assert rows == [
        {"name": "a", "é": "x", "first": 10, "n": 1, "tags": "q", "x": 5},
        {"name": "b", "é": None, "first": None, "n": 2, "tags": None, "x": 4},
    ]
    for key, value in (
        ("doc->k->0", "eq.10"),
        ("doc->k->1->>é", "eq.x"),
        ("tags->>0", "in.(p)"),
        ("position->x", "gt.4"),
    ):
        assert rest.rows("/rest_items", params={"select": "name", key: value}) == [{"name": "a"}], key


def test_casts(rest: Rest):
    rest.insert({"name": "a", "size": 3, "tags": ["1", "2"]})
    select = "size::text,double:size::double precision,tags::int[],name::public.rest_mood"
    answer = rest.get("/rest_items", params={"select": select})
    assert error_of(answer) == (400, "22P02")
    rows = rest.rows("/rest_items", params={"select": select.rpartition(",")[0]})
    assert rows == [{"size": "3", "double": 3, "tags": [1, 2]}]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"name": "\\u0000"}', "22P05"),
        ('{"name": "\\ud800"}', "22P02"),
        ('{"name": "a", "size": 9223372036854775808}', "22003"),
        ('{"name": "a", "size": ' + "1" * 6000 + "}", "22003"),
        ('{"name": "a", "size": NaN}', "22P02"),
        ('{"name": "a", "code": "123456"}', "22001"),
        ('{"name": "a", "share": 101}', "23514"),
        ('{"name": "a", "mood": "odd"}', "22P02"),
        ('{"name": "a", "twice": 2}', "428C9"),
        ('{"name": "a"', "PGRST102"),
        ('{"name": "a\0"}', "PGRST102"),
        ("[1, 2]", "PGRST102"),
        ("3", "PGRST102"),
    ],
)
def test_a_bad_value_is_refused_and_nothing_is_stored(rest: Rest, body: str, code: str):
    answer = rest.post("/rest_items", content=body.encode(), headers={"Content-Type": "application/json"})
    assert error_of(answer) == (400, code)
    assert rest.rows("/rest_items") == []


def test_a_body_that_is_not_utf8_is_refused(rest: Rest):
    answer = rest.post(
        "/rest_items", content=b'{"name": "\xff"}', headers={"Content-Type": "application/json"}
    )
    assert error_of(answer) == (400, "PGRST102")


def test_a_nul_in_a_filter_is_refused(rest: Rest):
    assert error_of(rest.get("/rest_items?name=eq.a%00b")) == (400, "22021")
    assert error_of(rest.get("/rest_items?name%00=eq.a")) == (400, "PGRST100")
    assert error_of(rest.get("/rest_items%00x")) == (404, "PGRST125")


def test_uneven_filters(rest: Rest):
    rest.insert({"name": "a", "size": 1}, {"name": "b", "size": None})
    names = {"select": "name", "order": "name"}
    assert rest.rows("/rest_items", params=names | {"size": "isdistinct.1"}) == [{"name": "b"}]
    assert rest.rows("/rest_items", params=names | {"size": "is.not_null"}) == [{"name": "a"}]
    assert rest.rows("/rest_items", params=names | {"name": "in.()"}) == []
    assert error_of(rest.get("/rest_items", params={"id": "like.1*"}))[0] in (400, 404)
    assert error_of(rest.get("/rest_items", params={"doc_json": "eq.1"})) == (404, "42883")


def test_at_most_1000_rows_are_answered(rest: Rest):
    answer = rest.get("/rest_many?order=n", headers=prefer("count=exact"))
    assert (answer.status_code, answer.headers["Content-Range"]) == (206, "0-999/2500")
    assert len(answer.json()) == 1000
    rest_of_it = rest.get("/rest_many?order=n&offset=2000&limit=5000", headers=prefer("count=exact"))
    assert rest_of_it.headers["Content-Range"] == "2000-2499/2500"
    assert rest.get("/rest_many?n=gt.3000", headers=prefer("count=exact")).headers["Content-Range"] == "*/0"


def test_insert_of_nothing_but_defaults(rest: Rest):
    (row,) = rest.insert({}, table="rest_keyless")
    assert row == {"n": None}


def test_missing_takes_the_default_only_where_asked(rest: Rest):
    rows = [{"name": "a", "size": 1}, {"name": "b"}, {"name": "c", "size": None}]
    path = "/rest_items?columns=name,size&select=name,size"
    answer = rest.post(path, json=rows, headers=prefer("return=representation", "missing=default"))
    assert [row["size"] for row in answer.json()] == [1, 7, None]
    # An identity's default is its sequence, which takes a right that was not granted.
    ids = rest.post(
        "/rest_items?columns=id,name&select=id", json={"name": "d"}, headers=prefer("missing=default")
    )
    assert error_of(ids) == (403, "42501")


def test_upsert(rest: Rest):
    headers = prefer("return=representation", "resolution=merge-duplicates")
    first = rest.post("/rest_pairs", json=[{"a": 1, "b": 1, "note": "x"}], headers=headers)
    assert (first.status_code, first.json()) == (201, [{"a": 1, "b": 1, "note": "x"}])
    again = rest.post("/rest_pairs", json=[{"a": 1, "b": 1, "note": "y"}], headers=headers)
    assert (again.status_code, again.json()) == (200, [{"a": 1, "b": 1, "note": "y"}])
    mixed = rest.post(
        "/rest_pairs", json=[{"a": 1, "b": 1, "note": "z"}, {"a": 1, "b": 2, "note": "n"}], headers=headers
    )
    assert mixed.status_code == 201
    ignored = rest.post(
        "/rest_pairs",
        json=[{"a": 1, "b": 1, "note": "!"}],
        headers=prefer("return=representation", "resolution=ignore-duplicates"),
    )
    assert (ignored.status_code, ignored.json()) == (201, [])
    twice = rest.post("/rest_pairs", json=[{"a": 9, "b": 9}, {"a": 9, "b": 9}], headers=headers)
    assert error_of(twice) == (500, "21000")
    rest.request("DELETE", "/rest_pairs?a=gt.0")


def test_upsert_on_a_table_without_a_key_is_an_insert(rest: Rest):
    headers = prefer("return=representation", "resolution=merge-duplicates")
    answer = rest.post("/rest_keyless", json={"n": 1}, headers=headers)
    assert (answer.status_code, answer.json()) == (201, [{"n": 1}])
    assert answer.headers["Preference-Applied"] == "return=representation"


def test_put(rest: Rest):
    path, row = "/rest_pairs?a=eq.5&b=eq.6", {"a": 5, "b": 6, "note": "put"}
    made = rest.request("PUT", path, json=row, headers=REPRESENTATION)
    assert (made.status_code, made.json()) == (201, [row])
    again = rest.request("PUT", path, json=row | {"note": "again"}, headers=REPRESENTATION)
    assert (again.status_code, again.json()) == (200, [row | {"note": "again"}])
    assert error_of(rest.request("PUT", path, json=row | {"b": 7})) == (400, "PGRST115")
    assert error_of(rest.request("PUT", "/rest_pairs?a=eq.5", json=row)) == (405, "PGRST105")
    assert [found["note"] for found in rest.rows("/rest_pairs?a=eq.5")] == ["again"]
    assert rest.request("DELETE", path).status_code == 204


def test_location_of_what_was_created(rest: Rest):
    headers = prefer("return=headers-only")
    one = rest.post("/rest_pairs", json={"a": 70, "b": 8}, headers=headers)
    assert (one.status_code, one.headers["Location"], one.content) == (201, "/rest_pairs?a=eq.70&b=eq.8", b"")
    many = rest.post("/rest_pairs", json=[{"a": 71, "b": 1}, {"a": 71, "b": 2}], headers=headers)
    assert many.status_code == 201
    assert "Location" not in many.headers
    rest.request("DELETE", "/rest_pairs?a=gte.70")


def test_what_is_not_as_asked_is_not_done(rest: Rest):
    rest.insert({"name": "a", "size": 1}, {"name": "b", "size": 1})
    single = {"Accept": "application/vnd.pgrst.object+json", **REPRESENTATION}
    assert error_of(rest.request("PATCH", "/rest_items?size=gte.0", json={"size": 2}, headers=single)) == (
        406,
        "PGRST116",
    )
    capped = prefer("handling=strict", "max-affected=1")
    assert error_of(rest.request("DELETE", "/rest_items?size=eq.1", headers=capped)) == (400, "PGRST124")
    unknown = prefer("handling=strict", "tx=rollback")
    assert error_of(rest.request("DELETE", "/rest_items?size=eq.1", headers=unknown)) == (400, "PGRST122")
    assert [row["size"] for row in rest.rows("/rest_items")] == [1, 1]


def test_a_constraint_that_is_checked_at_the_end_is_an_error_too(rest: Rest):
    answer = rest.post("/rest_deferred", json={"id": 1, "other": 2})
    assert error_of(answer) == (409, "23503")
    assert rest.rows("/rest_deferred") == []


def test_counts_of_changes(rest: Rest):
    rest.insert({"name": "a"}, {"name": "b"})
    patched = rest.request("PATCH", "/rest_items?size=eq.7", json={"size": 8}, headers=prefer("count=exact"))
    assert (patched.status_code, patched.headers["Content-Range"]) == (204, "0-1/2")
    deleted = rest.request("DELETE", "/rest_items?size=eq.8", headers=prefer("count=exact"))
    assert (deleted.status_code, deleted.headers["Content-Range"]) == (204, "*/2")


def test_stripped_nulls_and_csv(rest: Rest):
    rest.insert({"name": 'a,"b"', "size": None})
    params = {"select": "name,size,code"}
    stripped = {"Accept": "application/vnd.pgrst.array+json;nulls=stripped"}
    answer = rest.get("/rest_items", params=params, headers=stripped)
    assert answer.json() == [{"name": 'a,"b"'}]
    assert answer.headers["Content-Type"] == "application/vnd.pgrst.array+json;nulls=stripped; charset=utf-8"
    csv = rest.get("/rest_items", params=params, headers={"Accept": "text/csv"})
    assert csv.text == 'name,size,code\n"a,""b""",,'
    assert rest.get("/rest_items?name=eq.zzz", headers={"Accept": "text/csv"}).text == "\n"


def test_aliases_that_are_names_of_our_own(rest: Rest):
    rest.insert({"name": "a", "size": 1})
    rows = rest.rows("/rest_items", params={"select": "t:name,pgrst_source:size,pgrst_t:name,body:size"})
    assert rows == [{"t": "a", "pgrst_source": 1, "pgrst_t": "a", "body": 1}]


def test_what_is_not_supported_says_so(rest: Rest):
    for path in (
        "/rest_items?select=rest_pairs(*)",
        "/rest_items?rest_pairs.a=eq.1",
        "/rest_items?select=...x(a)",
    ):
        answer = rest.get(path)
        assert error_of(answer) == (400, "PGRST127")
        assert answer.json()["details"]
    assert error_of(rest.get("/rest_items", headers=prefer("count=estimated"))) == (400, "PGRST127")
    assert error_of(rest.get("/")) == (404, "PGRST126")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert error_of(rest.post("/rest_items", content=b"name=a", headers=form)) == (400, "PGRST102")


def test_methods_that_are_allowed(rest: Rest):
    allowed = {
        "/rest_pairs": "OPTIONS,GET,HEAD,POST,PUT,PATCH,DELETE",
        "/rest_keyless": "OPTIONS,GET,HEAD,POST,PATCH,DELETE",
        "/rpc/rest_echo": "OPTIONS,GET,HEAD,POST",
        "/rpc/rest_set": "OPTIONS,POST",
    }
    for path, methods in allowed.items():
        assert rest.request("OPTIONS", path).headers["Allow"] == methods
    assert error_of(rest.request("OPTIONS", "/rest_nothing")) == (404, "PGRST205")
    assert error_of(rest.request("OPTIONS", "/rpc/rest_nothing")) == (404, "PGRST202")


def test_row_level_security_hides_and_refuses(rest: Rest, other: Rest, nobody: Rest):
    (row,) = rest.insert({"name": "mine"})
    path = f"/rest_items?id=eq.{row['id']}"
    assert other.rows(path) == []
    assert other.request("PATCH", path, json={"name": "x"}, headers=REPRESENTATION).json() == []
    assert other.request("DELETE", path, headers=REPRESENTATION).json() == []
    assert error_of(other.post("/rest_items", json={"name": "x", "user_id": rest.user_id})) == (403, "42501")
    put = other.request("PUT", path, json={"id": row["id"], "name": "x"})
    assert error_of(put) == (403, "42501")
    assert error_of(nobody.get(path)) == (401, "42501")
    assert rest.rows(path) == [row]


def test_answers_are_json_as_postgresql_writes_it(rest: Rest):
    rest.insert({"name": "a", "doc_json": {"b": 1}}, {"name": "b", "doc_json": None})
    answer = rest.get("/rest_items?select=name&order=name")
    assert answer.text == '[{"name":"a"}, \n {"name":"b"}]'
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert "Content-Profile" not in answer.headers
    profile = rest.get("/rest_items", headers={"Accept-Profile": "public"})
    assert profile.headers["Content-Profile"] == "public"
    assert json.loads(rest.get("/rest_items?select=doc_json&name=eq.a").text) == [{"doc_json": {"b": 1}}]
