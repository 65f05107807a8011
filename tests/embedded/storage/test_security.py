"""Nobody reaches another user's objects, by any call."""

from __future__ import annotations

import time
from typing import Any

import jwt
import psycopg
import pytest
from embedded.storage.client import BUCKET, OCTETS, Storage, refused

SECRET = b"only mine"


@pytest.fixture
def name(owner: Storage) -> str:
    """Full name of an object of the owner's."""
    assert owner.upload("dir/secret", SECRET).status_code == 200
    return owner.mine("dir/secret")


@pytest.fixture(params=["other", "anon"])
def stranger(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def unchanged(owner: Storage, name: str, database: psycopg.Connection[tuple[Any, ...]]):
    """Check that the owner's object is as it was, whatever was tried."""
    rows = "select name, version, metadata, owner_id from storage.objects where name like %s"
    before = database.execute(rows, [f"{owner.user_id}%"]).fetchall()
    yield
    assert database.execute(rows, [f"{owner.user_id}%"]).fetchall() == before
    assert owner.download("dir/secret").content == SECRET


def mine(stranger: Storage, name: str = "m") -> str:
    return stranger.mine(name)


@pytest.mark.parametrize("prefix", ["", "<owner>", "<owner>/dir", "<owner>/dir/", "<owner>/dir/sec"])
@pytest.mark.parametrize("search", ["", "secret", "%", "dir"])
def test_cannot_list(stranger: Storage, owner: Storage, prefix: str, search: str):
    body = {"prefix": prefix.replace("<owner>", owner.user_id), "search": search}
    answer = stranger.send("POST", f"/object/list/{BUCKET}", json=body)
    assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("route", ["", "authenticated/", "public/", "info/", "info/authenticated/"])
def test_cannot_read(stranger: Storage, name: str, route: str, method: str):
    answer = stranger.send(method, f"/object/{route}{BUCKET}/{name}")
    assert answer.status_code == 400
    assert SECRET not in answer.content
    assert "etag" not in answer.headers


def test_cannot_read_a_part(stranger: Storage, name: str):
    refused(
        stranger.send("GET", f"/object/{BUCKET}/{name}", headers={"Range": "bytes=0-0"}), 404, "NoSuchKey"
    )


@pytest.mark.parametrize(("method", "upsert"), [("POST", "false"), ("POST", "true"), ("PUT", "false")])
@pytest.mark.parametrize("place", ["dir/secret", "dir/new", "new"])
def test_cannot_write(stranger: Storage, owner: Storage, method: str, upsert: str, place: str):
    headers = OCTETS | {"x-upsert": upsert}
    path = f"/object/{BUCKET}/{owner.mine(place)}"
    refused(stranger.send(method, path, content=b"evil", headers=headers), 403, "AccessDenied")
    form = {"file": ("f", b"evil", "text/plain")}
    answer = stranger.send(method, path, files=form, headers={"x-upsert": upsert})
    refused(answer, 403, "AccessDenied")


@pytest.mark.parametrize("how", ["move", "copy"])
@pytest.mark.parametrize("upsert", ["false", "true"])
def test_cannot_take(stranger: Storage, name: str, how: str, upsert: str):
    ends = {"bucketId": BUCKET, "sourceKey": name, "destinationKey": mine(stranger)}
    answer = stranger.send("POST", f"/object/{how}", json=ends, headers={"x-upsert": upsert})
    refused(answer, 404, "NoSuchKey")


@pytest.mark.parametrize("how", ["move", "copy"])
@pytest.mark.parametrize("upsert", ["false", "true"])
@pytest.mark.parametrize("place", ["dir/secret", "new"])
def test_cannot_put_their_own_there(other: Storage, owner: Storage, how: str, upsert: str, place: str):
    assert other.upload("m", b"evil").status_code == 200
    ends = {"bucketId": BUCKET, "sourceKey": mine(other), "destinationKey": owner.mine(place)}
    answer = other.send("POST", f"/object/{how}", json=ends, headers={"x-upsert": upsert})
    refused(answer, 403, "AccessDenied")
    assert other.download("m").content == b"evil"


def test_cannot_sign(stranger: Storage, name: str):
    answer = stranger.send("POST", f"/object/sign/{BUCKET}/{name}", json={"expiresIn": 60})
    refused(answer, 404, "NoSuchKey")
    answer = stranger.send("POST", f"/object/sign/{BUCKET}", json={"expiresIn": 60, "paths": [name]})
    assert [entry["signedURL"] for entry in answer.json()] == [None]


def test_cannot_remove(stranger: Storage, name: str):
    answer = stranger.send("DELETE", f"/object/{BUCKET}", json={"prefixes": [name]})
    assert (answer.status_code, answer.json()) == (200, [])
    refused(stranger.send("DELETE", f"/object/{BUCKET}/{name}"), 403, "AccessDenied")
    refused(stranger.send("POST", f"/bucket/{BUCKET}/empty", json={}), 404, "NoSuchBucket")
    refused(stranger.send("DELETE", f"/bucket/{BUCKET}"), 404, "NoSuchBucket")


def test_cannot_open_the_bucket(stranger: Storage):
    answer = stranger.send("PUT", f"/bucket/{BUCKET}", json={"public": True})
    refused(answer, 404, "NoSuchBucket")


@pytest.mark.parametrize("token", ["user", "made", "other object", "expired", "no end"])
def test_a_signed_url_opens_one_object(other: Storage, owner: Storage, name: str, token: str):
    now, url = int(time.time()), f"{BUCKET}/{name}"
    secret = owner.running.jwt_secret
    tokens = {
        "user": other.token,
        "made": jwt.encode({"url": url, "exp": now + 60}, "x" * 40, algorithm="HS256"),
        "other object": jwt.encode({"url": url + "x", "exp": now + 60}, secret, algorithm="HS256"),
        "expired": jwt.encode({"url": url, "exp": now - 5}, secret, algorithm="HS256"),
        "no end": jwt.encode({"url": url}, secret, algorithm="HS256"),
    }
    answer = other.send("GET", f"/object/sign/{url}", params={"token": tokens[token]})
    assert answer.status_code == 400
    assert answer.json()["code"] in ("InvalidJWT", "InvalidSignature")


def test_the_token_of_a_signed_url_is_no_login(owner: Storage, name: str):
    signed = owner.send("POST", f"/object/sign/{BUCKET}/{name}", json={"expiresIn": 60}).json()["signedURL"]
    thief = Storage(owner.http, owner.running, token=signed.partition("token=")[2])
    refused(thief.send("GET", f"/object/{BUCKET}/{name}"), 404, "NoSuchKey")


def test_a_role_that_does_not_exist(owner: Storage, name: str):
    claims = {"sub": owner.user_id, "role": "nobody_here", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, owner.running.jwt_secret, algorithm="HS256")
    stranger = Storage(owner.http, owner.running, token=token)
    refused(stranger.send("GET", f"/object/{BUCKET}/{name}"), 403, "AccessDenied")


def test_a_role_that_the_authenticator_may_not_take(owner: Storage, name: str):
    claims = {"sub": owner.user_id, "role": "supabase_storage_admin", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, owner.running.jwt_secret, algorithm="HS256")
    stranger = Storage(owner.http, owner.running, token=token)
    refused(stranger.send("GET", f"/object/{BUCKET}/{name}"), 403, "AccessDenied")
