"""Signing up, logging in and changing oneself."""

from __future__ import annotations

import asyncio
import functools
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import httpx
import jwt
import psycopg
import pytest
from embedded.auth.client import PASSWORD, at_once, new_email, refused, wait_until_blocked
from hypothesis import given
from hypothesis import strategies as st

from tensorage.embedded.auth import AuthApi
from tensorage.embedded.auth.params import normalize_email
from tensorage.embedded.database import Database
from tensorage.embedded.tokens import Tokens, new_secret


class TestSignup:
    def test_eight_at_once_with_one_address(self, api, sql):
        email = new_email()
        answers = at_once(8, lambda: api.http.post("/signup", json={"email": email, "password": PASSWORD}))
        assert sorted(answer.status_code for answer in answers) == [200] + [422] * 7
        assert {answer.json().get("error_code") for answer in answers} == {None, "user_already_exists"}
        assert sql.execute("select count(*) from auth.users where email = %s", [email]).fetchone() == (1,)

    def test_an_address_is_the_same_in_capitals(self, api):
        account = api.signup(f"Ada.{uuid.uuid4().hex}@Example.ORG")
        assert account.session["user"]["email"] == account.email.lower()
        answer = api.http.post("/signup", json={"email": account.email.upper(), "password": PASSWORD})
        refused(answer, 422, "user_already_exists")
        assert api.login(account.email.swapcase()).status_code == 200

    def test_rows_made_by_sql_meet_the_same_index(self, api, sql):
        account = api.signup()
        with pytest.raises(psycopg.errors.UniqueViolation):
            sql.execute(
                "insert into auth.users (id, email) values (%s, %s)", [uuid.uuid4(), account.email.upper()]
            )

    def test_the_password_is_stored_as_bcrypt_alone(self, api, sql):
        password = f"só-secret-{uuid.uuid4().hex}"
        account = api.signup(password=password)
        row = sql.execute("select encrypted_password from auth.users where id = %s", [account.id]).fetchone()
        assert re.fullmatch(r"\$2a\$10\$[./A-Za-z0-9]{53}", row[0])
        assert bcrypt.checkpw(password.encode(), row[0].encode())
        for table in ("users", "identities", "sessions", "refresh_tokens"):
            rows = sql.execute(f"select row_to_json(t)::text from auth.{table} t").fetchall()
            assert rows
            assert not [text for (text,) in rows if password in text]

    @pytest.mark.parametrize("password", ["пароль-密码", "🐎" * 18, "x" * 72, " spaces stay ", "q\"'\\%_;--"])
    def test_any_characters_make_a_password(self, api, password):
        account = api.signup(password=password)
        assert api.login(account.email, password).status_code == 200
        refused(api.login(account.email, password.strip() + "!"), 400, "invalid_credentials")

    @pytest.mark.parametrize("password", ["x" * 73, "🐎" * 19])
    def test_a_password_that_bcrypt_would_cut(self, api, password):
        answer = api.http.post("/signup", json={"email": new_email(), "password": password})
        refused(answer, 400, "validation_failed")
        # The beginning of a longer password does not open the door, either.
        account = api.signup(password="x" * 72)
        refused(api.login(account.email, "x" * 73), 400, "invalid_credentials")

    @pytest.mark.parametrize(
        "email",
        [
            "nope",
            "@x.org",
            "a@",
            "a b@x.org",
            "a@x..org",
            "a@-x.org",
            "a@x.org\n",
            "ä@x.org",
            "a@b@c",
            "a" * 256,
        ],
    )
    def test_what_is_no_address(self, api, email):
        answer = api.http.post("/signup", json={"email": email, "password": PASSWORD})
        refused(answer, 400, "validation_failed")

    @given(st.emails(domains=st.just("example.org")))
    def test_addresses_in_use_are_addresses(self, email):
        assert normalize_email(email) == email.lower()

    def test_what_is_not_offered_says_so(self, api):
        phone = {"phone": "+123456789", "password": PASSWORD}
        refused(api.http.post("/signup", json=phone), 400, "phone_provider_disabled")
        refused(api.http.post("/token?grant_type=password", json=phone), 422, "phone_provider_disabled")

    @pytest.mark.parametrize("login_first", [False, True])
    def test_a_login_that_meets_a_change_of_password(self, api, sql, login_first):
        """No session opened by the old password is left, whichever of the two comes first."""
        account = api.signup()
        calls = [
            functools.partial(api.update, account.access_token, password="another-pass-2"),
            functools.partial(api.login, account.email),
        ]
        with ThreadPoolExecutor(2) as pool:
            with sql.transaction():
                # Both have checked the old password by the time they come to write: they wait here, in order.
                sql.execute("select from auth.users where id = %s for update", [account.id])
                answers = []
                for waiting, call in enumerate(reversed(calls) if login_first else calls, start=1):
                    answers.append(pool.submit(call))
                    wait_until_blocked(sql, waiting)
            statuses = [answer.result().status_code for answer in answers]
        assert statuses == ([200, 200] if login_first else [200, 400])
        left = "select count(*) from auth.sessions where user_id = %s"
        assert sql.execute(left, [account.id]).fetchone() == (1,)
        assert api.user(account.access_token).status_code == 200

    def test_a_trigger_of_the_applications_own_may_refuse(self, api, sql):
        sql.execute("""
            create or replace function public.refuse_signup() returns trigger language plpgsql as
            $$ begin raise exception 'not this one: %', new.encrypted_password; end $$;
            create or replace trigger refuse_signup before insert on auth.users for each row
            when (new.email like 'refuse-me-%') execute function public.refuse_signup()
        """)
        try:
            email = f"refuse-me-{new_email()}"
            answer = api.http.post("/signup", json={"email": email, "password": PASSWORD})
            refused(answer, 500, "unexpected_failure")
            assert "not this one" not in answer.text
            assert sql.execute("select from auth.users where email = %s", [email]).fetchall() == []
        finally:
            sql.execute("drop function public.refuse_signup() cascade")


