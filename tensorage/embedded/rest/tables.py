"""SQL of requests for tables and views, and the conditions on their results. Pure functions, no I/O."""

# ruff: noqa: S608 - SQL is what this module writes: identifiers go through `identifier`, values through `Values`.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from tensorage.embedded.rest.bodies import JsonBody
from tensorage.embedded.rest.errors import ApiError, invalid_body, no_filter_error, not_implemented
from tensorage.embedded.rest.headers import Format, Preferences, RowRange
from tensorage.embedded.rest.query_model import Field, Filter, Query, SelectItem
from tensorage.embedded.rest.schema import Table
from tensorage.embedded.rest.sql import (
    Source,
    Statement,
    Values,
    answer_rows,
    identifier,
    qualify,
    write_body,
)

Mutation = Literal["POST", "PUT", "PATCH", "DELETE"]

#: Preferences that each method follows, for ``Preference-Applied``.
HEEDED: Final[dict[str, frozenset[str]]] = {
    "GET": frozenset({"count", "handling"}),
    "POST": frozenset({"resolution", "missing", "return", "count", "handling"}),
    "PUT": frozenset({"return", "count", "handling"}),
    "PATCH": frozenset({"missing", "return", "count", "handling", "max-affected"}),
    "DELETE": frozenset({"return", "count", "handling", "max-affected"}),
}

#: Condition that counts the rows that an upsert updates. The other affected rows are new.
_COUNT_UPDATED: Final = (
    "set_config('pgrst.updated', (coalesce(nullif(current_setting('pgrst.updated', true), ''), '0')::bigint"
    " + 1)::text, true) is not null"
)
_UPDATED: Final = (
    ", coalesce(nullif(current_setting('pgrst.updated', true), ''), '0')::bigint as updated_total"
)


@dataclass(frozen=True)
class Write:
    """A change of a table or view.

    Parameters
    ----------
    body
        Body of the request; None for a deletion.
    """

    method: Mutation
    table: Table
    query: Query
    preferences: Preferences
    body: JsonBody | None = None

    @property
    def is_upsert(self) -> bool:
        return self.method == "PUT" or (
            self.preferences.resolution is not None and bool(self.conflict_target)
        )

    @property
    def conflict_target(self) -> tuple[str, ...]:
        return self.query.on_conflict or self.table.primary_key

    @property
    def heeded(self) -> frozenset[str]:
        return HEEDED[self.method] - (frozenset() if self.conflict_target else {"resolution"})


def make_read_statement(
    table: Table, query: Query, rows: RowRange, preferences: Preferences, form: Format
) -> Statement:
    """Return the statement that answers rows of a table."""
    name, values = qualify(table.schema, table.name), Values()
    source = Source(name, table.column_types, values)
    columns = source.select_list(query.select)
    where = source.where(query.conditions)
    page = f"select {columns} from {name}{where}{source.order_by(query.order)}{source.limit(rows)}"
    total = f"(select count(*) from {name}{where})" if preferences.count else "null"
    return Statement(answer_rows(page, write_body(form), total=total), tuple(values.found))


def make_write_statement(write: Write, form: Format) -> Statement:
    """Return the statement that changes a table, and answers what `Prefer: return` asks for."""
    _check_shape(write)
    values = Values()
    source = Source(qualify(write.table.schema, write.table.name), write.table.column_types, values)
    if write.method == "DELETE":
        change = f"delete from {source.reference}{source.where(write.query.conditions)}"
    elif write.method == "PATCH":
        change = _write_update(write, source)
    else:
        change = _write_insert(write, source)
    if change and write.method in ("PATCH", "DELETE") and not write.query.conditions:
        raise no_filter_error(write.method)
    returning = _write_returning(write, source)
    # Without columns to write there is nothing to change, but PostgreSQL still checks the columns to return.
    text = (
        f"{change} returning {returning}"
        if change
        else f"select {returning} from {source.reference} where false"
    )
    return Statement(_write_answer(write, form, text), tuple(values.found))


def _check_shape(write: Write) -> None:
    query = write.query
    limited = query.limit is not None or query.offset is not None
    if write.method == "PUT":
        if limited:
            message = "limit/offset querystring parameters are not allowed for PUT"
            raise ApiError(400, "PGRST114", message)
        _check_put(write)
    elif limited or query.order:
        raise not_implemented(f"order, limit and offset are not supported for {write.method} on a table")
    if write.method == "POST" and query.conditions:
        raise not_implemented("Filters are not supported for POST on a table")


def _check_put(write: Write) -> None:
    # A PUT replaces the one row that its URL names by primary key.
    equal = sorted(
        condition.field.name
        for condition in write.query.conditions
        if isinstance(condition, Filter)
        and condition == Filter(Field(condition.field.name), "eq", condition.value)
    )
    if not equal or len(equal) != len(write.query.conditions) or equal != sorted(write.table.primary_key):
        message = "Filters must include all and only primary key columns with 'eq' operators"
        raise ApiError(405, "PGRST105", message)
    if write.body is None or write.body.size != 1:
        raise _key_mismatch()


