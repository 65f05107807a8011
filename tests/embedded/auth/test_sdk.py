"""The Auth API, as the real SDK sees it."""

from __future__ import annotations

import pytest
from embedded.auth.client import PASSWORD, new_email, refused

from supabase import AuthApiError


class TestThroughTheSdk:
    def test_sign_up_gives_a_session_of_a_confirmed_user(self, sdk):
        email = new_email()
        answer = sdk().auth.sign_up(
            {"email": email, "password": PASSWORD, "options": {"data": {"name": "Ada", "email": "x@y.z"}}}
        )
        assert answer.user.email == email
        assert answer.user.email_confirmed_at is not None
        # The client's claims about itself do not replace what the server knows.
        assert answer.user.user_metadata["name"] == "Ada"
        assert answer.user.user_metadata["email"] == email
        assert answer.user.identities[0].id == answer.user.id
        assert answer.session.access_token
        assert answer.session.refresh_token

    def test_sign_in_get_user_and_claims(self, sdk, api):
        account = api.signup()
        auth = sdk().auth
        answer = auth.sign_in_with_password({"email": account.email.upper(), "password": PASSWORD})
        assert answer.user.id == account.id
        assert auth.get_user().user.email == account.email
        claims = auth.get_claims()["claims"]
        assert claims["sub"] == account.id
        assert claims["role"] == "authenticated"

    def test_wrong_password(self, sdk, api):
        account = api.signup()
        with pytest.raises(AuthApiError, match="Invalid login credentials") as caught:
            sdk().auth.sign_in_with_password({"email": account.email, "password": "wrong-horse"})
        assert (caught.value.status, caught.value.code) == (400, "invalid_credentials")

    def test_refresh_session(self, sdk, api):
        account = api.signup()
        auth = sdk().auth
        first = auth.sign_in_with_password({"email": account.email, "password": PASSWORD}).session
        second = auth.refresh_session().session
        assert second.refresh_token != first.refresh_token
        assert second.access_token != first.access_token
        assert auth.get_user().user.id == account.id

    def test_update_user(self, sdk, api):
        account = api.signup(data={"kept": 1, "dropped": 2})
        auth = sdk().auth
        auth.sign_in_with_password({"email": account.email, "password": PASSWORD})
        metadata = auth.update_user({"data": {"dropped": None, "added": [1, {"a": "ü"}]}}).user.user_metadata
        assert metadata["kept"] == 1
        assert metadata["added"] == [1, {"a": "ü"}]
        assert "dropped" not in metadata

    def test_change_of_password(self, sdk, api):
        account = api.signup()
        auth = sdk().auth
        auth.sign_in_with_password({"email": account.email, "password": PASSWORD})
        auth.update_user({"password": "another-pass-2"})
        refused(api.login(account.email), 400, "invalid_credentials")
        assert api.login(account.email, "another-pass-2").status_code == 200

    @pytest.mark.parametrize(
        ("scope", "mine", "other"),
        [("local", False, True), ("others", True, False), ("global", False, False)],
    )
    def test_sign_out_ends_the_sessions_of_its_scope(self, sdk, api, scope, mine, other):
        account = api.signup()
        auth = sdk().auth
        session = auth.sign_in_with_password({"email": account.email, "password": PASSWORD}).session
        stranger = api.signup()
        auth.sign_out({"scope": scope})
        assert (api.user(session.access_token).status_code == 200) is mine
        assert (api.refresh(session.refresh_token).status_code == 200) is mine
        assert (api.user(account.access_token).status_code == 200) is other
        assert (api.refresh(account.refresh_token).status_code == 200) is other
        assert api.user(stranger.access_token).status_code == 200

    def test_a_weak_password_is_told_with_its_reasons(self, sdk):
        with pytest.raises(Exception, match="at least 6 characters") as caught:
            sdk().auth.sign_up({"email": new_email(), "password": "abc"})
        assert caught.value.reasons == ["length"]
