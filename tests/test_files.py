"""Files: what goes up comes down, whatever it is made of, and what cannot be is said before anything is stored."""

from __future__ import annotations

import io
import os
import string
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest
import servers
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession
from tensorage.backend.files.downloads import PART_BYTES as DOWNLOAD_BYTES
from tensorage.backend.files.folder import MAX_PATH_BYTES, Files
from tensorage.backend.files.resumable import PART_BYTES
from tensorage.embedded import control
from tensorage.migrations import migration_files

MIB = 1 << 20
LARGE = os.urandom(2 * PART_BYTES + 12345)


class Pattern(io.RawIOBase):
    """A file of any size that takes no memory, and notes what is read of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = 0
        self.reads: list[int] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence in (os.SEEK_SET, os.SEEK_END)
        self.position = offset + (self.size if whence == os.SEEK_END else 0)
        return self.position

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "all of it was asked for"
        size = min(size, self.size - self.position)
        content = self.content(self.position, size)
        self.position += size
        self.reads.append(size)
        return content

    @staticmethod
    def content(low: int, size: int) -> bytes:
        first = low // 8
        numbers = np.arange(first, first + size // 8 + 2, dtype=">u8").tobytes()
        return numbers[low % 8 : low % 8 + size]


class Stream:
    """An open file that can only be read."""

    def __init__(self, content: bytes, at_once: int = MIB) -> None:
        self._file = io.BytesIO(content)
        self._at_once = at_once

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._at_once))


@pytest.fixture
def user(new_user: User) -> User:
    """A user of each test's own: users' files are listed."""
    return new_user


@pytest.fixture
def session(new_session: BackendSession) -> BackendSession:
    """A session of the new user."""
    return new_session


@pytest.fixture
def files(session: BackendSession) -> Files:
    return Files(session)


@pytest.fixture
def proxy(project: Project) -> Iterator[Proxy]:
    proxy = Proxy(project.url)
    yield proxy
    proxy.close()


@pytest.fixture
def watched(proxy: Proxy, project: Project, user: User) -> Iterator[Files]:
    """Files whose requests the proxy sees."""
    session = Project(proxy.url, project.key).session(user)
    session.login_by_mail()
    _ = session.transfer
    yield Files(session)
    session.logout()


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend of these tests' own, which they may harm."""
    data_dir = tmp_path_factory.mktemp("data")
    yield servers.start(data_dir)
    control.stop(data_dir)


@pytest.fixture
def own(separate: control.Running) -> Iterator[Files]:
    """Files in the separate backend, whose bucket and policies are put in order afterwards."""
    project = Project(separate.api_url, separate.anon_key)
    session = project.session(project.register())
    session.login_by_mail()
    yield Files(session)
    session.logout()
    with psycopg.connect(separate.superuser_url, autocommit=True) as database:
        for file in migration_files():
            if file.name.endswith("_storage.sql"):
                database.execute(file.read_text())


def uploads(exchanges: list[Exchange]) -> list[tuple[str, int]]:
    """Requests that were sent to Storage: methods, and bytes."""
    return [(e.method, e.sent_bytes) for e in exchanges if "/storage/" in e.target]


