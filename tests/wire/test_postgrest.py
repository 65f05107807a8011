"""Requests recorded from PostgREST, replayed in their order, get the same answers."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest

from tensorage.embedded import control

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("postgrest.json").read_text())["cases"]

#: Every header that some recorded answer has: an answer without it in the record has to be without it.
HEADERS = {name for case in CASES for name in case["response"]["headers"]}

#: Embedded resources are not supported: these are refused, in PostgREST's shape.
REFUSED = {"select embedded", "select embedded unknown"}

#: Placeholders in the recording for bodies that it did not keep.
BODIES = {"<2048 bytes>": bytes(range(256)) * 8}


@dataclass
class Replay:
    """A client of each of the callers that were recorded."""

    connection: http.client.HTTPConnection
    running: control.Running
    users: dict[str, str] = field(default_factory=lambda: {"<owner>": _new_id(), "<other>": _new_id()})

    def authorization(self, caller: str) -> dict[str, str]:
        token = self._token(caller)
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _token(self, caller: str) -> str | None:
        fixed = {
            "none": None,
            "anon": self.running.anon_key,
            "service": self.running.service_role_key,
            "garbage": "garbage",
            "two dots": "not.a.token",
            "empty bearer": "",
        }
        if caller in fixed:
            return fixed[caller]
        now, claims = int(time.time()), {"sub": self.users["<owner>"], "role": "authenticated"}
        claims["exp"] = now + 3600
        secret, algorithm = self.running.jwt_secret, "HS256"
        match caller:
            case "owner":
                pass
            case "other":
                claims["sub"] = self.users["<other>"]
            case "expired":
                claims["exp"] = now - 3600
            case "just expired (10 s)":
                claims["exp"] = now - 10
            case "not yet valid":
                claims["nbf"] = now + 600
            case "unknown role":
                claims["role"] = "nobody_here"
            case "forged":
                secret = "the secret of somebody else, who is long-winded"
            case "alg none":
                secret, algorithm = "", "none"
            case _:
                raise AssertionError(f"no token for {caller}")
        return jwt.encode(claims, secret or None, algorithm=algorithm)

    def filled(self, value: Any) -> Any:
        """The recorded value, with this run's users in it."""
        text = json.dumps(value)
        for placeholder, user in self.users.items():
            text = text.replace(placeholder, user)
        return json.loads(text)

    def send(self, case: dict[str, Any]) -> tuple[http.client.HTTPResponse, bytes]:
        asked = case["request"]
        # PostgREST was asked itself: the key is what the gateway in front of it wants.
        headers = {"apikey": self.running.anon_key} | self.authorization(case["as"]) | asked["headers"]
        body = None
        if "json" in asked:
            body = json.dumps(self.filled(asked["json"]), ensure_ascii=False).encode()
        elif "body_latin1" in asked:
            body = BODIES.get(asked["body_latin1"]) or asked["body_latin1"].encode("latin-1")
        self.connection.request(asked["method"], asked["path"], body, headers)
        answer = self.connection.getresponse()
        return answer, answer.read()


def _new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def replay(recorded_backend: control.Running) -> Iterator[Replay]:
    connection = http.client.HTTPConnection(urlsplit(recorded_backend.api_url).netloc, timeout=60)
    yield Replay(connection, recorded_backend)
    connection.close()


def test_the_record_is_complete():
    assert len(CASES) == 189


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{n:03}-{c['name']}-{c['as']}") for n, c in enumerate(CASES)]
)
def test_answers_as_postgrest_does(replay: Replay, case: dict[str, Any]):
    answer, body = replay.send(case)
    if case["name"] in REFUSED:
        check_refusal(answer, body)
        return
    recorded = case["response"]
    if "note" in recorded:
        check_better_than_the_record(answer, body, recorded)
        return
    assert answer.status == recorded["status"], body
    assert headers_of(answer) == recorded["headers"]
    if "json" in recorded:
        check_json(json.loads(body), replay.filled(recorded["json"]))
    elif "bytes" in recorded:
        assert len(body) == recorded["bytes"]
    else:
        assert body.decode("latin-1") == recorded.get("body_latin1", "")


def headers_of(answer: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.getheaders() if name.lower() in HEADERS}


def check_json(answered: Any, recorded: Any) -> None:
    parse_error = isinstance(recorded, dict) and str(recorded.get("code")).startswith(("PGRST1", "PGRST2"))
    if parse_error:
        # Hints and details of these are the parser's own; that there is one is part of the protocol.
        for name in ("details", "hint"):
            assert (answered[name] is None) == (recorded[name] is None), f"{name}: {answered[name]}"
            answered, recorded = answered | {name: None}, recorded | {name: None}
    assert answered == recorded


def check_refusal(answer: http.client.HTTPResponse, body: bytes) -> None:
    assert answer.status == 400
    assert headers_of(answer) == {
        "content-type": "application/json; charset=utf-8",
        "proxy-status": "PostgREST; error=PGRST127",
    }
    refusal = json.loads(body)
    assert (refusal["code"], refusal["message"]) == ("PGRST127", "Feature not implemented")
    assert "Embedded resources" in refusal["details"]


def check_better_than_the_record(
    answer: http.client.HTTPResponse, body: bytes, recorded: dict[str, Any]
) -> None:
    """PostgREST 13.0.8 cuts this error's JSON off after its second character; ours is whole."""
    assert answer.status == recorded["status"] == 416
    proxy_status = {"proxy-status": "PostgREST; error=PGRST103"}
    assert headers_of(answer) == recorded["headers"] | proxy_status
    assert json.loads(body) == {
        "code": "PGRST103",
        "details": "An offset of 1000 was requested, but there are only 15 rows.",
        "hint": None,
        "message": "Requested range not satisfiable",
    }
