"""Files on bad networks and from bad sources: they go on where they stopped, or nothing is stored."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jwt
import psutil
import psycopg
import pytest
import servers
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession
from tensorage.backend.files import resumable
from tensorage.backend.files.downloads import PART_BYTES as DOWNLOAD_BYTES
from tensorage.backend.files.folder import Files
from tensorage.backend.files.resumable import PART_BYTES
from tensorage.embedded import control

MIB = 1 << 20
CONTENT = os.urandom(3 * PART_BYTES + 12345)


class Hooked(io.BytesIO):
    """A file that does something when it is first read at a position or behind it."""

    def __init__(self, content: bytes, position: int, hook: Callable[[], None]) -> None:
        super().__init__(content)
        self._position = position
        self._hook: Callable[[], None] | None = hook

    def read(self, size: int | None = -1, /) -> bytes:
        if self._hook is not None and self.tell() >= self._position and size:
            hook, self._hook = self._hook, None
            hook()
        return super().read(size)


class Stream:
    """An open file that can only be read."""

    def __init__(self, file: io.BytesIO) -> None:
        self.read = file.read


def fail() -> None:
    raise OSError("the disk of the source is broken")


class Once:
    """True the first so many times that an exchange fits."""

    def __init__(self, fits: Callable[[Exchange], bool], times: int = 1) -> None:
        self._fits = fits
        self.left = times

    def __call__(self, exchange: Exchange) -> bool:
        if self.left and self._fits(exchange):
            self.left -= 1
            return True
        return False


@contextlib.contextmanager
def through(proxy: Proxy, project: Project, user: User) -> Iterator[Files]:
    session = Project(proxy.url, project.key).session(user)
    try:
        session.login_by_mail()
        yield Files(session)
        session.logout()
    finally:
        proxy.close()


@pytest.fixture
def user(new_user: User) -> User:
    """The user of one test: the files are listed."""
    return new_user


@pytest.fixture
def session(new_session: BackendSession) -> BackendSession:
    """Log in as a user of each test's own: their files are listed."""
    return new_session


@pytest.fixture
def files(session: BackendSession) -> Files:
    return Files(session)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a backend of these tests' own, which they may harm."""
    data_dir = tmp_path_factory.mktemp("data")
    servers.start(data_dir)
    yield data_dir
    control.stop(data_dir)


@pytest.fixture
def separate(data_dir: Path) -> control.Running:
    return servers.start(data_dir)


@pytest.fixture
def own_session(separate: control.Running) -> Iterator[BackendSession]:
    """A session with the separate backend."""
    project = Project(separate.api_url, separate.anon_key)
    session = project.session(project.register())
    session.login_by_mail()
    yield session
    session.logout()


@pytest.fixture
def own(own_session: BackendSession) -> Files:
    """Files in the separate backend."""
    return Files(own_session)


def kill(running: control.Running) -> None:
    server = psutil.Process(running.pid)
    server.kill()
    server.wait(60)


def unfinished(running: control.Running) -> list[Path]:
    folder = running.data_dir / "storage"
    return [*(folder / "resumable").glob("*/content"), *(folder / "incoming").iterdir()]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_piece(exchange: Exchange) -> bool:
    return exchange.method == "PATCH"


def is_last_piece(exchange: Exchange) -> bool:
    return is_piece(exchange) and 0 < exchange.sent_bytes < PART_BYTES


