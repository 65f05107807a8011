"""Requests that nobody should send, and what must never get out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid

import bcrypt
import httpx
import pytest
from embedded.auth.client import PASSWORD, at_once, bearer, new_email, refused
from hypothesis import given
from hypothesis import strategies as st

from tensorage.embedded.auth import AuthApi, passwords
from tensorage.embedded.auth.answers import AuthError
from tensorage.embedded.auth.params import parse_params
from tensorage.embedded.database import Database
from tensorage.embedded.tokens import Tokens


class TestHostileRequests:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b'"text"',
            b"7",
            b"\xff\xfe",
            b"email=a@x.org&password=secret",
            b'{"email": 5, "password": "correct-horse-1"}',
            b'{"email": "a@x.org", "password": {}}',
            b'{"email": ["a@x.org"], "password": "correct-horse-1"}',
            b'{"email": true, "password": "correct-horse-1"}',
            b'{"email": "a@x.org", "password": "correct-horse-1", "data": {"a": NaN}}',
            b'{"email": "a@x.org", "password": "correct-horse-1", "data": {"a": 1e999}}',
            b'{"email": "a@x.org", "password": "correct-horse-1", "data": {"a": "\\u0000"}}',
            b'{"email": "a@x.org", "password": "correct-horse-1", "data": {"a\\ud800": 1}}',
            b'{"email": "a@x.org", "password": "correct-horse\\u0000-1"}',
            b'{"a":' * 10_000,
            b"[" * 50_000,
            b'{"a": ' + b"9" * 10_000 + b"}",
        ],
        ids=lambda body: body[:60].decode("latin-1"),
    )
    def test_bodies_that_are_not_what_they_should_be(self, api, body):
        refused(api.http.post("/signup", content=body), 400, "bad_json")
        refused(api.http.post("/token?grant_type=password", content=body), 400, "bad_json")

    def test_metadata_that_is_no_object(self, api):
        body = {"email": new_email(), "password": PASSWORD, "data": ["a"]}
        refused(api.http.post("/signup", json=body), 400, "bad_json")

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_any_bytes_are_parsed_or_refused(self, body):
        # Nothing but an AuthError may come out of it.
        with contextlib.suppress(AuthError):
            assert isinstance(parse_params(body).fields, dict)

    def test_a_backslash_before_a_u_is_text(self):
        assert parse_params(rb'{"a": "\\u0000"}').text("a") == r"\u0000"
        with pytest.raises(AuthError):
            parse_params(rb'{"a": "\\\u0000"}')

    def test_huge_bodies(self, api):
        body = b'{"email": "' + b"x" * (1 << 20) + b'"}'
        refused(api.http.post("/signup", content=body), 413, "request_entity_too_large")
        # The length of this body is not told beforehand.
        chunks = iter([body] * 3)
        refused(api.http.post("/signup", content=chunks), 413, "request_entity_too_large")
        assert api.http.get("/health").status_code == 200

    def test_metadata_that_no_token_can_hold(self, api):
        # In a token, a letter that is not ASCII takes six bytes.
        for large in ({"a": "x" * (1 << 15)}, {"a": "\u00fc" * 6000}):
            body = {"email": new_email(), "password": PASSWORD, "data": large}
            refused(api.http.post("/signup", json=body), 400, "validation_failed")
            refused(api.login(body["email"]), 400, "invalid_credentials")
        account = api.signup(data={"a": "x" * 32_000})
        refused(api.update(account.access_token, data={"b": "x" * 2000}), 400, "validation_failed")
        token = api.login(account.email).json()["access_token"]
        kept = api.user(token).json()["user_metadata"]
        assert (len(kept["a"]), "b" in kept) == (32_000, False)
        assert api.update(token, data={"a": None}).status_code == 200

    @pytest.mark.parametrize(
        "text", ["'; drop table auth.users; --", "' or '1'='1", "\\'; --", "%", "$1", "{}"]
    )
    def test_sql_stays_text(self, api, text):
        account = api.signup(password=f"{text}-----", data={text: text})
        assert account.session["user"]["user_metadata"][text] == text
        assert api.update(account.access_token, data={text: [text]}).json()["user_metadata"][text] == [text]
        assert text not in api.update(account.access_token, data={text: None}).json()["user_metadata"]
        refused(api.login(text, text), 400, "invalid_credentials")
        refused(api.login(account.email, text), 400, "invalid_credentials")
        refused(api.refresh(text), 400, "validation_failed")
        refused(api.logout(account.access_token, text), 400, "validation_failed")
        agent = {"User-Agent": text, **bearer(account.access_token)}
        assert api.http.get("/user", headers=agent).status_code == 200

    @pytest.mark.parametrize("key", [None, "", "nope", "' or true --"])
    @pytest.mark.parametrize("path", ["/health", "/user", "/nope"])
    def test_no_known_api_key(self, api, backend, key, path):
        headers = {} if key is None else {"apikey": key}
        answer = httpx.get(f"{backend.api_url}/auth/v1{path}", headers=headers)
        assert answer.status_code == 401
        message = "Invalid API key" if key else "No API key found in request"
        assert (answer.json()["message"], answer.json().keys()) == (message, {"message", "hint"})

    def test_what_is_not_served_says_so(self, api, backend):
        headers = bearer(backend.service_role_key)
        refused(api.http.get("/admin/users", headers=headers), 501, "feature_disabled")
        refused(api.http.post("/recover", json={"email": new_email()}), 501, "feature_disabled")
        account = api.signup()
        refused(api.http.get("/nope", headers=bearer(account.access_token)), 404, "not_found")
        refused(api.http.delete("/user", headers=bearer(account.access_token)), 404, "not_found")

    def test_errors_in_the_shape_of_the_version_that_is_asked_for(self, api):
        for version, new in [("2023-12-31", False), ("2024-01-01", True), ("2030-01-01", True), ("x", False)]:
            answer = api.http.get("/user", headers={"X-Supabase-Api-Version": version})
            assert answer.status_code == 401
            assert answer.json()["code"] == ("no_authorization" if new else 401)
            assert answer.headers.get("X-Supabase-Api-Version") == ("2024-01-01" if new else None)

    def test_answers_are_not_to_be_cached(self, api):
        account = api.signup()
        assert api.user(account.access_token).headers["Cache-Control"] == "no-store"


class TestSecretsStaySecret:
    def test_an_unknown_address_costs_a_check_as_well(self, monkeypatch):
        checked = []
        real = bcrypt.checkpw

        def checkpw(password: bytes, hashed: bytes) -> bool:
            checked.append(hashed[:7])
            return real(password, hashed)

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)
        stored = asyncio.run(passwords.hash_password(PASSWORD))
        # A new process has not seen the password yet.
        monkeypatch.setattr(passwords, "known_codes", set())
        assert asyncio.run(passwords.is_password(PASSWORD, stored))
        assert not asyncio.run(passwords.is_password(PASSWORD, None))
        assert checked == [b"$2a$10$"] * 2

    def test_only_a_password_that_was_right_is_right_at_once(self, monkeypatch):
        checked = []
        real = bcrypt.checkpw

        def checkpw(password: bytes, hashed: bytes) -> bool:
            checked.append(password)
            return real(password, hashed)

        def judge(password: str, stored: str | None) -> bool:
            return asyncio.run(passwords.is_password(password, stored))

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)
        monkeypatch.setattr(passwords, "known_codes", set())
        monkeypatch.setattr(passwords, "MOST_KNOWN_CODES", 2)
        # 72 bytes, so that a longer password has the same hash.
        password = "x" * 72
        stored, another = (asyncio.run(passwords.hash_password(password)) for _ in range(2))
        assert judge(password, stored)
        assert judge(password, another)
        assert checked == []
        wrong = [("y", stored), (password + "x", stored), (password, None)]
        for _ in range(2):
            assert not any(judge(*each) for each in wrong)
        assert len(checked) == 6
        # The third one drops the codes of the others.
        third = asyncio.run(passwords.hash_password(password))
        assert judge(password, third)
        assert len(checked) == 6
        assert judge(password, stored)
        assert len(checked) == 7

    def test_nothing_secret_is_in_the_servers_log(self, api, backend):
        password = f"secret-{uuid.uuid4().hex}"
        account = api.signup(password=password)
        # One that PostgreSQL complains about, so that its own words are in the log as well.
        taken = {"email": new_email(), "password": password}
        answers = at_once(4, lambda: api.http.post("/signup", json=taken))
        assert sorted(answer.status_code for answer in answers) == [200, 422, 422, 422]
        api.login(account.email, password + "!")
        api.user(account.access_token + "x")
        refreshed = api.refresh(account.refresh_token).json()
        log = (backend.data_dir / "server.log").read_text()
        assert "ready" in log
        for session in (account.session, refreshed):
            assert session["access_token"] not in log
            assert session["refresh_token"] not in log
        for secret in (password, backend.jwt_secret, backend.anon_key, backend.service_role_key):
            assert secret not in log

    def test_nothing_secret_is_logged_or_shown(self, backend, sql, caplog):
        """The whole life of a user, in this process, with every logger as talkative as it can be."""
        password, secrets = f"secret-{uuid.uuid4().hex}", [backend.jwt_secret, backend.service_role_key]

        async def live() -> None:
            database, tokens = Database(backend.db_url), Tokens(backend.jwt_secret)
            app = AuthApi(database, tokens, jwt_lifetime_s=60)
            await database.open()
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"apikey": backend.anon_key}
            async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as http:
                body = {"email": new_email(), "password": password}
                session = (await http.post("/signup", json=body)).json()
                token = session["access_token"]
                secrets.extend([password, token, session["refresh_token"]])
                await http.post("/token?grant_type=password", json={**body, "password": password + "!"})
                await http.get("/user", headers=bearer(token))
                await http.put(
                    "/user", json={"password": password, "data": [password]}, headers=bearer(token)
                )
                await http.post("/token?grant_type=refresh_token", json={"refresh_token": token})
                await http.post("/signup", content=json.dumps(password)[:-1].encode())
                for thing in (app, database, tokens, parse_params(json.dumps(body).encode())):
                    assert not [secret for secret in secrets if secret in repr(thing)]
                # The secrets stay hidden when the database is gone, too.
                database.disconnect()
                refused(await http.post("/signup", json=body), 503, "unexpected_failure")
                await database.close()
                refused(await http.post("/signup", json=body), 500, "unexpected_failure")

        with caplog.at_level(logging.DEBUG):
            asyncio.run(live())
        assert "InterfaceError" in caplog.text
        assert not [secret for secret in secrets if secret in caplog.text]
