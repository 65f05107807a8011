"""Resumable uploads: they go on where they stopped, for their sender alone, and end as objects or not at all."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
import pytest
import servers
from embedded.storage.client import BUCKET, Files, Storage, refused

from tensorage.embedded import control

MIB = 1 << 20
PATH = "/upload/resumable"
TUS = {"Tus-Resumable": "1.0.0"}
OFFSET = {"Content-Type": "application/offset+octet-stream"}
CONTENT = bytes(range(256)) * 40_000  # 10 MB

Sql = psycopg.Connection[tuple[Any, ...]]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def metadata(**pairs: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in pairs.items())


@dataclass
class Upload:
    """A resumable upload as its sender, or somebody else, sees it."""

    storage: Storage
    path: str
    upsert: str = "false"

    def send(self, method: str, **more: Any) -> httpx.Response:
        headers = TUS | {"x-upsert": self.upsert} | more.pop("headers", {})
        return self.storage.send(method, self.path, headers=headers, **more)

    def head(self) -> httpx.Response:
        return self.send("HEAD")

    def offset(self) -> int:
        answer = self.head()
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        return int(answer.headers["upload-offset"])

    def patch(self, offset: int, content: Any, **headers: str) -> httpx.Response:
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.send("PATCH", content=content, headers=OFFSET | {"Upload-Offset": str(offset)} | headers)

    def as_other(self, other: Storage) -> Upload:
        return Upload(other, self.path, self.upsert)


def post(
    storage: Storage, name: str, size: int = len(CONTENT), *, bucket: str = BUCKET, **more: Any
) -> httpx.Response:
    pairs = {"bucketName": bucket, "objectName": storage.mine(name)} | more.pop("pairs", {})
    headers = TUS | {"Upload-Length": str(size), "Upload-Metadata": metadata(**pairs)}
    return storage.send("POST", PATH, headers=headers | more.pop("headers", {}), **more)


def begin(
    storage: Storage, name: str, size: int = len(CONTENT), upsert: str = "false", **more: Any
) -> Upload:
    headers = {"x-upsert": upsert} | more.pop("headers", {})
    answer = post(storage, name, size, headers=headers, **more)
    assert answer.status_code == 201, answer.text
    location = answer.headers["location"]
    root = f"{storage.running.api_url}/storage/v1"
    assert location.startswith(f"{root}{PATH}/")
    return Upload(storage, location.removeprefix(root), upsert)


def said(answer: httpx.Response, status: int) -> None:
    """An error of TUS: its true status, and words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert answer.headers["content-type"].startswith("text/plain")
    if answer.request.method != "HEAD":
        assert answer.text
        assert not answer.text.startswith("{")


def begin_patch(upload: Upload, offset: int, nbytes: int, content: bytes) -> socket.socket:
    """Connect, and send the head of a piece and the beginning of it."""
    url = urlsplit(upload.storage.running.api_url)
    sending = socket.create_connection((url.hostname, url.port), timeout=60)
    headers = TUS | OFFSET | {"Upload-Offset": str(offset), "Content-Length": str(nbytes), "Host": url.netloc}
    headers["Authorization"] = f"Bearer {upload.storage.token}"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sending.sendall(f"PATCH /storage/v1{upload.path} HTTP/1.1\r\n{head}\r\n".encode() + content)
    return sending


def content_file(files: Files, upload: Upload) -> Path:
    return files.path / "resumable" / upload.path.rpartition("/")[2] / "content"


@pytest.fixture
def separate(tmp_path: Path) -> Iterator[control.Running]:
    """A backend of the test's own, which it may harm."""
    yield servers.start(tmp_path / "data")
    control.stop(tmp_path / "data")


