"""Parsed requests as SQL. Pure functions, no I/O.

Identifiers are quoted, and values are always parameters. Parameters are sent as text. PostgreSQL casts them to the type
that they are compared with, and therefore reads them, and reports errors in them, by its own rules.
"""

# ruff: noqa: S608 - SQL is what this module writes: identifiers go through `identifier`, values through `Values`.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tensorage.embedded.rest.headers import CSV, Format, RowRange
from tensorage.embedded.rest.query_model import Condition, Field, Filter, Logic, OrderTerm, SelectItem

_COMPARISONS: Final = {
    "eq": "=",
    "neq": "<>",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "like": "like",
    "ilike": "ilike",
    "match": "~",
    "imatch": "~*",
    "isdistinct": "is distinct from",
    "cs": "@>",
    "cd": "<@",
    "ov": "&&",
    "sl": "<<",
    "sr": ">>",
    "nxr": "&<",
    "nxl": "&>",
    "adj": "-|-",
}
_FULL_TEXT: Final = {
    "fts": "to_tsquery",
    "plfts": "plainto_tsquery",
    "phfts": "phraseto_tsquery",
    "wfts": "websearch_to_tsquery",
}
_IS: Final = {
    "null": "is null",
    "not_null": "is not null",
    "true": "is true",
    "false": "is false",
    "unknown": "is unknown",
}
_NULLS: Final = {"nullsfirst": "nulls first", "nullslast": "nulls last"}

#: Placeholder of a request's body among the values of a statement that serves many requests.
BODY: Final = object()


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text and the values of its parameters."""

    text: str
    values: tuple[Any, ...] = ()

    def with_body(self, body: str | bytes) -> Statement:
        return Statement(self.text, tuple(body if value is BODY else value for value in self.values))


@dataclass
class Values:
    """Values of a statement that is being written."""

    found: list[Any] = field(default_factory=list)

    def bind(self, value: Any, type_: str) -> str:
        """Add a value, and return the SQL of its parameter. The value is sent as `type_`."""
        self.found.append(value)
        return f"${len(self.found)}::{type_}"


def identifier(name: str) -> str:
    """Return a name as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def qualify(schema: str, name: str) -> str:
    return f"{identifier(schema)}.{identifier(name)}"


