"""An error as a caller sees it: the message, its causes, and no more of our frames than the public method's."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorage
from tensorage import TensorStore
from tensorage.errors import KeyExistsError, KeyNotFoundError
from tensorage.tracebacks import FULL_VARIABLE

PACKAGE = str(Path(tensorage.__file__).parent)

MISTAKES: list[tuple[str, Callable[[TensorStore], Any], type[Exception]]] = [
    ("a wrong key", lambda store: store["nothing"], KeyNotFoundError),
    ("a bad index", lambda store: store["x", 99], IndexError),
    ("a bad index of a handle", lambda store: store.open("x")[99], IndexError),
    ("a key that is taken", lambda store: store.__setitem__("x", [1]), KeyExistsError),
    ("no array to delete", lambda store: store.__delitem__("nothing"), KeyNotFoundError),
]


def frames_of_ours(error: BaseException) -> list[str]:
    return [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(PACKAGE)
    ]


@pytest.mark.parametrize("use", [use for _, use, _ in MISTAKES], ids=[name for name, _, _ in MISTAKES])
def test_tracebacks_end_at_the_public_method(store: TensorStore, use: Callable[[TensorStore], Any]) -> None:
    store["x"] = np.arange(3)
    with pytest.raises((KeyNotFoundError, KeyExistsError, IndexError)) as caught:
        use(store)
    # The method, and the frame that ends the traceback there: Python shows it, IPython does not.
    assert len(frames_of_ours(caught.value)) <= 2
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) <= 30


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
