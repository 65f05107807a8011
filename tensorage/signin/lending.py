"""Loans of a session's token to processes that work as its user, and requests for the next token.

A child process never logs in, and neither does a process that a session was pickled for. The refresh token of a login
can be used once, so a single process, the lender, refreshes it. The lender answers the other processes on a local
socket: one question and one answer a connection, each a line of JSON, once both sides have proved their identity (see
`tensorage.signin.proofs`)::

    {"refused": the token that does not work any more, or null}
    {"token": ..., "fresh_until": ..., "expires_at": ..., "user_id": ...}   or   {"error": ...}

The socket lies in a folder that only this user of the machine can enter. The folder is removed with its process, and
another user may then make one of the same name: hence the proof.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, Protocol

from tensorage.errors import AuthenticationError, BackendUnavailableError, TensorageError
from tensorage.signin.proofs import NotThePeerError, prove_as_asker, prove_as_lender
from tensorage.wording import one_line

__all__ = ["Lender", "Loan", "Source", "Whereabouts"]

logger = logging.getLogger(__name__)

#: Longest wait for the question, once a process has connected.
QUESTION_TIMEOUT_S = 10.0

#: Longest wait for the answer. The lender may have to renew the login first, in more than one try.
ANSWER_TIMEOUT_S = 60.0

#: Most processes that may ask at the same time before the system turns one away.
BACKLOG = 256

#: Pause after a failed connection. The reason may be a lack of file descriptors, which repeats at once.
PAUSE_S = 0.1

_MAX_MESSAGE_BYTES = 64 * 1024


class Source(Protocol):
    """A giver of tokens.

    Attributes
    ----------
    is_elsewhere
        True if it is a process that any process of this user can ask.
    """

    @property
    def is_elsewhere(self) -> bool: ...

    def next_loan(self, refused: str | None) -> Loan:
        """Return a loan with a fresh token, another one than the refused."""
        ...


@dataclass(frozen=True)
class Whereabouts:
    """Address of a lender, and the key that the lender and its askers share."""

    address: str
    secret: str = field(repr=False)

    @property
    def is_elsewhere(self) -> bool:
        return True

    @property
    def key(self) -> bytes:
        return self.secret.encode()

    def next_loan(self, refused: str | None) -> Loan:
        """Ask the lender for a fresh token.

        Raises
        ------
        AuthenticationError
            If the process that holds the login is gone, has logged out, or cannot renew the login; or if another
            process answers in its place, which is told nothing.
        BackendUnavailableError
            If the lender cannot renew the login now, because the backend is away.
        """
        try:
            with connection.Client(self.address) as asking:
                prove_as_asker(asking, self.key, ANSWER_TIMEOUT_S)
                asking.send_bytes(json.dumps({"refused": refused}).encode())
                if not asking.poll(ANSWER_TIMEOUT_S):
                    raise _login_gone(f"it did not answer within {ANSWER_TIMEOUT_S:.0f} s")
                answer = json.loads(asking.recv_bytes(_MAX_MESSAGE_BYTES))
        except NotThePeerError as error:
            raise _login_gone(
                f"what answers at {self.address} is not that process: {one_line(str(error))}"
            ) from error
        except (OSError, EOFError) as error:
            raise _login_gone(f"it cannot be asked for another one ({type(error).__name__})") from error
        # Only a lasting error means that this process has to log in by itself.
        if answer.get("is_passing"):
            raise BackendUnavailableError(
                f"the process that holds the login cannot renew it now: {answer['error']}"
            )
        if "error" in answer:
            raise _login_gone(f"it has no other one: {answer['error']}")
        return Loan(**answer, lender=self)


@dataclass(frozen=True)
class Loan:
    """The token of a login that something else renews: another process, mostly.

    Parameters
    ----------
    fresh_until
        Time from which on the lender has a newer token. In seconds since the epoch, as `expires_at`.
    user_id
        User whose token it is.
    lender
        Giver of the next loan; None if the process that holds the login cannot be asked.
    """

    token: str = field(repr=False)
    fresh_until: float
    expires_at: float
    user_id: str
    lender: Source | None = None

    @property
    def is_of_process(self) -> bool:
        """True if the login is another process's."""
        return self.lender is None or self.lender.is_elsewhere

    def next(self, refused: str | None = None) -> Loan:
        """Return a loan with a fresh token.

        Parameters
        ----------
        refused
            The token that the backend has refused, if that is the reason for the question.

        Raises
        ------
        AuthenticationError
            If there is no other token.
        BackendUnavailableError
            If the login cannot be renewed now, because the backend is away.
        """
        if self.lender is None:
            raise _login_gone("it cannot be asked for another one")
        return self.lender.next_loan(refused)