class TestBrokenConnections:
    @pytest.mark.parametrize("times", [1, 3])
    def test_in_the_middle_of_a_piece(self, project: Project, user: User, times: int) -> None:
        breaks = Once(lambda e: is_piece(e) and 2 * MIB < e.sent_bytes < 5 * MIB, times)
        proxy = Proxy(project.url, breaks=breaks)
        with through(proxy, project, user) as files:
            files.upload_file("x", CONTENT)
            assert not breaks.left
            assert files.download_file("x") == CONTENT
            sent = sum(e.sent_bytes for e in proxy.exchanges if is_piece(e))
            # Parts that had come were not sent again, and nothing before them.
            assert sent <= len(CONTENT) + times * PART_BYTES

    @pytest.mark.parametrize(
        "fits",
        [
            lambda e: e.method == "POST" and "/resumable" in e.target,
            is_piece,
            is_last_piece,
            lambda e: e.method == "PATCH" and e.sent_bytes == 0,
        ],
        ids=["creation", "piece", "last piece", "confirmation"],
    )
    def test_before_the_answer(self, project: Project, user: User, fits: Callable[[Exchange], bool]) -> None:
        lost = Once(fits)
        # The confirmation is asked for only where the last answer was lost, too.
        last = Once(is_last_piece)
        proxy = Proxy(project.url, lambda e: lost(e) or last(e))
        with through(proxy, project, user) as files:
            files.upload_file("x", b"before")
            files.upload_file("x", CONTENT)
            assert not lost.left
            assert files.download_file("x") == CONTENT
            assert sum(e.sent_bytes for e in proxy.exchanges if is_piece(e)) == len(CONTENT)

    def test_before_the_server_says_where_it_is(self, project: Project, user: User) -> None:
        breaks = Once(lambda e: is_piece(e) and e.sent_bytes > MIB)
        lost = Once(lambda e: e.method == "HEAD", 2)
        proxy = Proxy(project.url, lost, breaks)
        with through(proxy, project, user) as files:
            files.upload_file("x", CONTENT)
            assert not breaks.left
            assert not lost.left
            assert files.download_file("x") == CONTENT

    def test_of_a_small_upload(self, project: Project, user: User) -> None:
        lost, breaks = Once(lambda e: "/object/" in e.target), Once(lambda e: e.sent_bytes > MIB)
        with through(Proxy(project.url, lost, breaks), project, user) as files:
            files.upload_file("x", CONTENT[: 5 * MIB])
            assert not lost.left
            assert not breaks.left
            assert files.download_file("x") == CONTENT[: 5 * MIB]

    def test_of_what_cannot_be_read_twice(self, project: Project, user: User) -> None:
        breaks = Once(lambda e: e.sent_bytes > 8 * MIB)
        with through(Proxy(project.url, breaks=breaks), project, user) as files:
            files.upload_file("x", b"before")
            with pytest.raises(tensorage.BackendUnavailableError, match=r"uploading 'x'.*cannot be reached"):
                files.upload_file("x", Stream(io.BytesIO(CONTENT)))
            assert files.download_file("x") == b"before"

    def test_of_a_download(self, project: Project, user: User, tmp_path: Path) -> None:
        def is_second_piece(exchange: Exchange) -> bool:
            return exchange.method == "GET" and exchange.received_bytes > 4 * MIB

        for to in (None, tmp_path / "local", io.BytesIO()):
            breaks = Once(is_second_piece, 2)
            proxy = Proxy(project.url, breaks=breaks)
            with through(proxy, project, user) as files:
                files.upload_file("x", CONTENT)
                if to is None:
                    assert files.download_file("x") == CONTENT
                else:
                    assert files.download_file("x", to=to) == len(CONTENT)
                    assert (to.read_bytes() if isinstance(to, Path) else to.getvalue()) == CONTENT
                assert not breaks.left
                received = sum(e.received_bytes for e in proxy.exchanges if e.method == "GET")
                assert received <= len(CONTENT) + 2 * DOWNLOAD_BYTES


