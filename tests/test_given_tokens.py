"""Sessions with tokens from elsewhere, and anonymous accounts: whose they are, what ends them, what is never shown."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import workers
from forks import fork
from processes import PROCESSES
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import AuthenticationError, BackendSession, InvalidInputError, KeyNotFoundError
from tensorage.signin.auth_requests import AuthServer, SignedIn

Logins = Callable[[], int]


@pytest.fixture
def user(new_user: User) -> User:
    """A user of each test's own: logins are counted."""
    return new_user


def sign_in(project: Project, user: User) -> SignedIn:
    """Log in as an application does, without this library's sessions."""
    server = AuthServer(project.url, project.key)
    try:
        return server.log_in(user.email, user.password)
    finally:
        server.close()


@pytest.fixture
def application(project: Project, user: User) -> SignedIn:
    return sign_in(project, user)


def session_with(project: Project, *tokens: str | None) -> BackendSession:
    access_token, refresh_token = (*tokens, None)[:2]
    return BackendSession(
        backend_url=project.url,
        backend_key=project.key,
        access_token=access_token,
        refresh_token=refresh_token,
    )


def token_with(**claims: Any) -> str:
    """A token that no project has signed."""
    usual = {
        "sub": "6a7a4f5c-31f5-4ec0-b0a8-3b5a0d1f7c11",
        "role": "authenticated",
        "exp": int(time.time()) + 3600,
    }
    parts = [{"alg": "HS256", "typ": "JWT"}, {k: v for k, v in {**usual, **claims}.items() if v is not None}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, "c2lnbmF0dXJl"])


def test_a_pair(project: Project, user: User, application: SignedIn, logins: Logins) -> None:
    session = session_with(project, application.access_token, application.refresh_token)
    for _ in range(2):
        with session.database() as database:
            assert database.list_dataset_keys() == []
    assert (session.user_id, session.email, session.password) == (user.id, user.email, None)
    session.refresh()
    store = session()
    assert session.token != application.access_token
    # The end of the session does not end the login that somebody has given it.
    del store, session
    assert logins() == 1


def test_an_access_token_alone(project: Project, user: User, application: SignedIn, logins: Logins) -> None:
    session = session_with(project, application.access_token)
    store = session()
    store["x"] = [1]
    assert session.user_id == user.id
    assert session.client.auth.get_user(session.token).user.id == user.id
    assert session.client.table("datasets").select("key").execute().data == [{"key": "x"}]
    with pytest.raises(AuthenticationError, match="refresh token"):
        session.refresh()
    # In a worker, and in a child.
    with PROCESSES.Pool(1) as pool:
        assert pool.apply(workers.keys_of_pickled, [pickle.dumps(session)]) == ["x"]
    assert fork(lambda: " ".join(store))() == "x"
    assert session.login.loan is not None
    session.login.loan = replace(session.login.loan, fresh_until=0.0, expires_at=0.0)
    for _ in range(2):
        with pytest.raises(AuthenticationError, match=r"has expired.*session\.set_session"):
            list(store)
    # Another one takes its place.
    response = session.set_session(application.access_token)
    assert response.user is not None
    assert response.user.id == user.id
    assert list(store) == ["x"]
    session.logout()
    assert logins() == 1


def test_set_session(project: Project, user: User, application: SignedIn, logins: Logins) -> None:
    other = project.register()
    session = project.session(other)
    assert session.user_id == other.id
    response = session.set_session(application.access_token, application.refresh_token)
    assert response.user is not None
    assert response.session is not None
    assert (response.user.id, session.user_id, session.email) == (user.id, user.id, user.email)
    with pytest.raises(AuthenticationError):
        session.set_session(token_with(sub=user.id), "refresh")
    assert session.user_id == user.id
    # It is ended by those who ask for it, and its place is taken by nobody: not by the user before either.
    session.logout()
    assert logins() == 0
    with pytest.raises(AuthenticationError, match=r"set_session"):
        session()
    session.login_by_mail(other.email, other.password)
    assert session.user_id == other.id


