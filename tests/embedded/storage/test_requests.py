"""Limits of requests: names, limits of buckets, listings; and requests that are not served."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from embedded.storage.client import BUCKET, OCTETS, Files, Storage, refused


@pytest.fixture
def limited(service: Storage) -> Iterator[str]:
    """A bucket that takes text of up to 1000 bytes."""
    name = f"limited-{uuid.uuid4()}"
    body = {"name": name, "file_size_limit": 1000, "allowed_mime_types": ["text/*"]}
    assert service.send("POST", "/bucket", json=body).json() == {"name": name}
    yield name
    service.send("POST", f"/bucket/{name}/empty", json={})
    assert service.send("DELETE", f"/bucket/{name}").status_code == 200


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "a%00b",
            "%C3%BC",
            "a%5Cb",
            "a%25b",
            "%7E",
            "a%22",
            "%2E%2E/x",
            "a/%2E%2E/x",
            "a/%2E/b",
            "x" * 1000,
        ],
    )
    def test_that_are_refused(self, owner: Storage, files: Files, name: str):
        before = files.all()
        path = f"/object/{BUCKET}/{owner.user_id}/{name}"
        for method in ("POST", "PUT"):
            answer = owner.send(method, path, content=b"x", headers=OCTETS)
            refused(answer, 400, "InvalidKey")
        refused(owner.send("GET", path), 404, "NoSuchKey")
        refused(owner.send("DELETE", path), 404, "NoSuchKey")
        assert files.all() == before

    def test_that_no_route_takes(self, owner: Storage):
        for method in ("POST", "PUT", "GET", "DELETE"):
            answer = owner.send(method, f"/object/{BUCKET}/{owner.user_id}/a%0Ab", headers=OCTETS)
            assert answer.status_code == 404, answer.text

    @pytest.mark.parametrize("name", ["../../etc/passwd", "x/../../y", "a\0b", "\ud800", ""])
    def test_that_are_refused_in_bodies(self, owner: Storage, name: str):
        owner.upload("x")
        for how in ("move", "copy"):
            for ends in ((owner.mine("x"), name), (name, owner.mine("y"))):
                keys = {"bucketId": BUCKET, "sourceKey": ends[0], "destinationKey": ends[1]}
                # Written by hand, since no HTTP client sends a lone surrogate.
                body = str(keys).replace("'", '"').replace("\\x00", "\\u0000").encode()
                answer = owner.send(
                    "POST", f"/object/{how}", content=body, headers={"Content-Type": "application/json"}
                )
                assert answer.status_code == 400, answer.text
        assert owner.names() == ["x"]

    def test_the_longest(self, owner: Storage):
        longest = "x" * (1000 - len(owner.user_id) - 1)
        assert owner.upload(longest).status_code == 200
        assert owner.names() == [longest]
        refused(owner.upload(longest + "x"), 400, "InvalidKey")

    @pytest.mark.parametrize("name", ["", "a/b", " a", "a#", "..", "x" * 101, "a\0"])
    def test_of_buckets(self, service: Storage, name: str):
        answer = service.send("POST", "/bucket", json={"name": name})
        assert answer.status_code == 400
        assert answer.json()["code"] in ("InvalidBucketName", "InvalidRequest")


class TestLimits:
    @pytest.mark.parametrize("form", [False, True])
    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("nbytes", [1000, 1001, 5_000_000])
    def test_of_size(
        self, service: Storage, files: Files, limited: str, form: bool, chunked: bool, nbytes: int
    ):
        before, content, headers = files.all(), b"x" * nbytes, {"Content-Type": "text/plain"}
        if form:
            head = b'--b\r\nContent-Disposition: form-data; name=""; filename="f"\r\n'
            head += b"Content-Type: text/plain\r\n\r\n"
            content, headers = (
                head + content + b"\r\n--b--",
                {"Content-Type": "multipart/form-data; boundary=b"},
            )
        body = iter([content]) if chunked else content
        answer = service.send("POST", f"/object/{limited}/x", content=body, headers=headers)
        if nbytes > 1000:
            refused(answer, 413, "EntityTooLarge")
            assert files.all() == before
        else:
            assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize(
        ("mime_type", "taken"),
        [("text/plain", True), ("TEXT/csv; charset=utf-8", True), ("image/png", False), ("text", False)],
    )
    @pytest.mark.parametrize("form", [False, True])
    def test_of_type(
        self, service: Storage, files: Files, limited: str, mime_type: str, taken: bool, form: bool
    ):
        before, path = files.all(), f"/object/{limited}/x"
        if form:
            answer = service.send("POST", path, files={"file": ("f", b"x", mime_type)})
        else:
            answer = service.send("POST", path, content=b"x", headers={"Content-Type": mime_type})
        if taken:
            assert answer.status_code == 200, answer.text
        else:
            refused(answer, 415, "InvalidMimeType")
            assert files.all() == before

    @pytest.mark.parametrize("how", ["move", "copy"])
    def test_hold_for_what_comes_from_another_bucket(self, service: Storage, limited: str, how: str):
        name = str(uuid.uuid4())
        service.send("POST", f"/object/{BUCKET}/{name}", content=b"x", headers={"Content-Type": "image/png"})
        body = {"bucketId": BUCKET, "sourceKey": name, "destinationBucket": limited, "destinationKey": "x"}
        refused(service.send("POST", f"/object/{how}", json=body), 415, "InvalidMimeType")
        service.send(
            "PUT", f"/object/{BUCKET}/{name}", content=b"x" * 2000, headers={"Content-Type": "text/plain"}
        )
        refused(service.send("POST", f"/object/{how}", json=body), 413, "EntityTooLarge")
        service.send("PUT", f"/object/{BUCKET}/{name}", content=b"x", headers={"Content-Type": "text/plain"})
        assert service.send("POST", f"/object/{how}", json=body).status_code == 200
        assert service.send("GET", f"/object/{limited}/x").content == b"x"
        service.send("DELETE", f"/object/{BUCKET}", json={"prefixes": [name]})


class TestBuckets:
    def test_public_ones_are_open_to_read(
        self, service: Storage, owner: Storage, anon: Storage, limited: str
    ):
        service.send("POST", f"/object/{limited}/x", content=b"x", headers={"Content-Type": "text/plain"})
        path = f"{limited}/x"
        for route in ("", "public/", "info/public/"):
            refused(
                anon.send("GET", f"/object/{route}{path}"), 404, "NoSuchKey" if not route else "NoSuchBucket"
            )
        service.send("PUT", f"/bucket/{limited}", json={"public": True})
        bare = f"{anon.running.api_url}/storage/v1/object"
        assert anon.http.get(f"{bare}/public/{path}").content == b"x"
        assert anon.http.get(f"{bare}/{path}").content == b"x"
        assert owner.send("GET", f"/object/{path}").content == b"x"
        answer = anon.http.get(f"{bare}/public/{path}", params={"download": "a ü.txt"})
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20%C3%BC.txt"
        # To read, and to nothing else.
        text = {"Content-Type": "text/plain"}
        refused(owner.send("PUT", f"/object/{path}", content=b"", headers=text), 403, "AccessDenied")
        refused(owner.send("DELETE", f"/object/{path}"), 403, "AccessDenied")
        assert owner.send("POST", f"/object/list/{limited}", json={"prefix": ""}).json() == []

    def test_emptying_deletes_the_files(self, service: Storage, files: Files, limited: str):
        before = files.all()
        for n in range(5):
            service.send(
                "POST", f"/object/{limited}/{n}", content=b"x", headers={"Content-Type": "text/plain"}
            )
        assert len(files.all() - before) == 5
        refused(service.send("DELETE", f"/bucket/{limited}"), 409, "ResourceNotEmpty")
        assert service.send("POST", f"/bucket/{limited}/empty", json={}).status_code == 200
        assert files.all() == before

    def test_limits_are_written_as_text_and_taken_away(self, service: Storage, limited: str):
        def limits() -> tuple[object, object]:
            bucket = service.send("GET", f"/bucket/{limited}").json()
            return bucket["file_size_limit"], bucket["allowed_mime_types"]

        service.send("PUT", f"/bucket/{limited}", json={"file_size_limit": "2MB"})
        assert limits() == (2 << 20, ["text/*"])
        service.send("PUT", f"/bucket/{limited}", json={"file_size_limit": None, "allowed_mime_types": None})
        assert limits() == (None, None)
        for bad in (-1, "many", 1.5, True, [1], 2**70):
            answer = service.send("PUT", f"/bucket/{limited}", json={"file_size_limit": bad})
            refused(answer, 400, "InvalidRequest")


class TestListing:
    def test_ignores_case_and_folds_folders(self, owner: Storage):
        for name in ("b", "A", "Dir/x", "dir/y", "c_1", "cx1"):
            assert owner.upload(name).status_code == 200
        assert owner.names() == ["A", "b", "c_1", "cx1", "Dir"]
        assert owner.names("DIR") == ["x", "y"]
        assert owner.names(search="c_") == ["c_1"]
        assert owner.names(sortBy={"column": "created_at", "order": "desc"})[:2] == ["Dir", "cx1"]

    def test_pages_meet(self, owner: Storage):
        names = [f"{n:03}" for n in range(105)]
        for name in names:
            assert owner.upload(name, b"").status_code == 200
        assert owner.names() == names[:100]
        assert owner.names(offset=100) == names[100:]

    @pytest.mark.parametrize(
        "more",
        [
            {"limit": "x"},
            {"offset": -1},
            {"sortBy": {"column": "name; drop table storage.objects"}},
            {"sortBy": {"order": "sideways"}},
            {"sortBy": 1},
            {"search": "\0"},
            {"limit": 2**64},
        ],
    )
    def test_bad_options(self, owner: Storage, more: dict[str, object]):
        answer = owner.send("POST", f"/object/list/{BUCKET}", json={"prefix": "", **more})
        refused(answer, 400, "InvalidRequest")


class TestBodies:
    @pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"{", b"", b"\xff", b"[" * 100_000])
    def test_that_are_no_object(self, owner: Storage, body: bytes):
        answer = owner.send(
            "POST", f"/object/list/{BUCKET}", content=body, headers={"Content-Type": "application/json"}
        )
        refused(answer, 400, "InvalidRequest")

    def test_that_are_too_large(self, owner: Storage):
        body = {"prefixes": ["x" * (2 << 20)]}
        refused(owner.send("DELETE", f"/object/{BUCKET}", json=body), 413, "EntityTooLarge")

    def test_removing_too_many_at_once(self, owner: Storage):
        refused(owner.remove(*map(str, range(1001))), 400, "InvalidRequest")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/upload/resumable/sign"),
        ("PATCH", "/upload/resumable/sign/abc"),
        ("GET", "/render/image/authenticated/tensors/x"),
        ("PUT", "/s3/tensors/x"),
        ("POST", "/object/upload/sign/tensors/x"),
        ("POST", "/object/list-v2/tensors"),
    ],
)
def test_what_is_not_served_says_so(owner: Storage, method: str, path: str):
    answer = owner.send(method, path)
    refused(answer, 501, "NotImplemented", http_status=501)
    assert "does not support" in answer.json()["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", "/object/tensors/x"), ("GET", "/"), ("PUT", "/bucket")]
)
def test_other_routes_do_not_exist(owner: Storage, method: str, path: str):
    answer = owner.send(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"] == "Not Found"


def test_an_upload_begins_only_where_it_may_end(owner: Storage, other: Storage, files: Files):
    """No byte is received from whoever may not store it."""
    before = files.all()

    def body() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 20)
            assert files.all() == before

    path = f"/object/{BUCKET}/{owner.mine('x')}"
    refused(other.send("POST", path, content=body(), headers=OCTETS), 403, "AccessDenied")


class TestBounds:
    def test_the_life_of_a_signed_url(self, owner: Storage):
        assert owner.upload("a").status_code == 200
        longest = 10 * 365 * 86_400
        for path, more in ((f"/{owner.mine('a')}", {}), ("", {"paths": [owner.mine("a")]})):
            asked = f"/object/sign/{BUCKET}{path}"
            for seconds in (1, longest):
                assert owner.send("POST", asked, json={"expiresIn": seconds, **more}).status_code == 200
            for seconds in (longest + 1, 10**15, str(longest + 1)):
                answer = owner.send("POST", asked, json={"expiresIn": seconds, **more})
                refused(answer, 400, "InvalidRequest")
                assert answer.json()["message"] == f"body/expiresIn must be <= {longest}"

    def test_lists_in_lists(self, owner: Storage):
        body = b'{"prefix": "", "x": [' + b"[]," * 100_000 + b"[]]}"
        answer = owner.send(
            "POST", f"/object/list/{BUCKET}", content=body, headers={"Content-Type": "application/json"}
        )
        refused(answer, 400, "InvalidRequest")
        assert "more than 100 objects and arrays" in answer.json()["message"]

    def test_the_headers_of_a_forms_parts(self, owner: Storage, files: Files):
        before = files.all()
        for part in (b"X-Long: " + b"x" * 100_000, b"\r\n".join(b"X-%d: x" % n for n in range(20_000))):
            body = (
                b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n'
                + part
                + b"\r\n\r\nx\r\n--b--"
            )
            answer = owner.upload("form", body, Content_Type="multipart/form-data; boundary=b")
            refused(answer, 400, "InvalidRequest")
        assert files.all() == before
