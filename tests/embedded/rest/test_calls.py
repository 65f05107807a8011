"""Calling functions over HTTP: which one is meant, what it is given, what comes back."""

from __future__ import annotations

import hashlib
import os
import socket
from urllib.parse import urlsplit

import psycopg
import pytest
from embedded.rest.client import Rest, error_of

OCTETS = {"Content-Type": "application/octet-stream"}
OWN = {"Accept": "application/vnd.rest-test"}


def test_text_of_any_kind_is_what_comes_back(rest: Rest):
    texts = ["", "日本語 🎈", "'; drop table rest_items; --", "\\", '"', "%00", "\u2028", "a" * 100_000]
    for text in texts:
        assert rest.call("rest_echo", v=text) == text
        assert rest.get("/rpc/rest_echo", params={"v": text[:1000]}).json() == text[:1000]


def test_a_whole_body_to_an_unnamed_parameter(rest: Rest):
    for value in ({"a": [1, None]}, [1, 2], "text", 5, {}):
        assert rest.post("/rpc/rest_echo_json", json=value).json() == value
    assert rest.post("/rpc/rest_echo_json", content=b"null").json() is None
    answer = rest.post(
        "/rpc/rest_echo_text", content="naïve".encode(), headers={"Content-Type": "text/plain"}
    )
    assert answer.json() == "naïve"
    broken = rest.post("/rpc/rest_echo_text", content=b"\xff", headers={"Content-Type": "text/plain"})
    assert error_of(broken) == (400, "PGRST102")
    unknown = rest.post("/rpc/rest_echo_text", content=b"x", headers={"Content-Type": "text/x-unknown"})
    assert error_of(unknown) == (400, "PGRST102")


def test_bytes_in_and_out_are_the_same_bytes(rest: Rest):
    for nbytes in (0, 1, 65535, 65536, 65537, 5 * 2**20):
        body = os.urandom(nbytes)
        answer = rest.post("/rpc/rest_echo_bytes", content=body, headers=OCTETS | OWN)
        assert answer.headers["Content-Type"] == "application/vnd.rest-test"
        assert hashlib.sha256(answer.content).digest() == hashlib.sha256(body).digest()
        assert int(answer.headers["Content-Length"]) == nbytes


def test_a_chunked_body_is_taken_too(rest: Rest):
    pieces = [os.urandom(1 + 3000 * n) for n in range(30)]
    answer = rest.post("/rpc/rest_echo_bytes", content=iter(pieces), headers=OCTETS | OWN)
    assert answer.content == b"".join(pieces)


def test_bytes_as_json_and_what_cannot_be_had(rest: Rest):
    assert rest.post("/rpc/rest_echo_bytes", content=b"\x00\xff", headers=OCTETS).json() == "\\x00ff"
    wanted = {"Accept": "application/octet-stream"}
    assert error_of(rest.post("/rpc/rest_bytes", json={"n": 16}, headers=wanted)) == (406, "PGRST107")
    assert error_of(rest.post("/rpc/rest_echo_bytes?a=1", content=b"", headers=OCTETS)) == (400, "PGRST100")
    head = rest.request("HEAD", "/rpc/rest_bytes?n=160", headers=OWN)
    assert (head.status_code, head.content, head.headers["Content-Type"]) == (200, b"", OWN["Accept"])


def test_text_with_a_media_type_of_its_own(rest: Rest):
    answer = rest.get("/rpc/rest_text", headers={"Accept": "text/x-rest-test"})
    assert answer.content == "naïve".encode()