def test_an_expired_access_token_is_renewed(
    project: Project, user: User, application: SignedIn, logins: Logins
) -> None:
    expired = token_with(sub=user.id, exp=int(time.time()) - 10)
    session = session_with(project, expired, application.refresh_token)
    assert list(session()) == []
    assert logins() == 1
    with pytest.raises(AuthenticationError, match="has expired at 20"):
        session_with(project, expired)


def test_the_environment_is_another_user(
    project: Project, user: User, application: SignedIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = project.register()
    monkeypatch.setenv("USER_EMAIL", other.email)
    monkeypatch.setenv("USER_PASSWORD", other.password)
    session = session_with(project, application.access_token, application.refresh_token)
    assert session.user_id == user.id
    assert session.login.session is not None
    # Its refresh token is spent by somebody else, and the session ends there: it does not become the other user's.
    session.login.session.refresh_token = "11111111-2222-4333-8444-555555555555"
    session.login.expires_at = 0.0
    with pytest.raises(AuthenticationError, match="set_session"):
        _ = session.token


@pytest.mark.parametrize(
    ("access_token", "said"),
    [
        ("", "it has 0 characters"),
        ("eyJ", "is no token of a Supabase project"),
        ("a.b.c", "is no token of a Supabase project"),
        (token_with() + "\n", "Copy it again"),
        ("x" * 40_000, "it has 40000 characters"),
        (token_with(sub=None), "which user"),
        (token_with(sub="me"), "which user"),
        (token_with(exp=None), "when it ends"),
        (token_with(exp="soon"), "when it ends"),
        (token_with(role="anon"), "key of the project"),
        (token_with(role="service_role"), "key of the project"),
        (7, "not of the type int"),
        (None, "not of the type NoneType"),
    ],
)
def test_what_is_no_token(project: Project, access_token: Any, said: str) -> None:
    session = BackendSession(backend_url=project.url, backend_key=project.key)
    for use in (
        lambda: session_with(project, access_token, "r"),
        lambda: session.set_session(access_token, "r"),
    ):
        with pytest.raises(InvalidInputError, match=said) as caught:
            use()
        assert len(str(caught.value)) < 400
        assert not access_token or str(access_token) not in str(caught.value)


def test_tokens_of_another_project() -> None:
    theirs = token_with(iss="https://aaaaaaaaaaaaaaaaaaaa.supabase.co/auth/v1")
    url = "https://bbbbbbbbbbbbbbbbbbbb.supabase.co"
    with pytest.raises(InvalidInputError, match=r"of the project https://a{20}\.supabase\.co"):
        BackendSession(backend_url=url, backend_key="sb_publishable_x", access_token=theirs)


def test_tokens_of_two_accounts(project: Project, user: User, application: SignedIn) -> None:
    other = project.register()
    with pytest.raises(AuthenticationError, match="two accounts"):
        session_with(project, token_with(sub=other.id, exp=1), application.refresh_token)()

    # While the access token is good, nothing tells whose the refresh token is.
    theirs = sign_in(project, other)
    session = session_with(project, theirs.access_token, sign_in(project, user).refresh_token)
    assert list(session()) == []
    with pytest.raises(AuthenticationError, match="of another account"):
        session.refresh()
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="there is no way back"):
            _ = session.token
    assert session.client.auth.get_session() is None

    # Nor does the client of a session that takes no tokens keep them.
    with pytest.raises(AuthenticationError, match="two accounts"):
        session.set_session(token_with(sub=other.id, exp=1), sign_in(project, user).refresh_token)
    assert session.client.auth.get_session() is None


def test_tokens_and_a_password(project: Project, application: SignedIn) -> None:
    with pytest.raises(InvalidInputError, match="and not both"):
        BackendSession("me@lab.org", "pw", project.url, project.key, access_token=application.access_token)
    with pytest.raises(InvalidInputError, match="access_token"):
        BackendSession(backend_url=project.url, backend_key=project.key, refresh_token="r")


def test_a_child_does_not_spend_the_refresh_token(
    project: Project, user: User, application: SignedIn
) -> None:
    session = session_with(project, application.access_token, application.refresh_token)

    def work() -> str:
        list(session())
        return str(session.login.session)

    assert fork(work)() == "None"
    assert list(session()) == []
    assert session.login.session is not None
    assert session.login.session.refresh_token == application.refresh_token


