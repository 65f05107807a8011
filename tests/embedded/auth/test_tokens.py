"""Access tokens and refresh tokens: which are good, and for how long."""

from __future__ import annotations

import functools
import json
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from embedded.auth.client import Account, at_once, refused, wait_until_blocked
from hypothesis import given
from hypothesis import strategies as st

from tensorage.embedded.auth.sessions import REUSE_INTERVAL_S, Use, judge
from tensorage.embedded.database import Caller
from tensorage.embedded.tokens import Tokens


class TestAccessTokens:
    def claims(self, account: Account) -> dict[str, Any]:
        return jwt.decode(account.access_token, options={"verify_signature": False})

    def test_the_claims_are_the_users(self, api, backend):
        account = api.signup()
        claims = jwt.decode(account.access_token, backend.jwt_secret, ["HS256"], audience="authenticated")
        assert claims["email"] == account.email
        assert claims["exp"] == account.session["expires_at"] == claims["iat"] + account.session["expires_in"]
        assert claims["aal"] == "aal1"

    def test_a_refreshed_token_still_says_when_the_password_was_given(self, api, sql):
        account = api.signup()
        sql.execute(
            "update auth.sessions set created_at = to_timestamp(1e9) where user_id = %s", [account.id]
        )
        answer = api.refresh(account.refresh_token).json()
        claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
        assert claims["amr"] == [{"method": "password", "timestamp": 10**9}]

    def test_another_projects_token(self, api):
        account = api.signup()
        foreign = Tokens("the secret of another data folder, of a good length").sign(self.claims(account))
        refused(api.user(foreign), 403, "bad_jwt")

    def test_a_token_with_another_payload(self, api):
        account, victim = api.signup(), api.signup()
        head, _, signature = account.access_token.split(".")
        refused(api.user(".".join([head, victim.access_token.split(".")[1], signature])), 403, "bad_jwt")

    def test_no_algorithm(self, api):
        token = jwt.encode(self.claims(api.signup()), key=None, algorithm="none")
        refused(api.user(token), 403, "bad_jwt")

    def test_another_algorithm_with_the_right_key(self, api, backend):
        token = jwt.encode(self.claims(api.signup()), backend.jwt_secret * 2, algorithm="HS512")
        refused(api.user(token), 403, "bad_jwt")

    @pytest.mark.parametrize("garbage", ["a.b.c", "..", "e30.e30.", "x" * 5000, "a.b.c.d"])
    def test_garbage(self, api, garbage):
        refused(api.user(garbage), 403, "bad_jwt")

    @pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", "Bearer a b"])
    def test_no_bearer_token(self, api, header):
        answer = api.http.get("/user", headers={"Authorization": header})
        refused(answer, 401, "no_authorization")

    def test_an_expired_token(self, api, backend):
        # It expired a moment ago: the 30 s that the REST API allows are not for the Auth API.
        claims = {**self.claims(api.signup()), "exp": int(time.time()) - 1}
        token = Tokens(backend.jwt_secret).sign(claims)
        answer = api.user(token)
        refused(answer, 403, "bad_jwt")
        assert answer.json()["msg"].endswith("token is expired")

    @pytest.mark.parametrize(
        "claims", [{"role": "anon", "sub": "ü"}, {"sub": "x"}, {"role": "authenticated"}]
    )
    def test_a_remembered_token_tells_postgresql_all_its_claims(self, claims):
        tokens = Tokens("a secret of thirty-two characters!")
        token = tokens.sign(claims)
        for role in ("anon", "authenticated"):
            caller = Caller(role, tokens.verify(token))
            for _ in range(2):
                assert json.loads(caller.claims_json) == {"role": role, **claims}
        assert tokens.verify(token) is tokens.verify(token)

    def test_a_remembered_token_expires_as_well(self, backend):
        tokens = Tokens(backend.jwt_secret)
        token = tokens.sign({"sub": "x", "exp": int(time.time()) - 1})
        for _ in range(2):
            assert tokens.verify(token)["sub"] == "x"
            with pytest.raises(jwt.ExpiredSignatureError):
                tokens.verify(token, leeway_s=0)

    @pytest.mark.parametrize(
        ("changes", "status", "code"),
        [
            ({"session_id": "c52ae3ec-5a25-4a4b-9d2f-7a0b8f5e1d11"}, 403, "session_not_found"),
            ({"session_id": None}, 403, "session_not_found"),
            ({"session_id": "7"}, 403, "bad_jwt"),
            ({"sub": "c52ae3ec-5a25-4a4b-9d2f-7a0b8f5e1d11"}, 403, "user_not_found"),
            ({"sub": "me"}, 400, "bad_jwt"),
            ({"sub": ""}, 403, "bad_jwt"),
        ],
    )
    def test_claims_that_name_nobody(self, api, backend, changes, status, code):
        claims = {**self.claims(api.signup()), **changes}
        refused(api.user(Tokens(backend.jwt_secret).sign(claims)), status, code)

    def test_the_session_of_somebody_else(self, api, backend):
        account, other = api.signup(), api.signup()
        claims = {**self.claims(account), "session_id": self.claims(other)["session_id"]}
        refused(api.user(Tokens(backend.jwt_secret).sign(claims)), 403, "session_not_found")

    def test_an_api_key_is_no_users_token(self, api, backend):
        for key in (backend.anon_key, backend.service_role_key):
            refused(api.user(key), 403, "bad_jwt")

    def test_a_deleted_user(self, api, sql):
        account = api.signup()
        sql.execute("delete from auth.users where id = %s", [account.id])
        refused(api.user(account.access_token), 403, "user_not_found")
        refused(api.refresh(account.refresh_token), 400, "refresh_token_not_found")
        refused(api.login(account.email), 400, "invalid_credentials")
        assert api.signup(account.email).id != account.id

    @pytest.mark.parametrize(
        "deletion",
        ["delete from auth.users where id = %s", "update auth.users set deleted_at = now() where id = %s"],
    )
    def test_the_token_of_a_deleted_user_is_nobodys(self, api, sql, deletion):
        account = api.signup()
        sql.execute(deletion, [account.id])
        for answer in (
            api.user(account.access_token),
            api.update(account.access_token, data={"a": 1}),
            api.update(account.access_token, password="another-horse-1"),
            *(api.logout(account.access_token, scope) for scope in ("local", "others", "global")),
        ):
            refused(answer, 403, "user_not_found")
        refused(api.refresh(account.refresh_token), 400, "refresh_token_not_found")
        refused(api.login(account.email), 400, "invalid_credentials")

    def test_a_banned_user(self, api, sql):
        account = api.signup()
        sql.execute("update auth.users set banned_until = now() + '1 h' where id = %s", [account.id])
        refused(api.user(account.access_token), 403, "user_banned")
        refused(api.refresh(account.refresh_token), 400, "user_banned")
        refused(api.login(account.email), 400, "user_banned")
        # The ban is told only to somebody who knows the password.
        refused(api.login(account.email, "wrong-horse"), 400, "invalid_credentials")


