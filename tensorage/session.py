"""The session of one user with one project.

A `BackendSession` owns the login of a user and the client of the Supabase SDK, and makes contexts that are logged in
for as long as they are open.

Examples
--------
.. code-block:: python

    session = BackendSession()
    with session.database() as db:
        db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensorage.backend.base import BaseContext
from tensorage.backend.database import DatabaseContext
from tensorage.backend.storage import StorageContext
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.patience import PATIENCE_S, Patience, check_seconds
from tensorage.config import configure, redact_url, require
from tensorage.errors import InvalidInputError
from tensorage.signin.given import check_tokens
from tensorage.signin.lending import Loan
from tensorage.signin.login import Credentials, Login
from tensorage.signin.processes import borrow_session, watch
from tensorage.tracebacks import end_tracebacks_here

if TYPE_CHECKING:
    import supabase
    from tensorage.signin.sdk import AuthResponse, Session, User
    from tensorage.store import TensorStore

__all__ = ["BackendSession", "ContextWrapper"]

C = TypeVar("C", bound=BaseContext)


@end_tracebacks_here
class ContextWrapper(Generic[C]):
    """Logs a session in for as long as a context is used.

    Nested and concurrent contexts of one session share its login. The last one to end logs out.

    Parameters
    ----------
    session
        Session whose user the context works as.
    context
        Class of the context.

    Examples
    --------
    .. code-block:: python

        session = BackendSession()
        with ContextWrapper(session, DatabaseContext) as db:
            db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
    """

    _session: BackendSession
    Context: type[C]

    def __init__(self, session: BackendSession, context: type[C]) -> None:
        self._session = session
        # The name is part of the API.
        self.Context = context

    def __enter__(self) -> C:
        """Log in if nobody is logged in, and return the context."""
        self._session.hold()
        try:
            return self.Context(self._session)
        except BaseException:
            self._session.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Log out, unless another context or a store of the session is still in use."""
        self._session.release()


class _Kept:
    """An attribute of a session that its login keeps."""

    def __init__(self, *path: str) -> None:
        *self._way, self._name = path

    def __get__(self, session: BackendSession | None, owner: type[BackendSession]) -> Any:
        return self if session is None else getattr(self._keeper(session), self._name)

    def __set__(self, session: BackendSession, value: Any) -> None:
        setattr(self._keeper(session), self._name, value)

    def _keeper(self, session: BackendSession) -> Any:
        keeper: Any = session.login
        for name in self._way:
            keeper = getattr(keeper, name)
        return keeper


def _kept_by_login(*path: str) -> Any:
    # Type checkers take the annotation's word for the attribute's type.
    return _Kept(*path)


