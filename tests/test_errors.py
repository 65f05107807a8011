"""The errors, what of the backend's becomes which, and what requests do about a bad network."""

from __future__ import annotations

import gzip
import http.server
import json
import pickle
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import tensorage
from tensorage import TensorStore, errors
from tensorage.backend.database import DatabaseContext
from tensorage.backend.transfer import MEDIA_TYPE, Transfer
from tensorage.backend.wire import patience
from tensorage.backend.wire.faults import (
    ERRORS_BY_CODE,
    SCHEMA_CODES,
    BackendAnswerError,
    Fault,
    check_version,
    error_of,
)
from tensorage.backend.wire.header import FIRST_RELEASED_SCHEMA, SCHEMA_VERSION
from tensorage.backend.wire.http import TooMuchError
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    InvalidInputError,
    PermissionDeniedError,
    SchemaError,
    TensorageError,
)

BUILTINS = {
    "KeyNotFoundError": KeyError,
    "KeyExistsError": ValueError,
    "InvalidInputError": ValueError,
    "IncompleteTensorError": ValueError,
    "CorruptTensorError": ValueError,
    "DTypeError": TypeError,
    "AuthenticationError": RuntimeError,
    "ConfigurationError": RuntimeError,
    "PermissionDeniedError": PermissionError,
    "QuotaExceededError": OSError,
    "SchemaError": RuntimeError,
    "CacheError": OSError,
    "ChangedError": RuntimeError,
    "ClosedError": ValueError,
    "SpoolError": OSError,
    "SpoolFullError": OSError,
    "SpoolDamagedError": OSError,
    "BackendUnavailableError": ConnectionError,
    "TooLargeError": MemoryError,
    "TensorageError": Exception,
}


class TestHierarchy:
    def test_every_error_is_listed_and_public(self) -> None:
        assert sorted(BUILTINS) == sorted(errors.__all__)
        assert set(BUILTINS) <= set(tensorage.__all__)
        defined = {
            name
            for name, thing in vars(errors).items()
            if isinstance(thing, type) and issubclass(thing, Exception)
        }
        assert defined == set(BUILTINS)

    @pytest.mark.parametrize("name", sorted(BUILTINS))
    def test_kind(self, name: str) -> None:
        kind = getattr(tensorage, name)
        assert issubclass(kind, BUILTINS[name])
        assert issubclass(kind, TensorageError)
        assert name == "TensorageError" or name in (errors.__doc__ or "")

    @pytest.mark.parametrize("name", sorted(BUILTINS))
    def test_message_and_pickle(self, name: str) -> None:
        error = getattr(errors, name)("reading 'wéather': no such array")
        # A KeyError would show its repr.
        assert str(error) == "reading 'wéather': no such array"
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.args) == (type(error), str(error), error.args)


def recorded() -> Iterator[tuple[str, int, bytes]]:
    path = Path(__file__).parent / "wire" / "postgrest.json"
    for case in json.loads(path.read_text())["cases"]:
        answer = case["response"]
        if answer["status"] >= 400:
            body = answer.get("body_latin1", "").encode("latin-1")
            yield (
                case["name"],
                answer["status"],
                json.dumps(answer["json"]).encode() if "json" in answer else body,
            )


