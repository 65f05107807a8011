"""A parsed query string, as plain records.

Names from a request (columns, aliases, JSON keys) are plain text here. Only :mod:`~tensorage.embedded.rest.sql` turns
them into SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class JsonStep:
    """One step of a JSON path: the arrow ``->`` or ``->>``, and a key or an index."""

    arrow: Literal["->", "->>"]
    operand: str | int


@dataclass(frozen=True, slots=True)
class Field:
    """A column, optionally with a path into its JSON."""

    name: str
    path: tuple[JsonStep, ...] = ()

    @property
    def label(self) -> str:
        """Name of the field in an answer, as in PostgREST: the last key of the path, or the column's name."""
        keys = [step.operand for step in self.path if isinstance(step.operand, str)]
        return keys[-1] if keys else self.name


@dataclass(frozen=True, slots=True)
class SelectItem:
    """A selected column: ``alias:name->path::cast``. `field` is None for ``*``."""

    field: Field | None
    alias: str | None = None
    cast: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on one field.

    Parameters
    ----------
    operator
        PostgREST's name of the operator, such as ``eq``.
    value
        The text after the operator; for ``in``, the texts of its list.
    argument
        ``any`` or ``all``, the language of a full-text search, or None.
    """

    field: Field
    operator: str
    value: str | tuple[str, ...]
    negated: bool = False
    argument: str | None = None


@dataclass(frozen=True, slots=True)
class Logic:
    """Conditions that are joined by ``and`` or by ``or``."""

    joiner: Literal["and", "or"]
    children: tuple[Filter | Logic, ...]
    negated: bool = False


Condition = Filter | Logic


@dataclass(frozen=True, slots=True)
class OrderTerm:
    """One term of an ordering. None means PostgreSQL's default."""

    field: Field
    direction: Literal["asc", "desc"] | None = None
    nulls: Literal["nullsfirst", "nullslast"] | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query string.

    Parameters
    ----------
    select
        Columns to answer; ``*`` by default.
    conditions
        Filters, joined by ``and``.
    columns, on_conflict
        Names of columns; None if not given.
    arguments
        Arguments of a function that is called by GET.
    canonical
        The query string in a canonical form: sorted, and encoded in one way.
    """

    select: tuple[SelectItem, ...] = (SelectItem(None),)
    conditions: tuple[Condition, ...] = ()
    order: tuple[OrderTerm, ...] = ()
    limit: int | None = None
    offset: int | None = None
    columns: tuple[str, ...] | None = None
    on_conflict: tuple[str, ...] | None = None
    arguments: tuple[tuple[str, str], ...] = ()
    canonical: str = ""

    @property
    def wants_whole_values(self) -> bool:
        """True if the query asks for all results as they are: no selection, filter, order or limit."""
        shaped = self.conditions or self.order or self.limit is not None or self.offset is not None
        return not shaped and self.select == (SelectItem(None),)
