"""A client of the REST API that speaks plain HTTP to it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import httpx
import jwt


@dataclass(frozen=True)
class Rest:
    """The REST API as one caller sees it."""

    http: httpx.Client
    jwt_secret: str
    token: str | None
    user_id: str | None = None

    def request(self, method: str, path: str, *, token: str | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        token = token or self.token
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        return self.http.request(method, path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def call(self, name: str, /, **arguments: Any) -> Any:
        answer = self.post(f"/rpc/{name}", json=arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def rows(self, path: str, **options: Any) -> list[dict[str, Any]]:
        answer = self.get(path, **options)
        assert answer.status_code in (200, 206), answer.text
        return answer.json()

    def insert(self, *rows: dict[str, Any], table: str = "rest_items") -> list[dict[str, Any]]:
        answer = self.post(f"/{table}", json=list(rows), headers={"Prefer": "return=representation"})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def signed(self, **claims: Any) -> str:
        """A token with these claims, signed by the server's own key."""
        everything = {"role": "authenticated", "exp": int(time.time()) + 3600} | claims
        return jwt.encode(everything, self.jwt_secret, algorithm="HS256")

    def as_somebody_new(self) -> Rest:
        """The same API as a user that nobody else is."""
        user_id = str(uuid.uuid4())
        return Rest(self.http, self.jwt_secret, self.signed(sub=user_id), user_id)

    def as_nobody(self) -> Rest:
        return Rest(self.http, self.jwt_secret, None)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, whose shape is checked too."""
    body = answer.json()
    assert body.keys() == {"code", "details", "hint", "message"}, body
    assert answer.headers["Proxy-Status"] == f"PostgREST; error={body['code']}"
    return answer.status_code, body["code"]


def wait_until_known(rest: Rest, path: str, *, known: bool = True, timeout_s: float = 20.0) -> None:
    """Wait for a reload of the schema cache, which a notification asks for but does not wait for."""
    deadline = time.monotonic() + timeout_s
    while (rest.request("OPTIONS", path).status_code == 200) is not known:
        assert time.monotonic() < deadline, f"{path}: known is not {known}"
        time.sleep(0.02)