class TestFaults:
    @pytest.mark.parametrize(("name", "status", "body"), list(recorded()))
    def test_recorded_answer(self, name: str, status: int, body: bytes) -> None:
        fault = Fault.parse(status, body)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {}
        assert (fault.status, fault.code) == (status, answer.get("code", ""))
        assert fault.message
        assert fault.message == answer.get("message", fault.message)
        assert fault.details == (answer.get("details") or "")
        assert fault.hint == (answer.get("hint") or "")
        assert fault.is_expired_login == (status == 401 and fault.code in {"PGRST301", "PGRST303"})
        assert fault.is_too_much == (fault.code == "57014")

        error = error_of(fault, "reading 'x'")
        assert isinstance(error, _expected(fault))
        assert isinstance(error.__cause__, BackendAnswerError)
        assert fault.message in str(error)
        assert fault.code in str(error.__cause__)

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (404, b"<html>not found</html>", BackendUnavailableError),
            (400, b"", BackendUnavailableError),
            (400, b"[1]", BackendUnavailableError),
            (502, b"\xff\xfe", BackendUnavailableError),
            (503, b'{"message": null}', BackendUnavailableError),
            (429, b'{"message": "API rate limit exceeded"}', BackendUnavailableError),
            (401, b'{"message": "No API key found in request"}', AuthenticationError),
            (401, b'{"msg": "Invalid JWT"}', AuthenticationError),
            (403, b'{"error": "forbidden"}', AuthenticationError),
            (413, b"<html>too large</html>", BackendUnavailableError),
            (402, b'{"code": 402, "message": "paused"}', BackendUnavailableError),
            (402, b'{"message": "exceed_egress_quota"}', BackendUnavailableError),
            (405, b'{"code": "25006", "message": "cannot execute INSERT"}', errors.QuotaExceededError),
        ],
    )
    def test_answers_of_what_stands_in_front(self, status: int, body: bytes, kind: type[Exception]) -> None:
        error = error_of(Fault.parse(status, body), "reading 'x'")
        assert isinstance(error, kind)
        assert str(error).startswith("reading 'x': ")

    def test_every_code_of_the_sql_is_known(self) -> None:
        folder = Path(__file__).parents[1] / "supabase" / "migrations"
        raised = set(
            re.findall(r"errcode = '(\w+)'", "".join(file.read_text() for file in folder.glob("*.sql")))
        )
        assert raised
        assert raised <= set(ERRORS_BY_CODE)
        # Every code of ours that is known is raised by something.
        assert {code for code in ERRORS_BY_CODE if code.startswith("TS")} <= raised

    @pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
    def test_code(self, code: str) -> None:
        error = error_of(Fault(400, code, "what is wrong", "", "what to do"), "storing 'x'")
        assert type(error) is ERRORS_BY_CODE[code][0]
        assert str(error).startswith("storing 'x': what is wrong.")
        assert len(str(error)) > len("storing 'x': what is wrong. ")

    def test_the_servers_errors_of_our_sql(
        self, store: TensorStore, database: psycopg.Connection[Any]
    ) -> None:
        store["x"] = np.arange(3)
        for use, kind in [
            (lambda: store["nothing"], errors.KeyNotFoundError),
            (lambda: store.__setitem__("x", [1]), errors.KeyExistsError),
            (lambda: DatabaseContext(store.backend).insert_tensor(2**40, [1]), errors.KeyNotFoundError),
        ]:
            with pytest.raises(kind):
                use()

    def test_passing(self) -> None:
        passing = [(500, "XX000"), (502, ""), (503, "PGRST001"), (503, "53300"), (504, "PGRST003"), (429, "")]
        lasting = [
            (400, "22P02"),
            (401, ""),
            (404, ""),
            (413, ""),
            (500, "57014"),
            (500, "53100"),
            (409, "23505"),
        ]
        assert all(Fault(status, code, "").is_passing for status, code in passing)
        assert not any(Fault(status, code, "").is_passing for status, code in lasting)

    def test_version(self) -> None:
        check_version(SCHEMA_VERSION)
        with pytest.raises(SchemaError, match=r"older.*migrations"):
            check_version(SCHEMA_VERSION - 1)
        with pytest.raises(SchemaError, match=r"newer.*pip install"):
            check_version(SCHEMA_VERSION + 1)
        with pytest.raises(SchemaError, match=r"older.*never released.*checkout.*reset.*migrations --sql"):
            check_version(FIRST_RELEASED_SCHEMA - 1)


def _expected(fault: Fault) -> type[Exception]:
    if fault.code in ERRORS_BY_CODE:
        return ERRORS_BY_CODE[fault.code][0]
    if fault.code in SCHEMA_CODES:
        return SchemaError
    if fault.status in {401, 403}:
        return AuthenticationError
    return InvalidInputError if 400 <= fault.status < 500 and fault.code else BackendUnavailableError


# Faults of the network, and of what stands between -------------------------------------------------------