class TestServers:
    def test_that_restart(self, own: Files, separate: control.Running) -> None:
        def restart() -> None:
            kill(separate)
            threads.append(threading.Thread(target=control.start, args=[separate.data_dir]))
            threads[0].start()

        threads: list[threading.Thread] = []
        source = Hooked(CONTENT, 2 * PART_BYTES, restart)
        own.upload_file("x", source)
        threads[0].join()
        assert own.download_file("x") == CONTENT
        assert unfinished(separate) == []

    def test_that_do_not_come_back(
        self,
        own: Files,
        own_session: BackendSession,
        separate: control.Running,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        own.upload_file("x", b"before")
        own_session.patience_s = 0
        monkeypatch.setattr(resumable, "MAX_FAILURES", 2)
        with pytest.raises(tensorage.BackendUnavailableError, match=r"uploading 'x'.*cannot be reached"):
            own.upload_file("x", Hooked(CONTENT, PART_BYTES, lambda: kill(separate)))
        servers.start(separate.data_dir)
        assert own.download_file("x") == b"before"

    def test_that_forgot_the_upload(self, own: Files, separate: control.Running) -> None:
        def forget() -> None:
            for path in (separate.data_dir / "storage" / "resumable").glob("*/*"):
                path.unlink()

        own.upload_file("x", Hooked(CONTENT, 2 * PART_BYTES, forget))
        assert own.download_file("x") == CONTENT

    def test_a_token_that_is_refused_in_the_middle(
        self, own: Files, own_session: BackendSession, separate: control.Running
    ) -> None:
        session = own_session

        def expire() -> None:
            claims = {"sub": session.user_id, "role": "authenticated", "exp": int(time.time()) - 60}
            assert session.login.session is not None
            session.login.session.access_token = jwt.encode(claims, separate.jwt_secret, algorithm="HS256")

        own.upload_file("x", Hooked(CONTENT, 2 * PART_BYTES, expire))
        assert own.download_file("x") == CONTENT
        for ask in (
            lambda: own.upload_file("small", b"content"),
            lambda: own.download_file("small"),
            own.list_files,
            lambda: own.remove_file("small"),
            lambda: own.upload_file("y", CONTENT),
        ):
            expire()
            assert ask()

    def test_what_nobody_may_store_any_more(self, own: Files, separate: control.Running) -> None:
        def forbid() -> None:
            with psycopg.connect(separate.superuser_url, autocommit=True) as database:
                database.execute(f"alter policy {policy} with check (false)")

        policy = '"tensorage: add objects" on storage.objects'
        with psycopg.connect(separate.superuser_url, autocommit=True) as database:
            names = "select with_check from pg_policies where policyname = 'tensorage: add objects'"
            (before,) = database.execute(names).fetchone() or ("",)
            with pytest.raises(tensorage.PermissionDeniedError, match="uploading 'x'"):
                own.upload_file("x", Hooked(CONTENT, PART_BYTES, forbid))
            database.execute(f"alter policy {policy} with check ({before})")
        assert own.list_files() == []
        assert unfinished(separate) == []


class TestSources:
    @pytest.mark.parametrize("position", [0, PART_BYTES, 2 * PART_BYTES])
    @pytest.mark.parametrize("kind", [lambda file: file, Stream], ids=["file", "stream"])
    def test_that_cannot_be_read(
        self, own: Files, separate: control.Running, kind: Callable[[Any], Any], position: int
    ) -> None:
        own.upload_file("x", b"before")
        with pytest.raises(
            tensorage.InvalidInputError, match=r"uploading 'x'.*source is broken.*Nothing was"
        ):
            own.upload_file("x", kind(Hooked(CONTENT, position, fail)))
        wait_for(lambda: unfinished(separate) == [])
        assert own.download_file("x") == b"before"

    @pytest.mark.parametrize(
        ("size", "end"), [(1000, 999), (len(CONTENT), PART_BYTES + 1), (len(CONTENT), 0)]
    )
    def test_that_shrink(
        self, own: Files, separate: control.Running, tmp_path: Path, size: int, end: int
    ) -> None:
        own.upload_file("x", b"before")
        local = tmp_path / "local"
        local.write_bytes(CONTENT[:size])
        with local.open("rb", buffering=0) as file:
            measured = file.seek

            def seek(offset: int, whence: int = 0) -> int:
                position = measured(offset, whence)
                if whence == os.SEEK_END:
                    os.truncate(local, end)
                return position

            class Shrinking:
                read, tell, seekable = file.read, file.tell, file.seekable

            source = Shrinking()
            source.seek = seek  # type: ignore[attr-defined]
            with pytest.raises(tensorage.InvalidInputError, match=rf"ends after {end} bytes, and had {size}"):
                own.upload_file("x", source)
        wait_for(lambda: unfinished(separate) == [])
        assert own.download_file("x") == b"before"

    def test_that_grow(self, files: Files) -> None:
        """The content that was there in the beginning is a file, too."""

        def grow() -> None:
            position = source.tell()
            source.seek(0, os.SEEK_END)
            source.write(b"more")
            source.seek(position)

        source = Hooked(CONTENT, PART_BYTES, grow)
        files.upload_file("x", source)
        assert files.download_file("x") == CONTENT
        assert source.read() == b"more"

    def test_of_the_wrong_kind(self, files: Files) -> None:
        class Numbers:
            def read(self, size: int) -> object:
                return 7

        with pytest.raises(tensorage.InvalidInputError, match="the source cannot be read behind byte 0"):
            files.upload_file("x", Numbers())  # type: ignore[arg-type]
        assert files.list_files() == []


class TestReplacedWhileRead:
    def replacing(self, files: Files, times: int) -> Callable[[Exchange], bool]:
        """Replaces the file when the first piece of it has come, so many times."""
        left = iter(range(times - 1, -1, -1))

        def notice(exchange: Exchange) -> bool:
            if exchange.method == "GET" and exchange.received_bytes == DOWNLOAD_BYTES:
                # The first piece has come: it is the last of that file.
                for number in islice(left, 1):
                    files.upload_file("x", _version(number))
            return False

        return notice

    @pytest.mark.parametrize("kind", ["bytes", "path"])
    def test_it_is_read_again(
        self, files: Files, project: Project, user: User, tmp_path: Path, kind: str
    ) -> None:
        files.upload_file("x", _version(9))
        proxy = Proxy(project.url, breaks=self.replacing(files, 2))
        with through(proxy, project, user) as watched:
            if kind == "bytes":
                assert watched.download_file("x") == _version(0)
            else:
                assert watched.download_file("x", to=tmp_path / "local") == len(_version(0))
                assert (tmp_path / "local").read_bytes() == _version(0)
                assert list(tmp_path.iterdir()) == [tmp_path / "local"]

    def test_an_open_file_has_begun_with_the_old_one(
        self, files: Files, project: Project, user: User
    ) -> None:
        files.upload_file("x", _version(9))
        proxy = Proxy(project.url, breaks=self.replacing(files, 1))
        with through(proxy, project, user) as watched:
            to = io.BytesIO()
            with pytest.raises(tensorage.ChangedError, match="downloading 'x'"):
                watched.download_file("x", to=to)
            assert to.getvalue() == _version(9)[:DOWNLOAD_BYTES]


def _version(number: int) -> bytes:
    return bytes([number]) * (DOWNLOAD_BYTES + 1000 + number)
