"""Choice of the function that a call means, by its name and the names of its arguments. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tensorage.embedded.rest.errors import ApiError
from tensorage.embedded.rest.schema import Routine, Schema, guess_name

#: Types of the single unnamed parameter that takes a whole body, by the body's media type.
WHOLE_BODY_TYPES: Final = {
    "application/json": ("json", "jsonb"),
    "application/octet-stream": ("bytea",),
    "text/plain": ("text",),
    "text/xml": ("xml",),
}

#: Most characters of the names of a call's arguments that a message repeats.
_MAX_LISTED_LENGTH: Final = 1000


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments of a call.

    Parameters
    ----------
    names
        Names of the arguments.
    media_type
        Media type of the body; None for a call by GET.
    in_array
        True if the JSON body is an array, whose first object counts.
    named
        True if arguments have names: not in a body that is binary, text, or JSON but no object.
    """

    names: tuple[str, ...] = ()
    media_type: str | None = None
    in_array: bool = False
    named: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """A function, and the way to call it.

    Parameters
    ----------
    whole_body
        Type of the single parameter that takes the whole body; None for named arguments.
    """

    routine: Routine
    arguments: Arguments
    whole_body: str | None = None


def find_call(schema: Schema, name: str, arguments: Arguments) -> Call:
    """Find the function that takes these arguments.

    Raises
    ------
    ApiError
        ``PGRST202`` if there is none, ``PGRST203`` if there are several.
    """
    candidates = schema.routines.get(name, ())
    named = [r for r in candidates if arguments.named and _takes_names(r, arguments.names)]
    whole = [r for r in candidates if _takes_body(r, arguments)]
    # In PostgREST, too, named arguments come before a parameter for the whole body.
    for found in (named, whole):
        if len(found) > 1:
            raise _ambiguous(found)
    if named:
        return Call(named[0], arguments)
    if whole:
        # A named parameter cannot take a body. PostgREST, too, then calls without arguments: PostgreSQL's own error
        # names the functions that there are.
        type_ = whole[0].parameters[0].type if not whole[0].parameters[0].name else None
        return Call(whole[0], arguments if type_ else Arguments(), type_)
    raise _not_found(schema, name, arguments)


def find_routine(schema: Schema, name: str) -> Routine:
    """Return any function of this name.

    Raises
    ------
    ApiError
        ``PGRST202`` if there is none.
    """
    if name not in schema.routines:
        raise _not_found(schema, name, Arguments())
    return schema.routines[name][0]


def _takes_names(routine: Routine, names: Sequence[str]) -> bool:
    known = {p.name for p in routine.parameters}
    required = {p.name for p in routine.parameters if p.required}
    # An unnamed parameter cannot be given by name.
    return "" not in known and required <= set(names) <= known


def _takes_body(routine: Routine, arguments: Arguments) -> bool:
    if arguments.media_type is None or len(routine.parameters) != 1:
        return False
    parameter = routine.parameters[0]
    if arguments.media_type == "application/json" and parameter.name:
        return False
    return parameter.type in WHOLE_BODY_TYPES[arguments.media_type]


def _ambiguous(found: Sequence[Routine]) -> ApiError:
    named = ", ".join(
        f"{r.schema}.{r.name}({', '.join(f'{p.name} => {p.type}' for p in r.parameters)})" for r in found
    )
    message = f"Could not choose the best candidate function between: {named}"
    hint = "Rename the parameters or one of the functions, so that a call says which of them is meant"
    return ApiError(300, "PGRST203", message, hint=hint)


def _not_found(schema: Schema, name: str, arguments: Arguments) -> ApiError:
    function, listed = f"{schema.name}.{name}", _list_names(arguments.names)
    types = "/".join(WHOLE_BODY_TYPES[arguments.media_type]) if arguments.media_type else None
    if not arguments.named:
        searched, shown = f"with a single unnamed {types} parameter", ""
    else:
        plural = "s" if len(arguments.names) > 1 else ""
        searched = f"with parameter{plural} {listed}" if listed else "without parameters"
        searched += f" or with a single unnamed {types} parameter" if types else ""
        shown = f"({listed})" if listed else " without parameters"
    return ApiError(
        404,
        "PGRST202",
        f"Could not find the function {function}{shown} in the schema cache",
        details=f"Searched for the function {function} {searched}, but no matches were found"
        " in the schema cache.",
        hint=_suggest(schema, name, listed) if arguments.named else None,
    )


def _list_names(names: Sequence[str]) -> str:
    """Return names for a message, cut off: a body may have any number of them, of any length."""
    listed = ", ".join(names)
    return listed if len(listed) <= _MAX_LISTED_LENGTH else f"{listed[:_MAX_LISTED_LENGTH]}..."


def _suggest(schema: Schema, name: str, listed: str) -> str | None:
    routines = schema.routines.get(name)
    if routines is None:
        close = guess_name(name, schema.routines, cutoff=0.6)
        return f"Perhaps you meant to call the function {schema.name}.{close}" if close else None
    signatures = {", ".join(p.name for p in r.parameters): r.signature for r in routines}
    close = guess_name(listed, signatures, cutoff=0.3)
    return f"Perhaps you meant to call the function {signatures[close]}" if close else None