def _login_gone(why: str) -> AuthenticationError:
    return AuthenticationError(
        f"the login of this process is that of the process it came from, and {why}. Keep that process and its "
        "store alive, or log in here with session.login_by_mail(email, password)"
    )


class Lender:
    """Server that lends a session's token to processes of this machine.

    It has a socket once `open` was called, and a thread once `start` was. Most sessions need neither.

    Parameters
    ----------
    lend
        Function that returns a loan with a fresh token, another one than the `refused`. It raises `TensorageError` if
        there is none.
    """

    def __init__(self, lend: Callable[[str | None], Loan]) -> None:
        self._lend = lend
        self._lock = threading.Lock()
        self._listener: connection.Listener | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        #: Address and key of the lender, once it has a socket.
        self.whereabouts: Whereabouts | None = None

    def open(self) -> Whereabouts | None:
        """Open the socket and return its address; None if there can be no socket. Askers wait until `start`."""
        with self._lock:
            if self._listener is None and not self._closed:
                try:
                    # The system chooses the address: a socket in a new folder of this user.
                    self._listener = connection.Listener(backlog=BACKLOG)
                except OSError as error:
                    logger.warning("other processes cannot ask for the next token of this one: %s", error)
                    return None
                self.whereabouts = Whereabouts(str(self._listener.address), secrets.token_urlsafe(32))
            return self.whereabouts

    def start(self) -> None:
        """Begin to answer, if the socket is open."""
        with self._lock:
            if self._listener is not None and self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._serve, args=[self._listener], name="tensorage lender", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Stop answering, for good."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed or self._listener is None or self.whereabouts is None:
            return
        if self._thread is not None:
            # The thread waits for a connection, and stops after this one.
            try:
                connection.Client(self.whereabouts.address).close()
            except OSError as error:
                logger.debug("the lender's socket is gone: %s", error)
        self._listener.close()

    def leave(self) -> None:
        """Drop the socket in a forked child: the parent answers, and once it is gone nobody must seem to."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()

    def _serve(self, listener: connection.Listener) -> None:
        while True:
            try:
                asking = listener.accept()
            except OSError as error:
                if self._closed:
                    return
                logger.debug("nobody could connect: %s", error)
                time.sleep(PAUSE_S)
                continue
            if self._closed:
                asking.close()
                return
            # Each connection has a thread of its own, so that one that asks nothing keeps nobody waiting.
            threading.Thread(target=self._answer, args=[asking], name="tensorage lender", daemon=True).start()

    def _answer(self, asking: connection.Connection[Any, Any]) -> None:
        try:
            with asking:
                if self.whereabouts is None:
                    return
                prove_as_lender(asking, self.whereabouts.key, QUESTION_TIMEOUT_S)
                if not asking.poll(QUESTION_TIMEOUT_S):
                    return
                question = json.loads(asking.recv_bytes(_MAX_MESSAGE_BYTES))
                asking.send_bytes(json.dumps(self._answer_to(question["refused"])).encode())
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            logger.debug(
                "a process that asked for a token is gone, may not have it, or asked for nothing: %s", error
            )

    def _answer_to(self, refused: str | None) -> dict[str, Any]:
        try:
            loan = self._lend(refused)
        except BackendUnavailableError as error:
            return {"error": str(error), "is_passing": True}
        except TensorageError as error:
            return {"error": str(error)}
        # The asker knows the lender, and its key must not be sent.
        return {
            "token": loan.token,
            "fresh_until": loan.fresh_until,
            "expires_at": loan.expires_at,
            "user_id": loan.user_id,
        }