class TestUploading:
    def test_in_pieces(self, owner: Storage):
        pairs = {"contentType": "text/x-test", "cacheControl": "60", "metadata": '{"k": 1}'}
        upload = begin(owner, "x", pairs=pairs)
        for low in range(0, len(CONTENT), 3_000_000):
            assert upload.offset() == low
            piece = CONTENT[low : low + 3_000_000]
            answer = upload.patch(low, piece)
            assert answer.status_code == 204, answer.text
            assert int(answer.headers["upload-offset"]) == low + len(piece)
            finished = low + len(piece) == len(CONTENT)
            assert ("tus-complete" in answer.headers, "upload-expires" in answer.headers) == (
                finished,
                not finished,
            )
            assert owner.names() == (["x"] if finished else [])
        answer = owner.download("x")
        assert answer.content == CONTENT
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == (
            "text/x-test",
            "max-age=60",
        )
        assert answer.headers["etag"].strip('"')
        info = owner.send("GET", f"/object/info/{BUCKET}/{owner.mine('x')}").json()
        assert (info["metadata"], info["size"]) == ({"k": 1}, len(CONTENT))
        assert owner.download("x", Range="bytes=2999999-3000000").content == CONTENT[2_999_999:3_000_001]

    def test_with_the_first_piece_at_once(self, owner: Storage):
        answer = post(owner, "x", content=CONTENT[:1000], headers=OFFSET)
        assert (answer.status_code, answer.headers["upload-offset"]) == (201, "1000")
        answer = post(owner, "whole", content=CONTENT, headers=OFFSET)
        assert (answer.status_code, answer.headers["tus-complete"]) == (201, "1")
        assert owner.download("whole").content == CONTENT

    def test_of_nothing(self, owner: Storage):
        answer = post(owner, "x", 0)
        assert (answer.status_code, answer.headers["tus-complete"]) == (201, "1")
        assert owner.download("x").content == b""

    def test_by_chunks(self, owner: Storage):
        upload = begin(owner, "x")
        assert upload.patch(0, iter([CONTENT[:5], b"", CONTENT[5:]])).status_code == 204
        assert owner.download("x").content == CONTENT

    def test_says_what_it_was_told(self, owner: Storage):
        upload = begin(owner, "x", 12345)
        headers = upload.head().headers
        assert headers["upload-length"] == "12345"
        assert headers["upload-metadata"] == metadata(bucketName=BUCKET, objectName=owner.mine("x"))

    def test_leaves_one_file_of_the_object(self, owner: Storage, files: Files, database: Sql):
        upload = begin(owner, "x")
        assert upload.patch(0, CONTENT).status_code == 204
        row = database.execute(
            "select version from storage.objects where name = %s", [owner.mine("x")]
        ).fetchone()
        assert row is not None
        assert files.of(row[0]).stat().st_nlink == 1
        assert not content_file(files, upload).exists()
        assert f"pending/{row[0]}" not in files.all()

    def test_capabilities(self, owner: Storage):
        for path in (PATH, f"{PATH}/x"):
            answer = httpx.options(f"{owner.running.api_url}/storage/v1{path}")
            assert (answer.status_code, answer.headers["tus-version"]) == (204, "1.0.0")
            assert {"creation", "termination", "expiration"} <= set(
                answer.headers["tus-extension"].split(",")
            )


class TestUpsert:
    def test_replaces(self, owner: Storage, files: Files):
        owner.upload("x", b"old")
        before = {name for name in files.all() if name.startswith("objects/")}
        assert begin(owner, "x", upsert="true").patch(0, CONTENT).status_code == 204
        assert owner.download("x").content == CONTENT
        assert len({name for name in files.all() if name.startswith("objects/")}) == len(before)

    def test_is_refused_at_the_beginning(self, owner: Storage):
        owner.upload("x", b"old")
        said(post(owner, "x"), 409)

    def test_is_refused_at_the_end(self, owner: Storage):
        upload = begin(owner, "x")
        assert upload.patch(0, CONTENT[:1000]).status_code == 204
        owner.upload("x", b"somebody was faster")
        said(upload.patch(1000, CONTENT[1000:]), 409)
        assert owner.download("x").content == b"somebody was faster"
        # An upload that is not stored is not finished: the last piece can come again.
        assert upload.offset() == 1000
        upload.upsert = "true"
        assert upload.patch(1000, CONTENT[1000:]).status_code == 204
        assert owner.download("x").content == CONTENT


