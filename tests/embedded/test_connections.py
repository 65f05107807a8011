"""Connections without measure: heads, bodies and answers that do not come to an end."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from embedded.raw import MIB, Raw, connected, growing_at_most, head, is_served, port_of

import tensorage
from tensorage.backend.wire.header import header
from tensorage.embedded import control

# -- Announced, and not sent ----------------------------------------------------------------------------


@pytest.mark.parametrize("with_key", [False, True])
def test_a_body_that_is_announced_takes_no_memory(backend: control.Running, with_key: bool) -> None:
    """Three heads of 150 bytes once took 2.4 GB."""
    fields: dict[str, Any] = {"apikey": backend.anon_key} if with_key else {}
    path, octets = "/rest/v1/rpc/tensorage_put", "application/octet-stream"
    with ExitStack() as stack, growing_at_most(backend, 50 * MIB):
        for declared in (2**30 - 1, 128 * MIB, 128 * MIB):
            raw = stack.enter_context(connected(port_of(backend)))
            raw.send(head("POST", path, Content_Type=octets, Content_Length=declared, **fields))
            if not with_key:
                assert raw.answer().status == 401
            elif declared > 128 * MIB:
                assert raw.answer().status == 413
        assert is_served(backend)


def test_a_connection_lives_on_after_a_body_that_nobody_wanted(backend: control.Running) -> None:
    with connected(port_of(backend)) as raw:
        for _ in range(3):
            raw.send(head("POST", "/rest/v1/rpc/x", Content_Length=100_000) + b"x" * 100_000)
            assert raw.answer().status == 401
        raw.send(head("GET", "/health"))
        assert raw.answer().status == 200


def test_who_asks_before_sending_is_answered_and_let_go(backend: control.Running) -> None:
    """Refused, it may send its body or not: nobody can tell what comes next on this connection."""
    with connected(port_of(backend)) as raw:
        raw.send(head("POST", "/rest/v1/rpc/x", Content_Length=10, Expect="100-continue"))
        assert raw.answer().status == 401
        assert raw.is_closed()
    key = backend.anon_key
    with connected(port_of(backend)) as raw:
        path = "/auth/v1/token?grant_type=password"
        raw.send(head("POST", path, Content_Length=2, Expect="100-continue", apikey=key))
        assert raw.answer().status == 100
        raw.send(b"{}" + head("GET", "/health"))
        assert [raw.answer().status, raw.answer().status] == [400, 200]


# -- Bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[1] * 50, [70_000, 1, 300_000, 5], [400_000]], ids=["tiny", "mixed", "one"]
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_is_put_together_however_it_comes(
    session: tensorage.BackendSession, backend: control.Running, sizes: list[int], is_chunked: bool
) -> None:
    """Pieces that come before the application takes them are kept in their order."""
    array = np.random.default_rng(0).integers(0, 256, sum(sizes), "u1")
    key = f"pieces/{len(sizes)} {is_chunked}"
    meta = {"key": key, "shape": array.shape, "dtype": "|u1", "chunk": array.size}
    begin = header(count=array.size, block_size=array.size, meta=meta)
    pieces = [begin, *(piece.tobytes() for piece in np.split(array, np.cumsum(sizes)[:-1]))]
    nbytes = sum(map(len, pieces))
    length = {"Transfer_Encoding": "chunked"} if is_chunked else {"Content_Length": nbytes}
    fields = {"Content-Type": "application/octet-stream", **length, **session.transfer.login.headers()}
    with connected(port_of(backend)) as raw:
        raw.send(head("POST", "/rest/v1/rpc/tensorage_store", **fields))
        for piece in pieces:
            raw.send(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            raw.send(b"0\r\n\r\n")
        assert raw.answer().status == 200
    np.testing.assert_array_equal(tensorage.TensorStore(session)[key], array)


# -- Heads ----------------------------------------------------------------------------------------------

LARGE = 70_000


@pytest.mark.parametrize(
    "request_head",
    [
        head("GET", "/health", X_Long="x" * LARGE),
        head("GET", "/health?" + "x" * LARGE),
        head("GET", "/health", **{"x" * LARGE: "x"}),
        head("GET", "/health", **{f"X-{n}": "x" * 700 for n in range(100)}),
        head("GET", "/health", **{f"X-{n}": "x" for n in range(300)}),
        head("GET", "/health", **{"X-" + "y" * LARGE: "x" * LARGE}),
    ],
    ids=["value", "url", "name", "together", "number", "both"],
)
def test_a_large_head_is_refused(backend: control.Running, request_head: bytes) -> None:
    with connected(port_of(backend)) as raw:
        raw.send_what_is_taken(request_head)
        answer = raw.answer()
        assert (answer.status, list(answer.json)) == (431, ["message"])
        assert raw.is_closed()
    assert is_served(backend)


def test_a_head_below_the_bound_is_served(backend: control.Running) -> None:
    for fields in ({"X-Long": "x" * 60_000}, {f"X-{n}": "x" * 200 for n in range(250)}):
        with connected(port_of(backend)) as raw:
            for _ in range(3):
                raw.send(head("GET", "/health", **fields))
                assert raw.answer().status == 200


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ", b"x" * 10_000),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-", b"x" * 10_000),
        (b"GET /", b"x" * 10_000),
        (b"", b"\r\n" * 5_000),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"a: b\r\n" * 1000),
        (head("POST", "/auth/v1/signup", Transfer_Encoding="chunked") + b"0\r\n", b"a: b\r\n" * 1000),
    ],
    ids=["value", "name", "url", "empty lines", "fields", "fields after a body"],
)
def test_a_head_without_an_end_is_not_kept(backend: control.Running, beginning: bytes, more: bytes) -> None:
    """100 MB of it were once read."""
    with (
        connected(port_of(backend)) as raw,
        growing_at_most(backend, 50 * MIB),
        pytest.raises(ConnectionError),
    ):
        raw.send(beginning + more * (100 * MIB // len(more)))
    assert is_served(backend)


def test_what_is_not_http_is_told_so(backend: control.Running) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ):
        with connected(port_of(backend)) as raw:
            raw.send(data + b"\r\n\r\n")
            assert raw.answer().status == 400
            assert raw.is_closed()


def test_requests_ahead_of_their_answers(backend: control.Running) -> None:
    one = head("GET", "/health")
    with connected(port_of(backend)) as raw:
        raw.send(one * 10)
        assert [raw.answer().status for _ in range(10)] == [200] * 10
    with connected(port_of(backend)) as raw, growing_at_most(backend, 50 * MIB):
        raw.send_what_is_taken(one * 100_000)
        assert raw.answers() < 100_000
    assert is_served(backend)


def test_many_clients_that_never_finish_leave_room_for_others(backend: control.Running) -> None:
    raws = [Raw(port_of(backend)) for _ in range(100)]
    try:
        for raw in raws:
            raw.send(b"POST /rest/v1/rpc/tensorage_version HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert is_served(backend)
    finally:
        for raw in raws:
            raw.close()
