"""Passwords: hashed with bcrypt in GoTrue's format, so that a table of users can move to Supabase and back."""

from __future__ import annotations

import asyncio
import hmac
import secrets

import bcrypt

from tensorage.embedded.auth.answers import AuthError

#: GoTrue's cost of a hash. One more doubles the time.
_ROUNDS = 10

#: Bytes of a password that bcrypt uses. Longer passwords are refused, since bcrypt would ignore the rest.
_MAX_BYTES = 72
_MIN_LENGTH = 6

#: A hash that no password matches. Checking against it takes the time of any check.
_NOBODYS_HASH = bcrypt.gensalt(_ROUNDS, prefix=b"2a").decode() + "." * 31

#: Codes over a password and its stored hash, for passwords that were right in this process. Checking a password against
#: its hash takes 50 ms of CPU or more, as it should for those who guess. A new password has another hash and code.
known_codes: set[bytes] = set()
MOST_KNOWN_CODES = 1024

#: Key of the codes, which never leaves this process.
_KEY_OF_KNOWN = secrets.token_bytes(32)


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
    encoded, salt = password.encode(), bcrypt.gensalt(_ROUNDS, prefix=b"2a")
    # bcrypt is slow on purpose, and releases the GIL: in a thread it keeps no other request waiting.
    hashed = await asyncio.to_thread(bcrypt.hashpw, encoded, salt)
    _remember(_code_of(encoded, hashed))
    return hashed.decode()


async def is_password(password: str, stored: str | None) -> bool:
    """Tell whether a stored hash is that of `password`. The check takes as long if nothing is stored.

    A password that was right before is right at once. A wrong one takes its time, however often it is tried.
    """
    encoded = password.encode()
    hashed = (stored or _NOBODYS_HASH).encode()
    code = _code_of(encoded, hashed)
    if code in known_codes:
        return True
    matches = await asyncio.to_thread(bcrypt.checkpw, encoded[:_MAX_BYTES], hashed)
    if not (matches and stored and len(encoded) <= _MAX_BYTES):
        return False
    _remember(code)
    return True


def _code_of(encoded: bytes, hashed: bytes) -> bytes:
    # A hash from PostgreSQL has no NUL: no two pairs of hash and password make one text.
    return hmac.digest(_KEY_OF_KNOWN, hashed + b"\0" + encoded, "sha256")


def _remember(code: bytes) -> None:
    # Starting over is simpler than evicting, and as good: a busy client's password is checked once more.
    if len(known_codes) >= MOST_KNOWN_CODES:
        known_codes.clear()
    known_codes.add(code)