class TestRefusals:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Tus-Resumable": ""}, 400),
            ({"Tus-Resumable": "0.2.2"}, 400),
            ({"Upload-Length": "-1"}, 400),
            ({"Upload-Length": "1e3"}, 400),
            ({"Upload-Length": "9" * 30}, 400),
            ({"Upload-Defer-Length": "1"}, 501),
            ({"Upload-Concat": "partial"}, 501),
            ({"Upload-Metadata": ""}, 400),
            ({"Upload-Metadata": "bucketName !"}, 400),
            ({"Upload-Metadata": "bucketName YQ==,bucketName YQ=="}, 400),
            ({"Upload-Metadata": "bucketName /w=="}, 400),
            ({"Upload-Metadata": metadata(objectName="x")}, 404),
            ({"Upload-Metadata": metadata(bucketName="none", objectName="x")}, 404),
            ({"Upload-Metadata": metadata(bucketName=BUCKET)}, 400),
            ({"Upload-Metadata": metadata(bucketName=BUCKET, objectName="../x")}, 400),
            ({"Upload-Metadata": metadata(bucketName="a\0", objectName="x")}, 400),
            ({"Upload-Metadata": "bucketName " + "YWFh" * 5000}, 400),
        ],
    )
    def test_of_what_cannot_begin(self, owner: Storage, files: Files, headers: dict[str, str], status: int):
        before = files.all()
        said(post(owner, "x", headers=headers), status)
        assert files.all() == before

    def test_without_the_headers(self, owner: Storage):
        said(owner.send("POST", PATH), 412)
        said(owner.send("POST", PATH, headers=TUS), 400)
        said(owner.send("POST", PATH, headers=TUS | {"Upload-Length": "1"}), 400)
        upload = begin(owner, "x")
        said(upload.send("PATCH", content=b"x", headers=OFFSET), 403)
        said(owner.send("HEAD", upload.path), 412)

    def test_of_what_the_bucket_does_not_take(self, owner: Storage, service: Storage):
        name = f"limited-{owner.user_id[:8]}"
        limits = {"file_size_limit": 1000, "allowed_mime_types": ["text/*"]}
        assert service.send("POST", "/bucket", json={"name": name, **limits}).status_code == 200
        text = {"contentType": "text/plain"}
        said(post(service, "x", 1001, bucket=name, pairs=text), 413)
        said(post(service, "x", 1000, bucket=name), 415)
        said(post(service, "x", 1000, bucket=name, pairs={"contentType": "nonsense"}), 415)
        assert begin(service, "x", 1000, bucket=name, pairs=text).patch(0, b"x" * 1000).status_code == 204

    @pytest.mark.parametrize("offset", [0, 999, 1001, len(CONTENT)])
    def test_of_a_wrong_offset(self, owner: Storage, offset: int):
        upload = begin(owner, "x")
        upload.patch(0, CONTENT[:1000])
        said(upload.patch(offset, CONTENT[1000:2000]), 409)
        assert upload.offset() == 1000

    @pytest.mark.parametrize(
        "content_type", ["", "application/octet-stream", "application/json", "text/plain"]
    )
    def test_of_another_content_type(self, owner: Storage, content_type: str):
        upload = begin(owner, "x")
        said(upload.patch(0, CONTENT[:1000], Content_Type=content_type), 415)
        assert upload.offset() == 0

    @pytest.mark.parametrize("chunked", [False, True])
    def test_of_more_than_was_said(self, owner: Storage, chunked: bool):
        upload = begin(owner, "x", 2 * MIB)
        assert upload.patch(0, b"x" * MIB).status_code == 204
        more = b"y" * (MIB + 1)
        said(upload.patch(MIB, iter([more]) if chunked else more), 413)
        assert upload.offset() == MIB
        assert upload.patch(MIB, b"z" * MIB).status_code == 204
        assert owner.download("x").content == b"x" * MIB + b"z" * MIB

    @pytest.mark.parametrize("which", ["abc", "..", "%2e%2e%2fx", "00000000-0000-4000-8000-000000000000"])
    def test_of_what_does_not_exist(self, owner: Storage, which: str):
        upload = Upload(owner, f"{PATH}/{which}")
        for answer in (upload.head(), upload.patch(0, b"x"), upload.send("DELETE")):
            assert answer.status_code == 404

    def test_of_what_is_finished(self, owner: Storage):
        upload = begin(owner, "x")
        upload.patch(0, CONTENT)
        assert upload.offset() == len(CONTENT)
        said(upload.send("DELETE"), 400)
        said(upload.patch(0, CONTENT), 409)
        said(upload.patch(len(CONTENT), b"more"), 413)
        assert upload.patch(len(CONTENT), b"").headers["tus-complete"] == "1"
        assert owner.download("x").content == CONTENT

    def test_of_who_shows_no_good_token(self, owner: Storage):
        upload = begin(owner, "x")
        nobody = Storage(owner.http, owner.running, token="x.y.z")
        refused(post(nobody, "x"), 403, "AccessDenied")
        refused(upload.as_other(nobody).patch(0, b"x"), 403, "AccessDenied")
        assert upload.as_other(nobody).head().status_code == 400


