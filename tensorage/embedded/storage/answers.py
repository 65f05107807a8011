"""Answers in Storage's JSON, from rows of ``storage.objects`` and ``storage.buckets``. Pure functions, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from starlette.responses import JSONResponse

_OBJECT_TIMES: Final = ("updated_at", "created_at", "last_accessed_at")
_BUCKET_TIMES: Final = ("created_at", "updated_at")


def json_answer(content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(content, status, headers=headers, media_type="application/json; charset=utf-8")


@dataclass(frozen=True)
class Metadata:
    """Metadata of an object's content, with the headers of its downloads.

    Parameters
    ----------
    etag
        MD5 of the content, in quotes.
    size
        Bytes of the content.
    """

    etag: str
    size: int
    mimetype: str
    cache_control: str
    last_modified: str

    @classmethod
    def from_json(cls, text: str | None) -> Metadata:
        """Parse the column ``metadata``. Rows that were made by plain SQL may lack any of it."""
        fields: dict[str, Any] = json.loads(text) if text else {}
        return cls(
            etag=str(fields.get("eTag") or ""),
            size=int(fields.get("size") or 0),
            mimetype=str(fields.get("mimetype") or "application/octet-stream"),
            cache_control=str(fields.get("cacheControl") or "no-cache"),
            last_modified=str(fields.get("lastModified") or ""),
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "eTag": self.etag,
                "size": self.size,
                "mimetype": self.mimetype,
                "cacheControl": self.cache_control,
                "lastModified": self.last_modified,
                # Supabase Storage has these two in its rows, too.
                "contentLength": self.size,
                "httpStatusCode": 200,
            }
        )


def object_json(row: asyncpg.Record) -> dict[str, Any]:
    """Return the JSON of a whole row of ``storage.objects``, as in answers to removals and copies."""
    return {
        "name": row["name"],
        "bucket_id": row["bucket_id"],
        "owner": None if row["owner"] is None else str(row["owner"]),
        "owner_id": row["owner_id"],
        "version": row["version"],
        "id": str(row["id"]),
        **_format_times(row, _OBJECT_TIMES),
        "metadata": _parse_json(row["metadata"]),
        "user_metadata": _parse_json(row["user_metadata"]),
    }


def entry_json(row: asyncpg.Record) -> dict[str, Any]:
    """Return the JSON of an entry of a listing. A folder has only a name."""
    return {
        "name": row["name"],
        "id": None if row["id"] is None else str(row["id"]),
        **_format_times(row, _OBJECT_TIMES),
        "metadata": _parse_json(row["metadata"]),
    }


def info_json(row: asyncpg.Record, metadata: Metadata) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "name": row["name"],
        "version": row["version"],
        "bucket_id": row["bucket_id"],
        "size": metadata.size,
        "content_type": metadata.mimetype,
        "cache_control": metadata.cache_control,
        "etag": metadata.etag,
        "metadata": _parse_json(row["user_metadata"]) or {},
        "last_modified": js_time(row["updated_at"]),
        "created_at": js_time(row["created_at"]),
    }


def bucket_json(row: asyncpg.Record, *, with_type: bool = False) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "owner": "" if row["owner"] is None else str(row["owner"]),
        "public": bool(row["public"]),
        # Supabase Storage gives the type in listings only.
        **({"type": "STANDARD"} if with_type else {}),
        "file_size_limit": row["file_size_limit"],
        "allowed_mime_types": row["allowed_mime_types"],
        **_format_times(row, _BUCKET_TIMES),
    }


def js_time(moment: datetime) -> str:
    """Return a time in the form that JavaScript gives it.

    Examples
    --------
    >>> js_time(datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
    '2026-01-02T03:04:05.678Z'
    """
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _format_times(row: asyncpg.Record, names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: None if row[name] is None else js_time(row[name]) for name in names}


def _parse_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
