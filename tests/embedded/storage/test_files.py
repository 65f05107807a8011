"""Bytes of objects: stored whole or not at all, and never in the way of a reader or a crash."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import servers
from embedded.storage.client import BUCKET, Files, Storage, refused

from tensorage.embedded import control

MIB = 1 << 20

Sql = psycopg.Connection[tuple[Any, ...]]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def version_of(database: Sql, name: str) -> str:
    row = database.execute("select version from storage.objects where name = %s", [name]).fetchone()
    assert row is not None, name
    return row[0]


def begin_upload(storage: Storage, name: str, nbytes: int) -> socket.socket:
    """Connect and send the head of an upload."""
    url = urlsplit(storage.running.api_url)
    sending = socket.create_connection((url.hostname, url.port), timeout=60)
    head = (
        f"POST /storage/v1/object/{BUCKET}/{storage.mine(name)} HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Authorization: Bearer {storage.token}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {nbytes}\r\n\r\n"
    )
    sending.sendall(head.encode())
    return sending


@pytest.fixture
def separate(tmp_path: Path) -> Iterator[control.Running]:
    """A backend of the test's own, which it may harm."""
    yield servers.start(tmp_path / "data")
    control.stop(tmp_path / "data")


class TestContent:
    @pytest.mark.parametrize("nbytes", [0, 1, MIB - 1, MIB, MIB + 1, 9 * MIB + 5])
    def test_comes_back(self, owner: Storage, nbytes: int):
        content = os.urandom(nbytes)
        assert owner.upload("x", content).status_code == 200
        answer = owner.download("x")
        assert answer.content == content
        assert answer.headers["etag"] == f'"{hashlib.md5(content).hexdigest()}"'
        for first, last in ((0, 0), (nbytes // 2, nbytes - 1), (MIB - 2, 2 * MIB + 7)):
            if first <= last < nbytes:
                answer = owner.download("x", Range=f"bytes={first}-{last}")
                assert answer.content == content[first : last + 1]

    def test_is_in_a_private_file_with_a_name_of_ours(self, owner: Storage, files: Files, database: Sql):
        owner.upload("x", b"plain bytes")
        file = files.of(version_of(database, owner.mine("x")))
        assert file.read_bytes() == b"plain bytes"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        for folder in (files.path, *files.path.iterdir()):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_chunked_body(self, owner: Storage):
        pieces = [b"a" * 10, b"", b"b" * MIB, b"c"]
        assert owner.upload("x", iter(pieces)).status_code == 200
        assert owner.download("x").content == b"".join(pieces)

    def test_a_form_in_pieces_that_look_like_its_boundary(self, owner: Storage):
        content = (b"\r\n--bound" * 1000 + b"\r\n--boundar\r\n-") * 3
        head = b'--boundary\r\nContent-Disposition: form-data; name=""; filename="f"\r\n\r\n'
        body = head + content + b"\r\n--boundary--\r\n"
        answer = owner.send(
            "POST",
            f"/object/{BUCKET}/{owner.mine('x')}",
            content=(body[n : n + 7] for n in range(0, len(body), 7)),
            headers={"Content-Type": "multipart/form-data; boundary=boundary"},
        )
        assert answer.status_code == 200, answer.text
        assert owner.download("x").content == content

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"--b\r\n",
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\ncut off',
            b'--b\r\nContent-Disposition: form-data; name="cacheControl"\r\n\r\n60\r\n--b--\r\n',
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n1\r\n' * 2 + b"--b--\r\n",
            b"no form at all",
        ],
    )
    def test_a_bad_form_leaves_nothing(self, owner: Storage, files: Files, body: bytes):
        before = files.all()
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = owner.send("POST", f"/object/{BUCKET}/{owner.mine('x')}", content=body, headers=headers)
        refused(answer, 400, "InvalidRequest")
        assert owner.list() == []
        assert files.all() == before

    def test_metadata_of_a_raw_upload(self, owner: Storage):
        owner.upload("x", x_metadata="eyJrIjogMX0=", cache_control="max-age=7")
        answer = owner.send("GET", f"/object/info/{BUCKET}/{owner.mine('x')}")
        assert (answer.json()["metadata"], answer.headers["cache-control"]) == ({"k": 1}, "max-age=7")
        for bad in ("!", "bnVsbA==", "eyJrIjogIlx1MDAwMCJ9"):
            refused(owner.upload("y", x_metadata=bad), 400, "InvalidRequest")
        assert owner.names() == ["x"]