class TestRefreshTokens:
    def age(self, sql: psycopg.Connection, account: Account, seconds: float) -> None:
        """Let that much time have passed since the account's refresh tokens were made and used."""
        sql.execute(
            "update auth.refresh_tokens set updated_at = updated_at - %s * interval '1 s' where user_id = %s",
            [seconds, account.id],
        )

    def test_one_may_ask_twice_at_once(self, api):
        account = api.signup()
        first, again = api.refresh(account.refresh_token), api.refresh(account.refresh_token)
        assert first.json()["refresh_token"] == again.json()["refresh_token"] != account.refresh_token
        assert api.user(again.json()["access_token"]).status_code == 200

    def test_one_used_again_later_ends_the_whole_family(self, api, sql):
        account = api.signup()
        second = api.refresh(account.refresh_token).json()["refresh_token"]
        self.age(sql, account, REUSE_INTERVAL_S + 1)
        refused(api.refresh(account.refresh_token), 400, "refresh_token_already_used")
        refused(api.refresh(second), 400, "refresh_token_already_used")
        good = "select count(*) from auth.refresh_tokens where user_id = %s and not revoked"
        assert sql.execute(good, [account.id]).fetchone() == (0,)

    def test_other_sessions_of_the_user_go_on(self, api, sql):
        account = api.signup()
        elsewhere = api.login(account.email).json()
        api.refresh(account.refresh_token)
        self.age(sql, account, REUSE_INTERVAL_S + 1)
        refused(api.refresh(account.refresh_token), 400, "refresh_token_already_used")
        assert api.refresh(elsewhere["refresh_token"]).status_code == 200

    def test_eight_at_once_get_the_same_new_one(self, api, sql):
        account = api.signup()
        with ThreadPoolExecutor(8) as pool:
            with sql.transaction():
                # While this is held none of them can finish, so that some are surely under way together.
                sql.execute("select from auth.sessions where user_id = %s for update", [account.id])
                refreshes = [pool.submit(api.refresh, account.refresh_token) for _ in range(8)]
                wait_until_blocked(sql, 2)
            answers = [refresh.result() for refresh in refreshes]
        assert {answer.status_code for answer in answers} == {200}
        (token,) = {answer.json()["refresh_token"] for answer in answers}
        assert api.refresh(token).status_code == 200
        rows = "select count(*) from auth.refresh_tokens where user_id = %s"
        assert sql.execute(rows, [account.id]).fetchone() == (3,)

    def test_a_chain_of_them_is_recorded(self, api, sql):
        account = api.signup()
        second = api.refresh(account.refresh_token).json()["refresh_token"]
        third = api.refresh(second).json()["refresh_token"]
        rows = "select token, parent, revoked from auth.refresh_tokens where user_id = %s order by id"
        assert sql.execute(rows, [account.id]).fetchall() == [
            (account.refresh_token, None, True),
            (second, account.refresh_token, True),
            (third, second, False),
        ]

    @pytest.mark.parametrize(
        ("token", "code"),
        [
            ("c52ae3ec-5a25-4a4b-9d2f-7a0b8f5e1d11", "refresh_token_not_found"),
            ("", "validation_failed"),
            ("' or true --", "validation_failed"),
            ("C52AE3EC-5A25-4A4B-9D2F-7A0B8F5E1D11", "validation_failed"),
        ],
    )
    def test_one_that_was_never_given(self, api, token, code):
        refused(api.refresh(token), 400, code)

    def test_none_after_logout(self, api):
        account = api.signup()
        assert api.logout(account.access_token, "local").status_code == 204
        refused(api.refresh(account.refresh_token), 400, "refresh_token_not_found")
        refused(api.user(account.access_token), 403, "session_not_found")

    def test_none_of_the_other_sessions_after_a_change_of_password(self, api):
        account = api.signup()
        here = api.login(account.email).json()
        assert api.update(here["access_token"], password="another-pass-2").status_code == 200
        refused(api.refresh(account.refresh_token), 400, "refresh_token_not_found")
        refused(api.user(account.access_token), 403, "session_not_found")
        assert api.refresh(here["refresh_token"]).status_code == 200

    def test_none_of_a_session_that_has_ended(self, api, sql):
        account = api.signup()
        sql.execute("update auth.sessions set not_after = now() where user_id = %s", [account.id])
        refused(api.refresh(account.refresh_token), 400, "session_expired")

    def test_refreshing_while_logging_out_leaves_nobody_logged_in(self, api, sql):
        for _ in range(4):
            account = api.signup()
            refresh = [functools.partial(api.refresh, account.refresh_token)] * 3
            calls: queue.SimpleQueue[Callable[[], httpx.Response]] = queue.SimpleQueue()
            for call in [*refresh, functools.partial(api.logout, account.access_token, "global")]:
                calls.put(call)
            answers = at_once(4, lambda calls=calls: calls.get()())
            statuses = {answer.status_code for answer in answers}
            assert statuses <= {200, 204, 400}
            left = "select count(*) from auth.sessions where user_id = %s"
            assert sql.execute(left, [account.id]).fetchone() == (0,)

    @given(st.booleans(), st.floats(-1, 1e6), st.none() | st.just("token"))
    def test_judge(self, revoked, revoked_for_s, active_token):
        use = judge(revoked=revoked, revoked_for_s=revoked_for_s, active_token=active_token)
        assert (use is Use.ROTATE) is not revoked
        if revoked:
            fresh = revoked_for_s <= REUSE_INTERVAL_S and active_token is not None
            assert use is (Use.REPEAT if fresh else Use.REFUSE)
