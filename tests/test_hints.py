"""Hints of error messages: they name what is wrong, end once, and hold no payload."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from project import Project, User

import tensorage
from tensorage import AuthenticationError, BackendSession, ConfigurationError, InvalidInputError, TensorStore
from tensorage.backend.wire.faults import ERRORS_BY_CODE, SCHEMA_CODES, Fault, error_of
from tensorage.backend.wire.storage_faults import StorageRefusal, read_fault, refusals_as_errors
from tensorage.config import check_key, check_url
from tensorage.embedded import control

#: Most characters of a message that holds one or two quoted values.
LONG = 900

PAYLOAD = "x" * 10**6

PAGE = b"""<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>
<hr><center>nginx/1.27.0</center>\r\n</body>\r\n</html>"""


def is_fit(message: str) -> bool:
    return len(message) <= LONG and ".." not in message.replace("...", "") and "<h" not in message


# Passwords ----------------------------------------------------------------------------------------------


class TestPasswords:
    def test_the_rule_is_named(self, project: Project) -> None:
        with pytest.raises(AuthenticationError, match=r"at least 6 characters\. Choose a password") as caught:
            tensorage.signup("weak@example.com", "abc", project.url, project.key)
        assert is_fit(str(caught.value))
        assert "credentials" not in str(caught.value)

    def test_too_long_a_password(self, project: Project) -> None:
        with pytest.raises(AuthenticationError, match=r"72 characters$"):
            tensorage.signup("weak@example.com", "a" * 100, project.url, project.key)

    def test_an_address_that_is_taken(self, project: Project, user: User) -> None:
        with pytest.raises(AuthenticationError, match=r"registered\. Log in"):
            tensorage.signup(user.email, "abcdefgh", project.url, project.key)

    def test_a_wrong_short_password_of_the_backend(self, backend: control.Running) -> None:
        email = "hints-here@example.com"
        tensorage.local(backend.data_dir, email, "password-7").logout()
        with pytest.raises(
            AuthenticationError, match=r"6 characters.*If the user exists, the password is another"
        ):
            tensorage.local(backend.data_dir, email, "abc")

    def test_a_wrong_key(self, project: Project, user: User) -> None:
        with pytest.raises(AuthenticationError, match=r"Invalid API key\. Check the key of the project$"):
            tensorage.login(user.email, user.password, project.url, "another-key")


# URLs and keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://abc.supabase.co/rest/v1", r"REST API\. .* 'https://abc\.supabase\.co'$"),
        ("https://abc.supabase.co/rest/v1/", r"REST API\. .* 'https://abc\.supabase\.co'$"),
        ("https://abc.supabase.co/rest/v1/datasets?select=*", r"REST API\. .* 'https://abc\.supabase\.co'$"),
        ("https://lab.org/supabase/auth/v1", r"Auth server\. .* 'https://lab\.org/supabase'$"),
        ("http://127.0.0.1:8000/storage/v1/s3", r"Storage server\. .* 'http://127\.0\.0\.1:8000'$"),
        ("https://abc.supabase.co/?page=1", r"Give the project's own: 'https://abc\.supabase\.co'$"),
        ("https://supabase.com/dashboard/project/abc", r"Give 'https://abc\.supabase\.co'$"),
        ("https://supabase.com/dashboard/project/abc/settings/api", r"Give 'https://abc\.supabase\.co'$"),
        ("https://app.supabase.com/project/abc", r"Give 'https://abc\.supabase\.co'$"),
        ("https://supabase.com/dashboard", r"<project>\.supabase\.co$"),
        ("postgresql://postgres:pw@db.abc.supabase.co:5432/postgres", r"Give 'https://abc\.supabase\.co'$"),
        ("https://abc.storage.supabase.co/storage/v1/s3", r"Give 'https://abc\.supabase\.co'$"),
        ("abc.supabase.co", r"https://"),
        ("https://", r"https://<project>"),
        ("https:///rest/v1", r"names no host"),
        ("https://abc.supabase.co\n", r"line break"),
        ("https://abc.supabase.co:99999", r"is no URL"),
    ],
)
def test_a_url_that_is_none_of_a_project(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        check_url(url)
    assert is_fit(str(caught.value))
    assert ":pw@" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://abc.supabase.co",
        "https://abc.supabase.co/",
        "https://lab.org/supabase",
        "https://10.0.0.1:8000",
    ],
)
def test_a_url_that_may_be_that_of_a_project(url: str) -> None:
    assert check_url(url) == url


def test_the_url_of_a_part_is_told_before_anything_is_sent(project: Project, user: User) -> None:
    with pytest.raises(ConfigurationError, match="REST API"):
        tensorage.login(user.email, user.password, project.url + "/rest/v1", project.key)


@pytest.mark.parametrize("key", ["sb_publishable_abc\n", " sb_publishable_abc", "sb_publish…able", "sb\tx"])
def test_a_key_that_was_copied_badly(key: str) -> None:
    with pytest.raises(ConfigurationError, match="position") as caught:
        check_key(key)
    assert "sb" not in str(caught.value)


@pytest.mark.parametrize("name", ["backend_url", "backend_key", "email", "password"])
@pytest.mark.parametrize("value", [b"secret" * 1000, np.zeros(10), 3, "secret" * 10**5], ids=type)
def test_a_setting_that_is_no_text(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=name) as caught:
        BackendSession(**{name: value})
    assert is_fit(str(caught.value))
    assert "secret" not in str(caught.value)


def test_a_password_that_is_no_text(project: Project, user: User) -> None:
    session = BackendSession(user.email, None, project.url, project.key)
    wrong: Any = b"secret"
    with pytest.raises(InvalidInputError, match="password is text, and not of the type bytes"):
        session.login_by_mail(user.email, wrong)
    with pytest.raises(InvalidInputError, match="password is text"):
        session.register_by_mail(user.email, wrong)


def test_nothing_is_configured() -> None:
    for use in (
        lambda: BackendSession().hold(),
        lambda: BackendSession().login_by_mail("a@example.com", "abcdefgh"),
        lambda: tensorage.signup("a@example.com", "abcdefgh"),
    ):
        with pytest.raises(
            ConfigurationError, match=r"is tensorage\.local\(\) what you want\? It starts"
        ) as caught:
            use()
        assert is_fit(str(caught.value))


# Payloads -----------------------------------------------------------------------------------------------

USES: dict[str, Callable[[TensorStore, Any], object]] = {
    "get": lambda store, value: store[value],
    "set": lambda store, value: store.__setitem__(value, np.zeros(3)),
    "attribute": getattr,
    "set attribute": lambda store, value: setattr(store, value, 1),
    "load": lambda store, value: store.load(value),
    "save": lambda store, value: store.save("saved", {value: object()}),
    "group": lambda store, value: store.group(value),
    "rename": lambda store, value: store.rename("w", value),
    "share": lambda store, value: store.share(value),
    "share with": lambda store, value: store.share("w", value),
    "owner": lambda store, value: store.shared_by(value),
    "attrs": lambda store, value: store.open("w").attrs.update({"x": {1: {value}}}),
    "dims": lambda store, value: setattr(store.open("w"), "dims", value),
    "resize": lambda store, value: store.open("w").resize(value),
    "shape": lambda store, value: store.create("new", shape=value, dtype="f4"),
    "dtype": lambda store, value: store.create("new", shape=3, dtype=value),
    "fill value": lambda store, value: store.create("new", shape=3, dtype="f4", fill_value=value),
    "glob": lambda store, value: store.catalogue(glob=value),
    "import": lambda store, value: store.import_file(value),
    "export": lambda store, value: store.export("w", value),
    "assign": lambda store, value: store.__setitem__(("w", 0), value),
    "append": lambda store, value: store.append("w", value),
    "select": lambda store, value: store["w", value],
    "shuffle": lambda store, value: store.open("w").batches(2, shuffle=value),
    "position": lambda store, value: store.open("w").batches(2, start_at=value),
    "batch size": lambda store, value: store.open("w").batches(value),
    "engine": lambda store, value: TensorStore(store.backend, engine=value),
    "patience": lambda _, value: BackendSession(patience_s=value),
    "folder": lambda _, value: tensorage.local(value),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("value", [PAYLOAD, PAYLOAD.encode()], ids=["text", "bytes"])
@pytest.mark.timeout(30)
def test_a_payload_in_the_wrong_place(rows: TensorStore, name: str, value: Any) -> None:
    rows["w"] = np.zeros(3)
    with pytest.raises((tensorage.TensorageError, AttributeError, IndexError, TypeError)) as caught:
        USES[name](rows, value)
    assert is_fit(str(caught.value))


# Answers of servers -------------------------------------------------------------------------------------


def answers() -> Iterator[Fault]:
    for code in [*ERRORS_BY_CODE, *SCHEMA_CODES, "PGRST301", "57014", "22023", ""]:
        for status in (400, 401, 404, 429, 500, 503):
            for end in ("", ".", ". ", ".\n"):
                yield Fault(status, code, f"it does not do{end}", "", f"Give another{end}")
                yield Fault(
                    status, code, PAYLOAD[:600] + end, "" if code.startswith("TS0") else PAYLOAD + end
                )


def test_each_answer_becomes_sentences_that_end_once() -> None:
    wrong = [
        (fault.code, fault.status, str(error))
        for fault in answers()
        if not is_fit(str(error := error_of(fault, "reading 'x'")).removesuffix(PAYLOAD)[:LONG])
        or len(str(error)) > 2 * LONG
    ]
    assert wrong == []


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 415, 501, 507])
def test_refusals_of_storage_end_once(status: int) -> None:
    body = b'{"message": "row-level security refuses it.", "error": "x"}'
    with pytest.raises(StorageRefusal) as refused:
        read_fault(status, body, None)
    with pytest.raises(tensorage.TensorageError) as caught, refusals_as_errors("downloading 'a'"):
        raise refused.value
    assert is_fit(str(caught.value))


@pytest.mark.parametrize(
    "body",
    [PAGE, PAGE.lower(), b"<!DOCTYPE html>" + PAGE, b"y" * 10**6, b'{"message": "%s"}' % (b"z" * 10**6)],
)
def test_a_body_of_a_gateway_is_not_quoted(body: bytes) -> None:
    error = error_of(Fault.parse(502, body), "reading 'x'")
    assert isinstance(error, tensorage.BackendUnavailableError)
    assert is_fit(str(error))
    assert "HTTP 502" in str(error)
    assert "Try again later" in str(error)
    assert is_fit(str(error.__cause__))


@pytest.fixture
def gateway() -> Iterator[str]:
    """A gateway whose server is away."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(502)
            self.send_header("Content-Length", str(len(PAGE)))
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_login_at_a_gateway_whose_server_is_away(gateway: str) -> None:
    with pytest.raises(
        tensorage.BackendUnavailableError, match=r"does not serve now \(HTTP 502.*Try again"
    ) as caught:
        tensorage.login("a@example.com", "abcdefgh", gateway, "key")
    assert is_fit(str(caught.value))
