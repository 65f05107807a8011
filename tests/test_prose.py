"""Sentences of docstrings and comments begin with a noun or a verb, as those of plain English do."""

from __future__ import annotations

from pathlib import Path

import pytest
from prose import Opening, riddles_in

ROOT = Path(__file__).parent.parent
PLACES = (
    "tensorage", "supabase", "benchmarks", "examples", "tests", "Makefile", ".ci", "pyproject.toml",
    "docs/conf.py", "docs/terminal_pictures.py",
)  # fmt: skip


def sources(place: str) -> list[Path]:
    """The file, or the files of the folder, that have comments."""
    found = (path for path in (ROOT / place).rglob("*") if path.is_file())
    named = [ROOT / place] if (ROOT / place).is_file() else []
    return named + sorted(
        path for path in found if path.suffix in (".py", ".sql", ".toml") or path.name == "run"
    )


@pytest.mark.parametrize("place", PLACES)
def test_no_sentence_opens_with_a_riddle(place: str) -> None:
    assert sources(place)
    riddles = [str(riddle) for path in sources(place) for riddle in riddles_in(path)]
    assert not riddles, "\n".join(riddles)


def openings(path: Path) -> list[tuple[int, str]]:
    return [(riddle.line, riddle.word) for riddle in riddles_in(path)]


def test_riddles_in_python_are_found(tmp_path: Path) -> None:
    path = tmp_path / "riddles.py"
    path.write_text(
        '"""What this is."""\n'
        "# Of those, the first\n"
        "# one counts. Which is\n"
        "# none. Where none is.\n"
        "x = 1  # And so on.\n"
        "# Whatever is right stays: so does `a.What`, and so do Whose and Who within a sentence.\n"
        "def f(a, b):\n"
        '    """Return what was asked for. So it is.\n'
        "\n"
        "    Parameters\n"
        "    ----------\n"
        "    a\n"
        "        Of an array.\n"
        "    b\n"
        "        Array of\n"
        "        As many rows.\n"
        "\n"
        "    - How it is.\n"
        "\n"
        "    Whether it is so.\n"
        '    """\n'
    )
    assert openings(path) == [
        (1, "What"), (8, "So"), (13, "Of"), (18, "How"), (20, "Whether"),
        (2, "Of"), (3, "Which"), (4, "Where"), (5, "And"),
    ]  # fmt: skip


def test_riddles_in_sql_are_found(tmp_path: Path) -> None:
    path = tmp_path / "riddles.sql"
    path.write_text(
        "-- Where the rows are.\nselect '--', 1 -- which is one\n-- The rows. Those of\n-- all.\n"
    )
    assert openings(path) == [(1, "Where"), (3, "Those")]


@pytest.mark.parametrize("name", ["Makefile", "run", "pyproject.toml"])
def test_riddles_in_other_files_are_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        "#!/bin/sh\n# What it is.\n#\n# Rows. Whoever\n# asks.\na#b: Who  # Which is one\n# The rows.\n"
    )
    assert openings(path) == [(2, "What"), (4, "Whoever"), (6, "Which")]


def test_an_opening_says_where_it_is() -> None:
    assert str(Opening(Path("a.py"), 3, "Text.")) == "a.py:3: Text."