@end_tracebacks_here
class BackendSession:
    """A user's session with a Supabase project. Safe to use from many threads.

    Parameters
    ----------
    email, password
        E-mail address and password of the user.
    backend_url, backend_key
        URL and (publishable or ``anon``) key of the project.

        Settings that are not given come from the environment (``SUPABASE_URL``, ``SUPABASE_KEY``, ``USER_EMAIL``,
        ``USER_PASSWORD``), from a ``.env`` file, or from the settings that `tensorage.link_to` saved, in this order. A
        key or a password that is not meant for the URL is held back: see `tensorage.config`. If no password is found,
        the login that ``tensorage login`` keeps for the URL is used.
    access_token, refresh_token
        Tokens of a user from elsewhere, in place of `email` and `password`: see `set_session`. They are checked here,
        and used when the session is.
    patience_s
        Seconds for which a login that has worked waits for a backend that is away, before it raises an error. With 0,
        and at first contact, a few quick tries have to do. `patience_s` can be changed at any time.

    Attributes
    ----------
    client
        Client of the Supabase SDK, made when first used.
    token
        Access token of the logged-in user.

    Examples
    --------
    .. code-block:: python

        session = BackendSession()
        session.login_by_mail('user@example.com', 'password')
        with session.database() as db:
            db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
    """

    email: str | None = _kept_by_login("credentials", "email")
    password: str | None = _kept_by_login("credentials", "password")
    backend_url: str | None = _kept_by_login("credentials", "backend_url")
    backend_key: str | None = _kept_by_login("credentials", "backend_key")
    _client: supabase.Client | None = _kept_by_login("sdk_client")
    _user: User | None = _kept_by_login("user")
    _session: Session | None = _kept_by_login("session")

    def __init__(
        self,
        email: str | None = None,
        password: str | None = None,
        backend_url: str | None = None,
        backend_key: str | None = None,
        *,
        access_token: str | None = None,
        refresh_token: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        patience = Patience(patience_s)
        known = configure(email=email, password=password, backend_url=backend_url, backend_key=backend_key)
        url = known.backend_url.rstrip("/") if known.backend_url else None
        credentials = Credentials(known.email, known.password, url, known.backend_key, known.held_back)
        if access_token is not None or refresh_token is not None:
            if email or password:
                raise InvalidInputError("give an e-mail and a password, or tokens, and not both")
            given = check_tokens(access_token, refresh_token, require("backend_url", url))
            # The configured user may be another one.
            credentials.email = credentials.password = None
            credentials.given = given
        self._begin(credentials, patience)

    def _begin(self, credentials: Credentials, patience: Patience, loan: Loan | None = None) -> None:
        self.login = Login(credentials, patience, loan)
        watch(self.login)
        self._store: weakref.ref[TensorStore] | None = None

    # The client and the login ---------------------------------------------------------------------

    @property
    def client(self) -> supabase.Client:
        """Client of the Supabase SDK, made when first used, with the login's token if there is one.

        ``session.client`` and ``session.client()`` are the same.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            client = session.client()
            response = client.table('datasets').select('*').execute()
        """
        return self.login.client

    @property
    def patience_s(self) -> float:
        """Seconds that a login waits for a backend that is away, once the login has worked."""
        return self.login.patience.seconds

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        self.login.patience.seconds = check_seconds(seconds)

    @property
    def token(self) -> str:
        """Access token of the user, valid for at least another minute. Logs in if nobody is logged in.

        After a fork, and in an unpickled session, the token is borrowed from the process that holds the login. That
        process gives later tokens, too.

        Raises
        ------
        AuthenticationError
            If there is no login, and the configuration is not enough for one; or if the process that holds the login is
            gone, and its token has expired.
        BackendUnavailableError
            If a new token is needed, and the backend stays away for longer than the patience.
        """
        return self.login.token

    @property
    def user_id(self) -> str:
        """Id of the logged-in user."""
        return self.login.user_id

    @property
    def is_logged_in(self) -> bool:
        """True if a login is there, of this process or lent by another one. Sends no request."""
        return self.login.is_there

    def login_by_mail(self, email: str | None = None, password: str | None = None) -> AuthResponse:
        """Log in with e-mail and password, by default those of the configuration.

        Both are kept in memory, so that a session that has logged out can log in again when it is used.

        Returns
        -------
        AuthResponse
            The user, and the session with its tokens.

        Raises
        ------
        AuthenticationError
            If the e-mail or the password is wrong. Nothing has changed then.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            response = session.login_by_mail('user@example.com', 'password')
            print(response)
        """
        return self.login.log_in(email, password)

    def login_anonymously(self) -> AuthResponse:
        """Make an account that has neither an address nor a password, and log in as it.

        The project has to allow anonymous sign-ins. The account lasts as long as its tokens do: nobody can log in to it
        again once they are lost, and its arrays stay behind. Contexts, stores and the end of the session do not end it.
        `logout` does.

        Returns
        -------
        AuthResponse
            The user, and the session with its tokens.

        Raises
        ------
        AuthenticationError
            If the project does not allow it.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_anonymously()
            store = session()
        """
        return self.login.log_in_anonymously()

    def set_session(self, access_token: str, refresh_token: str | None = None) -> AuthResponse:
        """Work as the user of tokens from elsewhere: of an application, or of a flow of the SDK such as OAuth.

        The project is asked whose they are. The session renews them from then on: a refresh token can be used once, and
        whoever has given it must not use it any more. Without one, the access token works until it expires, and an
        error says so then. Contexts, stores and the end of the session do not end such a login. `logout` ends it, or
        forgets it if there is no refresh token.

        Returns
        -------
        AuthResponse
            The user, and the session with its tokens, which may be new ones.

        Raises
        ------
        InvalidInputError
            If one is no token of a user, or of another project.
        AuthenticationError
            If the project refuses them, or they have expired. Nothing has changed then.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.set_session(access_token, refresh_token)
            store = session()
        """
        return self.login.use_tokens(access_token, refresh_token)

    def register_by_mail(self, email: str, password: str) -> AuthResponse:
        """Register a new user.

        The session is logged in as the new user afterwards, unless the project asks to confirm the e-mail address.

        Raises
        ------
        AuthenticationError
            If the address is taken or malformed, or the password too weak.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            response = session.register_by_mail('user@example.com', 'password')
            print(response)
        """
        return self.login.register(email, password)

    def refresh(self) -> AuthResponse:
        """Exchange the refresh token for a new pair of tokens.

        Raises
        ------
        AuthenticationError
            If nobody is logged in, or the login has ended; or if it is renewed elsewhere, as that of another process,
            one that ``tensorage login`` keeps, and an access token that was given alone.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            response = session.refresh()
            print(response)
        """
        return self.login.refresh()

    def logout(self) -> None:
        """End this session's login, and no other of the user's. The next use of the session logs in again.

        A login that ``tensorage login`` keeps is left alone, since all processes of this user share it: ``tensorage
        logout`` ends it.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            session.logout()
        """
        self.login.log_out()

    # Contexts and the store -----------------------------------------------------------------------

    def database(self) -> ContextWrapper[DatabaseContext]:
        """Return a context for arrays as rows of the database, logged in for as long as it is open.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            with session.database() as db:
                db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
        """
        return ContextWrapper(self, DatabaseContext)

    def storage(self) -> ContextWrapper[StorageContext]:
        """Return a context for files, and for arrays as objects of Storage, logged in for as long as it is open.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            with session.storage() as storage:
                storage.upload_file('test.txt', 'Hello, world!')
        """
        return ContextWrapper(self, StorageContext)

    def __call__(self) -> TensorStore:
        """Return the store of the session, the same one for as long as somebody holds it. Logs in if nobody is.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            store = session()
            array = np.array([[1, 2], [3, 4]])
            store['test'] = array
        """
        from tensorage.store import TensorStore

        # A weak reference: the store holds the session's login, and must not live as long as the session.
        with self.login.lock:
            store = None if self._store is None else self._store()
            if store is None:
                store = TensorStore(self)
                self._store = weakref.ref(store)
            return store

    @property
    def transfer(self) -> Transfer:
        """Byte mover of this session, which sends requests as the logged-in user."""
        return self.login.transfer

    def hold(self) -> None:
        """Log in if nobody is logged in, and keep the user logged in until `release`."""
        self.login.hold()

    def release(self) -> None:
        """Log out, unless others hold the login."""
        self.login.release()

    # The end ----------------------------------------------------------------------------------------

    def __del__(self) -> None:
        """Log out, if somebody is logged in. Never raises, and takes no longer than two seconds.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            del session
        """
        # A session whose constructor failed has no login to end.
        login = getattr(self, "login", None)
        if login is not None:
            login.end()

    def __repr__(self) -> str:
        user = self._user
        state = "not logged in"
        if user is not None:
            state = f"logged in as {user.email or 'an anonymous account'}"
        elif self.login.loan is not None:
            state = f"logged in as {self.email or self.login.loan.user_id}"
        url = redact_url(self.backend_url) if self.backend_url else "without a project"
        return f"<BackendSession {url}, {state}>"

    def _repr_html_(self) -> str:
        # Only notebooks need it.
        from tensorage.adapters.notebook import html_of_session
        from tensorage.backend.sharing import Sharing

        user = self._user
        return html_of_session(
            redact_url(self.backend_url) if self.backend_url else None,
            self.email if user is None else user.email,
            lambda: Sharing(self.transfer).usage(),
            is_logged_in=self.is_logged_in,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which works as the same user: with the token, without the password."""
        # A token that expires soon is renewed here, for which the backend may have to be waited for.
        loan = self.login.patience.keep_trying(
            self.login.loan_for_others, "lending the login to another process"
        )
        return {
            "email": self.email,
            "backend_url": self.backend_url,
            "backend_key": self.backend_key,
            "loan": loan,
            "patience_s": self.patience_s,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling looks for a session of the same login first.
        return borrow_session, (type(self), self.__getstate__())

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        credentials = Credentials(state["email"], None, state["backend_url"], state["backend_key"])
        self._begin(credentials, Patience(state["patience_s"]), state["loan"])

    def takes(self, loan: Loan) -> bool:
        """Accept a newer token that came with a pickle. Return False if this session has a login of its own."""
        return self.login.takes(loan)
