"""Routes of the Storage API: the same as by trying all of them in turn. Bytes that are read without a thread."""

from __future__ import annotations

import errno
import io
import itertools
import os
from pathlib import Path

import pytest
from starlette.routing import Match

from tensorage.embedded.database import Database
from tensorage.embedded.storage.api import Router, StorageApi
from tensorage.embedded.storage.content import parse_range, read_from_memory
from tensorage.embedded.tokens import Tokens

WORDS = ["object", "bucket", "upload", "resumable", "info", "public", "sign", "list", "empty", "", "a"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_first_route_that_matches(method: str, tmp_path: Path) -> None:
    routes = StorageApi(Database("postgresql://"), Tokens("a secret of no use"), tmp_path).routes
    router = Router(routes)
    found = set[str]()
    for depth in range(1, 4):
        for words in itertools.product(WORDS, repeat=depth):
            scope = {"type": "http", "method": method, "path": "/storage/v1/" + "/".join(words)}
            scope["root_path"] = "/storage/v1"
            matches = ((route, *route.matches(scope)) for route in routes)
            expected, child = next(((r, child) for r, m, child in matches if m is Match.FULL), (None, {}))
            assert router.find(scope) is expected, words
            if expected is not None:
                assert scope["path_params"] == child["path_params"]
                found.add(expected.path)
    assert bool(found) == (method != "TRACE")


@pytest.fixture
def file(tmp_path: Path) -> io.FileIO:
    path = tmp_path / "blob"
    path.write_bytes(bytes(range(256)) * 1024)
    return io.FileIO(path)


def test_few_bytes_that_are_in_memory(file: io.FileIO) -> None:
    with file:
        span = parse_range("bytes=3-1002", 256 * 1024)
        try:
            read = read_from_memory(file, span)
        except BlockingIOError:
            pytest.skip("the file system cannot tell what is in memory")
        assert read == (bytes(range(256)) * 5)[3:1003]
        assert read_from_memory(file, range(0)) == b""


def test_other_bytes_are_left_to_a_thread(file: io.FileIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with file:
        for many_or_beyond in (range(256 * 1024), range(256 * 1024 - 10, 256 * 1024 + 10)):
            with pytest.raises(BlockingIOError):
                read_from_memory(file, many_or_beyond)
        # Not every system can tell.
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
        with pytest.raises(BlockingIOError):
            read_from_memory(file, range(10))


def test_an_error_of_the_disk_stays_one(file: io.FileIO) -> None:
    file.close()
    with pytest.raises(ValueError, match="closed"):
        read_from_memory(file, range(10))
    writing = io.FileIO(str(file.name), "a")
    with writing, pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        read_from_memory(writing, range(10))