def _key_mismatch() -> ApiError:
    return ApiError(400, "PGRST115", "Payload values do not match URL in primary key column(s)")


def check_put_happened(affected: int) -> None:
    """Refuse a PUT whose body has another key than its URL: its statement then writes no row."""
    if affected != 1:
        raise _key_mismatch()


def _choose_columns(write: Write) -> tuple[str, ...]:
    assert write.body is not None
    columns = write.body.keys if write.query.columns is None else tuple(dict.fromkeys(write.query.columns))
    for name in (*columns, *(write.query.on_conflict or ())):
        if name not in write.table.columns:
            message = f"Could not find the '{name}' column of '{write.table.name}' in the schema cache"
            raise ApiError(400, "PGRST204", message)
    return columns


def _write_new_rows(write: Write, columns: Iterable[str], source: Source) -> str:
    """Write a ``from`` item called ``pgrst_body``, whose rows are the objects of the body."""
    assert write.body is not None
    known = [write.table.columns[name] for name in columns]
    declared = ", ".join(f"{identifier(column.name)} {column.type}" for column in known)
    body = source.values.bind(write.body.text, "json")
    if write.body.shape == "object":
        # The SQL below expects an array.
        body = f"json_build_array({body})"
    if write.preferences.missing != "default":
        return f"json_to_recordset({body}) as pgrst_body({declared})"
    # Only a missing key takes the default. A JSON null is a value.
    chosen = ", ".join(
        f"case when element -> {source.values.bind(column.name, 'text')} is null"
        f" then {column.default or 'null'} else given.{identifier(column.name)} end"
        f" as {identifier(column.name)}"
        for column in known
    )
    return (
        f"(select {chosen} from json_array_elements({body}) as elements(element),"
        f" lateral json_to_record(element) as given({declared})) pgrst_body"
    )


def _write_insert(write: Write, source: Source) -> str:
    assert write.body is not None
    columns = _choose_columns(write)
    if not write.body.size:
        return ""
    if not columns:
        if write.body.size > 1:
            raise invalid_body("Only one row can be made of nothing but defaults")
        return f"insert into {source.reference} default values{_write_on_conflict(write, columns)}"
    names = ", ".join(identifier(name) for name in columns)
    taken = ", ".join(f"pgrst_body.{identifier(name)}" for name in columns)
    rows = f"select {taken} from {_write_new_rows(write, columns, source)}"
    if write.method == "PUT":
        body = Source("pgrst_body", source.column_types, source.values)
        rows += body.where(write.query.conditions)
    return f"insert into {source.reference}({names}) {rows}{_write_on_conflict(write, columns)}"


def _write_on_conflict(write: Write, columns: tuple[str, ...]) -> str:
    if not write.is_upsert:
        return ""
    target = ", ".join(identifier(name) for name in write.conflict_target)
    if write.preferences.resolution == "ignore-duplicates" or not columns:
        return f" on conflict({target}) do nothing"
    changes = ", ".join(f"{identifier(name)} = excluded.{identifier(name)}" for name in columns)
    return f" on conflict({target}) do update set {changes} where {_COUNT_UPDATED}"


def _write_update(write: Write, source: Source) -> str:
    assert write.body is not None
    columns = _choose_columns(write)
    if write.body.size != 1:
        raise invalid_body("An update takes one object")
    if not columns:
        return ""
    changes = ", ".join(f"{identifier(name)} = pgrst_body.{identifier(name)}" for name in columns)
    rows = _write_new_rows(write, columns, source)
    return f"update {source.reference} set {changes} from {rows}{source.where(write.query.conditions)}"


def _write_returning(write: Write, source: Source) -> str:
    if write.preferences.returning == "representation":
        return source.select_list(write.query.select)
    if _wants_location(write):
        return source.select_list(SelectItem(Field(name)) for name in write.table.primary_key)
    return "1"  # a caller who wants nothing back needs no right to read


def _wants_location(write: Write) -> bool:
    created = write.method == "POST" and write.preferences.returning == "headers-only"
    return created and bool(write.table.primary_key)


#: Column with the primary key of the only new row, for the header ``Location``.
_LOCATION: Final = (
    ", case when count(*) = 1 then (select array_agg(array[key, coalesce('eq.' || value, 'is.null')])"
    " from pgrst_source s, json_each_text(row_to_json(s.*))) end as location"
)


def _write_answer(write: Write, form: Format, change: str) -> str:
    wanted = write.preferences.returning == "representation"
    extra = (_LOCATION if _wants_location(write) else "") + (_UPDATED if write.is_upsert else "")
    return answer_rows(change, write_body(form) if wanted else "null::text", extra=extra)