def test_a_client_that_goes_away_while_it_sends_has_called_nothing(rest: Rest, database: psycopg.Connection):
    url = urlsplit(str(rest.http.base_url))
    count = "select count(*) from public.rest_calls"
    (before,) = database.execute(count).fetchone()
    head = (
        f"POST {url.path}rpc/rest_record HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Authorization: Bearer {rest.token}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {2**20}\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(head.encode() + bytes(2**19))
    # Whole requests afterwards are counted: by the last of them, the other would have been too.
    for _ in range(50):
        assert rest.post("/rpc/rest_record", content=b"abc", headers=OCTETS).json() == 3
    assert database.execute(count).fetchone() == (before + 50,)


def test_overloads(rest: Rest):
    assert rest.call("rest_same", a=1) == "a"
    assert rest.call("rest_same", a=1, b=2) == "a, b"
    assert error_of(rest.post("/rpc/rest_same", json={"b": 1})) == (404, "PGRST202")
    assert error_of(rest.post("/rpc/rest_unclear", json={"a": 1})) == (300, "PGRST203")


def test_variadic_arguments(rest: Rest):
    assert rest.call("rest_sum", v=[1, 2, 3]) == 6
    assert rest.get("/rpc/rest_sum?v=1&v=2").json() == 3
    assert rest.get("/rpc/rest_sum?v=1").json() == 1


def test_sets_and_rows(rest: Rest):
    assert rest.call("rest_numbers") == [1, 2, 3]
    assert rest.get("/rpc/rest_numbers?up_to=2").json() == [1, 2]
    assert len(rest.call("rest_numbers", up_to=2500)) == 1000
    assert rest.call("rest_one") == {"n": 1, "label": "one"}
    assert rest.call("rest_table", up_to=0) == []
    answer = rest.post(
        "/rpc/rest_table?select=label,m:n&n=gte.2&order=n.desc&limit=2",
        json={"up_to": 5},
        headers={"Prefer": "count=exact"},
    )
    assert answer.json() == [{"label": "n5", "m": 5}, {"label": "n4", "m": 4}]
    assert (answer.status_code, answer.headers["Content-Range"]) == (206, "0-1/4")
    csv = rest.post("/rpc/rest_table", json={"up_to": 2}, headers={"Accept": "text/csv"})
    assert csv.text == "n,label\n1,n1\n2,n2"
    single = {"Accept": "application/vnd.pgrst.object+json"}
    assert rest.post("/rpc/rest_table", json={"up_to": 1}, headers=single).json() == {"n": 1, "label": "n1"}
    assert error_of(rest.post("/rpc/rest_table", json={"up_to": 2}, headers=single)) == (406, "PGRST116")
    assert error_of(rest.get("/rpc/rest_table?up_to=1&nope=eq.1")) == (400, "42703")


def test_rows_of_a_table_that_is_the_callers(rest: Rest, other: Rest):
    rest.insert({"name": "a", "size": 1}, {"name": "b", "size": 2})
    assert rest.get("/rpc/rest_mine?select=name&size=gt.1").json() == [{"name": "b"}]
    assert other.get("/rpc/rest_mine").json() == []


def test_plain_values_cannot_be_shaped(rest: Rest):
    for path in ("/rpc/rest_echo?v=x&select=a", "/rpc/rest_echo?v=x&a=eq.1", "/rpc/rest_numbers?order=a"):
        assert error_of(rest.get(path)) == (400, "PGRST127")
    strict = {"Prefer": "handling=strict, max-affected=1"}
    assert error_of(rest.post("/rpc/rest_echo", json={"v": ""}, headers=strict)) == (400, "PGRST128")


def test_an_array_gives_the_arguments_of_its_first_object(rest: Rest):
    assert rest.post("/rpc/rest_echo", json=[{"v": "first"}, {"v": "second"}]).json() == "first"
    assert rest.post("/rpc/rest_echo?columns=v", json={"v": "a", "more": 1}).json() == "a"


def test_functions_that_promise_not_to_write_cannot(rest: Rest):
    assert rest.call("rest_settings")["read_only"] == "on"
    assert rest.call("rest_settings_volatile")["read_only"] == "off"


def test_what_a_function_can_know_of_the_request(rest: Rest):
    headers = {"X-Own": "ü 'q' \\".encode("latin-1")}
    answer = rest.post("/rpc/rest_settings", json={}, headers=headers)
    seen = answer.json()
    assert (seen["method"], seen["path"]) == ("POST", "/rpc/rest_settings")
    assert seen["headers"]["x-own"] == "ü 'q' \\"
    assert seen["search_path"] == '"public", "extensions"'
    assert seen["claims"]["sub"] == seen["sub"] == rest.user_id
    assert "authorization" not in seen["headers"]
    assert "apikey" not in seen["headers"]


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("response.status", "abc", (500, "PGRST112")),
        ("response.status", "99", (500, "PGRST112")),
        ("response.headers", "not json", (500, "PGRST111")),
        ("response.headers", '{"a": "b"}', (500, "PGRST111")),
        ("response.headers", '[{"a": "b", "c": "d"}]', (500, "PGRST111")),
        ("response.headers", '[{"a": 1}]', (500, "PGRST111")),
        ("response.headers", '[{"a": "b\\r\\nSet-Cookie: c=d"}]', (500, "PGRST111")),
        ("response.headers", '[{"a b": "c"}]', (500, "PGRST111")),
        ("response.headers", '[{"Content-Length": "1"}]', (500, "PGRST111")),
    ],
)
def test_an_impossible_answer_is_an_error(rest: Rest, name: str, value: str, answer: tuple[int, str]):
    assert error_of(rest.post("/rpc/rest_set", json={"name": name, "value": value})) == answer


def test_an_answer_of_the_functions_own(rest: Rest):
    answer = rest.post("/rpc/rest_own_answer", json={})
    assert error_of(answer) == (418, "T0001")
    assert answer.headers["X-Tea"] == "none"
    assert answer.json() == {"code": "T0001", "message": "no tea", "details": "kettle", "hint": "milk"}


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ("not json", "{}"),
        ('{"code": "X", "message": "m"}', None),
        ('{"code": "X", "message": "m"}', '{"status": 99, "headers": {}}'),
        ('{"code": "X", "message": "m"}', '{"status": 400}'),
        ('{"code": "X\\r\\nSet-Cookie: a=b", "message": "m"}', '{"status": 400, "headers": {}}'),
        ('{"code": "X", "message": "m"}', '{"status": 400, "headers": {"A": "b\\r\\nC: d"}}'),
        ('{"code": "X", "message": "m"}', '{"status": 400, "headers": {"Content-Length": "0"}}'),
    ],
)
def test_an_impossible_answer_of_the_functions_own_is_an_error(rest: Rest, message: str, detail: str | None):
    answer = rest.post("/rpc/rest_raise", json={"message": message, "detail": detail})
    assert error_of(answer) == (500, "PGRST121")


def test_a_connection_outlives_a_body_that_nobody_wanted(rest: Rest):
    for path, status in (
        ("/rpc/rest_nothing", 404),
        ("/rpc/rest_echo_bytes?a=1", 400),
        ("/rest_nothing", 404),
    ):
        assert rest.post(path, content=bytes(5 * 2**20), headers=OCTETS).status_code == status
        assert rest.call("rest_echo", v="ok") == "ok"
