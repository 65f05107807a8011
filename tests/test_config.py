"""Sources of the project and the user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from project import Project, User

import tensorage
from tensorage import BackendSession, ConfigurationError, config
from tensorage.config import ENVIRONMENT, configure

NAMES = ("backend_url", "backend_key", "email", "password")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    folder = tmp_path / "work" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_each_source_beats_those_behind_it(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(configure(), name) is None
    config.save(config.Configuration(**{name: "saved"}))
    assert getattr(configure(), name) == "saved"
    # The file is looked for upwards from the working directory, not only in it.
    (folder.parent / ".env").write_text(f"{ENVIRONMENT[name]}=dotenv\n")
    assert getattr(configure(), name) == "dotenv"
    monkeypatch.setenv(ENVIRONMENT[name], "environment")
    assert getattr(configure(), name) == "environment"
    assert getattr(configure(**{name: "explicit"}), name) == "explicit"
    assert getattr(BackendSession(**{name: "explicit"}), name) == "explicit"
    assert getattr(BackendSession(), name) == "environment"
    # Every value is looked up for itself.
    assert [getattr(configure(), other) for other in NAMES if other != name] == [None] * 3


def test_an_empty_value_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("SUPABASE_URL=https://dotenv.example\n")
    monkeypatch.setenv("SUPABASE_URL", "")
    assert configure(backend_url="").backend_url == "https://dotenv.example"


def test_link_to_remembers_a_project_for_this_user_of_the_machine_only(
    folder: Path, project: Project, user: User
) -> None:
    before = os.umask(0)
    try:
        assert tensorage.link_to(project.url, project.key) is None
    finally:
        os.umask(before)
    path = config.saved_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    store = tensorage.login(user.email, user.password)
    assert list(store) == []
    session = BackendSession()
    assert (session.backend_url, session.backend_key, session.email) == (project.url, project.key, None)


def test_link_to_with_a_user_tries_the_login_before_it_saves(
    folder: Path, project: Project, user: User
) -> None:
    with pytest.raises(tensorage.AuthenticationError):
        tensorage.link_to(project.url, project.key, user.email, "wrong-password")
    assert not config.saved_path().exists()
    store = tensorage.link_to(project.url, project.key, user.email, user.password)
    assert store is not None
    store["x"] = [1, 2]
    assert BackendSession()()["x"].tolist() == [1, 2]


def test_link_to_replaces_what_was_saved(folder: Path) -> None:
    config.save(config.Configuration("https://old.example", "key", "ada@example.com", "password"))
    tensorage.link_to("https://new.example", "other")
    assert configure() == config.Configuration("https://new.example", "other")


def test_link_to_makes_the_folder_of_an_older_umask_private(folder: Path) -> None:
    config.saved_path().parent.mkdir(parents=True, mode=0o755)
    config.saved_path().write_text("{}")
    config.saved_path().chmod(0o644)
    tensorage.link_to("https://new.example", "key")
    assert stat.S_IMODE(config.saved_path().stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\xff"])
def test_a_damaged_file_is_told(folder: Path, content: str) -> None:
    config.saved_path().parent.mkdir(parents=True)
    config.saved_path().write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"project\.json") as caught:
        BackendSession()
    assert "delete" in str(caught.value)


def test_nothing_is_configured(folder: Path) -> None:
    # Making one needs nothing, so that it can be told everything later.
    session = BackendSession()
    with pytest.raises(ConfigurationError, match=r"(?s)USER_EMAIL.*USER_PASSWORD.*\.env"):
        session()
    with pytest.raises(ConfigurationError, match=r"(?s)USER_EMAIL.*SUPABASE_URL.*tensorage\.local\(\)"):
        session()
    with pytest.raises(ConfigurationError, match=r"(?s)SUPABASE_URL.*\.env.*link_to.*local"):
        session.login_by_mail("ada@example.com", "password")
    with pytest.raises(ConfigurationError, match="SUPABASE_URL"):
        tensorage.signup("ada@example.com", "password")
    with pytest.raises(ConfigurationError, match="SUPABASE_KEY"):
        tensorage.login("ada@example.com", "password", "https://project.example")
    with pytest.raises(ConfigurationError, match="USER_PASSWORD"):
        tensorage.login("ada@example.com", None, "https://project.example", "key")


@pytest.mark.parametrize("url", ["project.example", "ftp://project.example", "/etc", "localhost:8000"])
def test_a_url_needs_its_scheme(folder: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="https://"):
        tensorage.link_to(url, "key")
    assert not config.saved_path().exists()
    with pytest.raises(ConfigurationError, match="https://"):
        tensorage.login("ada@example.com", "password", url, "key")


def test_a_slash_at_the_end_of_the_url_does_not_matter(project: Project, user: User) -> None:
    store = tensorage.login(user.email, user.password, project.url + "/", project.key)
    assert list(store) == []


def test_no_secret_in_the_repr() -> None:
    shown = repr(configure(backend_url="https://u", backend_key="KEY", email="e", password="SECRET"))
    assert "SECRET" not in shown
    assert "KEY" not in shown