class TestUpdate:
    def test_address(self, api, sql):
        account, taken = api.signup(), api.signup()
        refused(api.update(account.access_token, email=taken.email.upper()), 422, "email_exists")
        refused(api.update(account.access_token, email="nope"), 400, "validation_failed")
        email = new_email()
        user = api.update(account.access_token, email=email.upper()).json()
        assert user["email"] == user["user_metadata"]["email"] == email
        assert user["identities"][0]["email"] == user["identities"][0]["identity_data"]["email"] == email
        refused(api.login(account.email), 400, "invalid_credentials")
        assert api.login(email).json()["user"]["id"] == account.id

    def test_password(self, api):
        account = api.signup()
        refused(api.update(account.access_token, password=PASSWORD), 422, "same_password")
        refused(api.update(account.access_token, password=""), 422, "weak_password")
        refused(api.update(account.access_token, password="x" * 73), 400, "validation_failed")
        assert api.login(account.email).status_code == 200

    def test_one_refused_change_refuses_all(self, api):
        account, taken = api.signup(), api.signup()
        answer = api.update(account.access_token, password="another-pass-2", data={"a": 1}, email=taken.email)
        refused(answer, 422, "email_exists")
        assert api.login(account.email).json()["user"]["user_metadata"].get("a") is None

    def test_nobody_raises_their_own_rights(self, api):
        account = api.signup(role="service_role", app_metadata={"admin": True})
        refused(api.update(account.access_token, app_metadata={"admin": True}), 403, "not_admin")
        user = api.update(account.access_token, role="service_role", aud="x", id=str(uuid.uuid4())).json()
        assert (user["id"], user["role"], user["aud"]) == (account.id, "authenticated", "authenticated")
        assert user["app_metadata"] == {"provider": "email", "providers": ["email"]}

    def test_metadata_cannot_change_claims(self, api):
        account = api.signup()
        api.update(account.access_token, data={"role": "service_role", "sub": "somebody else"})
        token = api.refresh(account.refresh_token).json()["access_token"]
        claims = jwt.decode(token, options={"verify_signature": False})
        assert (claims["role"], claims["sub"]) == ("authenticated", account.id)

    def test_not_without_a_session(self, api):
        account = api.signup()
        api.logout(account.access_token, "global")
        refused(api.update(account.access_token, password="another-pass-2"), 403, "session_not_found")
        refused(api.http.put("/user", json={"password": "x"}), 401, "no_authorization")


