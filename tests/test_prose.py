"""Summary lines and comments begin with a noun or a verb, as sentences of plain English do."""

from __future__ import annotations

from pathlib import Path

import pytest
from prose import Opening, riddles_in

ROOT = Path(__file__).parent.parent
FOLDERS = ("tensorage", "supabase", "benchmarks", "examples", "tests")


def sources(folder: str) -> list[Path]:
    return sorted(
        path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sql") and path.is_file()
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_sentence_opens_with_a_riddle(folder: str) -> None:
    riddles = [str(riddle) for path in sources(folder) for riddle in riddles_in(path)]
    assert not riddles, "\n".join(riddles)


def test_riddles_are_found(tmp_path: Path) -> None:
    path = tmp_path / "riddles.py"
    path.write_text(
        '"""What this is."""\n'
        "# Of those, the first\n"
        "# one counts.\n"
        "x = 1  # And so on.\n"
        "# Whatever is right stays.\n"
        "def f():\n"
        '    """Return what was asked for."""\n'
    )
    assert [(riddle.line, riddle.word) for riddle in riddles_in(path)] == [(1, "What"), (2, "Of"), (4, "And")]
    sql = tmp_path / "riddles.sql"
    sql.write_text("-- Where the rows are.\nselect '--', 1 -- which is one\n-- The rows.\n")
    assert [riddle.word for riddle in riddles_in(sql)] == ["Where"]


def test_an_opening_says_where_it_is() -> None:
    assert str(Opening(Path("a.py"), 3, "Text.")) == "a.py:3: Text."