@dataclass
class Answer:
    """One answer of the flaky network; `reset` closes the connection with nothing said."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False


@dataclass
class Flaky:
    """Gives its answers one after the other, and keeps what it was asked."""

    url: str
    answers: deque[Answer]
    asked: list[tuple[str, dict[str, str], bytes]]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    answers: deque[Answer] = deque()
    asked: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            function = self.path.removeprefix("/rest/v1/rpc/")
            if function == "tensorage_version":
                return self.give(Answer(body=str(SCHEMA_VERSION).encode()))
            asked.append((function, dict(self.headers), body))
            return self.give(answers.popleft())

        def give(self, answer: Answer) -> None:
            self.close_connection = answer.reset or "Content-Length" in answer.headers
            if answer.reset:
                return
            self.send_response(answer.status)
            headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
            for name, value in {**headers, **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Keep messages out of the tests' output."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield Flaky(f"http://127.0.0.1:{server.server_port}", answers, asked)
        finally:
            server.shutdown()


class Login:
    """Tokens t0, t1, ...: the next one after each renewal."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def headers(self) -> dict[str, str]:
        return {"apikey": "key", "Authorization": f"Bearer t{len(self.refused)}"}

    def renew(self, refused: str) -> None:
        self.refused.append(refused)


@pytest.fixture
def transfer(flaky: Flaky) -> Iterator[Transfer]:
    transfer = Transfer(flaky.url, Login())
    yield transfer
    transfer.close()


RESET = Answer(reset=True)
EXPIRED = Answer(401, b'{"code": "PGRST303", "message": "JWT expired"}')
TOO_LARGE = Answer(413, b"<html>too large</html>", "text/html")
TOO_SLOW = Answer(500, b'{"code": "57014", "message": "canceling statement due to statement timeout"}')
BUSY = Answer(503, b"<html>busy</html>", "text/html")
RATE = Answer(429, b'{"message": "rate limit"}')
GOOD = Answer(body=b'{"a": 1}')


def octets(body: bytes, announced: int | None = None) -> Answer:
    headers = {} if announced is None else {"Content-Length": str(announced)}
    return Answer(body=body, content_type=MEDIA_TYPE, headers=headers)