class TestContent:
    @pytest.mark.parametrize("nbytes", [0, 1, PART_BYTES, PART_BYTES + 1, len(LARGE)])
    def test_bytes(self, files: Files, nbytes: int) -> None:
        for content in (LARGE[:nbytes], bytearray(LARGE[:nbytes]), memoryview(LARGE)[:nbytes]):
            name = files.upload_file("dir/x.bin", content)
            assert name.endswith("/dir/x.bin")
            assert files.download_file("dir/x.bin") == LARGE[:nbytes]

    def test_text(self, files: Files, tmp_path: Path) -> None:
        text = "Hello, wörld! \N{SNOWMAN}\n"
        files.upload_file("str", text)
        files.upload_file("io", io.StringIO(text * 300_000))
        local = tmp_path / "local"
        local.write_text(text, encoding="utf-16")
        with local.open(encoding="utf-16", newline="") as file:
            files.upload_file("file", file)
        assert files.download_file("str") == files.download_file("file") == text.encode()
        assert files.download_file("io") == text.encode() * 300_000

    def test_a_local_file(self, files: Files, tmp_path: Path) -> None:
        local = tmp_path / "local"
        for content in (b"", b"small", LARGE):
            local.write_bytes(content)
            files.upload_file("x", local)
            assert files.download_file("x") == content

    def test_an_open_file_from_where_it_stands(self, files: Files, tmp_path: Path) -> None:
        local = tmp_path / "local"
        local.write_bytes(LARGE)
        for buffering in (-1, 0):
            with local.open("rb", buffering) as file:
                for position in (len(LARGE) - 10, 3):
                    file.seek(position)
                    files.upload_file("x", file)
                    assert files.download_file("x") == LARGE[position:]
                assert not file.closed
                assert file.read() == b""
        with tempfile.TemporaryFile() as file:
            file.write(b"0123")
            file.seek(2)
            files.upload_file("x", file)
        assert files.download_file("x") == b"23"

    @pytest.mark.parametrize("nbytes", [0, 10, PART_BYTES, PART_BYTES + 1, len(LARGE)])
    def test_an_open_file_of_unknown_length(self, files: Files, nbytes: int) -> None:
        files.upload_file("x", Stream(LARGE[:nbytes]))
        assert files.download_file("x") == LARGE[:nbytes]

    def test_a_pipe(self, files: Files) -> None:
        reading, writing = os.pipe()

        def write() -> None:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(LARGE)

        writer = threading.Thread(target=write)
        writer.start()
        with os.fdopen(reading, "rb") as pipe:
            files.upload_file("x", pipe)
        writer.join()
        assert files.download_file("x") == LARGE

    def test_in_place_of_what_was_there(self, files: Files) -> None:
        for content in (LARGE, b"small", LARGE[1:], b""):
            files.upload_file("x", content)
            assert files.download_file("x") == content

    def test_every_character_that_a_path_can_have(self, files: Files) -> None:
        path = "dir!/.*'() &$@=;:+,?-_/" + string.ascii_letters + string.digits
        for content in (b"small", LARGE):
            files.upload_file(path, content)
            assert files.download_file(path) == content
        assert files.list_files() == [path]
        assert files.remove_file(path)

    def test_the_longest_path(self, files: Files) -> None:
        for content in (b"small", LARGE):
            files.upload_file("x" * MAX_PATH_BYTES, content)
            assert files.download_file("x" * MAX_PATH_BYTES) == content


class TestRequests:
    def test_a_small_file_is_one_request(self, watched: Files, proxy: Proxy) -> None:
        watched.upload_file("warm", b"")
        for content in (b"x" * PART_BYTES, io.BytesIO(b"x" * PART_BYTES), Stream(b"x" * PART_BYTES)):
            with proxy.counted() as exchanges:
                watched.upload_file("x", content)
            assert uploads(exchanges) == [("POST", PART_BYTES)]

    def test_a_large_file_goes_up_in_pieces(self, watched: Files, proxy: Proxy) -> None:
        with proxy.counted() as exchanges:
            watched.upload_file("x", LARGE)
        rest = len(LARGE) - 2 * PART_BYTES
        assert uploads(exchanges) == [
            ("POST", 0),
            ("PATCH", PART_BYTES),
            ("PATCH", PART_BYTES),
            ("PATCH", rest),
        ]

    def test_a_file_of_unknown_length_is_one_request(self, watched: Files, proxy: Proxy) -> None:
        with proxy.counted() as exchanges:
            watched.upload_file("x", Stream(LARGE))
        assert [e.method for e in exchanges if "/storage/" in e.target] == ["POST"]

    def test_without_resumable_uploads(self, project: Project, user: User) -> None:
        """A server that does not know of them refuses the first request, and gets the whole in the next."""

        def change(head: bytes) -> bytes:
            return head.replace(b"/upload/resumable ", b"/upload/resumable/sign ", 1)

        proxy = Proxy(project.url, changes=change)
        session = Project(proxy.url, project.key).session(user)
        try:
            files = Files(session)
            with proxy.counted() as exchanges:
                files.upload_file("x", io.BytesIO(LARGE))
            assert uploads(exchanges) == [("POST", 0), ("POST", len(LARGE))]
            assert files.download_file("x") == LARGE
            session.logout()
        finally:
            proxy.close()

    def test_a_file_is_never_read_as_a_whole(self, files: Files, tmp_path: Path) -> None:
        source = Pattern(64 * MIB + 1)
        files.upload_file("x", source)
        assert sum(source.reads) == source.size
        assert max(source.reads) <= PART_BYTES

        class Check:
            position = 0
            largest = 0

            def write(self, piece: memoryview) -> None:
                assert piece == Pattern.content(self.position, len(piece))
                self.position += len(piece)
                self.largest = max(self.largest, len(piece))

        check = Check()
        assert files.download_file("x", to=check) == source.size == check.position
        assert check.largest <= DOWNLOAD_BYTES

    def test_downloads_in_pieces(self, watched: Files, proxy: Proxy) -> None:
        content = os.urandom(DOWNLOAD_BYTES + 5)
        watched.upload_file("x", content)
        with proxy.counted() as exchanges:
            assert watched.download_file("x") == content
        assert [e.method for e in exchanges] == ["GET", "GET"]


