"""The prose inside code: docstrings and comments of Python, comments of SQL, and the word that each opens with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Opening", "openings_of", "riddles_in"]

#: Words that open a sentence without a subject, or lean on the sentence before.
RIDDLES = frozenset(
    {"What", "Where", "Which", "Who", "Whom", "Whose", "How", "Those", "Of", "As", "And", "So"}
)

#: A string of Python, or a comment. Its own tokenizer takes five times as long.
_STRING_OR_COMMENT = re.compile(
    r'''
    """(?:\\.|[^\\])*?"""
    | \'\'\'(?:\\.|[^\\])*?\'\'\'
    | "(?:\\.|[^"\\\n])*"
    | \'(?:\\.|[^\'\\\n])*\'
    | (?P<comment>\#[^\n]*)
    ''',
    re.DOTALL | re.VERBOSE,
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
    yield from _summaries(path, ast.parse(text))
    yield from _comments(path, text)


def riddles_in(path: Path) -> list[Opening]:
    """Openings that are no way to begin: see `RIDDLES`."""
    return [opening for opening in openings_of(path) if opening.word in RIDDLES]


def _summaries(path: Path, node: ast.AST) -> Iterator[Opening]:
    """Yield the summary lines of what is defined in a node: statements are looked at, and no expressions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield Opening(path, node.body[0].lineno, docstring.splitlines()[0])
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, block, ()):
            yield from _summaries(path, statement)


def _comments(path: Path, text: str) -> Iterator[Opening]:
    before, line, seen = -1, 1, 0
    for found in _STRING_OR_COMMENT.finditer(text):
        comment = found["comment"]
        if comment is None or _DIRECTIVE.match(comment):
            continue
        begin = found.start()
        line, seen = line + text.count("\n", seen, begin), begin
        stands_alone = not text[text.rfind("\n", 0, begin) + 1 : begin].strip()
        if not (stands_alone and line == before + 1):
            yield Opening(path, line, comment.lstrip("#: "))
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