class TestPauses:
    def test_they_grow_up_to_a_bound(self) -> None:
        fault = Fault(503, "", "busy")
        for attempt in range(1, 40):
            grown = min(patience.FIRST_WAIT_S * 2 ** (attempt - 1), patience.LONGEST_WAIT_S)
            assert 0.5 * grown <= patience.pause_s(attempt, fault) <= 1.5 * grown

    @pytest.mark.parametrize(("asked", "waits"), [("7", 7.0), ("3600", 60.0)])
    def test_they_are_as_long_as_the_backend_asks(self, asked: str, waits: float) -> None:
        assert patience.pause_s(1, Fault.parse(429, b"{}", asked)) == waits

    @pytest.mark.parametrize("asked", [None, "", "soon", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"])
    def test_what_is_no_number_of_seconds_asks_for_nothing(self, asked: str | None) -> None:
        assert Fault.parse(503, b"busy", asked).retry_after_s is None


class TestTransfer:
    @pytest.mark.parametrize("bad", [[RESET], [BUSY], [RATE], [RESET, BUSY, RATE, RESET]], ids=str)
    def test_what_passes_is_tried_again(self, flaky: Flaky, transfer: Transfer, bad: list[Answer]) -> None:
        flaky.answers.extend([*bad, GOOD])
        assert transfer.call("f", {"x": 1}, "asking") == {"a": 1}
        assert [(name, body) for name, _, body in flaky.asked] == [("f", b'{"x":1}')] * (len(bad) + 1)

    def test_bytes_are_sent_whole_again(self, flaky: Flaky, transfer: Transfer) -> None:
        flaky.answers.extend([RESET, BUSY, GOOD])
        assert transfer.send("f", [b"head", memoryview(b"elements")], "storing 'x'") == {"a": 1}
        assert [body for _, _, body in flaky.asked] == [b"headelements"] * 3

    def test_it_ends(self, flaky: Flaky, transfer: Transfer) -> None:
        flaky.answers.extend([BUSY] * 20)
        with pytest.raises(BackendUnavailableError, match=r"reading 'x'.*503"):
            transfer.call("f", {}, "reading 'x'")
        assert len(flaky.asked) == patience.ATTEMPTS

    @pytest.mark.parametrize("status", [400, 404, 409, 403])
    def test_what_lasts_is_not_tried_again(self, flaky: Flaky, transfer: Transfer, status: int) -> None:
        flaky.answers.append(Answer(status, b'{"code": "42501", "message": "no"}'))
        with pytest.raises(PermissionDeniedError):
            transfer.call("f", {}, "asking")
        assert len(flaky.asked) == 1

    @pytest.mark.parametrize("bad", [octets(b"123", 8), octets(b"", 8), RESET, BUSY], ids=str)
    def test_a_truncated_answer_comes_again(self, flaky: Flaky, transfer: Transfer, bad: Answer) -> None:
        flaky.answers.extend([bad, octets(b"12345678")])
        out = bytearray(8)
        transfer.read_into("f", {}, memoryview(out), "reading 'x'")
        assert bytes(out) == b"12345678"

    @pytest.mark.parametrize("body", [b"", b"1234567", b"123456789", b"1" * 600_000])
    def test_an_answer_of_another_size_is_refused(
        self, flaky: Flaky, transfer: Transfer, body: bytes
    ) -> None:
        flaky.answers.append(octets(body))
        with pytest.raises(BackendUnavailableError, match=f"sent {len(body)} bytes where 8"):
            transfer.read_into("f", {}, memoryview(bytearray(8)), "reading 'x'")
        assert len(flaky.asked) == 1
        flaky.answers.append(GOOD)
        assert transfer.call("f", {}, "asking") == {"a": 1}

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
    def test_a_compressed_answer_is_not_decompressed(
        self, flaky: Flaky, transfer: Transfer, encoding: str
    ) -> None:
        body = gzip.compress(gzip.compress(bytes(10_000_000)))
        headers = {"Content-Encoding": encoding}
        for read in (
            lambda: transfer.read_into("f", {}, memoryview(bytearray(8)), "reading 'x'"),
            lambda: transfer.read("f", {}, "reading 'x'"),
            lambda: transfer.call("f", {}, "reading 'x'"),
        ):
            flaky.answers.append(Answer(body=body, headers=headers))
            with pytest.raises(
                BackendUnavailableError, match=r"reading 'x'.*Content-Encoding.*was not asked for"
            ):
                read()

    def test_an_answer_without_a_length(self, flaky: Flaky, transfer: Transfer) -> None:
        chunked = {"Transfer-Encoding": "chunked"}
        for body, kind in [(b"4\r\n1234\r\n0\r\n\r\n", errors.BackendUnavailableError)]:
            flaky.answers.append(Answer(body=body, content_type=MEDIA_TYPE, headers=chunked))
            with pytest.raises(kind):
                transfer.read_into("f", {}, memoryview(bytearray(8)), "reading 'x'")

    @pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"", b'{"a": 1', b"\xff"])
    def test_garbage_is_told(self, flaky: Flaky, transfer: Transfer, body: bytes) -> None:
        flaky.answers.append(Answer(body=body))
        with pytest.raises(BackendUnavailableError, match=r"asking.*URL of a Supabase project"):
            transfer.call("f", {}, "asking")

    def test_an_expired_login_is_renewed_once(self, flaky: Flaky, transfer: Transfer) -> None:
        flaky.answers.extend([EXPIRED, GOOD])
        assert transfer.call("f", {}, "asking") == {"a": 1}
        assert [headers["Authorization"] for _, headers, _ in flaky.asked] == ["Bearer t0", "Bearer t1"]
        flaky.answers.extend([EXPIRED, EXPIRED, GOOD])
        with pytest.raises(AuthenticationError, match="JWT expired"):
            transfer.call("f", {}, "asking")
        assert transfer.login.refused == ["Bearer t0", "Bearer t1"]

    @pytest.mark.parametrize("much", [TOO_LARGE, TOO_SLOW], ids=["413", "57014"])
    def test_too_much_is_the_engines_to_halve(self, flaky: Flaky, transfer: Transfer, much: Answer) -> None:
        flaky.answers.extend([much, much])
        with pytest.raises(TooMuchError):
            transfer.send("f", [b"elements"], "asking")
        with pytest.raises(TooMuchError):
            transfer.read("f", {}, "asking")
        assert len(flaky.asked) == 2

    @pytest.mark.parametrize("much", [TOO_LARGE, TOO_SLOW], ids=["413", "57014"])
    def test_too_much_is_an_error_where_nothing_can_be_halved(
        self, flaky: Flaky, transfer: Transfer, much: Answer
    ) -> None:
        flaky.answers.append(much)
        with pytest.raises(BackendUnavailableError, match=r"asking.*even a small request"):
            transfer.call("f", {}, "asking")
        assert len(flaky.asked) == 1

    def test_nobody_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
        with pytest.raises(BackendUnavailableError, match=r"project\.invalid cannot be reached"):
            Transfer("http://project.invalid", Login()).call("f", {}, "asking")

    def test_the_first_error_ends_a_run(self, transfer: Transfer) -> None:
        done: list[int] = []

        def job(number: int) -> Callable[[], None]:
            def work() -> None:
                if number == 3:
                    raise InvalidInputError("the third")
                done.append(number)

            return work

        with pytest.raises(InvalidInputError, match="the third"):
            transfer.run(job(number) for number in range(1000))
        assert 3 not in done
        assert len(done) < 1000


