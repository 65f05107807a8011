"""Answers in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


def json_answer(content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(content, status, headers=headers, media_type="application/json; charset=utf-8")
