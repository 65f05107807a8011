"""The session with a backend: who is logged in to which project.

A `BackendSession` owns the client of the Supabase SDK and the login of one user, and hands out contexts
that are logged in for as long as they are open.

Examples
--------
.. code-block:: python

    session = BackendSession()
    with session.database() as db:
        db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensorage.backend.base import BaseContext
from tensorage.backend.database import DatabaseContext
from tensorage.backend.storage import StorageContext
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.patience import PATIENCE_S, Patience, check_seconds
from tensorage.config import ENVIRONMENT, check_url, configure, required, shown_url
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    TensorageError,
)
from tensorage.signin.lending import Lender, Loan
from tensorage.signin.processes import borrowed, watch
from tensorage.signin.state import Ending, TransferLogin, auth_errors, last_logout, was_refused_unread

if TYPE_CHECKING:
    import supabase
    from tensorage.signin.sdk import AuthResponse, Session, User
    from tensorage.store import TensorStore

__all__ = ["BackendSession", "ContextWrapper"]

C = TypeVar("C", bound=BaseContext)

logger = logging.getLogger(__name__)

_NO_PROJECT = (
    ". No project is known either: set SUPABASE_URL and SUPABASE_KEY as well, or use tensorage.local(), which needs "
    "none of them"
)

#: A token that expires within this many seconds is renewed before it is used.
RENEW_BEFORE_S = 60


class ContextWrapper(Generic[C]):
    """Logs a session in for as long as a context is used.

    Nested and concurrent contexts of one session share its login; the last one out logs out.

    Parameters
    ----------
    session
        Whose user the context works as.
    context
        The engine.

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
        self.Context = context

    def __enter__(self) -> C:
        """Log in if nobody is, and return the context."""
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


