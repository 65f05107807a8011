"""Files that may configure a program, and secrets that may go to a URL."""

from __future__ import annotations

import http.server
import os
import pickle
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import others
import pytest
from project import Project, User

import tensorage
from tensorage import BackendSession, ConfigurationError, SecurityWarning, config
from tensorage import warnings as tensorage_warnings
from tensorage.config import ENVIRONMENT, Configuration, configure

OURS, THEIRS = "https://ours.example", "https://theirs.example"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    folder = tmp_path / "work" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def write(path: Path, **values: str) -> Path:
    """A file that sets the variables of some values."""
    path.write_text("".join(f"{ENVIRONMENT[name]}={value}\n" for name, value in values.items()))
    return path


class Thief(http.server.BaseHTTPRequestHandler):
    """Takes whatever it is sent."""

    taken: list[bytes]

    def do_POST(self) -> None:
        self.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(500)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def thief() -> Iterator[tuple[str, list[bytes]]]:
    """URL of a server, and the bodies of all requests that it got."""
    taken: list[bytes] = []
    handler = type("Handler", (Thief,), {"taken": taken})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()
        thread.join()


class TestDotEnv:
    def test_dollars_name_no_variable(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_TOKEN", "s3cret")
        write(
            folder / ".env", backend_url="https://theirs.example/${SOME_TOKEN}", email="${SOME_TOKEN:-x}$HOME"
        )
        assert configure().backend_url == "https://theirs.example/${SOME_TOKEN}"
        assert configure().email == "${SOME_TOKEN:-x}$HOME"

    @others.needs_root
    def test_another_users_file_is_as_if_it_were_not_there(self, folder: Path) -> None:
        write(folder.parent / ".env", backend_url=OURS)
        others.give_away(write(folder / ".env", backend_url=THEIRS))
        with pytest.warns(SecurityWarning, match=rf"below/\.env is not read: .* belongs to uid {others.UID}"):
            assert configure().backend_url == OURS
        with warnings.catch_warnings():
            # The warning comes once.
            assert configure().backend_url == OURS

    @others.needs_root
    @pytest.mark.parametrize("content", ["DJANGO_KEY=x\n", "\xff\xfe", ""])
    def test_another_users_file_that_is_not_about_us(self, folder: Path, content: str) -> None:
        (folder / ".env").write_bytes(content.encode("latin-1"))
        others.give_away(folder / ".env")
        assert configure() == Configuration()

    @others.needs_root
    def test_another_users_link_to_our_own_file(self, folder: Path, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere", backend_url=THEIRS)
        folder.chmod(0o1777)
        (folder / ".env").symlink_to(tmp_path / "elsewhere")
        assert configure().backend_url == THEIRS
        others.give_away(folder / ".env")
        with pytest.warns(SecurityWarning, match="belongs to"):
            assert configure().backend_url is None

    @pytest.mark.parametrize("mode", [0o602, 0o666])
    def test_our_own_file_that_others_can_write_is_refused(self, folder: Path, mode: int) -> None:
        path = write(folder / ".env", backend_url=THEIRS, password="p")
        path.chmod(mode)
        with pytest.raises(
            ConfigurationError, match=r"sets SUPABASE_URL, USER_PASSWORD and is not read"
        ) as caught:
            BackendSession()
        assert f"Run `chmod go-w {path}`, or set the variables in the environment" in str(caught.value)
        # It makes no difference where everything is known without it.
        assert configure(**dict.fromkeys(ENVIRONMENT, "x")).backend_url == "x"
        path.chmod(0o644)
        assert configure().backend_url == THEIRS

    def test_our_own_file_in_a_folder_that_others_can_write_to_is_refused(self, folder: Path) -> None:
        write(folder / ".env", backend_url=THEIRS)
        for above in (folder, folder.parent):
            above.chmod(0o777)
            with pytest.raises(ConfigurationError, match=rf"{above} can be written by others"):
                configure()
            above.chmod(0o1777)
            assert configure().backend_url == THEIRS
            above.chmod(0o755)

    def test_a_file_that_others_can_write_and_is_not_about_us(self, folder: Path) -> None:
        (folder / ".env").write_text("DJANGO_KEY=x\n")
        (folder / ".env").chmod(0o666)
        assert configure() == Configuration()

    def test_what_is_no_file(self, folder: Path) -> None:
        write(folder.parent / ".env", backend_url=OURS)
        (folder / ".env").mkdir()
        assert configure().backend_url == OURS
        (folder / ".env").rmdir()
        (folder / ".env").symlink_to("nowhere")
        assert configure().backend_url == OURS

    def test_a_pipe_of_our_own(self, folder: Path) -> None:
        """Managers of passwords serve one in place of a file."""
        os.mkfifo(folder / ".env", 0o600)
        writer = threading.Thread(target=write, args=[folder / ".env"], kwargs={"backend_url": OURS})
        writer.start()
        assert configure().backend_url == OURS
        writer.join()

    @others.needs_root
    def test_another_users_pipe_holds_nobody_up(self, folder: Path) -> None:
        os.mkfifo(folder / ".env", 0o666)
        others.give_away(folder / ".env")
        assert configure() == Configuration()

    def test_a_file_that_is_no_text_is_told(self, folder: Path) -> None:
        (folder / ".env").write_bytes(b"SUPABASE_URL=\xff\n")
        with pytest.raises(ConfigurationError, match=r"\.env cannot be read"):
            configure()

    @others.needs_root
    def test_folders_above_that_cannot_be_entered(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(folder.parent / ".env", backend_url=OURS)
        folder.parent.chmod(0o700)
        monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
        assert others.fork_as_other(lambda: repr(configure()))() == repr(Configuration())

    def test_a_long_file_that_others_can_write_is_refused(self, folder: Path) -> None:
        (folder / ".env").write_bytes(b"SUPABASE_URL=https://theirs.example\n#" + "\u20ac".encode() * 2**19)
        (folder / ".env").chmod(0o666)
        with pytest.raises(ConfigurationError, match="sets SUPABASE_URL and is not read"):
            configure()

    def test_a_working_directory_that_is_gone(self, folder: Path) -> None:
        folder.rmdir()
        assert configure() == Configuration()


class TestMixes:
    """Values of several places."""

    @pytest.mark.parametrize(
        ("place", "secret_place"),
        [
            ("argument", "argument"), ("argument", "environment"), ("argument", ".env"),
            ("environment", "argument"), ("environment", "environment"), ("environment", ".env"),
            (".env", "argument"), (".env", ".env"),
            ("saved", "argument"), ("saved", "environment"), ("saved", ".env"), ("saved", "saved"),
        ],
    )  # fmt: skip
    def test_what_is_used(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, secret_place: str
    ) -> None:
        put = Putter(folder, monkeypatch)
        put(place, backend_url=OURS)
        put(secret_place, backend_key="key", email="e", password="p")
        assert put.configured() == Configuration(OURS, "key", "e", "p")
        assert not put.configured().held_back

    @pytest.mark.parametrize(
        ("place", "secret_place", "held_back"),
        [
            (".env", "environment", {"backend_key", "password"}),
            (".env", "saved", {"backend_key", "email", "password"}),
        ],
    )
    def test_what_is_held_back(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        place: str,
        secret_place: str,
        held_back: set[str],
    ) -> None:
        put = Putter(folder, monkeypatch)
        put(place, backend_url=THEIRS)
        put(secret_place, backend_key="KEY", email="e", password="SECRET")
        known = put.configured()
        assert known.backend_url == THEIRS
        assert known.backend_key is known.password is None
        assert set(known.held_back) == held_back
        for name, why in known.held_back.items():
            assert f"the {name} in" in why
            assert THEIRS in why
            assert str(folder / ".env") in why
            assert ENVIRONMENT[name] in why
            assert "SECRET" not in why
            assert "KEY in" not in why.replace("SUPABASE_KEY", "")

    @pytest.mark.parametrize("place", ["argument", "environment", ".env"])
    def test_what_was_saved_is_for_the_url_that_it_was_saved_with(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        put = Putter(folder, monkeypatch)
        put("saved", backend_url=OURS, backend_key="key", email="e", password="p")
        put(place, backend_url=THEIRS)
        known = put.configured()
        assert (known.backend_url, known.backend_key, known.email, known.password) == (
            THEIRS,
            None,
            None,
            None,
        )
        assert f"It is for {OURS}, with which it was saved" in known.held_back["password"]
        put(place, backend_url=OURS + "/")
        assert put.configured() == Configuration(OURS + "/", "key", "e", "p")

    def test_nothing_takes_the_place_of_what_is_held_back(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = Putter(folder, monkeypatch)
        put(".env", backend_url=THEIRS, backend_key="their key", email="t", password="their password")
        put("environment", password="ours")
        assert put.configured() == Configuration(THEIRS, "their key", "t", None)

    def test_a_planted_url_gets_nothing(
        self, folder: Path, thief: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, taken = thief
        config.save(Configuration(OURS, "KEY", "ada@example.com", "SECRET"))
        write(folder.parent / ".env", backend_url=url)
        for use in (lambda s: s(), lambda s: s.login_by_mail(), lambda s: s.token, lambda s: list(s())):
            with pytest.raises(ConfigurationError, match=rf"(?s)saved in .*project\.json.*{url}.*\.env"):
                use(BackendSession())
        with pytest.raises(ConfigurationError, match="the backend_key in what"):
            tensorage.signup("ada@example.com", "password")
        with pytest.raises(ConfigurationError, match="the backend_key in what"):
            tensorage.login("ada@example.com", "password")
        write(folder.parent / ".env", backend_url=url, backend_key="their key", email="ada@example.com")
        monkeypatch.setenv("USER_PASSWORD", "SECRET")
        with pytest.raises(ConfigurationError, match="the password in the environment is not sent to"):
            tensorage.login()
        # It is set, so that asking for it would mislead.
        with pytest.raises(ConfigurationError, match=r"^the password in the environment is not sent to"):
            BackendSession()()
        assert taken == []
        # An argument is meant for the project that is configured.
        with pytest.raises(tensorage.BackendUnavailableError):
            BackendSession().login_by_mail(password="an argument")
        assert len(taken) == 1
        assert b"an argument" in taken[0]
        assert b"SECRET" not in taken[0]

    def test_a_login_with_values_of_many_places(
        self, folder: Path, project: Project, user: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensorage.link_to(project.url, project.key)
        monkeypatch.setenv("USER_EMAIL", user.email)
        assert list(tensorage.login(password=user.password)) == []
        write(folder / ".env", password=user.password)
        assert list(BackendSession()()) == []


class Putter:
    """Puts values where they are looked up."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        self._arguments: dict[str, str] = {}
        self._dotenv: dict[str, str] = {}
        self._saved: dict[str, str] = {}

    def __call__(self, place: str, **values: str) -> None:
        if place == "argument":
            self._arguments |= values
        elif place == "environment":
            for name, value in values.items():
                self._monkeypatch.setenv(ENVIRONMENT[name], value)
        elif place == ".env":
            self._dotenv |= values
            write(self._folder / ".env", **self._dotenv)
        else:
            self._saved |= values
            config.save(Configuration(**self._saved))  # type: ignore[arg-type]

    def configured(self) -> Configuration:
        return configure(**self._arguments)


class TestTheSavedProject:
    def test_is_not_saved_where_others_could_replace_it(self, folder: Path, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(
            ConfigurationError, match=rf"not saved .*{tmp_path} can be written by others"
        ) as caught:
            tensorage.link_to(OURS, "key")
        assert f"chmod go-w {tmp_path}" in str(caught.value)
        assert not config.saved_path().parent.exists()
        tmp_path.chmod(0o700)
        tensorage.link_to(OURS, "key")
        tmp_path.chmod(0o777)
        with pytest.raises(ConfigurationError, match="is not used"):
            BackendSession()
        tmp_path.chmod(0o700)

    def test_its_folders_are_private_whatever_the_umask(self, folder: Path) -> None:
        before = os.umask(0)
        try:
            tensorage.link_to(OURS, "key")
        finally:
            os.umask(before)
        path = config.saved_path()
        modes = [stat.S_IMODE(above.stat().st_mode) for above in (path, path.parent, path.parent.parent)]
        assert modes == [0o600, 0o700, 0o700]

    @pytest.mark.parametrize(("mode", "password", "works"), [
        (0o666, None, False), (0o644, None, True), (0o644, "p", False), (0o640, "p", False), (0o600, "p", True),
    ])  # fmt: skip
    def test_modes(self, folder: Path, mode: int, password: str | None, works: bool) -> None:
        config.save(Configuration(OURS, "key", "e", password))
        config.saved_path().chmod(mode)
        if works:
            assert configure().password == password
        else:
            with pytest.raises(ConfigurationError, match=r"project\.json is not used: .* by others.*chmod"):
                configure()

    @others.needs_root
    def test_another_users_file(self, folder: Path) -> None:
        config.save(Configuration(THEIRS, "key"))
        others.give_away(config.saved_path())
        with pytest.raises(ConfigurationError, match="belongs to"):
            configure()

    def test_is_not_looked_at_where_it_makes_no_difference(self, folder: Path) -> None:
        config.saved_path().parent.mkdir(parents=True)
        config.saved_path().write_text("damaged")
        assert configure(**dict.fromkeys(ENVIRONMENT, "x")).password == "x"


class TestUrls:
    @pytest.mark.parametrize("url", ["http://once.example", "http://once.example:8000/", "http://192.0.2.7"])
    def test_what_is_not_encrypted_is_warned_of_once(
        self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensorage_warnings, "given_messages", set())
        with pytest.warns(SecurityWarning, match="is not encrypted") as caught:
            assert tensorage.link_to(url, "key") is None
        assert len(caught) == 1
        assert url in str(caught[0].message)
        assert "https://" in str(caught[0].message)
        # It is about the line that asked for it.
        assert caught[0].filename == __file__
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            tensorage.link_to(url, "key")
            config.check_url(url)
        assert again == []

    def test_as_an_error_it_is_one_each_time(self, folder: Path) -> None:
        for _ in range(2):
            with pytest.raises(SecurityWarning):
                tensorage.link_to("http://project.example", "key")
        assert not config.saved_path().exists()

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:1", "http://127.8.9.10", "http://[::1]:54321", "http://localhost:1", OURS]
    )
    def test_what_stays_on_this_machine_or_is_encrypted(self, url: str) -> None:
        assert config.check_url(url) == url

    @pytest.mark.parametrize(
        "url",
        ["http://127.0.0.1.example", "http://localhost.example", "http://example/127.0.0.1", "http://0x7f.1"],
    )
    def test_what_only_looks_like_this_machine(self, url: str) -> None:
        with pytest.raises(SecurityWarning):
            config.check_url(url)

    def test_a_session_warns_before_it_sends_anything(self) -> None:
        session = BackendSession("ada@example.com", "password", "http://project.example", "key")
        for use in (session.login_by_mail, session, lambda: session.client, lambda: session.transfer):
            with pytest.raises(SecurityWarning):
                use()

    @pytest.mark.parametrize(
        "url", ["https://ada:SECRET@ours.example", "https://SECRET@ours.example/x", "ada:SECRET@ours"]
    )
    def test_a_url_with_a_password_is_refused_and_not_shown(self, folder: Path, url: str) -> None:
        session = BackendSession("ada@example.com", "password", url, "key")
        for use in (session.login_by_mail, lambda: tensorage.link_to(url, "key")):
            with pytest.raises(ConfigurationError) as caught:
                use()
            assert "SECRET" not in str(caught.value)
        assert "SECRET" not in repr(session)
        assert "ours" in repr(session)

    @pytest.mark.parametrize("path", ["/rest/v1", "/rest/v1/", "/auth/v1", "/base/storage/v1/s3"])
    def test_a_url_of_a_part_of_a_project_is_named(self, path: str) -> None:
        with pytest.raises(ConfigurationError, match=r"Give the project's own: 'https://ours\.example"):
            config.check_url(f"https://ours.example{path}")

    @pytest.mark.parametrize("url", ["http://[::1", "https://[x]"])
    def test_a_url_that_is_none(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="is no URL"):
            config.check_url(url)


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_password_is_not_sent_on(self, thief: tuple[str, list[bytes]], status: int) -> None:
        elsewhere, taken = thief

        class Sender(Thief):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Location", f"{elsewhere}{self.path}")
                self.end_headers()

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sender) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            url = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(tensorage.BackendUnavailableError):
                BackendSession("ada@example.com", "SECRET", url, "key").login_by_mail()
            server.shutdown()
            thread.join()
        assert taken == []


def test_no_secret_is_shown_or_pickled(session: BackendSession) -> None:
    assert session.password is not None
    assert session.backend_key is not None
    hidden = [session.password, session.token]
    shown: list[Callable[[], str]] = [
        lambda: repr(session), lambda: repr(session()), lambda: repr(session.login.ending),
        lambda: repr(configure(password=session.password, backend_key=session.backend_key)),
    ]  # fmt: skip
    for show in shown:
        for secret in [*hidden, session.backend_key]:
            assert secret not in show()
    assert session.password.encode() not in pickle.dumps(session)
