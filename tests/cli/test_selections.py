"""Selections that are read from a text: they are numpy's, and nothing of them is carried out."""

from __future__ import annotations

import doctest

import click
import numpy as np
import pytest

from tensorage.cli import completing, entries, output, selections
from tensorage.cli.drawing import line_of_dots
from tensorage.cli.selections import parse_target

ARRAY = np.arange(4 * 5 * 6).reshape(4, 5, 6)


@pytest.mark.parametrize(
    "text",
    [
        "0", "-1", "1:3", ":", "::2", "::-1", "3:0:-2", "...", "..., 2", "1, ..., 2", "None", "None, 0", "0, None, :",
        "[0,3]", "[3, 0], 1:", "[True, False, True, False]", " 1 : 3 , [ 4,0 ] ", "newaxis, ...", "3,", "[]",
        "+1", ":, [1,2], [3,3]",
    ],
)  # fmt: skip
def test_a_selection_is_that_of_numpy(text: str) -> None:
    key, selection = parse_target(f"a/b[{text}]")
    assert key == "a/b"
    assert selection is not None
    # Numpy itself says what the text means. It is one of this list.
    expected = eval(f"ARRAY[{text}]", {"ARRAY": ARRAY, "newaxis": None})
    found = ARRAY[tuple(np.array(item, int) if item == [] else item for item in selection)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("text", "key", "selection"),
    [
        ("x", "x", None),
        ("x[y", "x[y", None),
        ("a[0]/b", "a[0]/b", None),
        ("a[0][...]", "a[0]", (...,)),
        ("a][1]", "a]", (1,)),
        ("x[t]", "x", ("t",)),
        ("x['two words', 0]", "x", ("two words", 0)),
        ("x[[t, y], 0]", "x", (["t", "y"], 0)),
    ],
)
def test_keys_with_brackets_and_fields(text: str, key: str, selection: object) -> None:
    assert parse_target(text) == (key, selection)


@pytest.mark.parametrize(
    "text",
    [
        "x[]", "x[ ]", "[1]", "x]", "x[1 2]", "x[1;2]", "x[1:2:3:4]", "x[a:b]", "x[1.5]", "x[1e3]", "x[0x10]", "x[::0]",
        "x[[1,[2]]]", "x[[1,'a']]", "x[[1,True]]", "x[__import__('os')]", "x[().__class__]", "x[lambda: 1]", "x[(1,2)]",
        "x[1,,2]", "x[\N{ARABIC-INDIC DIGIT ONE}]", f"x[{'9' * 20}]", "x[{1}]", "x[*a]", "x[-]", "x[[None]]",
    ],
)  # fmt: skip
def test_what_is_no_selection(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse_target(text)


def test_a_long_text_is_not_repeated() -> None:
    with pytest.raises(click.UsageError) as refused:
        parse_target(f"x[{'y z' * 100_000}]")
    assert len(refused.value.format_message()) < 500


@pytest.mark.parametrize("module", [selections, entries, output, completing])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_a_line_is_drawn_between_any_numbers() -> None:
    most = float(np.finfo(np.float64).max)
    small = line_of_dots(np.array([-1.0, 0.0, 1.0]), -1.0, 1.0, 20, 4)
    assert line_of_dots(np.array([-most, 0.0, most]), -most, most, 20, 4) == small
