"""Mutual proof of two processes of this machine that each is the one that the other means to talk to.

There are two checks. The system tells which user has the other end of a Unix socket. The other end sends a code over
numbers that both ends have just drawn, which can only be made with the shared key::

    lender -> asker    nonce of the lender
    asker  -> lender   nonce of the asker, code of ("asker", both nonces)
    lender -> asker    code of ("lender", both nonces)

The key itself is never sent. A code names the role, so that neither side's code can be used as the other's. No nonce
comes twice, so an old code is worth nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import sys
from multiprocessing import connection
from typing import Any, TypeAlias

__all__ = ["NotThePeerError", "prove_as_asker", "prove_as_lender"]

#: Random bytes that each side draws for one proof.
_NONCE_BYTES = 32
_CODE = "sha256"
_CODE_BYTES = 32

#: `struct ucred` of Linux: process, user, group.
_UCRED = struct.Struct("3i")

#: Beginning of `struct xucred` of macOS and FreeBSD: version, user. Python has no names for the socket option.
_XUCRED = struct.Struct("=II")
XUCRED_BYTES = 76
_XUCRED_VERSION = 0
_SOL_LOCAL = 0
_LOCAL_PEERCRED = 1

#: A string, since the class takes type parameters in type checkers only.
_Connection: TypeAlias = "connection.Connection[Any, Any]"


class NotThePeerError(OSError):
    """The other end of a connection is another user's, or does not know the key."""


def prove_as_asker(there: _Connection, key: bytes, patience_s: float) -> None:
    """Prove to a lender that this process may ask, and have the lender prove that it is the one that is meant.

    Raises
    ------
    NotThePeerError
        If the other end is not that lender. It has learned nothing that would help it elsewhere.
    OSError, EOFError
        If the other end hangs up.
    """
    _check_user(there)
    theirs = _receive(there, _NONCE_BYTES, patience_s)
    nonces = theirs + secrets.token_bytes(_NONCE_BYTES)
    there.send_bytes(nonces[_NONCE_BYTES:] + _code(key, b"asker", nonces))
    if not hmac.compare_digest(_receive(there, _CODE_BYTES, patience_s), _code(key, b"lender", nonces)):
        raise NotThePeerError("it does not know the key")


def prove_as_lender(there: _Connection, key: bytes, patience_s: float) -> None:
    """Have an asker prove that it may ask, and prove to the asker that this process is the lender.

    Raises
    ------
    NotThePeerError
        If the asker may not. It has been told nothing.
    OSError, EOFError
        If the asker hangs up.
    """
    _check_user(there)
    ours = secrets.token_bytes(_NONCE_BYTES)
    there.send_bytes(ours)
    said = _receive(there, _NONCE_BYTES + _CODE_BYTES, patience_s)
    nonces = ours + said[:_NONCE_BYTES]
    if not hmac.compare_digest(said[_NONCE_BYTES:], _code(key, b"asker", nonces)):
        raise NotThePeerError("it does not know the key")
    there.send_bytes(_code(key, b"lender", nonces))


def _code(key: bytes, role: bytes, nonces: bytes) -> bytes:
    # The nonces have a fixed length, so no two pairs of role and nonces make the same message.
    return hmac.digest(key, b"tensorage " + role + nonces, _CODE)


def _receive(there: _Connection, nbytes: int, patience_s: float) -> bytes:
    if not there.poll(patience_s):
        raise NotThePeerError(f"it said nothing for {patience_s:.0f} s")
    message = there.recv_bytes(nbytes)
    if len(message) != nbytes:
        raise NotThePeerError("it does not speak as this program does")
    return message


def _check_user(there: _Connection) -> None:
    uid = _user_of(there)
    # Refusing root would gain nothing: root can read the key in this process's memory.
    if uid is not None and uid not in (0, os.geteuid()):
        raise NotThePeerError(f"it is a process of another user (uid {uid})")


def _user_of(there: _Connection) -> int | None:
    """Return the user at the other end of a Unix socket; None if the system cannot tell."""
    if sys.platform == "win32":
        # Connections are named pipes, which tell no user.
        return None
    # `fromfd` duplicates the descriptor, so that closing the socket object leaves the connection open.
    with socket.fromfd(there.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        if hasattr(socket, "SO_PEERCRED"):
            _, uid, _ = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return int(uid)
        if sys.platform == "darwin" or sys.platform.startswith("freebsd"):
            return uid_of_xucred(end.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, XUCRED_BYTES))
    return None


def uid_of_xucred(credentials: bytes) -> int:
    version, uid = _XUCRED.unpack_from(credentials)
    if version != _XUCRED_VERSION:
        raise NotThePeerError(f"this system tells users in a form that is not known here (version {version})")
    return int(uid)
