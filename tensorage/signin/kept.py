"""Logins that outlive a process: `tensorage login` keeps them, and all processes of this user of the machine use them.

A refresh token can be used once. A process that needs a new access token takes the lock of the login, reads what is
kept once more, and uses what somebody else has renewed meanwhile. Otherwise it renews the login, and keeps the new
tokens before it unlocks. A hundred processes make one request so, and no sign-in.

If the process dies between the answer and the end of its writing, the next one uses the same refresh token. Supabase
takes it for another 10 s, and later too, unless the project has been told otherwise.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tensorage.config import is_unread, saved_path
from tensorage.errors import AuthenticationError, BackendUnavailableError, ConfigurationError, TensorageError
from tensorage.file_locks import hold_lock
from tensorage.signin.auth_requests import AuthServer, EndedError, SignedIn
from tensorage.signin.kept_tokens import (
    Place,
    Record,
    Tokens,
    forget_record,
    load_record,
    prepare_folder,
    room_for,
    save_record,
)
from tensorage.signin.keyrings import forget_secret, has_keyring

if TYPE_CHECKING:
    from tensorage.signin.lending import Loan

__all__ = ["KeptLogin", "check_can_keep", "find_login", "keep_login"]

logger = logging.getLogger(__name__)

#: Longest wait for the process that renews a login. Then it counts as an outage, which sessions wait out.
LOCK_TIMEOUT_S = 30.0

#: False on Windows.
_HAS_LOCKS = os.name != "nt"


@dataclass(frozen=True)
class KeptLogin:
    """A login that is kept, by its place. Whatever it says is read anew, since other processes renew it.

    Parameters
    ----------
    user_id
        Account of the login. Another account that takes its place is none of it.
    """

    path: Path
    url: str
    user_id: str
    email: str | None
    kept_in: Place

    @property
    def where(self) -> str:
        """Place of the tokens, in words."""
        return "the system's keyring" if self.kept_in == "keyring" else str(self.path)

    @property
    def name(self) -> str:
        """Account, in words."""
        return self.email or f"the anonymous account {self.user_id}"

    def tokens(self, key: str, refused: str | None = None) -> Tokens:
        """Return tokens that are good for a while, renewed if need be.

        Parameters
        ----------
        key
            Publishable key of the project.
        refused
            Access token that the project has refused.

        Raises
        ------
        AuthenticationError
            If the login is not kept any more, or has ended.
        BackendUnavailableError
            If the login has to be renewed, and the project is away. It stays kept.
        """
        try:
            _, tokens = self._read()
            if tokens.access_token == refused or time.time() >= tokens.expires_at:
                with _hold_lock(self.path, self.url):
                    return self._renew(key, refused)
            return tokens if tokens.is_fresh() else self._renew_early(tokens, key)
        except EndedError as error:
            raise AuthenticationError(str(error)) from error

    def _renew_early(self, tokens: Tokens, key: str) -> Tokens:
        """Renew tokens that are good for another moment, or go on with them if that cannot be done at once."""
        try:
            with _hold_lock(self.path, self.url, timeout_s=0.0):
                return self._renew(key, None)
        except BackendUnavailableError as error:
            logger.debug("going on with the kept token of before: %s", error)
            return tokens

    def loan(self, key: str) -> Loan:
        """Return the access token as a loan. The next one comes from here.

        If the project is away, the token may have expired: the account is known all the same, and so is the spool that
        it may write to. The first request renews the token, or tells that the project is away.
        """
        try:
            tokens = self.tokens(key)
        except BackendUnavailableError as error:
            logger.debug("beginning with a token that has to be renewed: %s", error)
            _, tokens = self._read()
        return self._loan_of(tokens, key)

    def end(self, key: str) -> None:
        """End this login at the project, and no other of the user's, and forget it.

        Raises
        ------
        BackendUnavailableError
            If the project is away. The login stays kept.
        """
        server = AuthServer(self.url, key)
        try:
            with _hold_lock(self.path, self.url):
                try:
                    self._end_behind_lock(server, key)
                except EndedError as error:
                    logger.info("the login had ended before: %s", error)
                self._forget_behind_lock()
        finally:
            server.close()

    def _end_behind_lock(self, server: AuthServer, key: str) -> None:
        token = self._renew(key, None).access_token
        try:
            server.end(token)
        except EndedError as error:
            # By a clock that was wrong it seemed good. The login may go on: its refresh token tells.
            logger.debug("renewing the kept token to end its login: %s", error)
            server.end(self._renew(key, token).access_token)

    def forget(self) -> None:
        """Delete the login here, whether or not it goes on at the project.

        Raises
        ------
        BackendUnavailableError
            If another process renews it all the time, as one does while the project is away. The login stays kept.
        """
        # A process that renews it at this moment would keep it again.
        with _hold_lock(self.path, self.url):
            self._forget_behind_lock()

    def _forget_behind_lock(self) -> None:
        found = load_record(self.path)
        if found is not None:
            forget_record(self.path, found[0])

    def _renew(self, key: str, refused: str | None) -> Tokens:
        """Return good tokens, behind the lock."""
        record, tokens = self._read()
        if tokens.is_fresh() and tokens.access_token != refused:
            return tokens
        server = AuthServer(self.url, key)
        try:
            # Room first: what was spent and cannot be saved would be lost.
            with room_for(self.path, record, tokens) as save:
                answer = server.refresh(tokens.refresh_token)
                self._check_account(answer.user_id)
                renewed = Tokens.of(answer)
                save(renewed)
                return renewed
        except EndedError as error:
            raise EndedError(
                f"the kept login of {self.name} at {self.url} has ended ({error}). {self._log_in_again()}"
            ) from error
        finally:
            server.close()

    def _read(self) -> tuple[Record, Tokens]:
        found = load_record(self.path)
        if found is None:
            raise EndedError(
                f"the login of {self.name} at {self.url} is not kept any more. {self._log_in_again()}"
            )
        record, tokens = found
        _check_project(record, self.path, self.url)
        self._check_account(record.user_id)
        return record, tokens

    def _check_account(self, user_id: str) -> None:
        if user_id != self.user_id:
            raise AuthenticationError(
                f"the kept login at {self.url} is that of another account by now, {user_id}. Begin this program again "
                "to work as that one"
            )

    def _log_in_again(self) -> str:
        return f"Run `tensorage login{f' {self.email}' if self.email else ''}` again"

    def _loan_of(self, tokens: Tokens, key: str) -> Loan:
        # The command line has no need of it.
        from tensorage.signin.lending import Loan

        return Loan(
            tokens.access_token, tokens.fresh_until, tokens.expires_at, self.user_id, _KeptLender(self, key)
        )


class _KeptLender:
    """Lender of the tokens of a kept login. It has neither a socket nor a thread, and works in forked children, too."""

    #: Other processes ask this one: see `Login.loan_for_others`.
    is_elsewhere = False

    def __init__(self, kept: KeptLogin, key: str) -> None:
        self._kept = kept
        self._key = key

    def next_loan(self, refused: str | None) -> Loan:
        """Return a loan with another token than the refused one."""
        kept = self._kept
        return kept._loan_of(kept.tokens(self._key, refused), self._key)

    def __repr__(self) -> str:
        return f"<login of {self._kept.name}, kept in {self._kept.where}>"


def find_login(url: str, account: str | None = None) -> KeptLogin | None:
    """Return the kept login of a project.

    Parameters
    ----------
    account
        Address of the account, or the id of an anonymous one. By default the account that has logged in last.

    Raises
    ------
    ConfigurationError
        If others could have read or written it, or if it is damaged.
    """
    if not _HAS_LOCKS:
        return None
    url = url.rstrip("/")
    folder = _folder()
    if account is not None:
        paths = [_path(url, account)]
    else:
        begin = _digest(url)
        try:
            names = sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"kept logins in {folder} cannot be read ({error.strerror})") from error
        paths = [folder / name for name in names if name.startswith(begin) and name.endswith(".json")]
    found = [(record, path) for path in paths if (record := _record_at(path, url)) is not None]
    if not found:
        return None
    record, path = max(found, key=lambda one: one[0].kept_at)
    return _kept(record, path)


def check_can_keep(url: str) -> None:
    """Refuse to keep a login that others could get to know, before a password is asked for.

    Raises
    ------
    ConfigurationError
        If the way to the project is not encrypted, others can enter the folder, or the system has no locks.
    """
    if not _HAS_LOCKS:
        raise ConfigurationError(
            "logins are not kept on Windows, whose files have neither modes nor locks of this kind: set USER_EMAIL and "
            "USER_PASSWORD in the environment"
        )
    if not is_unread(url):
        raise ConfigurationError(
            f"no login is kept for {url}: whoever is on the way to it could read the tokens, which are good for "
            "months. Use https://, or a tunnel that ends at a port of this machine"
        )
    prepare_folder(_folder())


def keep_login(url: str, answer: SignedIn, key: str, place: Place | None = None) -> KeptLogin:
    """Keep a login, in place of the one of the same account, which is ended.

    Parameters
    ----------
    place
        Place of the tokens. By default the system's keyring if there is one, else a file.

    Raises
    ------
    ConfigurationError
        If it cannot be kept. The new login has been ended then, and the one of before stays. Or if a keyring does not
        forget the one of before, which has ended, while the new one is kept in a file.
    """
    url = url.rstrip("/")
    server = AuthServer(url, key)
    try:
        try:
            check_can_keep(url)
            kept_in = place or ("keyring" if has_keyring() else "file")
            record = Record(url, answer.user_id, answer.email, time.time(), kept_in)
            path = _path(url, record.name)
            with _hold_lock(path, url):
                before = _before(path, url)
                save_record(path, record, Tokens.of(answer))
        except BaseException:
            _end(server, answer.access_token)
            raise
        if before is not None:
            _end_replaced(server, before[1])
            if before[0].kept_in == "keyring" and kept_in == "file":
                forget_secret(url, before[0].name)
    finally:
        server.close()
    return _kept(record, path)


def _before(path: Path, url: str) -> tuple[Record, Tokens] | None:
    """Return the login that another one takes the place of; None if there is none of this project that can be read."""
    try:
        found = load_record(path)
        if found is not None:
            # It is about to be ended, by a request with its token.
            _check_project(found[0], path, url)
    except ConfigurationError as error:
        logger.info("the kept login of before is replaced: %s", error)
        return None
    return found


def _end(server: AuthServer, token: str) -> None:
    try:
        server.end(token)
    except TensorageError as error:
        logger.info("a login stays open until it expires: %s", error)


def _end_replaced(server: AuthServer, tokens: Tokens) -> None:
    """End the login that another one has taken the place of. A project ends a login only for a token that is good."""
    try:
        if time.time() < tokens.expires_at:
            try:
                return server.end(tokens.access_token)
            except EndedError as error:
                logger.debug("renewing the replaced login to end it: %s", error)
        server.end(server.refresh(tokens.refresh_token).access_token)
    except TensorageError as error:
        logger.info("a login stays open until it expires: %s", error)


def _kept(record: Record, path: Path) -> KeptLogin:
    return KeptLogin(path, record.url, record.user_id, record.email, record.kept_in)


def _record_at(path: Path, url: str) -> Record | None:
    found = load_record(path)
    if found is None:
        return None
    _check_project(found[0], path, url)
    return found[0]


def _check_project(record: Record, path: Path, url: str) -> None:
    """Refuse tokens of another project: they are sent to the one that gave them, and nowhere else."""
    if record.url != url:
        raise ConfigurationError(
            f"the kept login in {path} is of {record.url}, and is not sent to {url}: run `tensorage login` again"
        )
    if not is_unread(url):
        raise ConfigurationError(f"the kept login in {path} is not sent to {url}, which is not encrypted")


@contextmanager
def _hold_lock(path: Path, url: str, timeout_s: float | None = None) -> Iterator[None]:
    wait_s = LOCK_TIMEOUT_S if timeout_s is None else timeout_s

    def stuck() -> BackendUnavailableError:
        return BackendUnavailableError(
            f"renewing the kept login: another process has held its lock, {path.with_suffix('.lock')}, for "
            f"{wait_s:.0f} s, as one does while {url} does not answer. Try again later"
        )

    prepare_folder(path.parent)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path.with_suffix(".lock"), wait_s, stuck))
        except BackendUnavailableError:
            raise
        except OSError as error:
            raise ConfigurationError(
                f"the kept login in {path} cannot be locked ({error.strerror or type(error).__name__}): let this user "
                "write there"
            ) from error
        yield


def _folder() -> Path:
    return saved_path().parent / "logins"


def _path(url: str, account: str) -> Path:
    return _folder() / f"{_digest(url)}-{_digest(account.lower())}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
