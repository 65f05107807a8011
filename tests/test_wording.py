"""Values that messages quote, and sentences that they join."""

from __future__ import annotations

import doctest
import time

import numpy as np
import pytest

from tensorage import errors, wording
from tensorage.wording import cut, one_line, quote, sentences


def test_examples() -> None:
    assert doctest.testmod(wording, extraglobs={"np": np}).failed == 0


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        b"x" * 10**7,
        bytearray(10**7),
        memoryview(bytes(10**7)),
        np.zeros((1000, 1000)),
        np.array(["x" * 10**6]),
        ["x" * 10**6] * 100,
        {"x" * 10**6: b"y" * 10**6},
        10**3000,
        "line\n" * 10**5,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_payload_is_not_quoted(value: object) -> None:
    began = time.monotonic()
    shown = quote(value)
    assert len(shown) <= 300
    assert "\n" not in shown
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("value", ["weather", "it's", 3, None, b"key", ("a", 1), [1, 2], 1.5, True, {"a": 1}])
def test_short_values_are_quoted_as_they_are(value: object) -> None:
    assert quote(value) == repr(value)


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("a b", "C d"), "a b. C d"),
        (("a b.", "C d."), "a b. C d."),
        (("a b?", "C d"), "a b? C d"),
        (("a b", "", "C d"), "a b. C d"),
        (("a b.", " "), "a b."),
        ((), ""),
    ],
)
def test_sentences(parts: tuple[str, ...], joined: str) -> None:
    assert sentences(*parts) == joined


def test_what_others_say() -> None:
    assert one_line(" a\n  b. ") == "a b"
    assert len(one_line("x" * 10**7)) <= wording.MAX_SAID
    for page in ("<html>\n<head>", "  <!DOCTYPE html>", "<?xml version='1.0'?>", "<center><h1>502"):
        assert one_line(page) == "a page for browsers"
    assert cut("abc", 3) == "abc"
    assert len(cut("abcdef" * 100, 50)) <= 50


def test_no_message_is_longer_than_people_read() -> None:
    error = errors.InvalidInputError("reading 'x': " + "y" * 10**6)
    assert len(str(error)) <= errors.MAX_MESSAGE
    assert str(error).startswith("reading 'x': y")