class TestHalving:
    """A proxy's limit on bodies, and a statement timeout, in front of a real backend."""

    def test_a_statement_timeout_halves_reads(
        self, rows: TensorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        array = np.arange(4096, dtype="i8").reshape(64, 64)
        rows["x"] = array
        sizes = _refuse(monkeypatch, "read_into", lambda arguments: len(arguments[2]), 5000)
        assert np.array_equal(rows.open("x")[...], array)
        assert max(sizes) == array.nbytes
        assert sum(size for size in sizes if size <= 5000) == array.nbytes
        assert np.array_equal(rows["x", ::3, 5:9], array[::3, 5:9])

    def test_a_whole_array_that_takes_too_long_comes_in_parts(
        self, rows: TensorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        array = np.arange(4096, dtype="i8").reshape(64, 64)
        rows["x"] = array
        looks = _refuse(monkeypatch, "read", lambda _: 1, 0)
        sizes = _refuse(monkeypatch, "read_into", lambda arguments: len(arguments[2]), 5000)
        assert np.array_equal(rows["x"], array)
        assert looks == [1]
        assert sum(size for size in sizes if size <= 5000) == array.nbytes
        with pytest.raises(BackendUnavailableError, match="reading"):
            rows.read_many(["x", "x "])

    def test_a_limit_of_bodies_halves_writes(
        self, rows: TensorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows.chunk_size = 256
        array = np.random.default_rng(1).integers(0, 9, (64, 64))
        sizes = _refuse(monkeypatch, "send", lambda arguments: sum(map(len, arguments[1])), 5000)
        rows["x"] = array
        assert max(sizes) > array.nbytes
        assert len(sizes) > 8
        assert np.array_equal(rows["x"], array)

    def test_what_cannot_be_halved_any_more_is_told(
        self, rows: TensorStore, monkeypatch: pytest.MonkeyPatch, database: psycopg.Connection[Any]
    ) -> None:
        _refuse(monkeypatch, "send", lambda _: 1, 0)
        with pytest.raises(BackendUnavailableError, match=r"storing 'x'.*chunk_size"):
            rows["x"] = np.arange(8)
        assert "x" not in rows
        owner = rows.backend.user_id
        assert database.execute("select count(*) from datasets where user_id = %s", [owner]).fetchone() == (
            0,
        )


def _refuse(
    monkeypatch: pytest.MonkeyPatch, method: str, size_of: Callable[[tuple[Any, ...]], int], limit: int
) -> list[int]:
    """Requests over a limit get the answer of a proxy; the others reach the backend. Gives the sizes seen."""
    original = getattr(Transfer, method)
    sizes: list[int] = []

    def limited(self: Transfer, *arguments: Any) -> Any:
        size = size_of(arguments)
        sizes.append(size)
        if size > limit:
            raise TooMuchError(Fault(413, "", "too large"), arguments[-1])
        return original(self, *arguments)

    monkeypatch.setattr(Transfer, method, limited)
    return sizes
