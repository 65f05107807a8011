"""Passwords: bcrypt, in GoTrue's own format, so that a table of users can move to Supabase and back."""

from __future__ import annotations

import asyncio

import bcrypt

from tensorage.embedded.auth.answers import AuthError

#: GoTrue's cost. Each step up doubles the time.
_ROUNDS = 10

#: bcrypt looks at no more bytes than these.
_MAX_BYTES = 72
_MIN_LENGTH = 6

#: Well formed, and no password's: for spending the time of a check when there is nothing to check against.
_NOBODYS_HASH = bcrypt.gensalt(_ROUNDS, prefix=b"2a").decode() + "." * 31


def check_strength(password: str) -> None:
    """Refuse a password that is too short to be safe or too long to be hashed whole."""
    size = len(password.encode())
    if size > _MAX_BYTES:
        message = f"Password cannot be longer than {_MAX_BYTES} characters"
        raise AuthError(400, "validation_failed", message)
    # GoTrue counts bytes here, too.
    if size < _MIN_LENGTH:
        message = f"Password should be at least {_MIN_LENGTH} characters."
        raise AuthError(422, "weak_password", message, weaknesses=("length",))


async def hash_password(password: str) -> str:
    """Make what is stored of `password`."""
    salt = bcrypt.gensalt(_ROUNDS, prefix=b"2a")
    # In a thread: bcrypt is slow on purpose, and other requests go on meanwhile (it releases the GIL).
    return (await asyncio.to_thread(bcrypt.hashpw, password.encode(), salt)).decode()


async def is_password(password: str, stored: str | None) -> bool:
    """Whether `stored` was made from `password`; takes as long where there is nothing stored."""
    encoded = password.encode()
    hashed = (stored or _NOBODYS_HASH).encode()
    matches = await asyncio.to_thread(bcrypt.checkpw, encoded[:_MAX_BYTES], hashed)
    return matches and bool(stored) and len(encoded) <= _MAX_BYTES
