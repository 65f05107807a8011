"""The TLS settings that all sessions of a process share: read once, and checked for each connection."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from forks import fork

from tensorage import BackendSession
from tensorage.backend.wire.http import Http, Login, Request, tls_context
from tensorage.errors import BackendUnavailableError
from tensorage.signin.sdk import make_client

#: Certificate and key of a server on this machine, which no authority vouches for. It is good until 2126.
CERTIFICATE = Path(__file__).with_name("localhost.pem")


class Handler(http.server.BaseHTTPRequestHandler):
    """Says "hello" to everybody."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """A server whose clients may hang up during the handshake."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that has TLS and the certificate."""
    with Server(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


class Nobody(Login):
    """A login that says nothing."""

    def headers(self) -> dict[str, str]:
        return {}

    def renew(self, refused: str) -> None:
        raise AssertionError(refused)


def ask_by_pool(url: str) -> bytes:
    connections = Http(url, Nobody())
    try:
        return connections.ask(Request("GET", "/", {}), "a greeting").body
    finally:
        connections.close()


def ask_by_sdk(url: str) -> bytes:
    _, client = make_client(url, "key")
    with client:
        return client.get(url).content


@pytest.mark.parametrize("ask", [ask_by_pool, ask_by_sdk])
def test_a_certificate_that_nobody_vouches_for_is_refused_until_it_is_trusted(
    url: str, ask: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with pytest.raises((BackendUnavailableError, httpx.ConnectError), match="CERTIFICATE_VERIFY_FAILED"):
        ask(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert ask(url) == b"hello"
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises((BackendUnavailableError, httpx.ConnectError), match="CERTIFICATE_VERIFY_FAILED"):
        ask(url)


def test_a_host_of_another_name_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    port = url.rpartition(":")[2]
    for ask in (ask_by_pool, ask_by_sdk):
        with pytest.raises((BackendUnavailableError, httpx.ConnectError), match="mismatch"):
            ask(f"https://127.0.0.1:{port}")


def test_the_client_of_a_project_without_tls_reaches_no_host_by_tls(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    _, client = make_client("http://localhost", "key")
    with client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        client.get(url)


def test_certificates_are_read_once_for_all_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    original = ssl.SSLContext.load_verify_locations

    def load(self: ssl.SSLContext, *names: object, **options: object) -> None:
        read.append(options)
        original(self, *names, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    tls_context("https://project.invalid")
    read.clear()
    for url in ("https://project.invalid", "https://other.invalid", "http://localhost:1"):
        session = BackendSession("ada@example.com", "password", url, "key")
        assert session.client is not None
        Http(url, Nobody()).connections().connection_from_url(url)
    assert read == []


def test_a_forked_child_has_settings_of_its_own() -> None:
    """A lock within the parent's may be held by a thread that is not in the child."""
    parents = tls_context("https://project.invalid")

    def work() -> str:
        childs = tls_context("https://project.invalid")
        return f"{childs is parents} {tls_context('https://other.invalid') is childs}"

    assert fork(work)() == "False True"
    assert tls_context("https://project.invalid") is parents
