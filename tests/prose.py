"""The prose inside code: docstrings and comments, and the word that each of their sentences opens with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Opening", "openings_of", "riddles_in"]

#: Words that open a sentence without a subject, or lean on the sentence before.
RIDDLES = frozenset(
    {
        "What",
        "Where",
        "Which",
        "Who",
        "Whom",
        "Whose",
        "Whoever",
        "Whether",
        "How",
        "Those",
        "Of",
        "As",
        "And",
        "So",
    }
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

#: Comments of files that are neither Python nor SQL: of a line, or behind its code.
_COMMENT = re.compile(r"(?:^|(?<=\s))#+:?(?=\s|$)")

#: Beginnings of sentences: of the text, of a paragraph, of an item of a list, and behind the end of another sentence.
#: Names in backquotes open no sentence with a word.
_BEGINNING = re.compile(r"(?:\A|\n\s*\n|\n\s*(?:[-*]|\d+\.)\s|[.!?][\"')`]*\s)[\s\W]*?(?=[A-Z][a-z]*\b)")


class Opening(NamedTuple):
    """The beginning of a sentence in a docstring or in a comment."""

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
    """Every sentence of the docstrings and comments of a file: Python, SQL, or one whose comments begin with ``#``.

    Lines of comment that follow each other are one comment.
    """
    text = path.read_text()
    if path.suffix == ".py":
        for line, prose in _docstrings(text):
            yield from _sentences(path, line, _indented_deeper(prose))
        comments = _join(_python_comments(text))
    else:
        comments = _join(_sql_comments(text) if path.suffix == ".sql" else _other_comments(text))
    for line, prose in comments:
        yield from _sentences(path, line, prose)


def riddles_in(path: Path) -> list[Opening]:
    """Openings that are no way to begin: see `RIDDLES`."""
    return [opening for opening in openings_of(path) if opening.word in RIDDLES]


def _sentences(path: Path, line: int, prose: str) -> Iterator[Opening]:
    for found in _BEGINNING.finditer(prose):
        rest = prose[found.end() :]
        yield Opening(path, line + prose[: found.end()].count("\n"), " ".join(rest[:200].split())[:100])


def _docstrings(text: str) -> Iterator[tuple[int, str]]:
    return _docstrings_in(ast.parse(text))


def _docstrings_in(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of all that is defined in a node: statements are looked at, and no expressions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield node.body[0].lineno, docstring
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, block, ()):
            yield from _docstrings_in(statement)


def _indented_deeper(docstring: str) -> str:
    """Mark the descriptions of parameters, which begin with a deeper line, as items of a list."""
    return re.sub(r"(?m)^(\s*)(\S.*\n)(?=\1    \S)(\s+)", r"\1\2\3- ", docstring)


class _Line(NamedTuple):
    """A line of comment."""

    number: int
    text: str
    stands_alone: bool


def _join(lines: Iterable[_Line]) -> Iterator[tuple[int, str]]:
    """Yield each comment with its first line."""
    first, texts, after = 0, [""], -1
    for line in lines:
        if line.stands_alone and line.number == after:
            texts.append(line.text)
        else:
            yield first, "\n".join(texts)
            first, texts = line.number, [line.text]
        after = line.number + 1 if line.stands_alone else -1
    yield first, "\n".join(texts)


def _python_comments(text: str) -> Iterator[_Line]:
    line, seen = 1, 0
    for found in _STRING_OR_COMMENT.finditer(text):
        comment = found["comment"]
        if comment is None or _DIRECTIVE.match(comment):
            continue
        begin = found.start()
        line, seen = line + text.count("\n", seen, begin), begin
        yield _Line(line, comment.lstrip("#: "), not text[text.rfind("\n", 0, begin) + 1 : begin].strip())


def _sql_comments(text: str) -> Iterator[_Line]:
    for number, line in enumerate(text.splitlines(), 1):
        code, mark, comment = line.partition("--")
        if mark and code.count("'") % 2 == 0:
            yield _Line(number, comment.strip("- "), not code.strip())


def _other_comments(text: str) -> Iterator[_Line]:
    for number, line in enumerate(text.splitlines(), 1):
        found = _COMMENT.search(line)
        if found:
            yield _Line(number, line[found.end() :].strip(), not line[: found.start()].strip())
