"""SQL of calls: the statement that calls a function and answers its result. Pure functions, no I/O."""

# ruff: noqa: S608 - SQL is what this module writes: identifiers go through `identifier`, values through `Values`.

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tensorage.embedded.rest.errors import ApiError, not_implemented
from tensorage.embedded.rest.headers import CSV, Format, Preferences, RowRange, negotiate
from tensorage.embedded.rest.query_model import Query
from tensorage.embedded.rest.routines import Arguments, Call, find_call
from tensorage.embedded.rest.schema import Parameter, Routine, Schema
from tensorage.embedded.rest.sql import (
    BODY,
    RESPONSE_SETTINGS,
    Source,
    Statement,
    Values,
    answer_rows,
    identifier,
    qualify,
    write_body,
)

#: Preferences that calls follow, for ``Preference-Applied``.
HEEDED: Final = frozenset({"count", "handling", "max-affected"})


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A request to call a function, without its body."""

    name: str
    arguments: Arguments
    query: Query
    preferences: Preferences
    rows: RowRange
    accept: str

    @property
    def length(self) -> int:
        """Number of characters in all texts that may have any length."""
        return len(self.name) + sum(map(len, self.arguments.names)) + len(self.accept)


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Function, format and statement of a call. The statement's values have a place for the body."""

    routine: Routine
    form: Format
    statement: Statement


def plan_call(schema: Schema, request: CallRequest) -> CallPlan:
    """Find the function that a call means, and write the statement that calls it.

    Raises
    ------
    ApiError
        The function is missing, or its result cannot have the requested form.
    """
    call = find_call(schema, request.name, request.arguments)
    routine = call.routine
    form = negotiate(request.accept, own=routine.media_type, rows=routine.returns_rows)
    _check_result_shape(routine, request)
    writer = _CallWriter(call, request, form, Values())
    text = writer.write_rows() if routine.returns_set or routine.returns_rows else writer.write_value()
    return CallPlan(routine, form, Statement(text, tuple(writer.values.found)))


def _check_result_shape(routine: Routine, request: CallRequest) -> None:
    """Refuse a request that this function's result cannot fulfil."""
    if not routine.returns_rows and not request.query.wants_whole_values:
        message = "Nothing can be selected, filtered, ordered or cut there"
        raise not_implemented(f"{routine.name} returns plain values. {message}")
    if request.preferences.strict_max_affected is not None and not routine.returns_set:
        message = (
            "Function must return SETOF or TABLE when max-affected preference is used with handling=strict"
        )
        raise ApiError(400, "PGRST128", message)


@dataclass(frozen=True)
class _CallWriter:
    """Writer of the SQL of one call."""

    call: Call
    request: CallRequest
    form: Format
    values: Values

    @property
    def routine(self) -> Routine:
        return self.call.routine

    def write_value(self) -> str:
        """Write a call whose result is one value, or nothing."""
        source, arguments = self._write_arguments()
        expression = f"{qualify(self.routine.schema, self.routine.name)}({arguments})"
        # Evaluated from left to right: the settings are read after the function has run, since it may set them.
        return f"select {self._write_value_body(expression)}, {RESPONSE_SETTINGS}{source}"

    def _write_value_body(self, expression: str) -> str:
        counts = "1::bigint as page_total, null::bigint as total"
        if self.routine.returns_void:
            return f"{expression} as nothing, null::text as body, {counts}"
        if self.form.raw:
            plain = self.routine.return_base_type == "bytea"
            body = f"({expression})::bytea" if plain else f"convert_to(({expression})::text, 'UTF8')"
        else:
            json = f"to_json({expression})"
            json = f"json_strip_nulls({json})" if self.form.nulls_stripped else json
            body = f"coalesce({json}::text, 'null')"
        return f"{body} as body, {counts}"

    def write_rows(self) -> str:
        """Write a call whose result is a set, or has columns."""
        item, arguments = self._write_arguments()
        function = f"{qualify(self.routine.schema, self.routine.name)}({arguments})"
        prefix = f"{item}, lateral" if item else " from"
        if self.routine.returns_rows:
            return self._write_columns(f"select r.*{prefix} {function} as r")
        limit = Source("r", {}, self.values).limit(self.request.rows)
        array = "coalesce(json_agg(t.pgrst_scalar)::text, '[]')"
        only = "coalesce((json_agg(t.pgrst_scalar) -> 0)::text, 'null')"
        called = f"select r.pgrst_scalar{prefix} {function} as r(pgrst_scalar){limit}"
        return answer_rows(called, only if self.form.singular else array)

    def _write_columns(self, called: str) -> str:
        query = self.request.query
        # The alias is the function's name, so that PostgreSQL's messages name the function.
        source = Source(identifier(self.routine.name), self.routine.column_types, self.values)
        columns, where = source.select_list(query.select), source.where(query.conditions)
        everything = f"from pgrst_call as {source.reference}{where}"
        page = f"select {columns} {everything}{source.order_by(query.order)}{source.limit(self.request.rows)}"
        total = f"(select count(*) {everything})" if self.request.preferences.count else "null"
        form = self.form
        # A function that returns one row answers an object, also if the request accepts arrays.
        if not self.routine.returns_set and form.media_type != CSV:
            form = Format(form.media_type, singular=True, nulls_stripped=form.nulls_stripped)
        # Materialized, so that the function runs once, although the page and the total both read its rows.
        also = f"pgrst_call as materialized ({called}), "
        return answer_rows(page, write_body(form), total=total, also=also)

    def _write_arguments(self) -> tuple[str, str]:
        """Write the ``from`` clause that reads the arguments (or nothing), and the list inside the parentheses."""
        given = self.call.arguments
        if self.call.whole_body is not None:
            return "", self._write_whole_body(self.call.whole_body)
        parameters = [p for p in self.routine.parameters if p.name in given.names]
        if not parameters:
            return "", ""
        if given.media_type is None:
            return "", ", ".join(self._write_argument(parameter) for parameter in parameters)
        declared = ", ".join(f"{identifier(p.name)} {p.type}" for p in parameters)
        function = "json_to_recordset" if given.in_array else "json_to_record"
        body = self.values.bind(BODY, "json")
        passed = (f"{_assign(p)} pgrst_args.{identifier(p.name)}" for p in parameters)
        # `limit 1`, since the first object of an array gives the arguments.
        return f" from (select * from {function}({body}) as a({declared}) limit 1) pgrst_args", ", ".join(
            passed
        )

    def _write_whole_body(self, type_: str) -> str:
        if type_ == "bytea":
            return self.values.bind(BODY, "bytea")
        return f"({self.values.bind(BODY, 'text')})::{type_}"

    def _write_argument(self, parameter: Parameter) -> str:
        # PostgREST takes the last of several values, and all of them for a variadic parameter.
        texts = [value for name, value in self.request.query.arguments if name == parameter.name]
        sent = (
            self.values.bind(texts, "text[]") if parameter.variadic else self.values.bind(texts[-1], "text")
        )
        return f"{_assign(parameter)} ({sent})::{parameter.type}"


def _assign(parameter: Parameter) -> str:
    return f"{'variadic ' * parameter.variadic}{identifier(parameter.name)} =>"