def test_no_token_is_shown(project: Project, application: SignedIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    session = session_with(project, application.access_token, application.refresh_token)
    shown = [repr(session), repr(vars(session)), repr(session.login.credentials), repr(application)]
    store = session()
    with pytest.raises(KeyNotFoundError) as caught:
        store["nothing"]
    shown += [repr(session), repr(store), "".join(traceback.format_exception(caught.value))]
    alone = session_with(project, application.access_token)
    list(alone())
    shown += [repr(alone), repr(alone.login.loan), *(record.getMessage() for record in caplog.records)]
    told = "\n".join(shown)
    assert application.access_token not in told
    assert application.refresh_token not in told
    for pickled in (pickle.dumps(session), pickle.dumps(alone)):
        assert application.refresh_token.encode() not in pickled


# Anonymous accounts -----------------------------------------------------------------------------------------


@pytest.fixture
def anonymous(project: Project) -> BackendSession:
    project.require_anonymous_accounts()
    session = BackendSession(backend_url=project.url, backend_key=project.key)
    response = session.login_anonymously()
    assert response.user is not None
    assert response.user.is_anonymous
    return session


def test_an_anonymous_account(anonymous: BackendSession) -> None:
    account = anonymous.user_id
    with anonymous.database() as database:
        database.insert_dataset("empty", [0], 1)
    for engine in ("database", "storage"):
        store = tensorage.TensorStore(anonymous, quiet=True, engine=engine)
        store[engine] = np.arange(6.0).reshape(2, 3)
        assert np.array_equal(store[engine, 1], [3, 4, 5])
    del store
    # Neither contexts nor stores have ended it: nobody could log in again.
    store = anonymous()
    assert anonymous.user_id == account
    assert sorted(store) == ["database", "empty", "storage"]
    assert "an anonymous account" in repr(anonymous)
    anonymous.refresh()
    assert anonymous.user_id == account
    assert store.usage().arrays == 3
    anonymous.logout()
    with pytest.raises(AuthenticationError, match="anonymous"):
        _ = anonymous.token


def test_shares_of_an_anonymous_account(project: Project, user: User, anonymous: BackendSession) -> None:
    mine = anonymous()
    mine["x"] = [1, 2]
    mine["y"] = [3]
    with workers.store_of(project, user) as theirs:
        mine.share("x", user.email)
        assert list(theirs.shared_by(anonymous.user_id)["x"]) == [1, 2]
        with pytest.raises(KeyNotFoundError):
            theirs.shared_by(anonymous.user_id)["y"]
        # It has no address to share with.
        theirs["z"] = [4]
        with pytest.raises(KeyNotFoundError):
            mine.shared_by(user.email)["z"]
        theirs.share("z")
        assert list(mine.shared_by(user.email)["z"]) == [4]
        theirs.unshare("z")
        del theirs["z"]


def test_an_anonymous_account_becomes_another_ones(project: Project, anonymous: BackendSession) -> None:
    anonymous()["x"] = [1]
    account, email = anonymous.user_id, f"{anonymous.user_id}@example.com"
    anonymous.client.auth.update_user({"email": email, "password": "correct horse 2"})
    session = BackendSession(email, "correct horse 2", project.url, project.key)
    assert session.user_id == account
    assert list(session()) == ["x"]
    session.logout()


def test_an_answer_that_is_lost_does_not_lose_the_account(project: Project) -> None:
    project.require_anonymous_accounts()
    lost: list[str] = []

    def loses(exchange: Exchange) -> bool:
        is_first = "refresh_token" in exchange.target and not lost
        if is_first:
            lost.append(exchange.target)
        return is_first

    with closing(Proxy(project.url, loses)) as proxy:
        session = BackendSession(backend_url=proxy.url, backend_key=project.key, patience_s=20)
        session.login_anonymously()
        account, before = session.user_id, session.token
        session.login.expires_at = 0.0
        assert session.token != before
        assert session.user_id == account
        assert lost
        session.logout()
