"""Sessions in several processes, after a fork or by a pickle.

A forked or unpickled session borrows the token of the session that it comes from: see `tensorage.signin.lending`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, cast

from tensorage.signin.lending import Loan

__all__ = ["borrow_session", "watch"]


class Forked(Protocol):
    """The part of a login that forks concern."""

    def before_fork(self) -> None:
        """Let the child know whom to ask for tokens."""
        ...

    def after_fork(self) -> None:
        """Continue in the parent."""
        ...

    def continue_in_child(self) -> None:
        """Continue in the child, with new connections and the token of the parent."""
        ...


class Borrower(Protocol):
    """A session that may have come from another process."""

    def takes(self, loan: Loan) -> bool:
        """Accept a newer token that came with a pickle. Return False if this session has a login of its own."""
        ...

    def __setstate__(self, state: Mapping[str, Any]) -> None: ...


S = TypeVar("S", bound=Borrower)

#: Most borrowed sessions that are kept for later pickles. Each keeps connections open.
MAX_BORROWED = 4

# Weak, so that forks do not keep dropped sessions logged in.
_logins: weakref.WeakSet[Forked] = weakref.WeakSet()

_borrowed: OrderedDict[tuple[Any, ...], Borrower] = OrderedDict()
_borrowed_lock = threading.Lock()


def watch(login: Forked) -> None:
    """Tell a login of every fork from now on."""
    _logins.add(login)


def borrow_session(kind: type[S], state: dict[str, Any]) -> S:
    """Return the session that a pickle stands for. All pickles of one login share a session and its connections.

    Dask, for one, unpickles a store for each task.
    """
    loan = state["loan"]
    login = (kind, state["backend_url"], state["backend_key"], loan.user_id, loan.lender)
    with _borrowed_lock:
        session = _borrowed.get(login)
        if session is None or not session.takes(loan):
            # `__init__` would look for a configuration, which the state replaces.
            session = kind.__new__(kind)
            session.__setstate__(state)
            _borrowed[login] = session
        _borrowed.move_to_end(login)
        while len(_borrowed) > MAX_BORROWED:
            _borrowed.popitem(last=False)
    return cast("S", session)


def _before_fork() -> None:
    # A copy, since other threads may drop logins meanwhile.
    for login in list(_logins):
        login.before_fork()


def _after_fork_in_parent() -> None:
    for login in list(_logins):
        login.after_fork()


def _after_fork_in_child() -> None:
    global _borrowed_lock  # noqa: PLW0603 - another thread may have held it, and is not here to release it
    _borrowed_lock = threading.Lock()
    for login in list(_logins):
        login.continue_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