class TestOverwriting:
    def test_deletes_the_old_file(self, owner: Storage, files: Files, database: Sql):
        owner.upload("x", b"old")
        old = version_of(database, owner.mine("x"))
        owner.upload("x", b"new", x_upsert="true")
        new = version_of(database, owner.mine("x"))
        assert not files.of(old).exists()
        assert files.of(new).read_bytes() == b"new"

    def test_a_reader_of_the_old_one_goes_on(self, owner: Storage):
        # More than the sockets' buffers hold, so that the server is still reading the file.
        old, new = b"a" * (64 * MIB), b"b"
        owner.upload("x", old)
        reading = http.client.HTTPConnection(urlsplit(owner.running.api_url).netloc, timeout=60)
        reading.request(
            "GET",
            f"/storage/v1/object/{BUCKET}/{owner.mine('x')}",
            headers={"Authorization": f"Bearer {owner.token}"},
        )
        answer = reading.getresponse()
        begun = answer.read(MIB)
        assert owner.upload("x", new, x_upsert="true").status_code == 200
        assert owner.download("x").content == new
        assert begun + answer.read() == old
        reading.close()

    def test_readers_see_one_or_the_other(self, owner: Storage, files: Files):
        contents = [bytes([n]) * (2 * MIB) for n in range(8)]
        owner.upload("x", contents[0])
        before, stop = files.all(), threading.Event()

        def write() -> None:
            for content in contents * 3:
                assert owner.upload("x", content, x_upsert="true").status_code == 200

        def read() -> int:
            count = 0
            while not stop.is_set():
                answer = owner.download("x")
                assert answer.status_code == 200, answer.text
                assert answer.content in contents
                count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            writers = [pool.submit(write) for _ in range(2)]
            try:
                for writer in writers:
                    writer.result()
            finally:
                stop.set()
            assert all(reader.result() > 0 for reader in readers)
        assert len(files.all()) == len(before)

    def test_of_many_at_once_one_is_first(self, owner: Storage, files: Files):
        before = files.all()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: owner.upload("x", bytes([n]) * MIB), range(8)))
        won = [n for n, answer in enumerate(answers) if answer.status_code == 200]
        assert len(won) == 1
        assert owner.download("x").content == bytes(won) * MIB
        assert len(files.all() - before) == 1


class TestNothingIsLeft:
    def test_by_a_client_that_goes_away(self, owner: Storage, files: Files):
        before = files.all()
        sending = begin_upload(owner, "x", 100 * MIB)
        sending.sendall(b"x" * (20 * MIB))
        wait_for(lambda: any(name.startswith("incoming/") for name in files.all()))
        sending.close()
        wait_for(lambda: files.all() == before)
        assert owner.list() == []

    @pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="needs prlimit(2)")
    def test_by_a_disk_that_takes_no_more(self, separate: control.Running, owner: Storage):
        storage, files = Storage(owner.http, separate), Files(separate.data_dir / "storage")
        server = psutil.Process(separate.pid)
        before = server.rlimit(psutil.RLIMIT_FSIZE)
        server.rlimit(psutil.RLIMIT_FSIZE, (8 * MIB, before[1]))
        refused(storage.upload("x", b"x" * (20 * MIB)), 507, "DiskFull", http_status=507)
        assert files.all() == set()
        assert storage.list() == []
        server.rlimit(psutil.RLIMIT_FSIZE, before)
        assert storage.upload("x", b"x" * (20 * MIB)).status_code == 200

    def test_by_removal_move_and_copy(self, owner: Storage, files: Files, database: Sql):
        before = files.all()
        owner.upload("a", b"a")
        version = version_of(database, owner.mine("a"))
        assert owner.transfer("copy", "a", "b").status_code == 200
        assert owner.transfer("move", "a", "c").status_code == 200
        assert version_of(database, owner.mine("c")) == version
        assert owner.transfer("copy", "b", "c").status_code == 400
        assert owner.transfer("copy", "b", "c", x_upsert="true").status_code == 200
        assert not files.of(version).exists()
        assert len(owner.remove("b", "c").json()) == 2
        assert files.all() == before


