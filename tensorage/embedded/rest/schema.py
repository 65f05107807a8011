"""The exposed schema: its tables, views and functions, as PostgreSQL describes them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tensorage.embedded.rest import introspection
from tensorage.embedded.rest.errors import ApiError

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

#: Settings of a function that have no effect once the function runs, and are therefore made before its call.
_HOISTED_SETTINGS = frozenset({"statement_timeout"})

#: Longest text for which a similar name is guessed: the time to guess grows with the length.
_MAX_GUESSED_LENGTH = 500

_INSERT, _UPDATE, _DELETE = 8, 4, 16  # bits of pg_relation_is_updatable


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table or view.

    Parameters
    ----------
    type
        Type of stored values, with its modifier: ``character varying(20)``.
    comparison_type
        Type of values to compare with: the type without modifier and domains.
    default
        SQL expression of the default, or None.
    """

    name: str
    type: str
    comparison_type: str
    default: str | None = None


@dataclass(frozen=True)
class Table:
    """A table or view of the exposed schema."""

    schema: str
    name: str
    columns: Mapping[str, Column]
    primary_key: tuple[str, ...]
    insertable: bool
    updatable: bool
    deletable: bool

    @cached_property
    def column_types(self) -> Mapping[str, str]:
        return {name: column.comparison_type for name, column in self.columns.items()}

    @property
    def methods(self) -> str:
        """Value of the header ``Allow``."""
        allowed = ["OPTIONS,GET,HEAD"]
        allowed += ["POST"] * self.insertable
        allowed += ["PUT"] * (self.insertable and self.updatable and bool(self.primary_key))
        allowed += ["PATCH"] * self.updatable
        allowed += ["DELETE"] * self.deletable
        return ",".join(allowed)


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input parameter of a function. An unnamed one has an empty name."""

    name: str
    type: str
    required: bool
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class Routine:
    """A function of the exposed schema.

    Parameters
    ----------
    returns_rows
        True if results are rows with columns, rather than plain values.
    returns_set
        True if there may be any number of results, rather than one.
    media_type
        Name of the result's domain, if that name is a media type.
    column_types
        Types of the columns of returned rows, as far as they are declared.
    settings
        Settings to make before a call.
    """

    schema: str
    name: str
    parameters: tuple[Parameter, ...]
    is_volatile: bool
    returns_set: bool
    returns_void: bool
    returns_rows: bool
    media_type: str | None
    return_base_type: str
    column_types: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def signature(self) -> str:
        return f"{self.schema}.{self.name}({', '.join(p.name for p in self.parameters)})"

    @property
    def methods(self) -> str:
        """Value of the header ``Allow``."""
        # PostgREST calls volatile functions by POST only, since a GET must not change anything.
        return "OPTIONS,POST" if self.is_volatile else "OPTIONS,GET,HEAD,POST"


@dataclass(frozen=True)
class Schema:
    """State of the exposed schema at one time. A reload makes another one."""

    name: str
    tables: Mapping[str, Table]
    routines: Mapping[str, tuple[Routine, ...]]
    role_settings: Mapping[str, dict[str, str]]

    def find_table(self, name: str) -> Table:
        found = self.tables.get(name)
        if found is None:
            close = guess_name(name, self.tables, cutoff=0.6)
            hint = f"Perhaps you meant the table '{self.name}.{close}'" if close else None
            message = f"Could not find the table '{self.name}.{name}' in the schema cache"
            raise ApiError(404, "PGRST205", message, hint=hint)
        return found


def guess_name(name: str, known: Iterable[str], *, cutoff: float) -> str | None:
    """Return the known name that is most similar to `name`, or None."""
    if len(name) > _MAX_GUESSED_LENGTH:
        return None
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


async def load_schema(connection: Connection, name: str) -> Schema:
    """Read a schema from PostgreSQL."""
    columns = await connection.fetch(introspection.COLUMNS, name)
    routines = await connection.fetch(introspection.ROUTINES, name)
    settings = await connection.fetch(introspection.ROLE_SETTINGS)
    return Schema(
        name=name,
        tables=_group_tables(name, [dict(row) for row in columns]),
        routines=_group_routines(name, [dict(row) for row in routines]),
        role_settings=_group_role_settings([dict(row) for row in settings]),
    )


Row = Mapping[str, Any]


def _group_tables(schema: str, rows: Iterable[Row]) -> dict[str, Table]:
    by_table: dict[str, list[Row]] = {}
    for row in rows:
        by_table.setdefault(row["table_name"], []).append(row)
    return {name: _make_table(schema, name, columns) for name, columns in by_table.items()}


def _make_table(schema: str, name: str, rows: list[Row]) -> Table:
    key = sorted((row["key_position"], row["column_name"]) for row in rows if row["key_position"] is not None)
    actions = rows[0]["actions"]
    return Table(
        schema=schema,
        name=name,
        columns={row["column_name"]: _make_column(row) for row in rows},
        primary_key=tuple(column for _, column in key),
        insertable=bool(actions & _INSERT),
        updatable=bool(actions & _UPDATE),
        deletable=bool(actions & _DELETE),
    )


def _make_column(row: Row) -> Column:
    default = row["identity_expression"] or row["default_expression"]
    return Column(row["column_name"], row["type"], row["comparison_type"], default)


def _group_routines(schema: str, rows: Iterable[Row]) -> dict[str, tuple[Routine, ...]]:
    found: dict[str, tuple[Routine, ...]] = {}
    for row in rows:
        found[row["name"]] = (*found.get(row["name"], ()), _make_routine(schema, row))
    return found


def _make_routine(schema: str, row: Row) -> Routine:
    count = len(row["argument_types"])
    # PostgreSQL leaves out the names if no argument has one, and the modes if all arguments are inputs.
    names = [*row["argument_names"], *[""] * count][:count]
    modes = row["argument_modes"] or ["i"] * count
    arguments = list(zip(names, modes, row["argument_types"], strict=True))
    # Modes: i for in, o for out, b for both, v for variadic, t for a column of the result.
    outputs = {name: type_ for name, mode, type_ in arguments if mode in "obt"}
    settings = (setting.partition("=") for setting in row["settings"])
    return Routine(
        schema=schema,
        name=row["name"],
        parameters=_make_parameters([a for a in arguments if a[1] in "ibv"], row),
        is_volatile=row["is_volatile"],
        returns_set=row["returns_set"],
        returns_void=row["returns_void"],
        returns_rows=row["returns_rows"],
        media_type=row["media_type"],
        return_base_type=row["return_base_type"],
        column_types=outputs or dict(pair.split("\x01") for pair in row["row_columns"]),
        settings=tuple((k, v) for k, _, v in settings if k in _HOISTED_SETTINGS),
    )


def _make_parameters(inputs: list[tuple[str, str, str]], row: Row) -> tuple[Parameter, ...]:
    # Only the last input parameters can have defaults.
    required = row["input_count"] - row["default_count"]
    return tuple(
        Parameter(name, type_, required=n < required and mode != "v", variadic=mode == "v")
        for n, (name, mode, type_) in enumerate(inputs)
    )


def _group_role_settings(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        name, _, value = row["setting"].partition("=")
        found.setdefault(row["role"], {})[name] = value
    return found