class TestOthers:
    def test_cannot_begin_in_somebodys_folder(self, owner: Storage, other: Storage, anon: Storage):
        pairs = {"objectName": owner.mine("x")}
        for stranger in (other, anon):
            for upsert in ("false", "true"):
                said(post(stranger, "x", pairs=pairs, headers={"x-upsert": upsert}), 403)

    @pytest.mark.parametrize("stranger", ["other", "anon", "service"])
    def test_see_nothing_and_change_nothing(
        self, owner: Storage, stranger: str, request: pytest.FixtureRequest
    ):
        upload = begin(owner, "x")
        upload.patch(0, CONTENT[:1000])
        theirs = upload.as_other(request.getfixturevalue(stranger))
        for answer in (theirs.head(), theirs.patch(1000, CONTENT[1000:]), theirs.send("DELETE")):
            said(answer, 404)
            assert "upload-offset" not in answer.headers
        assert upload.offset() == 1000
        assert upload.patch(1000, CONTENT[1000:]).status_code == 204
        assert owner.download("x").content == CONTENT

    def test_what_is_not_allowed_any_more_is_not_stored(self, owner: Storage, database: Sql):
        bucket = f"closing-{owner.user_id[:8]}"
        policy = f'"for a while {owner.user_id}"'
        database.execute("insert into storage.buckets (id, name) values (%s, %s)", [bucket, bucket])
        database.execute(
            f"create policy {policy} on storage.objects for insert to authenticated "
            f"with check (bucket_id = '{bucket}')"
        )
        upload = begin(owner, "x", bucket=bucket)
        upload.patch(0, CONTENT[:1000])
        database.execute(f"drop policy {policy} on storage.objects")
        said(upload.patch(1000, CONTENT[1000:]), 403)
        rows = database.execute("select count(*) from storage.objects where bucket_id = %s", [bucket])
        assert rows.fetchone() == (0,)


