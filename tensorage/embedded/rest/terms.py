"""What a query string can say, as plain records.

Names that a request gives (columns, aliases, JSON keys) are kept as plain text here;
:mod:`~tensorage.embedded.rest.sql` alone turns them into SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class JsonStep:
    """One arrow of a JSON path: ``->`` or ``->>``, and a key or an index."""

    arrow: Literal["->", "->>"]
    operand: str | int


@dataclass(frozen=True, slots=True)
class Field:
    """A column, perhaps with a path into its JSON."""

    name: str
    path: tuple[JsonStep, ...] = ()

    @property
    def label(self) -> str:
        """Name under which PostgREST answers it: the path's last key, else the column's."""
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
        PostgREST's name for it, such as ``eq``.
    value
        The text after the operator; for ``in``, the texts of its list.
    argument
        ``any`` or ``all``; the language, for a full-text operator; else None.
    """

    field: Field
    operator: str
    value: str | tuple[str, ...]
    negated: bool = False
    argument: str | None = None


@dataclass(frozen=True, slots=True)
class Logic:
    """Several conditions, joined by ``and`` or by ``or``."""

    joiner: Literal["and", "or"]
    children: tuple[Filter | Logic, ...]
    negated: bool = False


Condition = Filter | Logic


@dataclass(frozen=True, slots=True)
class OrderTerm:
    """One term of an ordering. None leaves it to PostgreSQL's default."""

    field: Field
    direction: Literal["asc", "desc"] | None = None
    nulls: Literal["nullsfirst", "nullslast"] | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query string.

    Parameters
    ----------
    select
        What to answer; ``*`` where the request does not say.
    conditions
        Joined by ``and``.
    columns, on_conflict
        None where not given.
    arguments
        Arguments of a function that is called by GET.
    canonical
        The query string again, sorted and encoded in one way.
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
        """Whether it asks for results as they are: no selection, no filter, no order, no part of them."""
        shaped = self.conditions or self.order or self.limit is not None or self.offset is not None
        return not shaped and self.select == (SelectItem(None),)
