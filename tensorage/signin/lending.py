"""Tokens for the processes that work as the user of a session: they borrow its token, and ask for the next one.

A child process, or one that a session was pickled for, never logs in. The refresh token of a login can be used once,
so one process refreshes it. The process that holds the login answers the others on a local socket, one question and
one answer a connection, each a line of JSON, once both have proved who they are (see `tensorage.signin.peers`)::

    {"refused": the token that does not work any more, or null}
    {"token": ..., "fresh_until": ..., "expires_at": ..., "user_id": ...}   or   {"error": ...}

The socket lies in a folder that only this user of the machine can enter. That folder goes with its process, and another
user may make one of the same name: hence the proof.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from typing import Any

from tensorage.errors import AuthenticationError, BackendUnavailableError, TensorageError
from tensorage.signin.peers import NotThePeerError, prove_as_asker, prove_as_lender

__all__ = ["Lender", "Loan", "Whereabouts"]

logger = logging.getLogger(__name__)

#: For the question to come, once somebody has connected.
QUESTION_TIMEOUT_S = 10.0

#: For the answer: the lender may have to renew the login first, and to try that more than once.
ANSWER_TIMEOUT_S = 60.0

#: Processes that may ask at the same time, before one of them is turned away.
BACKLOG = 256

#: After a connection failed, which may be for want of file descriptors.
PAUSE_S = 0.1

_MAX_MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Whereabouts:
    """Address of a lender, and the key that it and its askers share."""

    address: str
    secret: str = field(repr=False)

    @property
    def key(self) -> bytes:
        return self.secret.encode()


@dataclass(frozen=True)
class Loan:
    """The token of another process's login.

    Parameters
    ----------
    fresh_until
        From then on the lender has a newer one. In seconds since the epoch, as `expires_at`.
    user_id
        Whose it is.
    lender
        Where the next one comes from; None if that process cannot be asked.
    """

    token: str = field(repr=False)
    fresh_until: float
    expires_at: float
    user_id: str
    lender: Whereabouts | None = None

    def next(self, refused: str | None = None) -> Loan:
        """Ask for a fresh token.

        Parameters
        ----------
        refused
            The token that the backend has refused, if that is why.

        Raises
        ------
        AuthenticationError
            If the process that holds the login is gone, has logged out, or cannot renew it; or if another one answers
            in its place, which is told nothing.
        BackendUnavailableError
            If it cannot renew it now, because the backend is away.
        """
        if self.lender is None:
            raise _login_gone("it cannot be asked for another one")
        try:
            with connection.Client(self.lender.address) as asking:
                prove_as_asker(asking, self.lender.key, ANSWER_TIMEOUT_S)
                asking.send_bytes(json.dumps({"refused": refused}).encode())
                if not asking.poll(ANSWER_TIMEOUT_S):
                    raise _login_gone(f"it did not answer within {ANSWER_TIMEOUT_S:.0f} s")
                answer = json.loads(asking.recv_bytes(_MAX_MESSAGE_BYTES))
        except NotThePeerError as error:
            raise _login_gone(
                f"what answers at {self.lender.address} is not that process: {error}"
            ) from error
        except (OSError, EOFError) as error:
            raise _login_gone(f"it cannot be asked for another one ({type(error).__name__})") from error
        if answer.get("is_passing"):
            raise BackendUnavailableError(
                f"the process that holds the login cannot renew it now: {answer['error']}"
            )
        if "error" in answer:
            raise _login_gone(f"it has no other one: {answer['error']}")
        return Loan(**answer, lender=self.lender)


def _login_gone(why: str) -> AuthenticationError:
    return AuthenticationError(
        f"the login of this process is that of the process it came from, and {why}. Keep that process and its "
        "store alive, or log in here with session.login_by_mail(email, password)"
    )


class Lender:
    """Answers the processes of this machine that have borrowed a session's token.

    Nothing at first, a socket once `open` was called, and a thread once `start` was.

    Parameters
    ----------
    lend
        Gives a token, fresh and another one than the `refused`; raises `TensorageError` if there is none.
    """

    def __init__(self, lend: Callable[[str | None], Loan]) -> None:
        self._lend = lend
        self._lock = threading.Lock()
        self._listener: connection.Listener | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        #: Where it is asked, once it can be.
        self.whereabouts: Whereabouts | None = None

    def open(self) -> Whereabouts | None:
        """Where it is asked; whoever asks waits until it was started. None if there can be no socket."""
        with self._lock:
            if self._listener is None and not self._closed:
                try:
                    self._listener = connection.Listener(backlog=BACKLOG)
                except OSError as error:
                    logger.warning("other processes cannot ask for the next token of this one: %s", error)
                    return None
                self.whereabouts = Whereabouts(str(self._listener.address), secrets.token_urlsafe(32))
            return self.whereabouts

    def start(self) -> None:
        """Begin to answer, if somebody knows where to ask."""
        with self._lock:
            if self._listener is not None and self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._serve, args=[self._listener], name="tensorage lender", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed or self._listener is None or self.whereabouts is None:
            return
        if self._thread is not None:
            # It waits for somebody to connect.
            try:
                connection.Client(self.whereabouts.address).close()
            except OSError as error:
                logger.debug("the lender's socket is gone: %s", error)
        self._listener.close()

    def leave(self) -> None:
        """In a forked child: the socket is not the child's to answer, nor to keep open when the parent is gone."""
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
            # Each in a thread of its own: one that asks nothing keeps nobody waiting.
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
            loan = asdict(self._lend(refused))
        except BackendUnavailableError as error:
            return {"error": str(error), "is_passing": True}
        except TensorageError as error:
            return {"error": str(error)}
        del loan["lender"]
        return loan
