"""Sessions in more than one process: what a fork and a pickle make of them.

After a fork, and where a pickle is read, a session works with the token of the one that it comes from: see
`tensorage.signin.lending`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, cast

from tensorage.signin.lending import Loan

__all__ = ["borrowed", "watch"]


class Forked(Protocol):
    """A login, as far as forks are about it."""

    def before_fork(self) -> None:
        """Have the child know where to ask for tokens."""
        ...

    def after_fork(self) -> None:
        """Go on in the parent."""
        ...

    def continue_in_child(self) -> None:
        """Go on in the child, with connections of its own and the parent's token."""
        ...


class Borrower(Protocol):
    """A session that may have come from another process."""

    def takes(self, loan: Loan) -> bool:
        """Go on with a token that came with a pickle. False if this session borrows none."""
        ...

    def __setstate__(self, state: Mapping[str, Any]) -> None: ...


S = TypeVar("S", bound=Borrower)

#: Borrowed sessions that are kept for what is unpickled later: they keep connections open.
MAX_BORROWED = 4

_logins: weakref.WeakSet[Forked] = weakref.WeakSet()

_borrowed: OrderedDict[tuple[Any, ...], Borrower] = OrderedDict()
_borrowed_lock = threading.Lock()


def watch(login: Forked) -> None:
    """Let a login go on, in its own way, in every process that is forked from this one."""
    _logins.add(login)


def borrowed(kind: type[S], state: dict[str, Any]) -> S:
    """The session that a pickle stands for: one for all pickles of a login, so that they share its connections.

    What computes in tasks, as dask does, unpickles a store for each of them.
    """
    loan = state["loan"]
    login = (kind, state["backend_url"], state["backend_key"], loan.user_id, loan.lender)
    with _borrowed_lock:
        session = _borrowed.get(login)
        if session is None or not session.takes(loan):
            session = kind.__new__(kind)
            session.__setstate__(state)
            _borrowed[login] = session
        _borrowed.move_to_end(login)
        while len(_borrowed) > MAX_BORROWED:
            _borrowed.popitem(last=False)
    return cast("S", session)


def _before_fork() -> None:
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