class TestInterruptions:
    def test_what_came_before_the_connection_broke_counts(self, owner: Storage, files: Files):
        upload = begin(owner, "x")
        sending = begin_patch(upload, 0, len(CONTENT), CONTENT[: 5 * MIB])
        wait_for(lambda: content_file(files, upload).stat().st_size > 0)
        sending.close()
        offset = upload.offset()
        assert 0 < offset <= 5 * MIB
        assert upload.patch(offset, CONTENT[offset:]).status_code == 204
        assert owner.download("x").content == CONTENT

    def test_a_request_that_hangs_is_stopped_by_the_next_one(self, owner: Storage, files: Files):
        """A network died, and the server was not told."""
        upload = begin(owner, "x")
        hanging = begin_patch(upload, 0, len(CONTENT), CONTENT[: 2 * MIB])
        wait_for(lambda: content_file(files, upload).stat().st_size > 0)
        offset = upload.offset()
        assert 0 < offset <= 2 * MIB
        assert hanging.recv(100).startswith(b"HTTP/1.1 409 ")
        hanging.close()
        assert upload.patch(offset, CONTENT[offset:]).status_code == 204
        assert owner.download("x").content == CONTENT

    def test_of_many_at_once_one_is_first(self, owner: Storage):
        # The requests send few bytes: a slow one would be stopped by the next.
        upload, barrier = begin(owner, "x", 100_000), threading.Barrier(6)
        answers: list[int] = []

        def send(number: int) -> None:
            with httpx.Client(timeout=60) as http:
                theirs = upload.as_other(Storage(http, owner.running, owner.user_id, owner.token))
                barrier.wait()
                answers.append(theirs.patch(0, bytes([number]) * 100_000).status_code)

        threads = [threading.Thread(target=send, args=[number]) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [204, *[409] * 5]
        content = owner.download("x").content
        assert content == content[:1] * 100_000

    def test_termination(self, owner: Storage, files: Files):
        before = files.all()
        upload = begin(owner, "x")
        upload.patch(0, CONTENT[:1000])
        answer = upload.send("DELETE")
        assert (answer.status_code, answer.content) == (204, b"")
        assert files.all() == before
        said(upload.head(), 404)
        said(upload.patch(1000, CONTENT[1000:]), 404)

    @pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="needs prlimit(2)")
    def test_by_a_disk_that_takes_no_more(self, separate: control.Running, owner: Storage):
        storage = Storage(owner.http, separate)
        upload = begin(storage, "x", 20 * MIB)
        piece = os.urandom(6 * MIB)
        assert upload.patch(0, piece).status_code == 204
        server = psutil.Process(separate.pid)
        before = server.rlimit(psutil.RLIMIT_FSIZE)
        server.rlimit(psutil.RLIMIT_FSIZE, (8 * MIB, before[1]))
        said(upload.patch(6 * MIB, piece), 507)
        assert upload.offset() == 6 * MIB
        server.rlimit(psutil.RLIMIT_FSIZE, before)
        assert upload.patch(6 * MIB, piece + piece + piece[: 2 * MIB]).status_code == 204
        assert storage.download("x").content == piece * 3 + piece[: 2 * MIB]


class TestRestarts:
    def kill(self, running: control.Running) -> None:
        server = psutil.Process(running.pid)
        server.kill()
        server.wait(60)

    def test_an_upload_goes_on(self, tmp_path: Path, owner: Storage):
        storage = Storage(owner.http, servers.start(tmp_path / "data"))
        files = Files(tmp_path / "data" / "storage")
        upload = begin(storage, "x")
        upload.patch(0, CONTENT[:MIB])
        sending = begin_patch(upload, MIB, len(CONTENT) - MIB, CONTENT[MIB : 4 * MIB])
        wait_for(lambda: content_file(files, upload).stat().st_size > MIB)
        self.kill(storage.running)
        sending.close()
        storage.running = servers.start(tmp_path / "data")
        assert upload.offset() == MIB
        assert upload.patch(MIB, CONTENT[MIB:]).status_code == 204
        assert storage.download("x").content == CONTENT
        control.stop(tmp_path / "data")

    def test_a_kill_between_the_commit_and_the_note_of_it(self, tmp_path: Path, owner: Storage):
        storage = Storage(owner.http, servers.start(tmp_path / "data"))
        files = Files(tmp_path / "data" / "storage")
        upload = begin(storage, "x")
        upload.patch(0, CONTENT[:MIB])
        assert upload.patch(MIB, CONTENT[MIB:]).status_code == 204
        version = upload.path.rpartition("/")[2]
        self.kill(storage.running)
        # The server seems to have died a moment earlier.
        os.link(files.of(version), content_file(files, upload))
        content_file(files, upload).with_name("offset").write_text(str(MIB))
        (files.path / "pending" / version).touch()
        storage.running = servers.start(tmp_path / "data")
        assert upload.offset() == len(CONTENT)
        assert files.of(version).stat().st_nlink == 1
        assert storage.download("x").content == CONTENT
        control.stop(tmp_path / "data")

    def test_a_kill_before_the_commit(self, tmp_path: Path, owner: Storage):
        storage = Storage(owner.http, servers.start(tmp_path / "data"))
        files = Files(tmp_path / "data" / "storage")
        upload = begin(storage, "x")
        upload.patch(0, CONTENT[:MIB])
        version = upload.path.rpartition("/")[2]
        self.kill(storage.running)
        content = content_file(files, upload)
        content.write_bytes(CONTENT)
        os.link(content, files.of(version))
        (files.path / "pending" / version).touch()
        storage.running = servers.start(tmp_path / "data")
        assert not files.of(version).exists()
        assert upload.offset() == MIB
        assert upload.patch(MIB, CONTENT[MIB:]).status_code == 204
        assert storage.download("x").content == CONTENT
        control.stop(tmp_path / "data")

    def test_postgresql_lost_at_the_commit(self, owner: Storage, files: Files, database: Sql):
        """The row is there, the server was not told: found out before anything is written to the file."""
        upload = begin(owner, "x")
        upload.patch(0, CONTENT)
        version = upload.path.rpartition("/")[2]
        os.link(files.of(version), content_file(files, upload))
        content_file(files, upload).with_name("offset").write_text("0")
        (files.path / "pending" / version).touch()
        said(upload.patch(0, bytes(len(CONTENT))), 409)
        assert upload.offset() == len(CONTENT)
        assert owner.download("x").content == CONTENT
        assert not (files.path / "pending" / version).exists()


