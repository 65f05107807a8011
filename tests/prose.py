"""The prose inside code: docstrings and comments of Python, comments of SQL, and the word that each opens with."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Opening", "openings_of", "riddles_in"]

#: Words that open a sentence without a subject, or lean on the sentence before.
RIDDLES = frozenset(
    {"What", "Where", "Which", "Who", "Whom", "Whose", "How", "Those", "Of", "As", "And", "So"}
)

#: Comments for programs.
_DIRECTIVE = re.compile(r"#\s*(noqa|type:|pragma|fmt:|!)")


class Opening(NamedTuple):
    """The beginning of a summary line or of a comment."""

    path: Path
    line: int
    text: str

    @property
    def word(self) -> str:
        """First word, without what stands around it."""
        found = re.match(r"[\W_]*([A-Za-z]+)", self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def openings_of(path: Path) -> Iterator[Opening]:
    """Every summary line and every comment of a file of Python or SQL.

    Lines of comment that follow each other are one comment.
    """
    text = path.read_text()
    if path.suffix == ".sql":
        yield from _sql_comments(path, text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Opening(path, node.body[0].lineno, docstring.splitlines()[0])
    yield from _comments(path, text)


def riddles_in(path: Path) -> list[Opening]:
    """Openings that are no way to begin: see `RIDDLES`."""
    return [opening for opening in openings_of(path) if opening.word in RIDDLES]


def _comments(path: Path, text: str) -> Iterator[Opening]:
    before = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        line, column = token.start
        stands_alone = not token.line[:column].strip()
        if not (stands_alone and line == before + 1):
            yield Opening(path, line, token.string.lstrip("#: "))
        before = line if stands_alone else -1


def _sql_comments(path: Path, text: str) -> Iterator[Opening]:
    before = -1
    for number, line in enumerate(text.splitlines(), 1):
        code, mark, comment = line.partition("--")
        if not mark or code.count("'") % 2:
            continue
        stands_alone = not code.strip()
        if not (stands_alone and number == before + 1):
            yield Opening(path, number, comment.strip())
        before = number if stands_alone else -1
