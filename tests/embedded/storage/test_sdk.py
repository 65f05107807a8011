"""The Storage API, as the real SDK sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from embedded.auth.client import Api
from storage3.exceptions import StorageApiError

from supabase import ClientOptions, create_client


@pytest.fixture
def bucket(backend) -> Iterator[tuple[Any, str]]:
    """The bucket as a new user's, and the user's folder."""
    api = Api(backend)
    with api.http, httpx.Client() as http:
        account = api.signup()
        options = ClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
        client = create_client(backend.api_url, backend.anon_key, options)
        client.auth.set_session(account.access_token, account.refresh_token)
        yield client.storage.from_("tensors"), account.id


def test_upload_download_and_overwrite(bucket):
    files, me = bucket
    answer = files.upload(f"{me}/a b+c.txt", b"one", {"content-type": "text/plain", "metadata": {"k": "ü"}})
    assert answer.full_path == f"tensors/{me}/a b+c.txt"
    assert files.download(f"{me}/a b+c.txt") == b"one"
    with pytest.raises(StorageApiError) as caught:
        files.upload(f"{me}/a b+c.txt", b"two")
    assert (caught.value.status, caught.value.code) == ("409", "Duplicate")
    files.upload(f"{me}/a b+c.txt", b"two", {"upsert": "true"})
    assert files.download(f"{me}/a b+c.txt") == b"two"
    files.update(f"{me}/a b+c.txt", b"three")
    assert files.download(f"{me}/a b+c.txt") == b"three"


def test_upload_of_a_file(bucket, tmp_path):
    files, me = bucket
    content = bytes(range(256)) * 20_000
    (tmp_path / "big").write_bytes(content)
    files.upload(f"{me}/big", tmp_path / "big")
    with (tmp_path / "big").open("rb") as file:
        files.upload(f"{me}/again", file)
    assert files.download(f"{me}/big") == files.download(f"{me}/again") == content


def test_info_and_exists(bucket):
    files, me = bucket
    files.upload(
        f"{me}/x", b"12345", {"content-type": "image/png", "cache-control": "60", "metadata": {"k": [1]}}
    )
    info = files.info(f"{me}/x")
    assert (info["size"], info["content_type"], info["cache_control"]) == (5, "image/png", "max-age=60")
    assert info["metadata"] == {"k": [1]}
    assert files.exists(f"{me}/x")
    assert not files.exists(f"{me}/y")


def test_list_move_copy_remove(bucket):
    files, me = bucket
    for name in ("b", "a", "dir/c"):
        files.upload(f"{me}/{name}", name.encode())
    assert [entry["name"] for entry in files.list(me)] == ["a", "b", "dir"]
    page = files.list(me, {"limit": 1, "offset": 1, "sortBy": {"column": "name", "order": "desc"}})
    assert [entry["name"] for entry in page] == ["b"]
    files.move(f"{me}/a", f"{me}/dir/moved")
    files.copy(f"{me}/b", f"{me}/dir/copied")
    assert [entry["name"] for entry in files.list(f"{me}/dir")] == ["c", "copied", "moved"]
    assert files.download(f"{me}/dir/moved") == b"a"
    removed = files.remove([f"{me}/b", f"{me}/dir/moved", f"{me}/nothing"])
    assert {entry["name"] for entry in removed} == {f"{me}/b", f"{me}/dir/moved"}
    assert files.download(f"{me}/dir/copied") == b"b"
    with pytest.raises(StorageApiError) as caught:
        files.download(f"{me}/b")
    assert (caught.value.status, caught.value.code) == ("404", "not_found")


def test_signed_urls(bucket):
    files, me = bucket
    name = f"{me}/q?&=+ x"
    files.upload(name, b"signed")
    url = files.create_signed_url(name, 60)["signedURL"]
    assert httpx.get(url).content == b"signed"
    answers = files.create_signed_urls([name, f"{me}/nothing"], 60)
    assert httpx.get(answers[0]["signedURL"]).content == b"signed"
    assert answers[1]["error"]


def test_signed_upload_urls_are_refused_clearly(bucket):
    files, me = bucket
    with pytest.raises(StorageApiError, match="does not support signed upload URLs"):
        files.create_signed_upload_url(f"{me}/x")