class BackendSession:
    """A user's session with a Supabase project. Safe to use from many threads.

    Parameters
    ----------
    email, password
        Who logs in.
    backend_url, backend_key
        URL and (publishable or ``anon``) key of the project.

        What is not given comes from the environment (``SUPABASE_URL``, ``SUPABASE_KEY``, ``USER_EMAIL``,
        ``USER_PASSWORD``), a ``.env`` file, or what `tensorage.link_to` saved, in this order. A key or a password
        that is not meant for the URL is held back: see `tensorage.config`.
    patience_s
        Seconds for which a login that has worked waits for a backend that is away, before it raises an error. With 0,
        a few quick tries have to do, as they always do for a first contact. It can be changed at any time.

    Attributes
    ----------
    client
        The client of the Supabase SDK, made when first used.
    token
        The access token of the logged-in user.

    Examples
    --------
    .. code-block:: python

        session = BackendSession()
        session.login_by_mail('user@example.com', 'password')
        with session.database() as db:
            db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
    """

    email: str | None
    password: str | None
    backend_url: str | None
    backend_key: str | None
    _held_back: Mapping[str, str]
    _client: supabase.Client | None
    _user: User | None
    _session: Session | None

    def __init__(
        self,
        email: str | None = None,
        password: str | None = None,
        backend_url: str | None = None,
        backend_key: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._patience = Patience(patience_s)
        known = configure(email=email, password=password, backend_url=backend_url, backend_key=backend_key)
        self.email, self.password = known.email, known.password
        self.backend_url = known.backend_url.rstrip("/") if known.backend_url else None
        self.backend_key = known.backend_key
        self._held_back = known.held_back
        self._prepare()

    def _prepare(self, loan: Loan | None = None) -> None:
        self._user = None
        self._session = None
        self._expires_at = 0.0
        #: The token of another process, which alone renews and ends that login.
        self._loan = loan
        #: A refresh token whose use got no answer. It may be spent, and can be used once.
        self._doubtful: str | None = None
        self._store: weakref.ref[TensorStore] | None = None
        self._holders = 0
        self._connect()
        watch(self)

    def _connect(self) -> None:
        """Begin without connections, in this process."""
        self._lock = threading.RLock()
        before = self._patience
        self._patience = Patience(
            before.seconds, self.backend_url, has_worked=before.has_worked or self._loan is not None
        )
        self._client = None
        self._transfer: Transfer | None = None
        self._lender = Lender(partial(_lend, weakref.ref(self)))
        self._ending = Ending(connections=[self._lender])
        # Runs when the session is dropped or the interpreter ends, whichever comes first.
        self._finalize = weakref.finalize(self, self._ending)

    # The client and the login ---------------------------------------------------------------------

    @property
    def client(self) -> supabase.Client:
        """The client of the Supabase SDK, made when first used, with the login's token if there is one.

        It can be written ``session.client`` and ``session.client()``.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            client = session.client()
            response = client.table('datasets').select('*').execute()
        """
        if self._loan is not None or self._session is not None:
            _ = self.token
        with self._lock:
            return self._sdk()

    @property
    def patience_s(self) -> float:
        """Seconds for which a backend that is away is waited for, once a login has worked."""
        return self._patience.seconds

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        self._patience.seconds = check_seconds(seconds)

    @property
    def token(self) -> str:
        """The access token of the user, valid for at least another minute. Logs in if nobody is.

        After a fork, and in a session that was unpickled, it is that of the session which this one comes from, whose
        process gives the next one, too.

        Raises
        ------
        AuthenticationError
            If there is no login, and none can be made of what is configured; or if the process that holds the login is
            gone, and its token has expired.
        BackendUnavailableError
            If a new one is needed, and the backend stays away for longer than it is waited for.
        """
        return self._patience.keep_trying(self._token_now, "getting a token")

    def _token_now(self) -> str:
        """The token, without waiting for a backend that is away."""
        with self._lock:
            if self._loan is not None:
                self._borrow_again_in_time(self._loan)
                return self._loan.token
            if self._session is None:
                self._login()
            elif self._expires_soon():
                self._renew()
            assert self._session is not None
            return self._session.access_token

    @property
    def user_id(self) -> str:
        """Id of the logged-in user."""
        with self._lock:
            is_known = self._loan is not None or self._user is not None
        if not is_known:
            _ = self.token
        with self._lock:
            if self._loan is not None:
                return self._loan.user_id
            assert self._user is not None
            return str(self._user.id)

    def login_by_mail(self, email: str | None = None, password: str | None = None) -> AuthResponse:
        """Log in with e-mail and password, by default those of the configuration.

        They are kept in memory, so that a session that has logged out can log in again when it is used.

        Returns
        -------
        AuthResponse
            The user, and the session with its tokens.

        Raises
        ------
        AuthenticationError
            If the e-mail or the password is wrong; nothing has changed then.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            response = session.login_by_mail('user@example.com', 'password')
            print(response)
        """
        with self._lock:
            email, password = email or self.email, password or self.password
            credentials = {
                "email": required("email", email, self._held_back),
                "password": required("password", password, self._held_back),
            }
            try:
                with auth_errors(f"logging in as {email}", self.backend_url):
                    response = self._sdk().auth.sign_in_with_password(credentials)  # type: ignore[arg-type] # a TypedDict
            except AuthenticationError:
                self._restore()
                raise
            self.email, self.password = email, password
            self._replace(response)
            return response

    def register_by_mail(self, email: str, password: str) -> AuthResponse:
        """Register a new user.

        Where the project asks for no confirmation of the e-mail address, the session is logged in as the
        new user afterwards.

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
        with self._lock:
            credentials = {"email": required("email", email), "password": required("password", password)}
            try:
                with auth_errors(f"registering {email}", self.backend_url):
                    response = self._sdk().auth.sign_up(credentials)  # type: ignore[arg-type] # a TypedDict
            except AuthenticationError:
                self._restore()
                raise
            if response.session is not None:
                self.email, self.password = email, password
                self._replace(response)
            elif self._session is not None:
                self._restore()
            else:
                self.email, self.password = email, password
            return response

    def refresh(self) -> AuthResponse:
        """Exchange the refresh token for a new pair of tokens.

        Raises
        ------
        AuthenticationError
            If nobody is logged in, or the login has ended.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            response = session.refresh()
            print(response)
        """
        with self._lock:
            if self._loan is not None:
                raise AuthenticationError(
                    "this process works with the login of another one, which refreshes it"
                )
            if self._session is None:
                raise AuthenticationError("nobody is logged in: call login_by_mail() first")
            token = self._session.refresh_token
            if token == self._doubtful:
                raise AuthenticationError(
                    "the backend was away when the login was last refreshed, and may have spent the refresh token, "
                    "which can be used once: log in again with session.login_by_mail(email, password)"
                )
            try:
                with auth_errors("refreshing the login", self.backend_url):
                    response = self._sdk().auth.refresh_session(token)
            except BackendUnavailableError as error:
                if not was_refused_unread(error):
                    self._doubtful = token
                raise
            self._accept(response)
            return response

    def logout(self) -> None:
        """End this session's login, and no other of the user's. The next use of the session logs in again.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            session.login_by_mail('user@example.com', 'password')
            session.logout()
        """
        with self._lock:
            if self._session is None:
                return
            self._session = self._user = None
            # A login that has already ended at the server is what was wanted: the SDK says nothing then.
            with auth_errors("logging out", self.backend_url):
                self._sdk().auth.sign_out({"scope": "local"})
            # Where that failed, it is tried again at the end.
            self._ending.login = None

    # Contexts and the store -----------------------------------------------------------------------

    def database(self) -> ContextWrapper[DatabaseContext]:
        """Arrays as rows of the database, logged in for as long as the context is open.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            with session.database() as db:
                db.insert_dataset(key='test', shape=[1, 2, 3], dim=3)
        """
        return ContextWrapper(self, DatabaseContext)

    def storage(self) -> ContextWrapper[StorageContext]:
        """Files and arrays as objects of Supabase Storage, logged in for as long as the context is open.

        Examples
        --------
        .. code-block:: python

            session = BackendSession()
            with session.storage() as storage:
                storage.upload_file('test.txt', 'Hello, world!')
        """
        return ContextWrapper(self, StorageContext)

    def __call__(self) -> TensorStore:
        """The session's store: the same one for as long as somebody holds it. Logs in if nobody is.

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

        with self._lock:
            store = None if self._store is None else self._store()
            if store is None:
                store = TensorStore(self)
                self._store = weakref.ref(store)
            return store

    @property
    def transfer(self) -> Transfer:
        """The byte mover of this session: its requests are those of the logged-in user."""
        with self._lock:
            if self._transfer is None:
                self._transfer = Transfer(self._required_url(), TransferLogin(self), patience=self._patience)
                self._ending.connections.append(self._transfer)
            return self._transfer

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
        # A session whose making failed has nothing to end.
        finalize = getattr(self, "_finalize", None)
        if finalize is not None:
            finalize()

    def __repr__(self) -> str:
        state = f"logged in as {self._user.email}" if self._user is not None else "not logged in"
        url = shown_url(self.backend_url) if self.backend_url else "without a project"
        return f"<BackendSession {url}, {state}>"

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to work as the same user: the token, not the password."""
        loan = self._patience.keep_trying(self._loan_for_others, "lending the login to another process")
        return {
            "email": self.email,
            "backend_url": self.backend_url,
            "backend_key": self.backend_key,
            "loan": loan,
            "patience_s": self.patience_s,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return borrowed, (type(self), self.__getstate__())

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.email, self.password = state["email"], None
        self.backend_url, self.backend_key = state["backend_url"], state["backend_key"]
        self._held_back = {}
        self._patience = Patience(state["patience_s"])
        self._prepare(state["loan"])

    # Inner parts --------------------------------------------------------------------------------------

    def hold(self) -> None:
        """One more user of the login: log in if nobody is."""

        def hold() -> None:
            with self._lock:
                if self._loan is None and self._session is None:
                    self._login()
                self._holders += 1

        self._patience.keep_trying(hold, "logging in")

    def release(self) -> None:
        """One user less: the last one logs out. What was done is done, if logging out fails or not."""
        with self._lock:
            self._holders -= 1
            if self._holders > 0:
                return
            try:
                self.logout()
            except TensorageError as error:
                logger.info("the login of %s stays open until it expires: %s", self.email, error)

    def _sdk(self) -> supabase.Client:
        if self._client is None:
            from tensorage.signin.client import make_client

            url, key = self._required_url(), required("backend_key", self.backend_key, self._held_back)
            self._client, http = make_client(url, key)
            self._ending.connections.append(http)
            if self._loan is not None:
                self._client.options.headers["Authorization"] = f"Bearer {self._loan.token}"
        return self._client

    def _required_url(self) -> str:
        url = required("backend_url", self.backend_url)
        # The process that a login is borrowed from has checked it, and warned if need be.
        return url if self._loan is not None else check_url(url)

    def _accept(self, response: AuthResponse) -> None:
        if response.session is None:
            raise AuthenticationError(
                f"the backend made no session for {self.email}: if it asks for a confirmation of the e-mail "
                "address, follow the link in the mail first"
            )
        self._session, self._user = response.session, response.user
        # By this machine's clock, which need not be the server's.
        self._expires_at = time.time() + response.session.expires_in
        self._loan = None
        self._patience.has_worked = True
        key = required("backend_key", self.backend_key)
        self._ending.login = (self._required_url(), key, response.session.access_token)

    def _replace(self, response: AuthResponse) -> None:
        """Go on with another login, and end the one before."""
        before = self._ending.login
        self._accept(response)
        if before is not None:
            last_logout(*before)

    def _restore(self) -> None:
        """Give the SDK its session back, which it forgets when another login is refused."""
        if self._session is not None:
            with auth_errors("going on with the login", self.backend_url):
                tokens = self._session.access_token, self._session.refresh_token
                self._accept(self._sdk().auth.set_session(*tokens))

    def _login(self) -> None:
        missing = [name for name in ("email", "password") if not getattr(self, name)]
        if missing:
            if all(name in self._held_back for name in missing):
                # They are set: to ask for them would send the reader the wrong way.
                raise ConfigurationError(". ".join(self._held_back[name] for name in missing))
            variables = " and ".join(ENVIRONMENT[name] for name in missing)
            raise ConfigurationError(
                f"nobody is logged in, and no {' and '.join(missing)} to log in with: call "
                f"session.login_by_mail(email, password), or set {variables} in the environment or in a .env file"
                + "".join(f". Also, {self._held_back[name]}" for name in missing if name in self._held_back)
                + ("" if self.backend_url else _NO_PROJECT)
            )
        self.login_by_mail()

    def _expires_soon(self) -> bool:
        return self._expires_at - time.time() < self._margin()

    def _margin(self) -> float:
        """Seconds before its end that a token is renewed."""
        assert self._session is not None
        # Of a token that lives for a minute or two, the last part of its life has to do.
        return min(RENEW_BEFORE_S, self._session.expires_in / 4)

    def _renew(self) -> None:
        """Get a new token: by refreshing the login, or by logging in again."""
        try:
            self.refresh()
        except AuthenticationError as error:
            if not (self.email and self.password):
                raise AuthenticationError(
                    "the login has expired and cannot be refreshed: log in again with "
                    "session.login_by_mail(email, password)"
                ) from error
            self._session = None
            self.login_by_mail()

    def _renew_unless_done(self, refused: str) -> None:
        """A new token in place of a refused one, unless another thread has got one meanwhile."""
        with self._lock:
            if self._loan is not None and self._loan.token == refused:
                self._use(self._loan.next(refused))
            if self._session is not None and self._session.access_token == refused:
                self._renew()

    # Other processes ----------------------------------------------------------------------------------

    def _borrow_again_in_time(self, loan: Loan) -> None:
        if time.time() < loan.fresh_until:
            return
        try:
            self._use(loan.next())
        except (AuthenticationError, BackendUnavailableError) as error:
            if time.time() >= loan.expires_at:
                raise
            logger.debug("going on with the token of before: %s", error)

    def _use(self, loan: Loan) -> None:
        """Go on with another token of the same login."""
        if self._loan is not None and self._loan.token != loan.token:
            # The SDK's client holds the one before.
            self._client = None
        self._loan = loan

    def _takes(self, loan: Loan) -> bool:
        """Go on with a token that came with a pickle, unless this session has a newer one. False if it borrows none."""
        with self._lock:
            if self._loan is None:
                return False
            if loan.expires_at > self._loan.expires_at:
                self._use(loan)
            return True

    def _loan_for_others(self) -> Loan:
        with self._lock:
            token = self._token_now()
            if self._loan is not None:
                return self._loan
            lender = self._lender.open()
            self._lender.start()
            return Loan(token, self._expires_at - self._margin(), self._expires_at, self.user_id, lender)

    def _before_fork(self) -> None:
        """Have the child know where to ask. A thread would not be there in it, and begins afterwards."""
        if self._session is not None:
            self._lender.open()

    def _after_fork(self) -> None:
        self._lender.start()

    def _continue_in_child(self) -> None:
        """After a fork: connections of its own, and the parent's token, which only the parent renews and ends."""
        self._finalize.detach()
        # Kept, and never touched: a lock within may have been held by a thread that is not here any more.
        self._inherited = (self._client, self._transfer, self._ending)
        self._lender.leave()
        if self._session is not None and self._user is not None:
            self._loan = Loan(
                self._session.access_token,
                self._expires_at - self._margin(),
                self._expires_at,
                str(self._user.id),
                self._lender.whereabouts,
            )
            self._session = None
        self._connect()


def _lend(lender: weakref.ref[BackendSession], refused: str | None) -> Loan:
    """The token of a session, for another process."""
    session = lender()
    if session is None:
        raise AuthenticationError("its session has ended")
    with session._lock:
        if session._session is None:
            raise AuthenticationError("it has logged out")
        if refused is not None:
            session._renew_unless_done(refused)
        return session._loan_for_others()
