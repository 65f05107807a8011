"""Requests recorded from Supabase Storage, replayed in their order, get the same answers."""

from __future__ import annotations

import http.client
import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jwt
import psycopg
import pytest
import servers

from tensorage.embedded import control

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("storage.json").read_text())["cases"]

#: Headers that an answer has if the recorded one has it, and the same. The length of JSON was not recorded.
HEADERS = {name for case in CASES for name in case["response"].get("headers", {})} - {"content-length"}

BODIES = {"<1024 bytes>": bytes(range(256)) * 4, "<2000 bytes>": b"x" * 2000}

PLACEHOLDERS = {
    "<uuid>": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "<time>": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
    "<jwt>": re.compile(r"[\w-]+\.[\w-]+\.[\w-]+"),
}

#: Objects that were there when the record was made, and that no case puts there: by the case that needs them.
ALREADY_THERE = {
    "list folder": [
        ("owner", f"priv/<owner>/docs/{name}", body)
        for name, body in (("f0", ""), ("f1", "x"), ("f2", "xx"), ("sub/deep", "x"))
    ],
    "delete bucket not empty": [("service", "scratch/a", "x")],
}

SCHEMA = """
insert into storage.buckets (id, name, public) values ('priv', 'priv', false);
delete from storage.buckets where id <> 'priv';
create policy own_folder on storage.objects for all to authenticated
  using (bucket_id = 'priv' and (storage.foldername(name))[1] = auth.uid()::text);
"""


@dataclass
class Replay:
    """A client of each of the callers that were recorded."""

    connection: http.client.HTTPConnection
    running: control.Running
    users: dict[str, str] = field(
        default_factory=lambda: {"<owner>": str(uuid.uuid4()), "<other>": str(uuid.uuid4())}
    )
    signed_url: str = ""
    prepared: set[str] = field(default_factory=set)

    def token(self, caller: str) -> str | None:
        fixed = {"none": None, "anon": self.running.anon_key, "service": self.running.service_role_key}
        if caller in fixed:
            return fixed[caller]
        secret = self.running.jwt_secret
        if caller == "forged":
            secret = "the secret of somebody else, who is long-winded"
        claims = {
            "sub": self.users["<other>" if caller == "other" else "<owner>"],
            "role": "authenticated",
            "exp": int(time.time()) + (-3600 if caller == "expired" else 3600),
        }
        return jwt.encode(claims, secret, algorithm="HS256")

    def filled(self, value: Any) -> Any:
        """The recorded value, with this run's users in it."""
        text = json.dumps(value)
        for placeholder, user in self.users.items():
            text = text.replace(placeholder, user)
        return json.loads(text)

    def request(
        self, caller: str, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        token = self.token(caller)
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        path = self.filled(path).replace("<signedURL>", self.signed_url)
        self.connection.request(method, quote(path, safe="/%?=&!$'()*+,;:@"), body, authorization | headers)
        answer = self.connection.getresponse()
        return answer, answer.read()

    def send(self, case: dict[str, Any]) -> tuple[http.client.HTTPResponse, bytes]:
        self.prepare(case["name"])
        asked = case["request"]
        headers, body = dict(asked.get("headers", {})), None
        if "json" in asked:
            headers |= {"Content-Type": "application/json"}
            body = json.dumps(self.filled(asked["json"])).encode()
        elif "body" in asked:
            body = BODIES.get(asked["body"]) or asked["body"].encode()
        answer, content = self.request(case["as"], asked["method"], asked["path"], body, headers)
        if case["name"] == "sign url" and answer.status == 200:
            self.signed_url = json.loads(content)["signedURL"]
        return answer, content

    def prepare(self, name: str) -> None:
        if name in self.prepared:
            return
        self.prepared.add(name)
        for caller, path, body in ALREADY_THERE.get(name, ()):
            answer, content = self.request(
                caller, "POST", f"/storage/v1/object/{path}", body.encode(), {"Content-Type": "text/plain"}
            )
            assert answer.status == 200, content


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    """A backend of its own: the record's bucket is the only one."""
    data_dir = tmp_path_factory.mktemp("recorded-storage")
    running = servers.start(data_dir)
    try:
        with psycopg.connect(running.superuser_url, autocommit=True) as sql:
            sql.execute(SCHEMA)
        connection = http.client.HTTPConnection(urlsplit(running.api_url).netloc, timeout=60)
        yield Replay(connection, running)
        connection.close()
    finally:
        control.stop(data_dir)


def test_the_record_is_complete():
    assert len(CASES) == 134


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{n:03}-{c['name']}-{c['as']}") for n, c in enumerate(CASES)]
)
def test_answers_as_storage_does(replay: Replay, case: dict[str, Any]):
    answer, body = replay.send(case)
    recorded = case["response"]
    assert answer.status == recorded["status"], body
    if "headers" in recorded:
        check_headers(answer, recorded["headers"])
    if "json" in recorded:
        check(json.loads(body), replay.filled(recorded["json"]))
    elif "bytes" in recorded:
        whole = BODIES["<1024 bytes>"]
        first = int(recorded.get("headers", {}).get("content-range", "bytes 0-").split()[1].split("-")[0])
        assert body == whole[first : first + recorded["bytes"]]
    else:
        assert body == recorded["text"].encode("latin-1")


def check_headers(answer: http.client.HTTPResponse, recorded: dict[str, str]) -> None:
    answered = {name.lower(): value for name, value in answer.getheaders()}
    if "content-length" in recorded:
        assert answered["content-length"] == recorded["content-length"]
    # The recording does not keep how a status without content describes itself.
    for name in HEADERS:
        assert answered.get(name) == recorded.get(name), name


def check(answered: Any, recorded: Any, where: str = "$") -> None:
    """The same, but for what changes from run to run."""
    if isinstance(recorded, dict):
        assert isinstance(answered, dict), where
        assert list(answered) == list(recorded), where
        for key, value in recorded.items():
            check(answered[key], value, f"{where}.{key}")
    elif isinstance(recorded, list):
        assert isinstance(answered, list), where
        assert len(answered) == len(recorded), (where, answered)
        for position, value in enumerate(recorded):
            check(answered[position], value, f"{where}[{position}]")
    elif isinstance(recorded, str) and any(name in recorded for name in PLACEHOLDERS):
        pattern = re.escape(recorded)
        for name, form in PLACEHOLDERS.items():
            pattern = pattern.replace(re.escape(name), form.pattern)
        assert re.fullmatch(pattern, answered), (where, answered)
    else:
        assert answered == recorded, where