class TestExpiry:
    def expire(self, files: Files, upload: Upload, age_s: float) -> None:
        path = content_file(files, upload).with_name("upload.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"expires_at": time.time() - age_s}))

    def test_after_a_day(self, owner: Storage, files: Files):
        answer = post(owner, "x")
        ends_at = parsedate_to_datetime(answer.headers["upload-expires"]).timestamp()
        assert abs(ends_at - time.time() - 24 * 3600) < 3600
        upload = Upload(owner, PATH + "/" + answer.headers["location"].rpartition("/")[2])
        self.expire(files, upload, 1)
        said(upload.head(), 410)
        said(upload.patch(0, CONTENT), 410)
        said(upload.as_other(Storage(owner.http, owner.running)).head(), 404)

    def test_is_cleaned_up(self, tmp_path: Path, owner: Storage):
        storage = Storage(owner.http, servers.start(tmp_path / "data"))
        files = Files(tmp_path / "data" / "storage")
        kept, finished, gone = (begin(storage, name) for name in ("kept", "finished", "gone"))
        kept.patch(0, CONTENT[:1000])
        finished.patch(0, CONTENT)
        gone.patch(0, CONTENT[:1000])
        for upload in (finished, gone):
            self.expire(files, upload, 7200)
        unmade = files.path / "resumable" / "00000000-0000-4000-8000-000000000000"
        unmade.mkdir()
        os.utime(unmade, (0, 0))
        control.stop(tmp_path / "data")
        storage.running = servers.start(tmp_path / "data")
        assert [folder.name for folder in (files.path / "resumable").iterdir()] == [
            kept.path.rpartition("/")[2]
        ]
        assert storage.download("finished").content == CONTENT
        said(gone.head(), 404)
        assert kept.patch(1000, CONTENT[1000:]).status_code == 204
        control.stop(tmp_path / "data")

    def test_a_link_in_place_of_the_folder(self, tmp_path: Path):
        data_dir = tmp_path / "data"
        servers.start(data_dir)
        control.stop(data_dir)
        (tmp_path / "elsewhere").mkdir()
        (data_dir / "storage" / "resumable").rmdir()
        (data_dir / "storage" / "resumable").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(control.EmbeddedError):
            servers.start(data_dir)
        assert "is no folder, or a link to one" in (data_dir / "server.log").read_text()


def test_a_large_upload_does_not_pass_through_memory(separate: control.Running, owner: Storage):
    storage, piece, count = Storage(owner.http, separate), os.urandom(4 * MIB), 64
    server = psutil.Process(separate.pid)
    upload = begin(storage, "small", 8 * MIB)
    upload.patch(0, piece * 2)
    before, peak = server.memory_info().rss, 0

    def pieces() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(count):
            peak = max(peak, server.memory_info().rss)
            yield piece

    assert begin(storage, "large", count * len(piece)).patch(0, pieces()).status_code == 204
    assert max(peak, server.memory_info().rss) - before < 100 * MIB
    assert storage.download("large", Range=f"bytes=-{len(piece)}").content == piece