class TestAnonymousUsers:
    def test_one(self, api, sql, backend):
        answer = api.http.post("/signup", json={"data": {"theme": "dark"}})
        assert answer.status_code == 200, answer.text
        session = answer.json()
        user = session["user"]
        assert user["is_anonymous"] is True
        assert (user["email"], user["phone"], user["role"], user["aud"]) == (
            *("", ""),
            *("authenticated", "authenticated"),
        )
        assert (user["identities"], user["app_metadata"], user["user_metadata"]) == (
            [],
            {},
            {"theme": "dark"},
        )
        assert "email_confirmed_at" not in user
        claims = jwt.decode(session["access_token"], options={"verify_signature": False})
        assert (claims["is_anonymous"], claims["role"], claims["email"]) == (True, "authenticated", "")
        assert [method["method"] for method in claims["amr"]] == ["anonymous"]
        assert api.user(session["access_token"]).json() == user
        refreshed = api.refresh(session["refresh_token"])
        assert refreshed.json()["user"]["is_anonymous"] is True
        assert api.logout(refreshed.json()["access_token"], "local").status_code == 204
        row = sql.execute(
            "select email, encrypted_password, is_anonymous from auth.users where id = %s", [user["id"]]
        ).fetchone()
        assert row == (None, None, True)
        settings = api.http.get("/settings").json()["external"]
        assert [name for name in settings if settings[name]] == ["email", "anonymous_users"]

    def test_an_address_without_a_password_makes_none(self, api):
        refused(api.http.post("/signup", json={"email": new_email()}), 400, "validation_failed")
        refused(api.http.post("/signup", json={"data": {"a": "x" * 40_000}}), 400, "validation_failed")

    def test_it_becomes_a_user_with_an_address(self, api):
        session = api.http.post("/signup", json={}).json()
        token, email = session["access_token"], new_email()
        refused(api.update(token, password=PASSWORD), 422, "validation_failed")
        taken = api.signup().email
        refused(api.update(token, email=taken, password=PASSWORD), 422, "email_exists")
        assert api.user(token).json()["is_anonymous"] is True
        changed = api.update(token, email=email, password=PASSWORD).json()
        assert (changed["is_anonymous"], changed["email"]) == (False, email)
        assert changed["app_metadata"] == {"provider": "email", "providers": ["email"]}
        assert [one["identity_data"]["email"] for one in changed["identities"]] == [email]
        again = api.login(email).json()
        assert again["user"]["id"] == session["user"]["id"]
        claims = jwt.decode(again["access_token"], options={"verify_signature": False})
        assert (claims["is_anonymous"], claims["email"]) == (False, email)

    def test_where_the_setting_is_off(self):
        # Refused before the database is asked.
        app = AuthApi(
            Database("postgresql://nowhere", max_size=1),
            Tokens(new_secret()),
            jwt_lifetime_s=3600,
            allows_anonymous=False,
        )

        async def ask() -> tuple[httpx.Response, httpx.Response]:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://auth") as http:
                return await http.post("/signup", json={}), await http.get("/settings")

        answer, settings = asyncio.run(ask())
        refused(answer, 422, "anonymous_provider_disabled")
        assert settings.json()["external"]["anonymous_users"] is False
