"""An error as a caller sees it: the message, its causes, and no more of our frames than the public method's."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import Project, User

import tensorage
from tensorage import BackendSession, TensorStore, tracebacks
from tensorage.errors import KeyExistsError, KeyNotFoundError, TensorageError
from tensorage.tracebacks import FULL_VARIABLE, end_tracebacks_here

PACKAGE = str(Path(tensorage.__file__).parent)
PAGES = Path(__file__).parent.parent / "docs" / "api"

#: Documented classes of values, which ask nobody: their methods end by themselves.
OF_VALUES = {"ArrayOptions", "AuditRecord", "Dataset", "Preview", "Share", "Tree", "Usage"}

#: Special methods that raise nothing but what they say themselves.
OF_THEMSELVES = {
    "__del__",
    "__dir__",
    "__eq__",
    "__getstate__",
    "__post_init__",
    "__repr__",
    "__setattr__",
    "__setstate__",
    "__dask_tokenize__",
}

MISTAKES: list[tuple[str, Callable[[TensorStore], Any], type[Exception]]] = [
    ("a wrong key", lambda store: store["nothing"], KeyNotFoundError),
    ("a bad index", lambda store: store["x", 99], IndexError),
    ("a bad index of a handle", lambda store: store.open("x")[99], IndexError),
    ("a key that is taken", lambda store: store.__setitem__("x", [1]), KeyExistsError),
    ("no array to delete", lambda store: store.__delitem__("nothing"), KeyNotFoundError),
    ("no array of that name", lambda store: store.nothing, AttributeError),
    ("keys that are no text", lambda store: store.keys(5), TensorageError),  # type: ignore[arg-type]
    ("a key to take out", lambda store: store.pop("nothing"), KeyNotFoundError),
    ("a loop over an array that is gone", lambda store: list(gone(store)), KeyNotFoundError),
    ("a backwards loop", lambda store: list(reversed(gone(store))), KeyNotFoundError),
    ("attributes", lambda store: store.open("x").attrs.update(a=object()), TensorageError),
    ("an attribute", lambda store: store.open("x").attrs.__setitem__("a", object()), TensorageError),
    ("names of axes", lambda store: setattr(store.open("x"), "dims", ["a", "b"]), TensorageError),
    ("labels", lambda store: setattr(store.open("x"), "coords", {"a": [1]}), TensorageError),
    ("batches of no number", lambda store: tensorage.batches(store.open("x"), batch_size=0), TensorageError),
    (
        "batches of an array that is gone",
        lambda store: list(gone(store).batches(batch_size=2)),
        TensorageError,
    ),
    ("arrays of two lengths", lambda store: tensorage.zip(store.open("x"), np.arange(4)), TensorageError),
    ("a sample of an array that is gone", lambda store: tensorage.zip(gone(store))[[1, 0]], KeyNotFoundError),
    ("samples of an array that is gone", lambda store: list(tensorage.zip(gone(store))), KeyNotFoundError),
    ("a background write", lambda store: written(store, "x"), KeyExistsError),
    ("no background writer", lambda store: store.background(max_bytes=0), TensorageError),
    ("a transaction", lambda store: commit(store, "x"), KeyExistsError),
    ("a file", lambda store: used(store.backend.storage(), "download_file", "nothing"), KeyNotFoundError),
    ("a dataset", lambda store: used(store.backend.database(), "get_dataset", "nothing"), KeyNotFoundError),
    ("a session of no patience", lambda _: BackendSession(patience_s=-1), TensorageError),
]

#: Mistakes before there is a store.
MISTAKES_OF_LOGINS: list[tuple[str, Callable[[BackendSession], Any]]] = [
    ("a store of nobody", lambda session: session()),
    ("the store's class", TensorStore),
    ("a token of nobody", lambda session: session.token),
    ("a client without a project", lambda _: BackendSession().client),
    ("an id of nobody", lambda session: session.user_id),
    ("a context of nobody", lambda session: session.database().__enter__()),
    ("a pickle of nobody", pickle.dumps),
    ("a login", lambda session: session.login_by_mail()),
    ("login()", lambda session: tensorage.login("a@b.example", "x", *project_of(session))),
    ("signup()", lambda session: tensorage.signup("a@b.example", "x", *project_of(session))),
    ("link_to()", lambda session: tensorage.link_to(*project_of(session), "a@b.example", "x")),
    ("local()", lambda _: tensorage.local(__file__)),
]


def project_of(session: BackendSession) -> tuple[str, str]:
    assert session.backend_url is not None
    assert session.backend_key is not None
    return session.backend_url, session.backend_key


def gone(store: TensorStore) -> tensorage.Tensor:
    handle = store.open("x")
    del store["x"]
    return handle


def written(store: TensorStore, key: str) -> None:
    with store.background() as bg:
        bg[key] = [1]


def commit(store: TensorStore, key: str) -> None:
    with store.transaction() as tx:
        tx[key] = [1]


def used(context: Any, method: str, *arguments: Any) -> Any:
    with context as inner:
        return getattr(inner, method)(*arguments)


def frames_of_ours(error: BaseException) -> list[str]:
    return [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(PACKAGE)
    ]


def assert_ends(error: BaseException) -> None:
    # The method, and the frame that ends the traceback there: Python shows it, IPython does not.
    assert len(frames_of_ours(error)) <= 2
    assert len("".join(traceback.format_exception(error)).splitlines()) <= 30


def documented() -> Iterator[tuple[str, Any]]:
    """Yield the functions and the classes that the reference lists, by their full names."""
    for page in sorted(PAGES.glob("*.rst")):
        for name in re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)", page.read_text(), re.MULTILINE):
            module, _, last = name.rpartition(".")
            yield name, getattr(importlib.import_module(module), last)


def operations_of(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public methods and the functions of the properties of a class and of our classes that it is made of."""
    for base in cls.__mro__:
        if not base.__module__.startswith("tensorage"):
            continue
        for name, member in vars(base).items():
            if (name.startswith("_") and not name.startswith("__")) or name in OF_THEMSELVES:
                continue
            parts = [member.fget, member.fset] if isinstance(member, property) else [member]
            for part in filter(inspect.isfunction, parts):
                yield f"{base.__qualname__}.{name}", part


