"""Parser of query strings, with PostgREST's grammar: columns, filters and order. Pure functions, no I/O."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl, quote

from tensorage.embedded.rest.errors import ApiError, not_implemented
from tensorage.embedded.rest.query_model import (
    Condition,
    Field,
    Filter,
    JsonStep,
    Logic,
    OrderTerm,
    Query,
    SelectItem,
)
from tensorage.embedded.rest.scanner import Scanner

#: A name: words, joined by dashes that do not begin an arrow.
_NAME = re.compile(r"[\w $]+(?:-(?!>)[\w $]+)*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ARROW = re.compile(r"->>|->")
#: An index into a JSON array. A longer number is a key.
_INDEX = re.compile(r"-?\d{1,9}(?=$|->|[.,:)])", re.ASCII)
#: Name of a type: words such as ``double precision``, optionally with a schema, optionally an array.
_TYPE = re.compile(r"[A-Za-z_]\w*(?:[ .][A-Za-z_]\w*)*(?:\[\])?", re.ASCII)
_OPERATOR = re.compile(
    r"(?P<name>neq|eq|gte|gt|lte|lt|like|ilike|match|imatch|isdistinct|in|is"
    r"|cs|cd|ov|sl|sr|nxr|nxl|adj|plfts|phfts|wfts|fts)"
    r"(?:\((?P<argument>[^()]*)\))?\."
)
_AGGREGATE = re.compile(r"\.\w+\(\)")
#: Eighteen digits are the most that always fit a bigint of PostgreSQL.
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_RESERVED = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict"})
_LOGIC = frozenset({"and", "or"})
_QUANTIFIABLE = frozenset({"eq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch"})
_FULL_TEXT = frozenset({"fts", "plfts", "phfts", "wfts"})
_IS_VALUES = frozenset({"null", "not_null", "true", "false", "unknown"})


def parse_query(text: str, *, arguments: bool = False) -> Query:
    """Parse a query string.

    Parameters
    ----------
    text
        Percent-encoded, without the question mark.
    arguments
        True if values that are no filters are arguments of a function, called by GET, rather than errors.

    Raises
    ------
    ApiError
        ``PGRST100`` for text that cannot be parsed, ``PGRST103`` for an impossible limit.
    """
    if not text:
        return Query()
    pairs = parse_qsl(text, keep_blank_values=True)
    for name, _ in pairs:
        _refuse_nul(name)
    # Reversed, since the first of several values counts.
    given = {name: value for name, value in reversed(pairs) if name in _RESERVED}
    for name in ("select", "order", "columns", "on_conflict"):
        _refuse_nul(given.get(name, ""))
    conditions, call = _parse_conditions(pairs, arguments=arguments)
    return Query(
        select=_parse_select(given["select"]) if "select" in given else (SelectItem(None),),
        conditions=conditions,
        order=_parse_order(given["order"]) if given.get("order") else (),
        limit=_parse_count(given, "limit"),
        offset=_parse_count(given, "offset"),
        columns=_parse_names(given["columns"], "columns parameter") if "columns" in given else None,
        on_conflict=_parse_names(given["on_conflict"], "on_conflict parameter")
        if "on_conflict" in given
        else None,
        arguments=call,
        canonical=_canonicalize(pairs),
    )


def _refuse_nul(text: str) -> None:
    """Refuse a name with a NUL: no name of PostgreSQL has one, and text sent to PostgreSQL would end there."""
    if "\0" in text:
        raise ApiError(400, "PGRST100", "A NUL character cannot be part of a name")


def _parse_conditions(
    pairs: list[tuple[str, str]], *, arguments: bool
) -> tuple[tuple[Condition, ...], tuple[tuple[str, str], ...]]:
    conditions: list[Condition] = []
    call: list[tuple[str, str]] = []
    for name, value in pairs:
        if name in _RESERVED:
            continue
        last = name.rpartition(".")[2]
        if last in _LOGIC:
            conditions.append(_parse_logic_parameter(name, value))
        elif last in _RESERVED and "." in name:
            raise not_implemented(f"Embedded resources, such as the one of {name}, are not supported")
        elif arguments and not _is_filter(value):
            call.append((name, value))
        else:
            conditions.append(_parse_filter_parameter(name, value))
    return tuple(conditions), tuple(call)


def _canonicalize(pairs: list[tuple[str, str]]) -> str:
    """Return the query string sorted by name, with the values of one name joined by commas."""
    values: dict[str, list[str]] = {}
    for name, value in sorted(pairs, key=lambda pair: pair[0]):
        values.setdefault(name, []).append(quote(value, safe=""))
    return "&".join(f"{quote(name, safe='')}={','.join(found)}" for name, found in values.items())


def _parse_count(given: dict[str, str], name: str) -> int | None:
    if name not in given:
        return None
    scanner = Scanner(given[name], f"{name} parameter")
    found = scanner.match(_INTEGER)
    if not found or not scanner.at_end:
        scanner.fail("an integer")
    count = int(found[0])
    if count < 0:
        details = f"{name.capitalize()} should be greater than or equal to zero."
        raise ApiError(416, "PGRST103", "Requested range not satisfiable", details=details)
    return count


def _parse_names(text: str, what: str) -> tuple[str, ...]:
    scanner = Scanner(text, what)
    names = [_parse_name(scanner)]
    while scanner.take(","):
        names.append(_parse_name(scanner))
    if not scanner.at_end:
        scanner.fail('field name (* or [a..z0..9_$]) or ","')
    return tuple(names)


def _parse_name(scanner: Scanner) -> str:
    quoted = scanner.match(_QUOTED)
    if quoted:
        return _unescape(quoted[1])
    found = scanner.match(_NAME)
    name = found[0].strip() if found else ""
    if not name:
        scanner.fail("field name (* or [a..z0..9_$])")
    return name


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _parse_field(scanner: Scanner) -> Field:
    name, steps = _parse_name(scanner), []
    while arrow := scanner.match(_ARROW):
        index = scanner.match(_INDEX)
        operand = int(index[0]) if index else _parse_name(scanner)
        steps.append(JsonStep("->>" if arrow[0] == "->>" else "->", operand))
    return Field(name, tuple(steps))


def _parse_select(text: str) -> tuple[SelectItem, ...]:
    scanner = Scanner(text, "select parameter")
    items = [_parse_select_item(scanner)]
    while scanner.take(","):
        items.append(_parse_select_item(scanner))
    if not scanner.at_end:
        scanner.fail('"," or end of input')
    return tuple(items)


def _parse_select_item(scanner: Scanner) -> SelectItem:
    if scanner.take("*"):
        return SelectItem(None)
    if scanner.peek("..."):
        raise not_implemented("Spread embedded resources are not supported")
    if scanner.peek("count()"):
        raise ApiError(400, "PGRST123", "Use of aggregate functions is not allowed")
    alias, target = None, _parse_field(scanner)
    # One colon ends an alias, and two begin a cast.
    if scanner.peek(":") and not scanner.peek("::"):
        scanner.take(":")
        if scanner.peek("count()"):
            raise ApiError(400, "PGRST123", "Use of aggregate functions is not allowed")
        alias, target = target.label, _parse_field(scanner)
    if scanner.peek("(") or scanner.peek("!"):
        raise not_implemented(f"Embedded resources, such as {target.name}(...), are not supported")
    if _AGGREGATE.match(scanner.text, scanner.position):
        raise ApiError(400, "PGRST123", "Use of aggregate functions is not allowed")
    cast = None
    if scanner.take("::"):
        found = scanner.match(_TYPE)
        if not found:
            scanner.fail("the name of a type")
        cast = found[0]
    return SelectItem(target, alias, cast)


def _parse_order(text: str) -> tuple[OrderTerm, ...]:
    scanner = Scanner(text, "order")
    terms = [_parse_order_term(scanner)]
    while scanner.take(","):
        terms.append(_parse_order_term(scanner))
    if not scanner.at_end:
        scanner.fail('"," or end of input')
    return tuple(terms)


def _parse_order_term(scanner: Scanner) -> OrderTerm:
    target = _parse_field(scanner)
    if scanner.peek("("):
        raise not_implemented("Ordering by an embedded resource is not supported")
    direction: Literal["asc", "desc"] | None = None
    nulls: Literal["nullsfirst", "nullslast"] | None = None
    while scanner.take("."):
        # The direction comes first, and each word at most once.
        if direction is None and nulls is None and scanner.take("asc"):
            direction = "asc"
        elif direction is None and nulls is None and scanner.take("desc"):
            direction = "desc"
        elif nulls is None and scanner.take("nullsfirst"):
            nulls = "nullsfirst"
        elif nulls is None and scanner.take("nullslast"):
            nulls = "nullslast"
        else:
            scanner.fail('"asc", "desc", "nullsfirst" or "nullslast"')
    return OrderTerm(target, direction, nulls)


def _is_filter(value: str) -> bool:
    # In PostgREST, too, a value is a filter if it begins with an operator.
    return bool(_OPERATOR.match(value.removeprefix("not.")))


def _parse_filter_parameter(name: str, value: str) -> Filter:
    key = Scanner(name, "tree path")
    target = _parse_field(key)
    if key.peek("."):
        raise not_implemented(f"Embedded resources, such as the one of {name}, are not supported")
    if not key.at_end:
        key.fail('letter, digit, "-", "->>", "->" or end of input')
    scanner = Scanner(value, "filter")
    found = _parse_operation(scanner, target, nested=False)
    if not scanner.at_end:
        scanner.fail("end of input")
    return found


def _parse_logic_parameter(name: str, value: str) -> Logic:
    path, _, joiner = name.rpartition(".")
    if path not in ("", "not"):
        raise not_implemented(f"Embedded resources, such as the one of {name}, are not supported")
    scanner = Scanner(value, "logic tree", columns_before=len(name))
    tree = _parse_logic(scanner, "and" if joiner == "and" else "or", negated=path == "not")
    if not scanner.at_end:
        scanner.fail("end of input")
    return tree


#: Deepest nesting of conditions: far more than anybody writes, and no risk for the stack.
_DEEPEST_LOGIC = 100


def _parse_logic(scanner: Scanner, joiner: Literal["and", "or"], *, negated: bool, depth: int = 0) -> Logic:
    if depth > _DEEPEST_LOGIC:
        scanner.fail(f"at most {_DEEPEST_LOGIC} nested conditions")
    scanner.expect("(")
    children = [_parse_logic_child(scanner, depth)]
    while scanner.take(","):
        children.append(_parse_logic_child(scanner, depth))
    scanner.expect(")")
    return Logic(joiner, tuple(children), negated)


def _parse_logic_child(scanner: Scanner, depth: int) -> Condition:
    found = scanner.match(re.compile(r"(not\.)?(and|or)(?=\()"))
    if found:
        return _parse_logic(
            scanner, "and" if found[2] == "and" else "or", negated=bool(found[1]), depth=depth + 1
        )
    target = _parse_field(scanner)
    if not scanner.take("."):
        scanner.fail('letter, digit, "-", "->>", "->" or delimiter (.)')
    return _parse_operation(scanner, target, nested=True)


def _parse_operation(scanner: Scanner, target: Field, *, nested: bool) -> Filter:
    negated = scanner.take("not.")
    start = scanner.position
    found = scanner.match(_OPERATOR)
    if not found or not _argument_fits(found["name"], found["argument"]):
        # The error has to point at the operator, rather than behind it.
        scanner.position = start
        scanner.fail("operator (eq, gt, ...)" if negated else '"not" or operator (eq, gt, ...)')
    operator, argument = found["name"], found["argument"]
    value: str | tuple[str, ...]
    if operator == "in":
        value = _parse_list(scanner)
    elif operator == "is":
        value = _parse_plain_value(scanner, nested=nested).lower()
        if value not in _IS_VALUES:
            scanner.position = found.end()
            scanner.fail("isVal: (null, not_null, true, false, unknown)")
    else:
        value = _parse_plain_value(scanner, nested=nested)
    return Filter(target, operator, value, negated, argument)


def _argument_fits(operator: str, argument: str | None) -> bool:
    if argument is None:
        return True
    if operator in _FULL_TEXT:
        return bool(argument)
    return operator in _QUANTIFIABLE and argument in ("any", "all")


def _parse_plain_value(scanner: Scanner, *, nested: bool) -> str:
    """Parse the value of an operator: the rest of the text, or up to the next delimiter inside a logic tree."""
    if not nested:
        value, scanner.position = scanner.text[scanner.position :], len(scanner.text)
        return value
    quoted = scanner.match(re.compile(_QUOTED.pattern + r"(?=[,)])", re.DOTALL))
    if quoted:
        return _unescape(quoted[1])
    # The text of an array may contain the delimiters.
    array = scanner.match(re.compile(r'\{(?:"(?:[^"\\]|\\.)*"|[^{}"])*\}(?=[,)])', re.DOTALL))
    found = array or scanner.match(re.compile(r"[^,)]*"))
    return found[0] if found else ""


def _parse_list(scanner: Scanner) -> tuple[str, ...]:
    scanner.expect("(")
    if scanner.take(")"):
        return ()
    elements = [_parse_list_element(scanner)]
    while scanner.take(","):
        elements.append(_parse_list_element(scanner))
    scanner.expect(")")
    return tuple(elements)


def _parse_list_element(scanner: Scanner) -> str:
    quoted = scanner.match(re.compile(_QUOTED.pattern + r"(?=[,)])", re.DOTALL))
    if quoted:
        return _unescape(quoted[1])
    found = scanner.match(re.compile(r"[^,)]*"))
    return found[0] if found else ""
