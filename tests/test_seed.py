"""The API reference that users were given for `tensorage.session`: all of it is there and works as printed."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import Project, new_email

import tensorage.session
from tensorage import BackendSession, Tensor, TensorStore
from tensorage.backend.database import DatabaseContext
from tensorage.types import Dataset

PAGE = (Path(__file__).parent / "seed" / "tensorage.session.rst").read_text()
EMAIL, PASSWORD = "user@example.com", "password"

_EXAMPLE = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
_DIRECTIVE = re.compile(r"^( *)\.\. py:(class|method|property|attribute|data):: (\w+)(\(.*)?$", re.MULTILINE)

EXAMPLES = [textwrap.dedent(match[2]).strip() + "\n" for match in _EXAMPLE.finditer(PAGE)]


def documented() -> list[tuple[str | None, str, str, str]]:
    """Class (or None), kind, name and signature of everything on the page."""
    found: list[tuple[str | None, str, str, str]] = []
    current = None
    for indent, kind, name, signature in _DIRECTIVE.findall(PAGE):
        if kind == "class":
            current = name
        found.append((current if indent else None, kind, name, signature))
    return found


def test_the_page_was_understood() -> None:
    assert len(EXAMPLES) == PAGE.count("code-block:: python") == 14
    assert len(documented()) == len(re.findall(r"\.\. py:(?!module)", PAGE)) == 23


@pytest.fixture
def configured(project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names and the environment of somebody who tries the examples."""
    names: dict[str, Any] = {"np": np, "DatabaseContext": DatabaseContext}
    exec("from tensorage.session import *", names)
    monkeypatch.setenv("SUPABASE_URL", project.url)
    monkeypatch.setenv("SUPABASE_KEY", project.key)
    monkeypatch.setenv("USER_EMAIL", EMAIL)
    monkeypatch.setenv("USER_PASSWORD", PASSWORD)
    return names


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, configured: dict[str, Any], database: Any, project: Project) -> None:
    code = EXAMPLES[number]
    database.execute("delete from auth.users where email = %s", [EMAIL])
    if "register_by_mail" not in code:
        project.register(EMAIL, PASSWORD)
    exec(compile(code, f"example {number}", "exec"), configured)

    rows = database.execute(
        "select key, shape, state from datasets d join auth.users u on u.id = d.user_id where u.email = %s",
        [EMAIL],
    ).fetchall()
    if "insert_dataset" in code:
        assert rows == [("test", [1, 2, 3], "staged")]
        assert isinstance(configured["db"], DatabaseContext)
    if "store['test'] = array" in code:
        assert rows == [("test", [2, 2], "committed")]
        assert np.array_equal(configured["store"]["test"], [[1, 2], [3, 4]])
    if "upload_file" in code:
        with configured["session"].storage() as storage:
            assert storage.download_file("test.txt") == b"Hello, world!"
    if "client.table" in code:
        assert configured["response"].data == []
    elif "response =" in code:
        response = configured["response"]
        assert response.user.email == EMAIL
        assert response.session.access_token == configured["session"].token
    # Code that ends a login has ended it, and other code has not.
    ends = any(word in code for word in ("with ", "logout", "del session"))
    assert logins(database) == (0 if ends else 1)
    configured.clear()
    assert logins(database) == 0


def logins(database: Any) -> int:
    counted: int = database.execute(
        "select count(*) from auth.sessions s join auth.users u on u.id = s.user_id where u.email = %s",
        [EMAIL],
    ).fetchone()[0]
    return counted


@pytest.mark.parametrize(("owner", "kind", "name", "signature"), documented())
def test_documented_name(owner: str | None, kind: str, name: str, signature: str) -> None:
    home: Any = getattr(tensorage.session, owner) if owner else tensorage.session
    if kind == "attribute":
        assert name in inspect.get_annotations(home)
        return
    thing = inspect.getattr_static(home, name)
    if kind == "property":
        assert isinstance(thing, property)
        assert inspect.get_annotations(thing.fget)["return"] == "supabase.Client"
    if kind != "method":
        return
    printed, _, result = signature.partition(" -> ")
    # The page says nothing of default values; what it shows may be left out, or given by name or position.
    wanted = re.findall(r"(\*?\w+)(?:: (\w+))?(?:,|\))", printed)
    found = list(inspect.signature(thing).parameters.values())[1:]
    if wanted == [("*args", "")]:
        inspect.signature(thing).bind(None, None, None, None)
    else:
        assert [parameter.name for parameter in found] == [parameter for parameter, _ in wanted]
        for parameter, (_, annotation) in zip(found, wanted, strict=True):
            assert parameter.annotation.removesuffix(" | None") == annotation
    if result:
        returned = str(inspect.signature(thing).return_annotation)
        assert returned == re.sub(r"\b(gotrue|tensorage)\.[\w.]*\b(\w+)", r"\2", result)


def test_bases() -> None:
    page = re.findall(r"py:class:: (\w+)\n\n+ *Bases: :py:obj:`(\w+)`", PAGE)
    assert page == [("ContextWrapper", "Generic"), ("BackendSession", "object")]
    assert "Generic" in [base.__name__ for base in tensorage.session.ContextWrapper.__mro__]
    assert tensorage.session.ContextWrapper[DatabaseContext] is not None
    assert BackendSession.__bases__ == (object,)


def test_types_of_what_the_methods_give(project: Project) -> None:
    user = project.register(new_email())
    session = project.session(user)
    with session.database() as db:
        assert isinstance(db.insert_dataset(key="test", shape=[1, 2, 3], dim=3), Dataset)
    store = session()
    store["x"] = np.arange(3)
    assert isinstance(store, TensorStore)
    assert isinstance(store.x, Tensor)
    assert (session.backend_url, session.backend_key) == (project.url, project.key)
    assert (session.email, session.password) == (user.email, user.password)
