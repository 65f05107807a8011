"""Raw requests to the Storage API, for tests."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg

from tensorage.embedded import control

BUCKET = "tensors"
OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass
class Storage:
    """The Storage API as one caller."""

    http: httpx.Client
    running: control.Running
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str = ""

    def __post_init__(self) -> None:
        if not self.token:
            # The policies ask whether the account is there: a token of a deleted user is nobody's.
            with psycopg.connect(self.running.superuser_url, autocommit=True) as connection:
                connection.execute("insert into auth.users (id) values (%s)", (self.user_id,))
            claims = {"sub": self.user_id, "role": "authenticated", "exp": int(time.time()) + 3600}
            self.token = jwt.encode(claims, self.running.jwt_secret, algorithm="HS256")

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        return self.http.request(method, f"{self.running.api_url}/storage/v1{path}", headers=headers, **more)

    def upload(self, name: str, content: Any = b"content", **headers: str) -> httpx.Response:
        headers = OCTETS | {key.replace("_", "-"): value for key, value in headers.items()}
        return self.send("POST", f"/object/{BUCKET}/{self.mine(name)}", content=content, headers=headers)

    def download(self, name: str, **headers: str) -> httpx.Response:
        return self.send("GET", f"/object/{BUCKET}/{self.mine(name)}", headers=headers)

    def remove(self, *names: str) -> httpx.Response:
        body = {"prefixes": [self.mine(name) for name in names]}
        return self.send("DELETE", f"/object/{BUCKET}", json=body)

    def transfer(self, how: str, source: str, destination: str, **headers: str) -> httpx.Response:
        ends = {"sourceKey": self.mine(source), "destinationKey": self.mine(destination)}
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.send("POST", f"/object/{how}", json={"bucketId": BUCKET, **ends}, headers=headers)

    def list(self, prefix: str = "", **more: Any) -> list[dict[str, Any]]:
        answer = self.send("POST", f"/object/list/{BUCKET}", json={"prefix": self.mine(prefix), **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(self, prefix: str = "", **more: Any) -> list[str]:
        return [entry["name"] for entry in self.list(prefix, **more)]

    def mine(self, name: str) -> str:
        return f"{self.user_id}/{name}"


@dataclass(frozen=True)
class Files:
    """The files of a backend's objects, looked at from outside."""

    path: Path

    def all(self) -> set[str]:
        return {f"{file.parent.name}/{file.name}" for file in self.path.rglob("*") if not file.is_dir()}

    def of(self, version: str) -> Path:
        return self.path / "objects" / version


def refused(answer: httpx.Response, status: int, code: str, http_status: int = 400) -> None:
    assert answer.status_code == http_status, answer.text
    body = answer.json()
    assert (body["statusCode"], body["code"]) == (str(status), code), body
    assert set(body) == {"statusCode", "error", "message", "code"}
