"""``tensorage login`` and ``logout``, and the commands and sessions that use the login."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Terminal
from project import Project, User
from proxy import Exchange, Proxy

from tensorage.signin.kept import find_login

#: Environment of somebody whose password is configured nowhere.
LOGGED_OUT: dict[str, str | None] = {"USER_EMAIL": None, "USER_PASSWORD": None}


@pytest.fixture
def member(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The terminal of somebody who has logged in by no password in the environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(terminal.folder / "config"))
    return Terminal({**terminal.environment, **LOGGED_OUT}, terminal.folder, terminal.store)


@pytest.fixture
def logins(database: Any, user: User) -> Callable[[], int]:
    def count() -> int:
        found = database.execute("select count(*) from auth.sessions where user_id = %s", [user.id])
        return int(found.fetchone()[0])

    return count


def test_login_and_logout(member: Terminal, project: Project, user: User, logins: Callable[[], int]) -> None:
    assert "tensorage login" in member.refusal("ls")
    before = logins()
    done = member.run("login", stdin=f"{user.email}\n{user.password}\n")
    assert f"logged in as {user.email} at {project.url}, kept in {member.folder}" in done.stdout
    assert user.password not in done.output
    assert logins() == before + 1
    member.store["x"] = [1, 2]
    assert member.run("ls").stdout == "x\n"
    assert member.run("cat", "x").stdout.split() == ["1", "2"]
    said = member.json("whoami")
    assert (said["email"], said["id"], said["url"]) == (user.email, user.id, project.url)
    assert said["kept_in"].endswith(".json")
    assert said["kept_in"] in member.run("whoami").stdout
    # None of the commands has logged in by itself, or ended the login.
    assert logins() == before + 1
    assert user.email in member.run("logout").stdout
    assert logins() == before
    assert "no login is kept" in member.run("logout").stdout
    assert member.json("logout") == {"url": project.url, "email": None, "was_kept": False}
    assert "tensorage login" in member.refusal("ls")


def test_a_password_on_stdin(member: Terminal, user: User) -> None:
    said = member.json("login", user.email, "--password-stdin", stdin=f"{user.password}\nrest")
    assert (said["email"], said["id"]) == (user.email, user.id)
    assert user.password not in Path(said["kept_in"]).read_text()
    assert "stdin" in member.refusal("login", user.email, "--password-stdin", stdin="", status=2)
    assert "EMAIL" in member.refusal("login", "--password-stdin", stdin="pw\n", status=2)
    # A refused login changes nothing.
    refused = member.refusal("login", user.email, "--password-stdin", stdin="wrong pass\n", status=4)
    assert "wrong pass" not in refused
    assert member.json("whoami")["id"] == user.id
    member.run("logout", user.email)


def test_a_configured_password_comes_first(terminal: Terminal, project: Project, user: User) -> None:
    other = project.register()
    done = terminal.run("login", other.email, "--password-stdin", stdin=other.password)
    assert "a password is configured" in done.stderr
    assert terminal.json("whoami")["id"] == user.id
    assert terminal.json("whoami", USER_EMAIL=None, USER_PASSWORD=None)["id"] == other.id
    assert "USER_EMAIL" in terminal.refusal("whoami", USER_EMAIL=None)
    again = ("login", other.email, "--password-stdin")
    done = terminal.run(*again, stdin=other.password, USER_PASSWORD=None)
    assert "another address is configured" in done.stderr
    assert terminal.run(*again, stdin=other.password, USER_EMAIL=None, USER_PASSWORD=None).stderr == ""
    terminal.run("logout", other.email)


def test_several_accounts(member: Terminal, project: Project, user: User) -> None:
    project.require_anonymous_accounts()
    anonymous = member.json("login", "--anonymous")
    assert anonymous["email"] is None
    member.run("login", user.email, "--password-stdin", stdin=user.password)
    assert member.json("whoami")["id"] == user.id
    assert f"anonymous account {anonymous['id']} is logged in, too" in member.run("logout").stdout
    assert member.json("whoami")["id"] == anonymous["id"]
    assert member.json("whoami")["email"] is None
    assert "an anonymous account" in member.run("whoami").stdout
    assert member.run("ls").stdout == ""
    assert member.json("logout", "--here-only")["was_kept"]
    member.refusal("ls")
    assert "neither an address" in member.refusal("login", user.email, "--anonymous", status=2)
    for command in ("login", "logout"):
        assert "--local" in member.refusal(command, "--local", status=2)


def test_a_profile(member: Terminal, project: Project, user: User) -> None:
    away: dict[str, str | None] = dict.fromkeys(("SUPABASE_URL", "SUPABASE_KEY"))
    other = project.register()
    for name in ("mine", "theirs"):
        member.run("link", project.url, project.key, "--profile", name, **away)
    for name, account in (("mine", user), ("theirs", other)):
        login = ("login", account.email, "--password-stdin", "--profile", name)
        member.run(*login, stdin=account.password, **away)
    for name, account in (("mine", user), ("theirs", other)):
        assert member.json("whoami", "--profile", name, **away)["id"] == account.id
    member.run("logout", "--profile", "mine", **away)
    assert "`tensorage login --profile mine`" in member.refusal("whoami", "--profile", "mine", **away)
    assert member.json("whoami", "--profile", "theirs", **away)["id"] == other.id
    member.run("logout", "--profile", "theirs", **away)


def test_an_outage(member: Terminal, project: Project, user: User) -> None:
    proxy = Proxy(project.url)
    far = {"SUPABASE_URL": proxy.url}
    member.run("login", user.email, "--password-stdin", stdin=user.password, **far)
    proxy.close()
    kept = find_login(proxy.url)
    assert kept is not None
    assert "cannot be reached" in member.refusal("logout", status=5, **far)
    assert "cannot be reached" in member.refusal(
        "login", "a@lab.org", "--password-stdin", stdin="x", status=5, **far
    )
    assert find_login(proxy.url) == kept
    assert "goes on at the project" in member.run("logout", "--here-only", **far).stdout
    assert find_login(proxy.url) is None


def test_it_saves_requests(member: Terminal, project: Project, user: User) -> None:
    asked: list[str] = []

    def note(exchange: Exchange) -> bool:
        asked.append(exchange.target)
        return False

    with closing(Proxy(project.url, note)) as proxy:
        far = {"SUPABASE_URL": proxy.url}
        member.run("login", user.email, "--password-stdin", stdin=user.password, **far)
        member.store["x"] = [1]
        asked.clear()
        assert member.run("ls", **far).stdout == "x\n"
        assert [target.rpartition("/")[2] for target in asked] == ["tensorage_version", "tensorage_list"]
        member.run("logout", **far)


def test_a_command_loads_no_sdk(member: Terminal, user: User) -> None:
    member.run("login", user.email, "--password-stdin", stdin=user.password)
    look = (
        "import sys; from tensorage.cli import main; main(['ls'], standalone_mode=False); "
        "assert not {'supabase', 'keyring', 'numpy', 'httpx'} & set(sys.modules), sorted(sys.modules)"
    )
    settings = {name: value for name, value in member.environment.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", look], env={**dict(__import__("os").environ), **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    member.run("logout")


def test_the_doctor_looks_as_this_user(member: Terminal, user: User, logins: Callable[[], int]) -> None:
    # Nobody has logged in: there is less to look at, and the doctor says so.
    without = member.run("doctor")
    assert "tensorage login" in without.stdout
    member.run("login", user.email, "--password-stdin", stdin=user.password)
    before = logins()
    assert "tensorage login" not in member.run("doctor").stdout
    assert logins() == before
    # Beside a password without an address, what is kept is used by nobody.
    assert "USER_EMAIL" in member.run("doctor", USER_PASSWORD="of somebody").stdout
    member.run("logout")


def test_what_is_left_in_a_spool(member: Terminal, user: User) -> None:
    from tensorage.background.changes import Change, Settings
    from tensorage.background.spool.folder import Identity, SpoolFolder

    member.run("login", user.email, "--password-stdin", stdin=user.password)
    spool = SpoolFolder.open(member.folder / "spool", Identity.of(member.store.arrays.project), None)
    spool.add(Change("storing", "spooled", Settings("database"), [1.0]))
    del spool
    assert json.loads(member.run("sync", "spool", "--json").stdout)["sent"] == 1
    assert "spooled" in member.store
    assert member.json("whoami")["id"] == user.id
    member.run("logout")
