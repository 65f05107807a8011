"""Requests to Storage as one login: addresses of objects, requests that may be repeated, and requests that may not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote

from tensorage.backend.wire.faults import Fault
from tensorage.backend.wire.http import Answer, Http, Request
from tensorage.backend.wire.storage_faults import read_fault, refusals_as_errors
from tensorage.errors import InvalidInputError
from tensorage.wording import quote as quoted

__all__ = ["BUCKET", "FOR_READING", "OCTETS", "StorageRequests", "check_object_name", "object_path"]

#: Name of the private bucket that the migrations make.
BUCKET = "tensors"

#: Content type of any bytes.
OCTETS = "application/octet-stream"

#: Route of downloads. The shorter route answers a bad token with a missing bucket. This one checks the token first.
FOR_READING = "/object/authenticated"

#: Objects that one request deletes.
MAX_REMOVED = 1000

_ROOT = "/storage/v1"


@dataclass(frozen=True)
class StorageRequests:
    """Requests below ``/storage/v1``. A refusal is raised as `StorageRefusal`."""

    http: Http

    @staticmethod
    def download(path: str, headers: Mapping[str, str], out: memoryview) -> Request:
        """Return the request for bytes that fill `out`."""
        return Request("GET", _ROOT + path, headers, (), out, read_fault, is_download=True)

    def ask(
        self,
        method: str,
        path: str,
        asked: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Sequence[bytes | memoryview] = (),
    ) -> Answer:
        """Make a request, which may be repeated, until there is an answer."""
        return self.http.ask(Request(method, _ROOT + path, headers or {}, body, None, read_fault), asked)

    def send(
        self,
        method: str,
        path: str,
        *,
        asked: str,
        headers: Mapping[str, str],
        body: Iterable[bytes | memoryview] | None = None,
    ) -> Answer | Fault:
        """Make a request once, with a body that cannot be read twice. Renew the token if it is refused.

        An exception of the body ends the request. The backend then keeps nothing of it.
        """
        import urllib3

        # This request bypasses `Http.ask`, which would repeat it.
        sent = {**self.http.headers(asked), **headers}
        try:
            response = self.http.connections().request(
                method,
                self.http.base_url + _ROOT + path,
                body=cast("Iterable[bytes] | None", body),
                headers=sent,
                retries=False,
                redirect=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Fault.unreachable(self.http.base_url, error)
        if 200 <= response.status < 300:
            return Answer(response.status, response.headers, response.data)
        fault = read_fault(response.status, response.data, response.headers.get("Retry-After"))
        if fault.is_expired_login:
            self.http.login.renew(sent["Authorization"])
        return fault

    def remove(self, names: Sequence[str], asked: str) -> None:
        """Delete objects of the bucket, as many as there are of them."""
        for name in names:
            check_object_name(name)
        for first in range(0, len(names), MAX_REMOVED):
            body = json.dumps({"prefixes": list(names[first : first + MAX_REMOVED])}).encode()
            with refusals_as_errors(asked):
                headers = {"Content-Type": "application/json"}
                self.ask("DELETE", f"/object/{BUCKET}", asked, headers=headers, body=[body])


def object_path(name: str, route: str = "/object") -> str:
    """Return the path of an object of the bucket, below ``/storage/v1``.

    Raises
    ------
    InvalidInputError
        If the name would lead out of its folder: HTTP clients take ``..`` for the folder above.
    """
    check_object_name(name)
    return f"{route}/{BUCKET}/{quote(name)}"


def check_object_name(name: str) -> None:
    """Refuse a name that no object has: with empty or dot segments, backslashes or control characters.

    Raises
    ------
    InvalidInputError
    """
    is_plain = name.isprintable() and "\\" not in name
    if not is_plain or any(part in {"", ".", ".."} for part in name.split("/")):
        raise InvalidInputError(
            f"{quoted(name)} is no name of an object: its parts are separated by single slashes, none of them is '.' "
            "or '..', and there are no backslashes or control characters. Nothing was asked for"
        )
