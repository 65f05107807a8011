"""Tokens of a kept login, and the two places for them: a file of this user's own, or the system's keyring.

A file, whose folder nobody else can enter, says which login is kept, and where. It holds the tokens as well, unless
they are in the keyring::

    {"format": 1, "url": ..., "user_id": ..., "email": ..., "kept_at": ..., "kept_in": "file", "tokens": {...}}

Each file is replaced as a whole, so that readers need no lock.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tensorage.errors import ConfigurationError
from tensorage.private_files import (
    Flaw,
    flaw_of_file,
    flaw_of_private_folder,
    flaw_on_way,
    make_private_folder,
)
from tensorage.signin.auth_requests import SignedIn
from tensorage.signin.keyrings import forget_secret, load_secret, save_secret
from tensorage.wording import one_line

__all__ = [
    "Place",
    "Record",
    "Tokens",
    "forget_record",
    "load_record",
    "prepare_folder",
    "room_for",
    "save_record",
]

#: Place of a login's tokens.
Place = Literal["keyring", "file"]

_PLACES: dict[object, Place] = {"keyring": "keyring", "file": "file"}

#: A token that expires within this many seconds is renewed before it is used.
RENEW_BEFORE_S = 60

_FORMAT = 1

#: Largest file that is read. Tokens with the metadata of a user have a few thousand characters.
_MAX_BYTES = 256 * 1024

#: Bytes by which a record may grow when its tokens are renewed.
_GROWTH_BYTES = 64 * 1024


@dataclass(frozen=True)
class Tokens:
    """Tokens of one login.

    Parameters
    ----------
    expires_at, fresh_until
        End of the access token, and time from which on it is renewed, by this machine's clock, in seconds since the
        epoch.
    """

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: float
    fresh_until: float

    @classmethod
    def of(cls, answer: SignedIn) -> Tokens:
        """Return the tokens of an answer that has just come."""
        # The clock of the server may differ from that of this machine.
        expires_at = time.time() + answer.expires_in
        margin_s = min(RENEW_BEFORE_S, answer.expires_in / 4)
        return cls(answer.access_token, answer.refresh_token, expires_at, expires_at - margin_s)

    @classmethod
    def from_json(cls, found: Any) -> Tokens:
        """Read what `asdict` made.

        Raises
        ------
        ValueError
            The message quotes nothing.
        """
        _require_object(found)
        texts = [found.get(name) for name in ("access_token", "refresh_token")]
        times = [found.get(name) for name in ("expires_at", "fresh_until")]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError("a token is missing")
        if not all(isinstance(at, int | float) and math.isfinite(at) for at in times):
            raise ValueError("a time is missing")
        return cls(*texts, *map(float, times))

    def is_fresh(self) -> bool:
        """Tell whether the access token is good for a while."""
        return time.time() < self.fresh_until


@dataclass(frozen=True)
class Record:
    """A kept login without its tokens.

    Parameters
    ----------
    url
        URL of the project that gave the tokens. They are sent nowhere else.
    email
        Address of the account; None for an anonymous one.
    kept_at
        Time of the login, in seconds since the epoch.
    """

    url: str
    user_id: str
    email: str | None
    kept_at: float
    kept_in: Place

    @property
    def name(self) -> str:
        """Name of the account among those of the project."""
        return self.email or self.user_id


def prepare_folder(folder: Path) -> None:
    """Make the folder of kept logins, or see that nobody else can enter it.

    Raises
    ------
    ConfigurationError
        If others could read or replace files in it.
    """
    if flaw := flaw_on_way(folder):
        raise _unsafe(folder, flaw)
    make_private_folder(folder)
    if flaw := flaw_of_private_folder(folder):
        raise _unsafe(folder, flaw)


def load_record(path: Path) -> tuple[Record, Tokens] | None:
    """Read a kept login; None if there is none.

    Raises
    ------
    ConfigurationError
        If others could have read or written the file, if it is damaged, or if the keyring cannot be opened.
    """
    content = _read_private(path)
    if content is None:
        return None
    try:
        record, tokens = _parse(content)
    except ValueError as error:
        # No cause: the JSON that cannot be read holds tokens.
        raise _damaged_error(path, one_line(str(error))) from None
    if tokens is not None:
        return record, tokens
    secret = load_secret(record.url, record.name)
    try:
        return record, _parse_secret(secret, record)
    except ValueError as error:
        raise _damaged_error(path, one_line(str(error))) from None


def save_record(path: Path, record: Record, tokens: Tokens) -> None:
    """Keep a login in place of the one that is kept there, if any."""
    with room_for(path, record, tokens) as save:
        save(tokens)


@contextlib.contextmanager
def room_for(path: Path, record: Record, tokens: Tokens) -> Iterator[Callable[[Tokens], None]]:
    """Make room for new tokens of a login, and yield the function that saves them. Called behind the login's lock.

    A refresh token can be used once. A disk that is full or cannot be written is noticed before the token is spent.

    Raises
    ------
    ConfigurationError
        If the new tokens could not be saved.
    """
    with _saving_errors(path):
        # A process that died left its own, with tokens in it.
        for leftover in path.parent.glob(f".{path.stem}-*.new"):
            leftover.unlink(missing_ok=True)
        room = _Room(path)
    try:
        with _saving_errors(path):
            room.fill(b" " * (len(_as_bytes(record, tokens)) + _GROWTH_BYTES))

        def save(new: Tokens) -> None:
            if record.kept_in == "keyring":
                secret = {"url": record.url, "user_id": record.user_id, "tokens": asdict(new)}
                save_secret(record.url, record.name, json.dumps(secret))
            with _saving_errors(path):
                room.fill(_as_bytes(record, new))
                room.move_to(path)

        yield save
    finally:
        room.close()


def forget_record(path: Path, record: Record) -> None:
    """Delete a kept login."""
    if record.kept_in == "keyring":
        forget_secret(record.url, record.name)
    path.unlink(missing_ok=True)


# Files ---------------------------------------------------------------------------------------------------


def _parse(content: bytes) -> tuple[Record, Tokens | None]:
    try:
        found = _require_object(json.loads(content))
    except ValueError as error:
        raise ValueError("it is no JSON object") from error
    if found.get("format") != _FORMAT:
        raise ValueError("it is of another version of tensorage")
    url, user_id = found.get("url"), found.get("user_id")
    if not (isinstance(url, str) and url and isinstance(user_id, str) and user_id):
        raise ValueError("the project or the account is missing")
    email, kept_at, place = found.get("email"), found.get("kept_at"), found.get("kept_in")
    if not (email is None or isinstance(email, str)) or not isinstance(kept_at, int | float):
        raise ValueError("the address or the time is missing")
    if place not in _PLACES:
        raise ValueError("the place of the tokens is missing")
    record = Record(url, user_id, email, float(kept_at), _PLACES[place])
    return record, Tokens.from_json(found.get("tokens")) if place == "file" else None


def _parse_secret(secret: str, record: Record) -> Tokens:
    try:
        found = _require_object(json.loads(secret))
    except ValueError as error:
        raise ValueError("the keyring has no JSON object") from error
    if (found.get("url"), found.get("user_id")) != (record.url, record.user_id):
        raise ValueError("the keyring has the login of another project or account")
    return Tokens.from_json(found.get("tokens"))


def _require_object(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - the content is wrong, and no argument
    return found


def _as_bytes(record: Record, tokens: Tokens) -> bytes:
    content: dict[str, Any] = {"format": _FORMAT, **asdict(record)}
    if record.kept_in == "file":
        content["tokens"] = asdict(tokens)
    return json.dumps(content, indent=2).encode()


def _read_private(path: Path) -> bytes | None:
    """Read a file that nobody else can read or write; None if there is none."""
    try:
        flaw = flaw_on_way(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged_error(path, error.strerror or type(error).__name__) from error
    try:
        # The status of the open file: the one of its name may be another by now.
        status = os.fstat(fd)
        flaw = flaw or flaw_of_private_folder(path.parent) or flaw_of_file(path, status, is_private=True)
        if flaw is not None:
            raise _unsafe(path, flaw)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise _damaged_error(path, "it is no file of this size")
        return os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)


class _Room:
    """A file beside another one, which takes its place in the end: no half-written file is ever read."""

    def __init__(self, path: Path) -> None:
        import tempfile

        # `mkstemp` makes the file with mode 0600.
        self._handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".new")
        self._temporary = Path(temporary)

    def fill(self, content: bytes) -> None:
        """Make the file's content this one, on the disk."""
        os.lseek(self._handle, 0, os.SEEK_SET)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._handle, rest) :]
        os.ftruncate(self._handle, len(content))
        os.fsync(self._handle)

    def move_to(self, path: Path) -> None:
        self._temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        os.close(self._handle)
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()


def _unsafe(path: Path, flaw: Flaw) -> ConfigurationError:
    advice = flaw.advice("delete it and run `tensorage login` again")
    return ConfigurationError(
        f"the kept login in {path} is not used: {flaw}, and it is as good as a password. {advice}"
    )


def _damaged_error(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the kept login in {path} cannot be read ({why}): run `tensorage login` again, or delete the file"
    )


@contextlib.contextmanager
def _saving_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the login cannot be kept in {path} ({error.strerror or type(error).__name__}): make room for it, or let "
            "this user write there"
        ) from error
