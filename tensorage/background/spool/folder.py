"""Folder of a spool: the order of entries, their room, locks between processes, and what has happened to entries.

.. code-block:: text

    tensorage-spool           whose spool this is, as JSON
    adding                    locked while an entry gets its number; two counters
    sending                   locked while a process sends; its number
    0000000000000017.entry    an entry
    0000000000000017.failed   the error of an entry, as JSON
    *.unfinished              an entry that is being written; its writer has it locked
    damaged/                  entries that were moved aside

Nothing else is in the folder. A name that ends with ``.entry`` is given to a file once all of it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tensorage.backend.transfer import Project
from tensorage.background.changes import Change
from tensorage.background.spool.entry import DamagedFileError, EntryFile, NewEntry
from tensorage.config import redact_url
from tensorage.errors import InvalidInputError, SpoolDamagedError, SpoolError, SpoolFullError
from tensorage.file_locks import hold_lock
from tensorage.model.memory import describe_bytes
from tensorage.private_files import Flaw, flaw_of_private_folder, flaw_on_way, make_private_folder

try:
    import fcntl
except ModuleNotFoundError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["Failed", "Identity", "SpoolFolder"]

MARKER = "tensorage-spool"
FORMAT = 1

_ENTRY = re.compile(r"(\d{16})\.entry")
_FAILED = re.compile(r"(\d{16})\.failed")
_UNFINISHED = ".unfinished"

#: Number of the last entry, and bytes of all entries that were ever added.
_COUNTERS = struct.Struct("<QQ")
_COUNTED_TO = 2**64

#: Highest number that the name of an entry has digits for.
_MAX_NUMBER = 10**16 - 1

#: Longest wait for the lock of adding. A process that holds it for longer is stopped, and others would wait for ever.
LOCK_TIMEOUT_S = 60.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

#: Locks of sending that this process holds: a forked child has the open files, too, and must not keep them locked.
_held: weakref.WeakSet[_Lock] = weakref.WeakSet()


@dataclass(frozen=True)
class Identity:
    """Project and user of a spool."""

    url: str
    user_id: str

    @classmethod
    def of(cls, project: Project) -> Identity:
        """Return the identity of the user who is logged in to a project."""
        return cls((project.backend_url or "").rstrip("/"), project.user_id)


@dataclass(frozen=True)
class Failed:
    """The error of an entry that was sent, and refused."""

    at: str
    error: str
    message: str

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"


class _Lock:
    """A lock on a file, which ends with its process."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        _held.add(self)

    def release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            # Closing does not unlock if another thread forks meanwhile: the child has the open file, too.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def forget(self) -> None:
        """Close the file in a forked child. The parent keeps the lock."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _forget_locks() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_locks)


@dataclass(eq=False)
class SpoolFolder:
    """The folder of a spool. Safe to use from many threads and processes.

    Parameters
    ----------
    path
        Absolute path.
    identity
        Project and user of the spool.
    spool
        Number of the spool, with which the ids of its operations begin.
    max_bytes
        Most bytes of all entries together, when one is added through this object; None for as many as the disk has.
    """

    path: Path
    identity: Identity
    spool: int
    max_bytes: int | None = None
    _last: int | None = field(default=None, init=False, repr=False)
    #: Bytes of the entries when they were last counted, and of all that had ever been added then.
    _counted: tuple[int, int] | None = field(default=None, init=False, repr=False)

    # Making and joining ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: Identity, max_bytes: int | None) -> SpoolFolder:
        """Open the folder of a spool, or make it.

        Raises
        ------
        SpoolError
            If it is another project's or user's, holds other files, or can be entered or replaced by others.
        """
        where = Path(path).expanduser().absolute()
        _check_system()
        with _spool_errors(where):
            _check_way(where)
            make_private_folder(where)
            _check_private(where)
            with _hold_lock(where / "adding"):
                # Several processes may begin with one new folder. A single one writes the marker.
                if not (where / MARKER).exists():
                    _check_empty(where)
                    _write_marker(where, identity, secrets.randbits(48))
        folder = cls.join(where, max_bytes)
        folder.check(identity)
        # With the lock of adding, no file is found that another process has made, and not locked yet.
        with _spool_errors(where), folder._adding():
            folder._delete_unfinished()
        return folder

    @classmethod
    def join(cls, path: str | os.PathLike[str], max_bytes: int | None = None) -> SpoolFolder:
        """Open the folder of a spool that is there, whoever's it is.

        Raises
        ------
        SpoolError
            If there is no spool, or others can enter or replace the folder.
        """
        where = Path(path).expanduser().absolute()
        _check_system()
        with _spool_errors(where):
            _check_way(where)
            try:
                marker = json.loads((where / MARKER).read_bytes())
                url, user_id, spool = marker["url"], marker["user_id"], int(marker["spool"], 16)
                found = marker["format"]
            except (FileNotFoundError, NotADirectoryError) as error:
                raise SpoolError(
                    f"there is no spool in {where}: store.background(spool=...) makes one, when something is written"
                ) from error
            except (ValueError, KeyError, TypeError) as error:
                raise SpoolError(
                    f"the file {where / MARKER} is damaged, so that nobody can tell whose spool this is. Nothing was "
                    "sent, and its entries stay: restore that file, or give another folder"
                ) from error
            _check_private(where)
        if found != FORMAT:
            raise SpoolError(
                f"the spool in {where} is of format {found}, and this version of tensorage knows {FORMAT}: send what "
                "is in it with the version that wrote it"
            )
        return cls(where, Identity(url, user_id), spool, max_bytes)

    def check(self, identity: Identity) -> None:
        """Refuse another project or user.

        Raises
        ------
        SpoolError
        """
        if self.identity.user_id != identity.user_id:
            raise SpoolError(
                f"the spool in {self.path} is of user {self.identity.user_id} at {redact_url(self.identity.url)}, and "
                f"not of user {identity.user_id} at {redact_url(identity.url)}. Nothing was sent or taken: log in as "
                "that user, or give another folder"
            )
        if self.identity.url != identity.url:
            raise SpoolError(
                f"the spool in {self.path} is of the project {redact_url(self.identity.url)}, and this login of "
                f"{redact_url(identity.url)}. Nothing was sent or taken: use that project, or give another folder. If "
                f"it is the same project at another URL, run `tensorage sync {self.path} --moved` once"
            )

    def move_to(self, identity: Identity) -> None:
        """Note that the project of the spool has another URL now.

        Raises
        ------
        SpoolError
            If the user is another one.
        """
        self.check(Identity(self.identity.url, identity.user_id))
        with _spool_errors(self.path), self._adding():
            _write_marker(self.path, identity, self.spool)
        self.identity = identity

    # Entries --------------------------------------------------------------------------------------------

    def add(self, change: Change, register: Callable[[int], object] = lambda _number: None) -> int:
        """Add an entry at the end, and return its number once it is on the disk.

        Parameters
        ----------
        register
            Called with the number just before others can see the entry.

        Raises
        ------
        SpoolFullError
            If there is no room. Nothing has been added.
        InvalidInputError
            If the change cannot be written down.
        """
        new = NewEntry.of(self._new_operation(), change)
        with _spool_errors(self.path, full=new.nbytes):
            unfinished, fd = self._begin(new.nbytes)
            try:
                new.write(fd)
                with self._adding() as counters:
                    number = self._next_number(counters)
                    # A thread that sends may find the entry as soon as it has its name, and has to know whose it is.
                    register(number)
                    unfinished.rename(self._entry(number))
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            finally:
                # A forked child may have the file, too.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)
            self.settle()
        return number

    def numbers(self) -> list[int]:
        """Return the numbers of all entries, in order."""
        return sorted(self._numbers(_ENTRY))

    def failed_numbers(self) -> set[int]:
        """Return the numbers of entries that were refused."""
        return self._numbers(_FAILED)

    def has(self, number: int) -> bool:
        """Tell whether an entry is still there."""
        return self._entry(number).exists()

    def read(self, number: int) -> EntryFile | None:
        """Return an entry, or None if it is gone.

        Raises
        ------
        SpoolDamagedError
            If it is damaged.
        """
        path = self._entry(number)
        try:
            with _spool_errors(self.path):
                entry = EntryFile.open(path, number)
            self._check_own(entry)
        except DamagedFileError as error:
            raise self.damaged_error(number, error) from error
        except SpoolError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return entry

    def is_damaged(self, number: int) -> bool:
        """Tell whether an entry is damaged. All of it is read."""
        try:
            entry = self.read(number)
            if entry is not None:
                entry.change()
        except (SpoolDamagedError, DamagedFileError):
            return True
        return False

    def damaged_error(self, number: int, reason: DamagedFileError) -> SpoolDamagedError:
        """Return the error of a damaged entry."""
        return SpoolDamagedError(
            f"entry {number} of the spool in {self.path} is damaged: {reason}. It is not sent, and neither is what "
            f"comes after it. Restore {self._entry(number).name}, or run `tensorage sync {self.path} --skip-damaged`, "
            "which moves it aside and sends the rest"
        )

    def remove(self, number: int) -> None:
        """Delete an entry."""
        with _spool_errors(self.path):
            # The error goes last: without the entry, it means nothing.
            self._entry(number).unlink(missing_ok=True)
            self._failed(number).unlink(missing_ok=True)

    def set_aside(self, number: int) -> Path:
        """Move an entry to the folder of damaged ones, and return its path there."""
        with _spool_errors(self.path):
            aside = self.path / "damaged"
            aside.mkdir(mode=0o700, exist_ok=True)
            target = aside / self._entry(number).name
            self._entry(number).rename(target)
            self._failed(number).unlink(missing_ok=True)
            _sync_folder(aside)
            self.settle()
        return target

    def settle(self) -> None:
        """See that names that were made or deleted are so on the disk."""
        with _spool_errors(self.path):
            _sync_folder(self.path)

    # Errors of entries ----------------------------------------------------------------------------------

    def fail(self, number: int, error: BaseException) -> Failed:
        """Note the error of an entry, which stays."""
        failed = Failed(datetime.now(UTC).isoformat(timespec="seconds"), type(error).__name__, str(error))
        with _spool_errors(self.path):
            _write_whole(self._failed(number), json.dumps(failed.__dict__).encode())
        return failed

    def failure(self, number: int) -> Failed | None:
        """Return the error of an entry, or None."""
        try:
            said = json.loads(self._failed(number).read_bytes())
            return Failed(said["at"], said["error"], said["message"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            # The note is damaged, which says nothing of the entry: it counts as refused.
            return Failed("", "SpoolError", f"the note {self._failed(number).name} is damaged")

    def retry(self, number: int) -> None:
        """Forget the error of an entry, so that it is sent again."""
        with _spool_errors(self.path):
            self._failed(number).unlink(missing_ok=True)

    # Sending --------------------------------------------------------------------------------------------

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Hold the lock of sending for a block. False if somebody else holds it."""
        with _spool_errors(self.path):
            fd = os.open(self.path / "sending", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            yield False
            return
        lock = _Lock(fd)
        try:
            # Messages name the number. On a full disk it may find no room, and sending is what makes some.
            with contextlib.suppress(OSError):
                os.pwrite(fd, f"{os.getpid():>10}\n".encode(), 0)
            yield True
        finally:
            lock.release()

    def sender(self) -> str:
        """Describe the process that holds the lock of sending, as far as it is known."""
        with contextlib.suppress(OSError, ValueError):
            return f"process {int((self.path / 'sending').read_text('ascii'))}"
        return "another process"

    def operations(self) -> tuple[str, str]:
        """Return the first and the last id that an operation of this spool can have."""
        return _operation(self.spool, 0), _operation(self.spool, (1 << 74) - 1)

    # Inner parts ----------------------------------------------------------------------------------------

    def _new_operation(self) -> str:
        return _operation(self.spool, secrets.randbits(74))

    def _check_own(self, entry: EntryFile) -> None:
        """Refuse an entry of another spool, which may be another project's or user's."""
        first, last = self.operations()
        if not first <= entry.operation <= last:
            raise DamagedFileError("it was written for another spool")

    def _entry(self, number: int) -> Path:
        return self.path / f"{number:016d}.entry"

    def _failed(self, number: int) -> Path:
        return self.path / f"{number:016d}.failed"

    def _numbers(self, pattern: re.Pattern[str]) -> set[int]:
        with _spool_errors(self.path):
            names = os.listdir(self.path)  # noqa: PTH208 - names alone, without looking at each
        return {int(found[1]) for found in map(pattern.fullmatch, names) if found}

    def _adding(self) -> AbstractContextManager[int]:
        return _hold_lock(self.path / "adding")

    def _begin(self, nbytes: int) -> tuple[Path, int]:
        """Make the file of an entry that is to be written, and take room for it."""
        with self._adding() as counters:
            last, added = _read_counters(counters)
            self._check_room(nbytes, added)
            path = self.path / f"{secrets.token_hex(8)}{_UNFINISHED}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # A process that finds the file unlocked knows that its writer has died.
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Its length counts for others at once.
                os.ftruncate(fd, nbytes)
                os.pwrite(counters, _COUNTERS.pack(last, (added + nbytes) % _COUNTED_TO), 0)
            except BaseException:
                os.close(fd)
                path.unlink()
                raise
        return path, fd

    def _next_number(self, counters: int) -> int:
        last, added = _read_counters(counters)
        if self._last is None:
            # After a crash of the machine, the counter may be older than the entries.
            last = max(last, self._highest_number())
        number = max(last, self._last or 0) + 1
        # A counter that was damaged or deleted leads to a number that is taken, or to one that no name has digits for.
        if number > _MAX_NUMBER or self._entry(number).exists():
            number = max(self._highest_number(), self._last or 0) + 1
        if number > _MAX_NUMBER:
            raise SpoolError(
                f"the spool in {self.path} has no number left for another entry, which was not taken: send what is "
                "there (`tensorage sync`), or give another folder"
            )
        self._last = number
        os.pwrite(counters, _COUNTERS.pack(number, added), 0)
        return number

    def _highest_number(self) -> int:
        return max([0, *self._numbers(_ENTRY), *self._numbers(_FAILED)])

    def _check_room(self, nbytes: int, added: int) -> None:
        if self.max_bytes is None:
            return
        # All that was added since they were counted is still there at worst.
        before = (
            None if self._counted is None else self._counted[0] + (added - self._counted[1]) % _COUNTED_TO
        )
        if before is None or before + nbytes > self.max_bytes:
            before = self._count_bytes()
            self._counted = before, added
        if before + nbytes > self.max_bytes:
            raise SpoolFullError(
                f"the spool in {self.path} has {describe_bytes(before)} of at most {describe_bytes(self.max_bytes)}, "
                f"and this write takes {describe_bytes(nbytes)}. It was not taken. Wait until what is there has been "
                "sent (`bg.flush()`, `tensorage sync`), or give a larger spool_bytes="
            )

    def _count_bytes(self) -> int:
        total = 0
        with os.scandir(self.path) as found:
            for one in found:
                if one.name.endswith((".entry", _UNFINISHED)):
                    # An entry may have been sent and deleted meanwhile.
                    with contextlib.suppress(FileNotFoundError):
                        total += one.stat(follow_symlinks=False).st_size
        return total

    def _delete_unfinished(self) -> None:
        """Delete entries whose writers have died. The call that gave them has not returned."""
        for path in self.path.glob(f"*{_UNFINISHED}"):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                path.unlink(missing_ok=True)
            finally:
                os.close(fd)


def _operation(spool: int, rest: int) -> str:
    """Return the id of an operation: a UUID of version 8, which begins with the number of the spool.

    The database keeps what it answered to an operation with such an id until the client says that it is done with it.
    """
    number = spool << 80 | 8 << 76 | (rest >> 62) << 64 | 0b10 << 62 | (rest & ((1 << 62) - 1))
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _hold_lock(path: Path) -> AbstractContextManager[int]:
    """Hold the lock of a file for a block."""
    return hold_lock(
        path,
        LOCK_TIMEOUT_S,
        lambda: SpoolError(
            f"the spool in {path.parent} is locked by a process that has not gone on for {LOCK_TIMEOUT_S:.0f} seconds. "
            "End that process, or use another folder"
        ),
    )


def _read_counters(fd: int) -> tuple[int, int]:
    found = os.pread(fd, _COUNTERS.size, 0)
    last, added = _COUNTERS.unpack(found) if len(found) == _COUNTERS.size else (0, 0)
    return last, added


def _write_marker(folder: Path, identity: Identity, spool: int) -> None:
    said = {"format": FORMAT, "url": identity.url, "user_id": identity.user_id, "spool": f"{spool:012x}"}
    _write_whole(folder / MARKER, json.dumps(said).encode())


def _write_whole(path: Path, content: bytes) -> None:
    """Write a small file, all of it or nothing, and see that it is on the disk."""
    beside = path.with_name(f"{path.name}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    # Content before the name, each on the disk: after a crash, the name stands for all of the content.
    beside.rename(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_system() -> None:
    if fcntl is None:
        raise InvalidInputError("spool= needs the file locks of Unix, which this system does not have")


def _check_empty(folder: Path) -> None:
    # The lock that is held now, and a file of a process that ended while it made the spool.
    names = {path.name for path in folder.iterdir()} - {"adding", f"{MARKER}.new"}
    if names:
        raise SpoolError(
            f"the folder {folder} holds other files, such as {min(names)!r}, and is no spool of tensorage. Nothing was "
            "written: give a new folder, or an empty one"
        )


def _check_way(folder: Path) -> None:
    if flaw := flaw_on_way(folder):
        raise _unsafe(folder, flaw)


def _check_private(folder: Path) -> None:
    if flaw := flaw_of_private_folder(folder):
        raise _unsafe(folder, flaw)


def _unsafe(folder: Path, flaw: Flaw) -> SpoolError:
    return SpoolError(
        f"the spool in {folder} is not used: {flaw}, so that others could read or change what waits in it. "
        f"{flaw.advice('give another folder, such as a new one in a folder of your own')}"
    )


@contextmanager
def _spool_errors(folder: Path, full: int | None = None) -> Iterator[None]:
    """Raise errors of the operating system in the block as errors of the folder.

    Parameters
    ----------
    full
        Bytes of the entry that the block adds.
    """
    try:
        yield
    except SpoolError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        named: SpoolError
        if error.errno in _FULL:
            size = "" if full is None else f", and this write takes {describe_bytes(full)}. It was not taken"
            named = SpoolFullError(
                f"the disk of the spool in {folder} has no room ({reason}){size}. What waits there is kept. Free some "
                "space, wait until it has been sent, or use a folder on another disk"
            )
        else:
            named = SpoolError(
                f"the spool in {folder} cannot be used ({reason}). Give a folder on a local disk that this user may "
                "write to"
            )
        named.errno = error.errno
        raise named from error