def operations() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for name, member in documented():
        if not inspect.isclass(member):
            found[name] = member
        elif member.__name__ not in OF_VALUES:
            found |= operations_of(member)
    return found


def is_ended(operation: Callable[..., Any]) -> bool:
    return operation.__code__.co_filename == tracebacks.__file__


def test_every_public_operation_ends_tracebacks() -> None:
    found = operations()
    assert {"tensorage.zip", "TensorStore.__getattr__", "BackendSession.token", "Files.list_files"} <= set(
        found
    )
    assert not [name for name, operation in found.items() if not is_ended(operation)]


def test_the_reference_lists_what_the_package_exports() -> None:
    names = {member.__name__ for _, member in documented()}
    exported = {name: getattr(tensorage, name) for name in dir(tensorage)}
    is_error = {
        name for name, member in exported.items() if inspect.isclass(member) and issubclass(member, Exception)
    }
    assert set(exported) - is_error - {"__version__"} <= names


def test_signatures_and_texts_stay() -> None:
    for name, operation in operations().items():
        inner = inspect.unwrap(operation)
        assert operation.__doc__ == inner.__doc__, name
        assert inspect.signature(operation) == inspect.signature(inner), name
        assert (operation.__module__, operation.__qualname__) == (inner.__module__, inner.__qualname__), name
    assert "email" in inspect.signature(BackendSession).parameters
    assert BackendSession.token.__doc__ is not None
    assert pickle.loads(pickle.dumps(tensorage.login)) is tensorage.login


@pytest.mark.parametrize(
    ("use", "kind"), [mistake[1:] for mistake in MISTAKES], ids=[name for name, *_ in MISTAKES]
)
def test_tracebacks_end_at_the_public_method(
    store: TensorStore, use: Callable[[TensorStore], Any], kind: type[Exception]
) -> None:
    store["x"] = np.arange(3)
    with pytest.raises(kind) as caught:
        use(store)
    assert_ends(caught.value)


@pytest.mark.parametrize(
    "use", [use for _, use in MISTAKES_OF_LOGINS], ids=[name for name, _ in MISTAKES_OF_LOGINS]
)
def test_tracebacks_of_logins_end_at_the_public_method(
    project: Project, user: User, use: Callable[[BackendSession], Any]
) -> None:
    session = BackendSession(user.email, "a wrong one", project.url, project.key)
    with pytest.raises(TensorageError) as caught:
        use(session)
    assert_ends(caught.value)


def test_functions_and_loops_end_tracebacks() -> None:
    def fail(number: int) -> int:
        if number == 2:
            raise KeyNotFoundError("nothing")
        return number

    @end_tracebacks_here
    def count() -> Iterator[int]:
        yield from map(fail, itertools.count())

    numbers = count()
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(KeyNotFoundError) as caught:
        next(numbers)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[1:] == ["call", "count"]


def test_errors_that_are_raised_from_those_of_callers_end_too(store: TensorStore) -> None:
    with pytest.raises(AttributeError) as caught:
        copy.copy(store).nothing  # noqa: B018 - the look is the mistake
    assert isinstance(caught.value.__cause__, KeyNotFoundError)
    assert caught.value.__cause__.__traceback__ is None


def test_the_causes_are_still_told(store: TensorStore) -> None:
    with pytest.raises(KeyNotFoundError) as caught:
        store["nothing"]
    text = "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__name__ in text
    assert "direct cause" in text


def test_all_frames_can_be_had(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_VARIABLE, "1")
    with pytest.raises(KeyNotFoundError) as caught:
        store["nothing"]
    assert len(frames_of_ours(caught.value)) > 4
    assert str(Path("backend", "catalogue.py")) in "".join(traceback.format_exception(caught.value))


def test_mistakes_of_ours_keep_their_frames(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("tensorage.backend.catalogue.Catalogue.look", fail)
    with pytest.raises(RuntimeError) as caught:
        store["x"]
    assert "read_key" in frames_of_ours(caught.value)
    assert len(frames_of_ours(caught.value)) > 3


def test_an_error_that_the_caller_is_handling_keeps_its_frames(store: TensorStore) -> None:
    def fail() -> None:
        raise ValueError("the caller's own")

    def read_after_it() -> None:
        try:
            fail()
        except ValueError:
            store["x", 99]

    store["x"] = np.arange(3)
    with pytest.raises(IndexError) as caught:
        read_after_it()
    own = caught.value.__context__
    assert isinstance(own, ValueError)
    assert [frame.name for frame in traceback.extract_tb(own.__traceback__)][-1:] == ["fail"]