class TestAfterACrash:
    def test_what_was_stored_is_there_and_nothing_else(self, tmp_path: Path, owner: Storage):
        running = servers.start(tmp_path / "data")
        storage, files = Storage(owner.http, running), Files(tmp_path / "data" / "storage")
        assert storage.upload("kept", b"kept").status_code == 200
        kept = files.all()
        sending = begin_upload(storage, "x", 100 * MIB)
        sending.sendall(b"x" * (20 * MIB))
        wait_for(lambda: any(name.startswith("incoming/") for name in files.all()))
        server = psutil.Process(running.pid)
        server.kill()
        server.wait(60)
        sending.close()
        # The server seems to have died before a commit, and between another commit and a removal.
        orphan, decided = "00000000-0000-4000-8000-000000000000", next(iter(kept)).partition("/")[2]
        files.of(orphan).write_bytes(b"orphan")
        for version in (orphan, decided):
            (files.path / "pending" / version).touch()
        storage.running = servers.start(tmp_path / "data")
        assert files.all() == kept
        assert storage.names() == ["kept"]
        assert storage.download("kept").content == b"kept"
        control.stop(tmp_path / "data")

    def test_a_lost_file_is_no_missing_object(self, owner: Storage, files: Files, database: Sql):
        for name, harm in (("lost", Path.unlink), ("cut", lambda file: os.truncate(file, 3))):
            owner.upload(name, b"12345")
            harm(files.of(version_of(database, owner.mine(name))))
            refused(owner.download(name), 500, "InternalError", http_status=500)
        refused(owner.transfer("copy", "lost", "x"), 500, "InternalError", http_status=500)
        assert len(owner.remove("lost", "cut").json()) == 2


class TestLinks:
    def test_in_place_of_a_file(self, owner: Storage, files: Files, database: Sql, tmp_path: Path):
        (tmp_path / "secret").write_bytes(b"12345")
        owner.upload("x", b"12345")
        file = files.of(version_of(database, owner.mine("x")))
        file.unlink()
        file.symlink_to(tmp_path / "secret")
        refused(owner.download("x"), 500, "InternalError", http_status=500)
        owner.remove("x")
        assert (tmp_path / "secret").read_bytes() == b"12345"
        assert not file.is_symlink()

    def test_in_place_of_a_folder(self, tmp_path: Path):
        data_dir = tmp_path / "data"
        servers.start(data_dir)
        control.stop(data_dir)
        (tmp_path / "elsewhere").mkdir()
        (data_dir / "storage" / "objects").rmdir()
        (data_dir / "storage" / "objects").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(control.EmbeddedError):
            servers.start(data_dir)
        assert "is no folder, or a link to one" in (data_dir / "server.log").read_text()

    def test_a_version_that_is_a_path(self, owner: Storage, database: Sql, tmp_path: Path):
        (tmp_path / "secret").write_bytes(b"12345")
        owner.upload("x", b"12345")
        changed = "update storage.objects set version = %s where name = %s"
        database.execute(changed, [str(tmp_path / "secret"), owner.mine("x")])
        refused(owner.download("x"), 500, "InternalError", http_status=500)
        assert len(owner.remove("x").json()) == 1
        assert (tmp_path / "secret").exists()


def test_a_large_object_does_not_pass_through_memory(separate: control.Running, owner: Storage):
    storage, piece = Storage(owner.http, separate), os.urandom(4 * MIB)
    server = psutil.Process(separate.pid)
    storage.upload("small", piece * 8)
    assert storage.download("small").content == piece * 8
    before, peak, count = server.memory_info().rss, 0, 128

    def pieces() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(count):
            peak = max(peak, server.memory_info().rss)
            yield piece

    assert storage.upload("large", pieces()).status_code == 200
    received = 0
    url = f"{separate.api_url}/storage/v1/object/{BUCKET}/{storage.mine('large')}"
    with storage.http.stream("GET", url, headers={"Authorization": f"Bearer {storage.token}"}) as answer:
        for part in answer.iter_bytes(MIB):
            received += len(part)
            peak = max(peak, server.memory_info().rss)
    assert received == count * len(piece)
    assert peak - before < 100 * MIB
