"""Requests that are refused before they are looked at: for other hosts, and without the project's key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from embedded.raw import connected, head, port_of

from tensorage.embedded import control

REST = "/rest/v1/rpc/tensorage_version"


#: Names of this machine, by which a browser or a client on it comes here, perhaps through a tunnel.
OWN = ["127.0.0.1", "127.0.0.1:1", "127.9.9.9", "localhost", "LocalHost:65535", "a.b.localhost", "[::1]:80"]

OTHERS = [
    "evil.example",
    "evil.example:54321",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evillocalhost",
    "127.0.0.1@evil.example",
    "evil.example#127.0.0.1",
    "127.0.0.1:80, evil.example",
    "10.0.0.1",
    "0.0.0.0",
    "169.254.169.254",
    "[::]",
    ".localhost",
    "localhost:",
    "",
]


@pytest.fixture(scope="module")
def http(backend: control.Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=backend.api_url) as client:
        yield client


def test_names_of_this_machine(http: httpx.Client) -> None:
    for host in OWN:
        assert http.get("/health", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize("path", ["/health", REST, "/auth/v1/health", "/storage/v1/status", "/nowhere"])
def test_names_of_others(backend: control.Running, http: httpx.Client, path: str) -> None:
    for host in OTHERS:
        fields = {"Host": host, "apikey": backend.service_role_key, "Origin": "http://evil.example"}
        answer = http.get(path, headers=fields)
        assert answer.status_code == 421, host
        assert answer.json()["message"] == "The request is for another host"
        assert "evil" not in answer.text
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("hosts", ["", "Host: 127.0.0.1\r\nHost: evil.example\r\n"])
def test_no_name_or_two(backend: control.Running, hosts: str) -> None:
    with connected(port_of(backend)) as raw:
        raw.send(f"GET /health HTTP/1.1\r\n{hosts}\r\n".encode())
        assert raw.answer().status == 421


def test_no_url_of_another_host_is_given(backend: control.Running) -> None:
    """An upload that begins is told where it goes on."""
    fields = {
        "Authorization": f"Bearer {backend.service_role_key}",
        "Tus-Resumable": "1.0.0",
        "Upload-Length": "1",
        "Upload-Metadata": "bucketName dGVuc29ycw==,objectName YS9i",
    }
    asked = f"{backend.api_url}/storage/v1/upload/resumable"
    good = httpx.post(asked, headers=fields)
    assert good.status_code == 201
    assert good.headers["location"].startswith(asked)
    assert httpx.delete(good.headers["location"], headers=fields).status_code == 204
    bad = httpx.post(asked, headers=fields | {"Host": "evil.example"})
    assert (bad.status_code, bad.headers.get("location")) == (421, None)


@pytest.mark.parametrize("key", [None, "", "nope", "sb_publishable_something"])
def test_rest_wants_the_key_of_the_project(
    backend: control.Running, http: httpx.Client, key: str | None
) -> None:
    """Hosted Supabase's gateway wants it, too, whatever token comes with it."""
    headers = {"Authorization": f"Bearer {backend.service_role_key}"} | (
        {} if key is None else {"apikey": key}
    )
    for path in ("/rest/v1/datasets?limit=0", REST, "/rest/v1/", "/rest/v1/nothing"):
        for method in ("GET", "POST", "OPTIONS"):
            answer = http.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            message = "Invalid API key" if key else "No API key found in request"
            assert (answer.json()["message"], answer.json().keys()) == (message, {"message", "hint"})


def test_the_key_may_be_in_the_url(backend: control.Running, http: httpx.Client) -> None:
    role, columns = backend.service_role_key, "select=key&limit=0"
    for query in (
        f"apikey={role}&{columns}",
        f"{columns}&apikey={role}",
        f"apikey=nope&apikey={role}&{columns}",
    ):
        answer = http.get(f"/rest/v1/datasets?{query}")
        assert (answer.status_code, answer.text) == (200, "[]")
    assert http.get(f"/rest/v1/datasets?{columns}&apikey=nope").status_code == 401
    assert http.get(f"/auth/v1/health?apikey={backend.anon_key}").status_code == 200


def test_storage_and_browsers_questions_want_none(http: httpx.Client) -> None:
    """The gateway leaves Storage to itself: whoever has a signed or a public URL has no key."""
    assert http.get("/storage/v1/status").status_code == 200
    answer = http.get("/storage/v1/object/public/nowhere/x")
    assert (answer.status_code, answer.json()["code"]) == (400, "NoSuchBucket")
    preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    assert http.options(REST, headers=preflight).status_code == 200


def test_who_is_refused_need_not_send_the_rest(backend: control.Running) -> None:
    """Rights come before bodies: the answer is there while nothing of the body is."""
    for path, fields, status in (
        (REST, {}, 401),
        (REST, {"apikey": backend.anon_key, "Authorization": "Bearer a.b.c"}, 401),
        ("/auth/v1/signup", {}, 401),
        ("/auth/v1/user", {"apikey": backend.anon_key}, 401),
        ("/storage/v1/object/tensors/x", {}, 400),
        ("/storage/v1/object/tensors/x", {"Authorization": "Bearer a.b.c"}, 400),
        ("/storage/v1/object/tensors/x", {"Authorization": f"Bearer {backend.anon_key}"}, 400),
        ("/storage/v1/object/list/tensors", {"Authorization": "Bearer a.b.c"}, 400),
    ):
        method = "PUT" if path.endswith("/user") else "POST"
        with connected(port_of(backend)) as raw:
            raw.send(head(method, path, Content_Length=1_000_000, Content_Type="application/json", **fields))
            assert raw.answer().status == status, path


def test_caches_keep_answers_for_the_page_that_asked(http: httpx.Client) -> None:
    """Without an origin an answer says nothing that lets a page read it: a cache must not give it to one."""
    for path in (
        "/storage/v1/status",
        "/storage/v1/object/public/nowhere/x",
        "/auth/v1/health",
        REST,
        "/health",
    ):
        for method in ("GET", "HEAD"):
            answer = http.request(method, path)
            assert answer.headers["vary"] == "Origin", path
            assert "access-control-allow-origin" not in answer.headers
    answer = http.get("/storage/v1/status", headers={"Origin": "http://localhost:3000"})
    assert answer.headers["access-control-allow-origin"] == "*"
