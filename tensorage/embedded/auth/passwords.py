"""Passwords: hashed with bcrypt in GoTrue's format, so that a table of users can move to Supabase and back."""

from __future__ import annotations

import asyncio

import bcrypt

from tensorage.embedded.auth.answers import AuthError

#: GoTrue's cost of a hash. One more doubles the time.
_ROUNDS = 10

#: Bytes of a password that bcrypt uses. Longer passwords are refused, since bcrypt would ignore the rest.
_MAX_BYTES = 72
_MIN_LENGTH = 6

#: A hash that no password matches. Checking against it takes the time of any check.
_NOBODYS_HASH = bcrypt.gensalt(_ROUNDS, prefix=b"2a").decode() + "." * 31


def check_strength(password: str) -> None:
    """Refuse a password that is too short to be safe, or too long to be hashed whole."""
    size = len(password.encode())
    if size > _MAX_BYTES:
        message = f"Password cannot be longer than {_MAX_BYTES} characters"
        raise AuthError(400, "validation_failed", message)
    # Bytes rather than characters, as GoTrue counts.
    if size < _MIN_LENGTH:
        message = f"Password should be at least {_MIN_LENGTH} characters."
        raise AuthError(422, "weak_password", message, weaknesses=("length",))


async def hash_password(password: str) -> str:
    """Return the hash of a password, to be stored."""
    salt = bcrypt.gensalt(_ROUNDS, prefix=b"2a")
    # bcrypt is slow on purpose, and releases the GIL: in a thread it keeps no other request waiting.
    return (await asyncio.to_thread(bcrypt.hashpw, password.encode(), salt)).decode()


async def is_password(password: str, stored: str | None) -> bool:
    """Tell whether a stored hash is that of `password`. The check takes as long if nothing is stored."""
    encoded = password.encode()
    hashed = (stored or _NOBODYS_HASH).encode()
    matches = await asyncio.to_thread(bcrypt.checkpw, encoded[:_MAX_BYTES], hashed)
    return matches and bool(stored) and len(encoded) <= _MAX_BYTES
