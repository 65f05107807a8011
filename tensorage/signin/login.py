"""The login of one user to one project: logging in, renewing tokens, lending them to processes, and logging out."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from tensorage.backend.transfer import ChangeCount, Transfer
from tensorage.backend.wire.patience import Patience
from tensorage.config import ENVIRONMENT, IS_LOCAL_WANTED, check_key, check_text, check_url, require
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    TensorageError,
)
from tensorage.signin.given import GIVE_OTHERS, GivenTokens, check_tokens
from tensorage.signin.kept import KeptLogin, find_login
from tensorage.signin.lending import Lender, Loan
from tensorage.signin.state import (
    LAST_WORK_S,
    Ending,
    TransferLogin,
    auth_errors,
    last_logout,
    was_refused_unread,
)
from tensorage.wording import MAX_QUOTED, cut, sentences

if TYPE_CHECKING:
    import supabase
    from tensorage.signin.sdk import AuthResponse, Session, User

__all__ = ["Credentials", "Login"]

logger = logging.getLogger("tensorage.session")

_NO_PROJECT = f"No project is known either: set SUPABASE_URL and SUPABASE_KEY as well. {IS_LOCAL_WANTED}"

_NOT_BESIDE_IT = " and take the password away, which comes before what is kept"

#: A token that expires within this many seconds is renewed before it is used.
RENEW_BEFORE_S = 60


@dataclass
class Credentials:
    """Project and user of a login.

    Parameters
    ----------
    held_back
        Reason for each setting that is configured but not meant for this URL, for messages.
    given
        Tokens to begin with, in place of e-mail and password.
    """

    email: str | None = None
    password: str | None = field(default=None, repr=False)
    backend_url: str | None = None
    backend_key: str | None = field(default=None, repr=False)
    held_back: Mapping[str, str] = field(default_factory=dict, repr=False)
    given: GivenTokens | None = field(default=None, repr=False)

    def required_url(self) -> str:
        """Return the URL of the project, or raise an error that asks for one."""
        return require("backend_url", self.backend_url)

    def required_key(self) -> str:
        """Return the key of the project, or raise an error that asks for one."""
        return check_key(require("backend_key", self.backend_key, self.held_back))


class Login:
    """A login with its connections. Safe to use from many threads.

    After a fork, and with a loan, a login works with the token of another process. Only that process renews and ends
    the login.

    Parameters
    ----------
    credentials
        Project and user. `log_in` replaces their e-mail and password.
    patience
        Time to wait for a backend that is away.
    loan
        Token of another process.
    """

    def __init__(self, credentials: Credentials, patience: Patience, loan: Loan | None = None) -> None:
        self.credentials = credentials
        self.patience = patience
        #: User and tokens of a login of this process.
        self.user: User | None = None
        self.session: Session | None = None
        #: End of the token by this machine's clock, in seconds since the epoch.
        self.expires_at = 0.0
        self.loan = loan
        #: True if there is no way back into the login once it is ended: nobody knows a password of it.
        self._is_irreplaceable = credentials.given is not None
        #: Account whose kept login was used: the session never goes on as another one by itself.
        self._kept_account: str | None = None
        #: Refresh token whose use got no answer. Such a token may be spent, since it can be used only once.
        self._doubtful: str | None = None
        self._holders = 0
        # Goes on after a fork, so that nothing from before it seems unchanged by coincidence.
        self._changes = ChangeCount()
        self._connect()

    def _connect(self) -> None:
        """Begin anew in this process, without connections."""
        self.lock = threading.RLock()
        before = self.patience
        self.patience = Patience(
            before.seconds,
            self.credentials.backend_url,
            has_worked=before.has_worked or self.loan is not None,
        )
        self.sdk_client: supabase.Client | None = None
        self._transfer: Transfer | None = None
        self.lender = Lender(partial(_lend, weakref.ref(self)))
        self.ending = Ending(connections=[self.lender])
        # Runs when the login is dropped or the interpreter ends, whichever comes first.
        self.end = weakref.finalize(self, self.ending)

    # Tokens -------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """Access token of the user, valid for at least another minute. Logs in if nobody is logged in."""
        return self.patience.keep_trying(self.token_now, "getting a token")

    def token_now(self) -> str:
        """Return the token, without waiting for a backend that is away."""
        with self.lock:
            if self.loan is None and self.session is None:
                self._login()
            if self.loan is not None:
                self._borrow_again_in_time(self.loan)
                return self.loan.token
            if self._expires_soon():
                self._renew()
            assert self.session is not None
            return self.session.access_token

    @property
    def user_id(self) -> str:
        """Id of the logged-in user."""
        with self.lock:
            is_known = self.loan is not None or self.user is not None
        if not is_known:
            _ = self.token
        with self.lock:
            if self.loan is not None:
                return self.loan.user_id
            assert self.user is not None
            return str(self.user.id)

    @property
    def is_there(self) -> bool:
        """True if a login is there, of this process or lent by another one."""
        # Without the lock, behind which a login may be renewed for as long as an outage lasts.
        return self.loan is not None or self.session is not None

    def request_headers(self) -> dict[str, str]:
        """Return the headers that identify the user of a request, without waiting for a backend that is away."""
        token = self.token_now()
        return {
            "apikey": require("backend_key", self.credentials.backend_key),
            "Authorization": f"Bearer {token}",
        }

    # Logging in and out ---------------------------------------------------------------------------------

    def log_in(self, email: str | None = None, password: str | None = None) -> AuthResponse:
        """Log in with e-mail and password, by default those of the credentials, and keep them there."""
        check_text("email", email)
        check_text("password", password)
        with self.lock:
            email, password = email or self.credentials.email, password or self.credentials.password
            credentials = {
                "email": require("email", email, self.credentials.held_back),
                "password": require("password", password, self.credentials.held_back),
            }
            try:
                with auth_errors(
                    f"logging in as {cut(email or '', MAX_QUOTED)}", self.credentials.backend_url
                ):
                    response = self._sdk().auth.sign_in_with_password(credentials)  # type: ignore[arg-type] # a TypedDict
            except AuthenticationError:
                self._restore()
                raise
            self.credentials.email, self.credentials.password = email, password
            self._replace(response)
            return response

    def register(self, email: str, password: str) -> AuthResponse:
        """Register a new user, and log in as this user unless the address has to be confirmed first."""
        check_text("email", email)
        check_text("password", password)
        with self.lock:
            credentials = {"email": require("email", email), "password": require("password", password)}
            try:
                with auth_errors(f"registering {cut(email, MAX_QUOTED)}", self.credentials.backend_url):
                    response = self._sdk().auth.sign_up(credentials)  # type: ignore[arg-type] # a TypedDict
            except AuthenticationError:
                self._restore()
                raise
            if response.session is not None:
                self.credentials.email, self.credentials.password = email, password
                self._replace(response)
            elif self.session is not None:
                self._restore()
            else:
                self.credentials.email, self.credentials.password = email, password
            return response

    def log_in_anonymously(self) -> AuthResponse:
        """Make an account without an address, and log in as it."""
        with self.lock:
            try:
                with auth_errors("making an anonymous account", self.credentials.backend_url):
                    response = self._sdk().auth.sign_in_anonymously()
            except AuthenticationError:
                self._restore()
                raise
            self._replace(response, is_irreplaceable=True)
            return response

    def use_tokens(self, access_token: str, refresh_token: str | None = None) -> AuthResponse:
        """Go on with tokens from elsewhere."""
        given = check_tokens(access_token, refresh_token, self._required_url())
        with self.lock:
            return self._take(given)

    def _take(self, given: GivenTokens) -> AuthResponse:
        from tensorage.signin.sdk import ask_for_session

        try:
            with auth_errors("using the tokens that were given", self.credentials.backend_url, GIVE_OTHERS):
                response = ask_for_session(self._sdk(), given.access_token, given.refresh_token)
            given.check_user(response.user)
        except AuthenticationError:
            # The SDK may hold the login of another account by now.
            self.sdk_client = None
            self._restore()
            raise
        self._replace(response, is_irreplaceable=True)
        if given.refresh_token is None:
            # Nothing here can renew it.
            self.session = self.user = self.sdk_client = None
            self.loan = given.loan()
        return response

    def refresh(self) -> AuthResponse:
        """Exchange the refresh token for a new pair of tokens."""
        with self.lock:
            if self.loan is not None:
                raise AuthenticationError(
                    "this process works with the login of another one, which refreshes it"
                    if self.loan.is_of_process
                    else "this login is renewed when it has to be, for all who share it, or was given without a "
                    "refresh token: there is none to use here"
                )
            if self.session is None:
                raise AuthenticationError("nobody is logged in: call login_by_mail() first")
            token = self.session.refresh_token
            # Supabase forgives a second use for some seconds. Without a password there is nothing else to try.
            if token == self._doubtful and not self._is_irreplaceable:
                raise AuthenticationError(
                    "the backend was away when the login was last refreshed, and may have spent the refresh token, "
                    "which can be used once: log in again with session.login_by_mail(email, password)"
                )
            try:
                with auth_errors("refreshing the login", self.credentials.backend_url):
                    response = self._sdk().auth.refresh_session(token)
            except BackendUnavailableError as error:
                if not was_refused_unread(error):
                    self._doubtful = token
                raise
            self._check_same_account(response)
            self._accept(response)
            return response

    def _check_same_account(self, response: AuthResponse) -> None:
        """Refuse another account than that of before: stores would go on with somebody else's arrays."""
        before, now = (None if user is None else str(user.id) for user in (self.user, response.user))
        if before != now:
            # The SDK holds the login of the other one.
            self.session = self.user = self.sdk_client = None
            raise AuthenticationError(
                f"the refresh token of the account {before} is one of another account: give a pair of one account"
            )

    def log_out(self) -> None:
        """End this login, and no other of the user's."""
        self._finish()
        self._log_out()

    def _log_out(self) -> None:
        with self.lock:
            if self.loan is not None and not self.loan.is_of_process:
                # Keep the login alive: other sessions, or the program that gave the token, still use it.
                self.loan = self.sdk_client = None
            if self.session is None:
                return
            self.session = self.user = None
            # The SDK raises nothing if the login has already ended at the server, which is what was wanted.
            with auth_errors("logging out", self.credentials.backend_url):
                self._sdk().auth.sign_out({"scope": "local"})
            # Not reached if logging out failed: the end of the session tries again.
            self.ending.login = None

    def hold(self) -> None:
        """Add a holder of the login. The first one logs in."""

        def hold() -> None:
            with self.lock:
                if self.loan is None and self.session is None:
                    self._login()
                self._holders += 1

        self.patience.keep_trying(hold, "logging in")

    def release(self) -> None:
        """Remove a holder of the login. The last one logs out, and a failure of that is only logged."""
        with self.lock:
            self._holders -= 1
            if self._holders > 0:
                return
        # Not behind the lock, which requests need.
        self._finish()
        with self.lock:
            if self._holders > 0 or self.loan is not None or self._is_irreplaceable:
                return
            try:
                self._log_out()
            except TensorageError as error:
                logger.info("the login of %s stays open until it expires: %s", self.credentials.email, error)

    def _finish(self) -> None:
        """Let what nobody waits for come to an end: a request behind the logout would log in again."""
        if self._transfer is not None:
            self._transfer.finish(LAST_WORK_S)

    # Connections ----------------------------------------------------------------------------------------

    @property
    def client(self) -> supabase.Client:
        """Client of the Supabase SDK, made when first used, with the login's token if there is one."""
        if self.loan is not None or self.session is not None:
            _ = self.token
        with self.lock:
            return self._sdk()

    @property
    def transfer(self) -> Transfer:
        """Byte mover of this login, which sends requests as the logged-in user."""
        with self.lock:
            if self._transfer is None:
                self._transfer = Transfer(
                    self._required_url(), TransferLogin(self), patience=self.patience, changes=self._changes
                )
                self.ending.connections.append(self._transfer)
                self.ending.unfinished.append(self._transfer)
            return self._transfer

    def _sdk(self) -> supabase.Client:
        if self.sdk_client is None:
            from tensorage.signin.sdk import make_client

            url, key = self._required_url(), self.credentials.required_key()
            self.sdk_client, http = make_client(url, key)
            self.ending.connections.append(http)
            if self.loan is not None:
                self.sdk_client.options.headers["Authorization"] = f"Bearer {self.loan.token}"
        return self.sdk_client

    def _required_url(self) -> str:
        url = self.credentials.required_url()
        # The lender has checked the URL already, and warned if need be.
        return url if self.loan is not None else check_url(url)

    def _accept(self, response: AuthResponse) -> None:
        if response.session is None:
            raise AuthenticationError(
                f"the backend made no session for {self.credentials.email}: if it asks for a confirmation of the "
                "e-mail address, follow the link in the mail first"
            )
        self.session, self.user = response.session, response.user
        # The clock of the server may differ from that of this machine.
        self.expires_at = time.time() + response.session.expires_in
        self.loan = None
        self.patience.has_worked = True
        self._note_ending()

    def _note_ending(self) -> None:
        """Note what the end of the session has to log out: no login that cannot be made again."""
        assert self.session is not None
        key = require("backend_key", self.credentials.backend_key)
        logout = (self._required_url(), key, self.session.access_token)
        self.ending.login = None if self._is_irreplaceable else logout

    def _replace(self, response: AuthResponse, *, is_irreplaceable: bool = False) -> None:
        """Replace the login by another one, and end the old one."""
        before = self.ending.login
        self._accept(response)
        self._is_irreplaceable, self.credentials.given = is_irreplaceable, None
        self._note_ending()
        if is_irreplaceable:
            # The configured user may be another one: the session must never become theirs by itself.
            self.credentials.email = (self.user.email if self.user is not None else None) or None
            self.credentials.password = None
        if before is not None:
            last_logout(*before)

    def _restore(self) -> None:
        """Give the SDK its session back, which the SDK forgets when another login is refused."""
        if self.session is not None:
            with auth_errors("going on with the login", self.credentials.backend_url):
                tokens = self.session.access_token, self.session.refresh_token
                self._accept(self._sdk().auth.set_session(*tokens))

    def _login(self) -> None:
        if self.credentials.given is not None:
            self._take(self.credentials.given)
            return
        if self._is_irreplaceable:
            raise AuthenticationError(
                "this session has ended its login, which was given or anonymous, and there is no way back into it: log "
                "in with session.login_by_mail(email, password), or session.set_session(access_token, refresh_token)"
            )
        missing = [name for name in ("email", "password") if not getattr(self.credentials, name)]
        # A password without an address is not the kept login's: nobody becomes another one than was configured.
        if self.credentials.password is None and self._borrow_kept():
            return
        if missing:
            if all(name in self.credentials.held_back for name in missing):
                # The settings exist, but are held back. Asking for them would mislead the user.
                raise ConfigurationError(sentences(*(self.credentials.held_back[name] for name in missing)))
            variables = " and ".join(ENVIRONMENT[name] for name in missing)
            held_back = [name for name in missing if name in self.credentials.held_back]
            raise ConfigurationError(
                sentences(
                    f"nobody is logged in, and no {' and '.join(missing)} to log in with: call "
                    f"session.login_by_mail(email, password), or set {variables} in the environment or in a .env file, "
                    f"or run `tensorage login` once{_NOT_BESIDE_IT if self.credentials.password else ''}",
                    *(f"Also, {self.credentials.held_back[name]}" for name in held_back),
                    "" if self.credentials.backend_url else _NO_PROJECT,
                )
            )
        # The caller is about to send requests. The SDK logs in over connections of its own.
        self.transfer.http.open_ahead()
        self.log_in()

    def _borrow_kept(self) -> bool:
        """Work with the login that `tensorage login` keeps for this project. Return False if it keeps none."""
        if self.credentials.backend_url is None:
            return False
        kept = find_login(self._required_url(), self._kept_account or self.credentials.email)
        if kept is not None:
            self.transfer.http.open_ahead()
            self.borrow(kept)
        return kept is not None

    def borrow(self, kept: KeptLogin) -> None:
        """Work with a login that is kept, until `log_out`."""
        with self.lock:
            self.loan = kept.loan(self.credentials.required_key())
            self.sdk_client = None
            self.credentials.email = kept.email
            self._kept_account = kept.email or kept.user_id
            # Somewhere it has worked: an outage is waited out from now on.
            self.patience.has_worked = True

    def _expires_soon(self) -> bool:
        return self.expires_at - time.time() < self._margin()

    def _margin(self) -> float:
        """Return the seconds before its end at which a token is renewed."""
        assert self.session is not None
        # A token that lives for only a minute or two is used for most of that time.
        return min(RENEW_BEFORE_S, self.session.expires_in / 4)

    def _renew(self) -> None:
        """Get a new token: by refreshing the login, or by logging in again."""
        try:
            self.refresh()
        except AuthenticationError as error:
            if not (self.credentials.email and self.credentials.password):
                others = " or session.set_session(access_token, refresh_token)"
                raise AuthenticationError(
                    "the login has expired and cannot be refreshed: log in again with "
                    f"session.login_by_mail(email, password){others if self._is_irreplaceable else ''}"
                ) from error
            self.session = None
            self.log_in()

    def renew_unless_done(self, refused: str) -> None:
        """Replace a refused token, unless another thread has done so meanwhile."""
        with self.lock:
            if self.loan is not None and self.loan.token == refused:
                self._use(self.loan.next(refused))
            if self.session is not None and self.session.access_token == refused:
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
        """Use another token of the same login."""
        if self.loan is not None and self.loan.token != loan.token:
            # The client of the SDK holds the old token.
            self.sdk_client = None
        self.loan = loan

    def takes(self, loan: Loan) -> bool:
        """Accept a newer token that came with a pickle. Return False if this process holds a login of its own."""
        with self.lock:
            if self.loan is None:
                return False
            if loan.expires_at > self.loan.expires_at:
                self._use(loan)
            return True

    def loan_for_others(self) -> Loan:
        """Return a loan that another process can work with, and begin to answer its requests for tokens."""
        with self.lock:
            token = self.token_now()
            if self.loan is not None and self.loan.is_of_process:
                return self.loan
            lender = self.lender.open()
            self.lender.start()
            if self.loan is not None:
                return replace(self.loan, lender=lender)
            return Loan(token, self.expires_at - self._margin(), self.expires_at, self.user_id, lender)

    def before_fork(self) -> None:
        """Let the child know whom to ask for tokens. The lender's thread begins only after the fork."""
        if self.session is not None:
            self.lender.open()

    def after_fork(self) -> None:
        self.lender.start()

    def continue_in_child(self) -> None:
        """Continue after a fork, with new connections and the token of the parent, which renews and ends the login."""
        self.end.detach()
        # Kept, and never touched: a thread that is not here any more may have held a lock within these objects.
        self._inherited = (self.sdk_client, self._transfer, self.ending)
        self.lender.leave()
        if self.credentials.given is not None:
            self.credentials.given = self.credentials.given.without_refresh_token()
        if self.session is not None and self.user is not None:
            self.loan = Loan(
                self.session.access_token,
                self.expires_at - self._margin(),
                self.expires_at,
                str(self.user.id),
                self.lender.whereabouts,
            )
            self.session = None
        self._connect()


def _lend(lender: weakref.ref[Login], refused: str | None) -> Loan:
    """Lend the token of a login to another process."""
    login = lender()
    if login is None:
        raise AuthenticationError("its session has ended")
    with login.lock:
        if login.session is None and login.loan is None:
            raise AuthenticationError("it has logged out")
        if refused is not None:
            login.renew_unless_done(refused)
        return login.loan_for_others()