class TestDownloadTo:
    @pytest.mark.parametrize("nbytes", [0, 1, DOWNLOAD_BYTES, DOWNLOAD_BYTES + 1, len(LARGE)])
    def test_files(self, files: Files, tmp_path: Path, nbytes: int) -> None:
        files.upload_file("x", LARGE[:nbytes])
        local = tmp_path / "local"
        assert files.download_file("x", to=local) == nbytes
        assert local.read_bytes() == LARGE[:nbytes]
        for buffering in (-1, 0):
            with local.open("wb", buffering) as file:
                file.write(b"before")
                assert files.download_file("x", to=file) == nbytes
            assert local.read_bytes() == b"before" + LARGE[:nbytes]
        assert list(tmp_path.iterdir()) == [local]

    def test_a_local_file_stays_where_there_is_nothing(self, files: Files, tmp_path: Path) -> None:
        local = tmp_path / "local"
        local.write_bytes(b"before")
        with pytest.raises(tensorage.KeyNotFoundError, match="'nothing'"):
            files.download_file("nothing", to=local)
        assert local.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [local]

    def test_a_folder_that_is_not_there(self, files: Files, tmp_path: Path) -> None:
        files.upload_file("x", b"x")
        with pytest.raises(FileNotFoundError):
            files.download_file("x", to=tmp_path / "none" / "local")


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/../b",
            "a/./b",
            "ü",
            "a\nb",
            "a\0b",
            "a\\b",
            "a%b",
            "a#b",
            "a[b]",
            "x" * (MAX_PATH_BYTES + 1),
            "12/c/0",
            7,
            None,
        ],
    )
    def test_that_cannot_be(self, watched: Files, proxy: Proxy, path: Any) -> None:
        with proxy.counted() as exchanges:
            for attempt in (
                lambda: watched.upload_file(path, b"x"),
                lambda: watched.upload_file(path, LARGE),
                lambda: watched.remove_file(path),
            ):
                with pytest.raises(tensorage.InvalidInputError):
                    attempt()
            if path != "12/c/0":
                with pytest.raises(tensorage.InvalidInputError):
                    watched.download_file(path)
        assert exchanges == []

    def test_a_content_in_the_place_of_the_path_is_not_repeated(self, watched: Files, proxy: Proxy) -> None:
        swapped: Any = LARGE
        with proxy.counted() as exchanges:
            for attempt in (
                lambda: watched.upload_file(swapped, "a/path"),
                lambda: watched.download_file(swapped),
                lambda: watched.remove_file(swapped),
            ):
                with pytest.raises(
                    tensorage.InvalidInputError, match="first the path, then the content"
                ) as caught:
                    attempt()
                assert len(str(caught.value)) < 200
        assert exchanges == []

    @pytest.mark.parametrize("content", [None, 7, [b"x"], {"a": 1}, "lone \ud800"])
    def test_content_that_cannot_be(self, watched: Files, proxy: Proxy, content: Any) -> None:
        with proxy.counted() as exchanges, pytest.raises(tensorage.InvalidInputError, match="not of"):
            watched.upload_file("x", content)
        assert exchanges == []

    def test_a_local_file_that_is_not_there(self, files: Files, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            files.upload_file("x", tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            files.upload_file("x", tmp_path)
        assert files.list_files() == []


class TestListing:
    def test_folders(self, files: Files) -> None:
        paths = ["b", "a/z", "a/b/c", "a/b d/e", "12", "c/12/x"]
        for path in paths:
            files.upload_file(path, b"")
        assert files.list_files() == sorted(paths)
        assert files.list_files("a") == files.list_files("a/") == files.list_files("/a") == sorted(paths[1:4])
        assert files.list_files("a/b") == ["a/b/c"]
        assert files.list_files("nothing") == []
        with pytest.raises(tensorage.InvalidInputError):
            files.list_files("../x")

    def test_many(self, files: Files, session: BackendSession, database: psycopg.Connection[Any]) -> None:
        """More than come in one answer, in two folders; and where arrays are kept is not looked at."""
        database.execute(
            "insert into storage.objects (bucket_id, name) select 'tensors', %s || f || n "
            "from unnest(array['/', '/many/', '/7/c/']) f, generate_series(1000, 2005) n",
            [session.user_id],
        )
        expected = [f"{folder}{number}" for folder in ("", "many/") for number in range(1000, 2006)]
        assert files.list_files() == sorted(expected)
        assert files.list_files("many") == expected[1006:]

    def test_of_others_are_not_seen(self, files: Files, project: Project) -> None:
        files.upload_file("x", b"mine")
        session = project.session(project.register())
        theirs = Files(session)
        assert theirs.list_files() == []
        for attempt in (lambda: theirs.download_file("x"), lambda: theirs.remove_file("x")):
            with pytest.raises(tensorage.KeyNotFoundError):
                attempt()
        theirs.upload_file("x", b"theirs")
        session.logout()
        assert files.download_file("x") == b"mine"

    def test_removal(self, files: Files) -> None:
        files.upload_file("a/x", b"")
        files.upload_file("a/y", b"")
        assert files.remove_file("a/x") is True
        assert files.list_files() == ["a/y"]
        for path in ("a/x", "a", "A/y"):
            with pytest.raises(tensorage.KeyNotFoundError, match=repr(path)):
                files.remove_file(path)


class TestRefusals:
    CONTENTS: tuple[Any, ...] = (b"x" * 2000, LARGE, Stream)

    def upload_each(self, files: Files, error: type[Exception], says: str) -> None:
        for content in self.CONTENTS:
            with pytest.raises(error, match=says):
                files.upload_file("x", content(LARGE) if content is Stream else content)

    def test_a_file_over_the_limit(self, files: Files, database: psycopg.Connection[Any]) -> None:
        files.upload_file("x", b"before")
        limit = "update storage.buckets set file_size_limit = %s where id = 'tensors'"
        database.execute(limit, [1000])
        try:
            self.upload_each(
                files, tensorage.QuotaExceededError, r"uploading 'x'.*size.*larger than the project"
            )
        finally:
            database.execute(limit, [None])
        assert files.download_file("x") == b"before"

    def test_no_bucket(self, own: Files, separate: control.Running) -> None:
        with psycopg.connect(separate.superuser_url, autocommit=True) as database:
            database.execute("delete from storage.objects")
            database.execute("delete from storage.buckets where id = 'tensors'")
        self.upload_each(own, tensorage.SchemaError, "there is no bucket.*migrations")
        with pytest.raises(tensorage.SchemaError, match="there is no bucket"):
            own.download_file("x")

    def test_no_policies(self, own: Files, separate: control.Running) -> None:
        with psycopg.connect(separate.superuser_url, autocommit=True) as database:
            rows = database.execute(
                "select policyname from pg_policies where tablename = 'objects'"
            ).fetchall()
            assert rows
            for (name,) in rows:
                database.execute(f'drop policy "{name}" on storage.objects')
        self.upload_each(own, tensorage.PermissionDeniedError, "uploading 'x'.*row-level security")

    @pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="needs prlimit(2)")
    def test_a_full_disk(self, own: Files, separate: control.Running) -> None:
        own.upload_file("x", b"before")
        server = psutil.Process(separate.pid)
        before = server.rlimit(psutil.RLIMIT_FSIZE)
        server.rlimit(psutil.RLIMIT_FSIZE, (8 * MIB, before[1]))
        for content in (LARGE, Stream(LARGE)):
            with pytest.raises(tensorage.QuotaExceededError, match="disk is full"):
                own.upload_file("x", content)
        server.rlimit(psutil.RLIMIT_FSIZE, before)
        assert own.download_file("x") == b"before"
        # Nothing waits for a day for what does not come.
        assert list((separate.data_dir / "storage" / "resumable").iterdir()) == []

    def test_a_lost_object_is_not_an_empty_one(self, own: Files, separate: control.Running) -> None:
        own.upload_file("x", b"content")
        for path in (separate.data_dir / "storage" / "objects").iterdir():
            path.unlink()
        with pytest.raises(tensorage.BackendUnavailableError, match="missing or damaged"):
            own.download_file("x")
