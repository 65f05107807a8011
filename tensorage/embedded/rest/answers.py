"""Results of statements as HTTP answers. Pure functions, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tensorage.embedded.rest.calls import HEEDED as CALL_HEEDED
from tensorage.embedded.rest.errors import ApiError, is_header
from tensorage.embedded.rest.headers import Format, Preferences, RowRange
from tensorage.embedded.rest.query_model import Query
from tensorage.embedded.rest.schema import Routine
from tensorage.embedded.rest.tables import HEEDED as TABLE_HEEDED
from tensorage.embedded.rest.tables import Write

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, with the names of headers in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def answer_error(error: ApiError) -> Answer:
    headers = {
        "content-type": "application/json; charset=utf-8",
        "proxy-status": f"PostgREST; error={error.code}",
        **error.headers,
    }
    return Answer(error.status, headers, error.body)


def answer_options(methods: str) -> Answer:
    return Answer(200, {"allow": methods})


def answer_read(
    name: str, query: Query, rows: RowRange, *, preferences: Preferences, form: Format, result: Result
) -> Answer:
    """Return the answer to a read of a table or view."""
    location = f"/{quote(name)}" + (f"?{query.canonical}" if query.canonical else "")
    page = _make_page(rows, result)
    headers = {
        "content-range": page.content_range,
        "content-location": location,
        "content-type": form.content_type,
        **_make_applied_header(preferences, TABLE_HEEDED["GET"]),
    }
    return _apply_settings(_answer_page(page, headers, result), result)


def answer_call(
    routine: Routine, rows: RowRange, *, preferences: Preferences, form: Format, result: Result
) -> Answer:
    """Return the answer to a call of a function."""
    page = _make_page(rows, result)
    headers = {"content-range": page.content_range, **_make_applied_header(preferences, CALL_HEEDED)}
    if routine.returns_void:
        return _apply_settings(Answer(204, headers), result)
    headers["content-type"] = form.content_type
    return _apply_settings(_answer_page(page, headers, result), result)


def answer_write(write: Write, form: Format, result: Result) -> Answer:
    """Return the answer to a change of a table or view."""
    affected = result["page_total"]
    total = affected if write.preferences.count else "*"
    headers = _make_applied_header(write.preferences, write.heeded)
    # PostgREST gives the affected rows of an update as a range, and those of other changes as a number.
    if write.method == "PATCH":
        headers["content-range"] = f"{_format_range(0, affected)}/{total}"
    elif write.method != "PUT":
        headers["content-range"] = f"*/{total}"
    if result.get("location"):
        query = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in result["location"])
        headers["location"] = f"/{quote(write.table.name)}?{query}"
    if write.preferences.returning != "representation":
        return _apply_settings(Answer(201 if write.method == "POST" else 204, headers), result)
    headers["content-type"] = form.content_type
    return _apply_settings(Answer(_choose_status(write, result), headers, result["body"].encode()), result)


def _choose_status(write: Write, result: Result) -> int:
    if write.method in ("PATCH", "DELETE"):
        return 200
    updated = result.get("updated_total", 0)
    # In PostgREST, too, an upsert that only updated rows answers 200, and one that added some 201.
    nothing_new = write.is_upsert and result["page_total"] <= updated
    return 200 if nothing_new and write.preferences.resolution != "ignore-duplicates" else 201


@dataclass(frozen=True, slots=True)
class _Page:
    offset: int
    count: int
    total: int | None

    @property
    def content_range(self) -> str:
        return f"{_format_range(self.offset, self.count)}/{'*' if self.total is None else self.total}"

    @property
    def status(self) -> int:
        if self.total is None or self.count >= self.total:
            return 200
        # In PostgREST, too, an offset behind the last row is an error only if the total is known.
        if self.offset > self.total:
            return 416
        return 206


def _make_page(rows: RowRange, result: Result) -> _Page:
    return _Page(rows.offset, result["page_total"], result["total"])


def _format_range(first: int, count: int) -> str:
    return f"{first}-{first + count - 1}" if count else "*"


def _answer_page(page: _Page, headers: dict[str, str], result: Result) -> Answer:
    body = result["body"]
    if page.status == 416:
        details = f"An offset of {page.offset} was requested, but there are only {page.total} rows."
        error = ApiError(416, "PGRST103", "Requested range not satisfiable", details=details)
        refusal = answer_error(error)
        return Answer(416, {**headers, **refusal.headers}, refusal.body)
    return Answer(page.status, headers, body.encode() if isinstance(body, str) else body or b"")


def _make_applied_header(preferences: Preferences, heeded: frozenset[str]) -> dict[str, str]:
    applied = preferences.list_applied(heeded)
    return {"preference-applied": applied} if applied else {}


def check_result(form: Format, preferences: Preferences, result: Result) -> None:
    """Refuse a result that breaks a condition of the request. The transaction is then rolled back."""
    count, most = result["page_total"], preferences.strict_max_affected
    if most is not None and count > most:
        message = "Query result exceeds max-affected preference constraint"
        raise ApiError(400, "PGRST124", message, details=f"The query affects {count} rows")
    if form.singular and count != 1:
        message = "Cannot coerce the result to a single JSON object"
        raise ApiError(406, "PGRST116", message, details=f"The result contains {count} rows")


def _apply_settings(answer: Answer, result: Result) -> Answer:
    """Return the answer with the status and headers that a function set in ``response.status`` and ``.headers``."""
    status, headers = result["response_status"], result["response_headers"]
    if status is None and headers is None:
        return answer
    own = _parse_headers(headers) if headers is not None else {}
    return Answer(
        answer.status if status is None else _parse_status(status), {**answer.headers, **own}, answer.body
    )


def _parse_status(text: str) -> int:
    if not re.fullmatch(r"[2-5]\d\d", text, re.ASCII):
        raise ApiError(500, "PGRST112", "response.status guc must be a valid status code")
    return int(text)


def _parse_headers(text: str) -> dict[str, str]:
    problem = ApiError(
        500,
        "PGRST111",
        "response.headers guc must be a JSON array composed of objects with a single key and a string value",
    )
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise problem from error
    found = {}
    if not isinstance(entries, list):
        raise problem
    for entry in entries:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise problem
        ((name, value),) = entry.items()
        if not is_header(name, value):
            raise problem
        # In lower case, so that a function can replace the server's own header of that name.
        found[name.lower()] = value
    return found
