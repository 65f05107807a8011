"""Clients that do not get on: they are waited for, for a while. The same server, with less patience than usual."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from embedded.raw import MIB, Raw, connected, head, port_of, serving

from tensorage.embedded import control
from tensorage.embedded.connections import Limits
from tensorage.embedded.request_memory import BusyError, RequestMemory

PATIENCE_S = 0.8
LIMITS = Limits(progress_interval_s=PATIENCE_S, connections=8, drained_nbytes=MIB)
OBJECT_NBYTES = 64 * MIB


@pytest.fixture(scope="module")
def storage_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("impatient") / "storage"


@pytest.fixture(scope="module")
def port(backend: control.Running, storage_dir: Path) -> Iterator[int]:
    """Another server over the backend's database, with limits that a test can reach."""
    with serving(backend, storage_dir, LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def large(backend: control.Running, port: int) -> Iterator[str]:
    """Path of an object that no system keeps on its way."""
    headers = {"Authorization": f"Bearer {backend.service_role_key}"}
    path = "/storage/v1/object/tensors/patience/large"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as http:
        assert http.post(path, content=bytes(OBJECT_NBYTES)).status_code == 200
        yield path
        assert http.delete(path).status_code == 200


def service(running: control.Running) -> dict[str, str]:
    return {"Authorization": f"Bearer {running.service_role_key}", "apikey": running.service_role_key}


def upload(running: control.Running, nbytes: int) -> bytes:
    fields = service(running) | {"x-upsert": "true"}
    return head("POST", "/storage/v1/object/tensors/patience/slow", Content_Length=nbytes, **fields)


@pytest.mark.parametrize(
    "beginning", [b"", b"\r\n", b"GET", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"], ids=repr
)
def test_a_head_that_does_not_come(port: int, beginning: bytes) -> None:
    with connected(port) as raw:
        raw.send(beginning)
        answer = raw.answer()
        assert (answer.status, list(answer.json)) == (408, ["message"])
        assert raw.is_closed()


def drip(raw: Raw, data: Iterable[int]) -> None:
    """Send a byte now and then."""
    for byte in data:
        raw.send(bytes([byte]))
        time.sleep(PATIENCE_S / 20)


def test_a_head_that_comes_byte_by_byte(port: int) -> None:
    with connected(port) as raw, pytest.raises(ConnectionError):
        drip(raw, head("GET", "/health", **{f"X-{n}": n for n in range(100)}))


@pytest.mark.parametrize("sent", [0, 1, 100_000])
def test_a_body_that_does_not_come(backend: control.Running, port: int, storage_dir: Path, sent: int) -> None:
    with connected(port) as raw:
        raw.send(upload(backend, MIB) + bytes(sent))
        assert raw.answer().status == 408
        assert raw.is_closed()
    wait_until_empty(storage_dir / "incoming")


def wait_until_empty(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while list(folder.iterdir()):
        assert time.monotonic() < deadline, f"{folder} is not empty"
        time.sleep(0.01)


def test_a_body_that_comes_byte_by_byte(backend: control.Running, port: int) -> None:
    """It would keep the connection for ever."""
    with connected(port) as raw:
        raw.send(head("POST", "/rest/v1/rpc/tensorage_version", Content_Length=MIB, **service(backend)))
        with pytest.raises(ConnectionError):
            drip(raw, bytes(1000))


def test_a_slow_body_is_waited_for(backend: control.Running, port: int) -> None:
    """The body takes several times the server's patience."""
    pieces = 30
    with connected(port) as raw:
        raw.send(upload(backend, pieces * 10_000))
        for _ in range(pieces):
            raw.send(bytes(10_000))
            time.sleep(PATIENCE_S / 10)
        assert raw.answer().status == 200
        raw.send(head("GET", "/health"))
        assert raw.answer().status == 200


def test_whoever_waits_for_the_server_has_time(
    backend: control.Running, port: int, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """PostgreSQL is at work: that is not the client's fault, nor that it said what it wants in good time."""
    with connected(port) as raw, connected(port) as asking:
        with database.transaction():
            database.execute("lock table public.datasets in access exclusive mode")
            raw.send(head("GET", "/rest/v1/datasets?limit=0", **service(backend)))
            body = b'{"key": 1}'
            fields = service(backend) | {"Expect": "100-continue", "Content-Type": "application/json"}
            asking.send(head("POST", "/rest/v1/datasets", Content_Length=len(body), **fields))
            assert asking.answer().status == 100
            asking.send(body)
            time.sleep(3 * PATIENCE_S)
        assert raw.answer().status == 200
        assert asking.answer().status in (400, 403)


def test_whoever_was_told_to_wait_has_time(backend: control.Running, port: int, large: str) -> None:
    """An upload waits for its turn before its body is asked for."""
    with psycopg.connect(backend.superuser_url) as sql, connected(port) as raw:
        sql.execute("lock table storage.objects in access exclusive mode")
        fields = service(backend) | {"x-upsert": "true", "Expect": "100-continue"}
        raw.send(head("POST", f"{large}2", Content_Length=3, **fields))
        time.sleep(3 * PATIENCE_S)
        sql.rollback()
        assert raw.answer().status == 100
        raw.send(b"abc")
        assert raw.answer().status == 200


def test_an_answer_that_is_not_taken(backend: control.Running, port: int, large: str) -> None:
    with connected(port) as raw:
        raw.send(head("GET", large, **service(backend)))
        time.sleep(4 * PATIENCE_S)
        received = 0
        with contextlib.suppress(ConnectionError):
            while piece := raw.socket.recv(MIB):
                received += len(piece)
        assert received < OBJECT_NBYTES


def test_an_answer_that_is_taken_slowly(backend: control.Running, port: int, large: str) -> None:
    with connected(port) as raw:
        raw.send(head("GET", large, **service(backend)))
        received = 0
        while received < OBJECT_NBYTES:
            piece = raw.socket.recv(2 * MIB)
            assert piece, received
            received += len(piece)
            time.sleep(PATIENCE_S / 20)


def test_no_more_connections_than_allowed(port: int) -> None:
    """The connection that waits longest without a request makes room."""
    with ExitStack() as stack:
        raws = [stack.enter_context(connected(port)) for _ in range(LIMITS.connections)]
        for raw in raws[1:]:
            raw.send(head("GET", "/health"))
            assert raw.answer().status == 200
        late = stack.enter_context(connected(port))
        late.send(head("GET", "/health"))
        assert late.answer().status == 200
        assert raws[0].is_closed()
        raws[1].send(head("GET", "/health"))
        assert raws[1].answer().status == 200


def test_connections_that_are_all_at_work(backend: control.Running, port: int) -> None:
    with ExitStack() as stack:
        raws = [stack.enter_context(connected(port)) for _ in range(LIMITS.connections)]
        for raw in raws:
            raw.send(upload(backend, 100_000) + bytes(10_000))
        done = threading.Event()

        def go_on(raw: Raw) -> None:
            for _ in range(9):
                done.wait(PATIENCE_S / 10)
                raw.send(bytes(10_000))

        threads = [threading.Thread(target=go_on, args=(raw,)) for raw in raws]
        for thread in threads:
            thread.start()
        late = stack.enter_context(connected(port))
        answer = late.answer()
        assert (answer.status, list(answer.json)) == (503, ["message"])
        assert late.is_closed()
        done.set()
        for thread, raw in zip(threads, raws, strict=True):
            thread.join()
            assert raw.answer().status == 200


def test_a_body_that_nobody_wants_is_not_taken_without_an_end(port: int) -> None:
    with connected(port) as raw:
        raw.send(head("POST", "/rest/v1/rpc/x", Content_Length=1000 * MIB))
        assert raw.answer().status == 401
        with pytest.raises(ConnectionError):
            raw.send(bytes(64 * MIB))


def test_both_servers_are_as_they_were(backend: control.Running, port: int) -> None:
    for served in (port, port_of(backend)):
        assert httpx.get(f"http://127.0.0.1:{served}/health").status_code == 200


# -- Memory that requests share ------------------------------------------------------------------------


def test_bytes_are_shared_in_turns() -> None:
    """Each body comes to its end, however many come at once, and however large."""

    async def scene() -> None:
        memory, most = RequestMemory(100, max_wait_s=30), 0

        async def body(pieces: int) -> None:
            nonlocal most
            with memory.lend() as held:
                for _ in range(pieces):
                    await held.add(10)
                    most = max(most, memory.used_nbytes)
                    await asyncio.sleep(0)

        await asyncio.gather(*(body(20) for _ in range(50)))
        assert memory.used_nbytes == 0
        assert 100 < most <= 100 + 20 * 10

    asyncio.run(scene())


def test_who_finds_no_room_is_told_so() -> None:
    async def scene() -> None:
        memory = RequestMemory(100, max_wait_s=0.05)
        with memory.lend() as answer, memory.lend() as first, memory.lend() as second:
            # Memory that is held is counted; it cannot be refused any more.
            answer.hold(150)
            # One at a time goes beyond the bound, for a while.
            await first.add(10)
            with pytest.raises(BusyError):
                await second.add(10)
            with pytest.raises(BusyError):
                await first.add(10)
            answer.release()
            first.release()
            await second.add(90)
        assert memory.used_nbytes == 0

    asyncio.run(scene())