@dataclass(frozen=True)
class Source:
    """Source of columns: a table, view or subquery.

    Parameters
    ----------
    reference
        SQL that qualifies the source's columns.
    column_types
        Types to compare columns as, if known.
    """

    reference: str
    column_types: Mapping[str, str]
    values: Values

    def column(self, name: str) -> str:
        return f"{self.reference}.{identifier(name)}"

    def field(self, target: Field) -> str:
        sql, type_ = self.column(target.name), self.column_types.get(target.name)
        if target.path and type_ is not None and type_ not in ("json", "jsonb"):
            sql = f"to_jsonb({sql})"  # composite types and arrays have paths, too
        for step in target.path:
            kind = "int" if isinstance(step.operand, int) else "text"
            sql = f"{sql} {step.arrow} {self.values.bind(step.operand, kind)}"
        return f"({sql})" if target.path else sql

    def _find_type(self, target: Field) -> str:
        """Return the type to which a value is cast for a comparison with a field."""
        if not target.path:
            return self.column_types.get(target.name, "text")
        if target.path[-1].arrow == "->>":
            return "text"
        return "json" if self.column_types.get(target.name) == "json" else "jsonb"

    def select_list(self, items: Iterable[SelectItem]) -> str:
        return ", ".join(self._select_item(item) for item in items)

    def _select_item(self, item: SelectItem) -> str:
        if item.field is None:
            return f"{self.reference}.*"
        sql = self.field(item.field)
        if item.cast is not None:
            sql = f"cast({sql} as {item.cast})"
        if item.alias is None and item.cast is None and not item.field.path:
            return sql
        return f"{sql} as {identifier(item.alias or item.field.label)}"

    def where(self, conditions: Iterable[Condition]) -> str:
        """Return the ``where`` clause with a space before it, or nothing."""
        terms = [self._condition(condition) for condition in conditions]
        return f" where {' and '.join(terms)}" if terms else ""

    def _condition(self, condition: Condition) -> str:
        if isinstance(condition, Logic):
            sql = f" {condition.joiner} ".join(self._condition(child) for child in condition.children)
        else:
            sql = self._filter(condition)
        return f"not ({sql})" if condition.negated else f"({sql})"

    def _filter(self, condition: Filter) -> str:
        operator, target, type_ = (
            condition.operator,
            self.field(condition.field),
            self._find_type(condition.field),
        )
        if isinstance(condition.value, tuple):
            # One parameter for all values: the number of a statement's parameters is limited.
            return f"{target} = any({self._bind_texts(condition.value, type_)})"
        if operator == "is":
            return f"{target} {_IS[condition.value]}"
        if operator in _FULL_TEXT:
            return self._write_full_text(
                condition.value, condition.argument, _FULL_TEXT[operator], target, type_
            )
        # PostgREST's wildcard `*` needs no escape in a URL.
        value = condition.value.replace("*", "%") if operator in ("like", "ilike") else condition.value
        bound = self.values.bind(value, "text")
        if condition.argument is not None:
            return f"{target} {_COMPARISONS[operator]} {condition.argument}(({bound})::{type_}[])"
        return f"{target} {_COMPARISONS[operator]} ({bound})::{type_}"

    def _bind_texts(self, values: tuple[str, ...], type_: str) -> str:
        return f"({self.values.bind(list(values), 'text[]')})::{type_}[]"

    def _write_full_text(
        self, value: str, language: str | None, function: str, target: str, type_: str
    ) -> str:
        """Write a full-text search. A field of another type is made a ``tsvector``, in the same language."""
        config = f"({self.values.bind(language, 'text')})::regconfig, " if language else ""
        vector = target if type_ == "tsvector" else f"to_tsvector({config}{target})"
        return f"{vector} @@ {function}({config}{self.values.bind(value, 'text')})"

    def order_by(self, terms: Iterable[OrderTerm]) -> str:
        """Return the ``order by`` clause with a space before it, or nothing."""
        written = []
        for term in terms:
            parts = (self.field(term.field), term.direction, _NULLS.get(term.nulls or ""))
            written.append(" ".join(filter(None, parts)))
        return f" order by {', '.join(written)}" if written else ""

    def limit(self, rows: RowRange) -> str:
        """Return the ``limit`` and ``offset`` clauses with a space before them, or nothing."""
        sql = "" if rows.limit is None else f" limit {self.values.bind(rows.limit, 'bigint')}"
        return sql + (f" offset {self.values.bind(rows.offset, 'bigint')}" if rows.offset else "")


#: Columns of every statement's result: status and headers that a function has set for the HTTP answer.
RESPONSE_SETTINGS: Final = (
    "nullif(current_setting('response.status', true), '') as response_status, "
    "nullif(current_setting('response.headers', true), '') as response_headers"
)

#: Body of an answer in CSV: a line of names, and each row's text form without its parentheses.
_CSV_BODY: Final = (
    "coalesce((select string_agg(k, ',') from (select json_object_keys(row_to_json(h.*)) as k"
    " from (select * from pgrst_source limit 1) h) keys), '') || e'\\n'"
    " || coalesce(string_agg(substring(t::text, 2, length(t::text) - 2), e'\\n'), '')"
)


def write_body(form: Format) -> str:
    """Write the body of an answer, from rows called ``t`` of ``pgrst_source``."""
    if form.media_type == CSV:
        return _CSV_BODY
    rows = "json_strip_nulls(json_agg(t.*))" if form.nulls_stripped else "json_agg(t.*)"
    return f"coalesce(({rows} -> 0)::text, 'null')" if form.singular else f"coalesce({rows}::text, '[]')"


def answer_rows(source: str, body: str, *, total: str = "null", extra: str = "", also: str = "") -> str:
    """Write a statement that answers the rows of `source` as one row: body, number of rows, total, settings.

    Parameters
    ----------
    body
        SQL of the body: see `write_body`.
    total
        SQL of the number of all rows, if the answer may have only some.
    extra
        Additional columns of the answer, each with a comma before it.
    also
        Additional common table expressions, each with a comma after it.
    """
    return (
        f"with {also}pgrst_source as ({source}) "
        f"select {body} as body, count(*) as page_total, {total} as total{extra}, {RESPONSE_SETTINGS} "
        f"from (select * from pgrst_source) t"
    )
