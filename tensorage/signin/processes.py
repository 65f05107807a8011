"""Sessions in more than one process: what a fork and a pickle make of them.

After a fork, and where a pickle is read, a session works with the token of the one that it comes from: see
`tensorage.signin.lending`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorage.session import BackendSession

__all__ = ["borrowed", "watch"]

#: Borrowed sessions that are kept for what is unpickled later: they keep connections open.
MAX_BORROWED = 4

_sessions: weakref.WeakSet[BackendSession] = weakref.WeakSet()

_borrowed: OrderedDict[tuple[Any, ...], BackendSession] = OrderedDict()
_borrowed_lock = threading.Lock()


def watch(session: BackendSession) -> None:
    """Let a session go on, in its own way, in every process that is forked from this one."""
    _sessions.add(session)


def borrowed(kind: type[BackendSession], state: dict[str, Any]) -> BackendSession:
    """The session that a pickle stands for: one for all pickles of a login, so that they share its connections.

    What computes in tasks, as dask does, unpickles a store for each of them.
    """
    loan = state["loan"]
    login = (kind, state["backend_url"], state["backend_key"], loan.user_id, loan.lender)
    with _borrowed_lock:
        session = _borrowed.get(login)
        if session is None or not session._takes(loan):
            session = kind.__new__(kind)
            session.__setstate__(state)
            _borrowed[login] = session
        _borrowed.move_to_end(login)
        while len(_borrowed) > MAX_BORROWED:
            _borrowed.popitem(last=False)
    return session


def _before_fork() -> None:
    for session in list(_sessions):
        session._before_fork()


def _after_fork_in_parent() -> None:
    for session in list(_sessions):
        session._after_fork()


def _after_fork_in_child() -> None:
    global _borrowed_lock  # noqa: PLW0603 - another thread may have held it, and is not here to release it
    _borrowed_lock = threading.Lock()
    for session in list(_sessions):
        session._continue_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
