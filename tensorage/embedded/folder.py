"""The data folder of an embedded backend: its files, its secrets, its locks.

::

    tensorage.json    marks the folder as a data folder, and holds the version of its format
    secrets.json      JWT secret, API keys, passwords
    ports.json        ports of the last run, used again if they are free
    server.json       address of the server, while one runs
    server.lock       held by the server for as long as it lives
    control.lock      held by a process that starts, stops or resets the server
    server.log        log of the server and of PostgreSQL (two files of a bounded size)
    start.log         output of the last start: the reason, if it failed
    postgres/         PostgreSQL's own data folder, and its Unix socket
    storage/          content of Storage's objects
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
from filelock import FileLock

from tensorage.errors import TensorageError
from tensorage.private_files import (
    Flaw,
    flaw_of_file,
    flaw_of_private_folder,
    flaw_on_way,
    make_private_folder,
)

#: Environment variable with the default data folder.
DATA_DIR_VARIABLE = "TENSORAGE_DATA_DIR"

#: Version of the folder's format, which grows when older releases can no longer use the folder.
FORMAT_VERSION = 1

#: Database roles that log in with a password of their own.
LOGIN_ROLES = ("supabase_admin", "postgres", "authenticator", "supabase_auth_admin", "supabase_storage_admin")

#: Begin of the names that files have until they are complete.
_TEMPORARY_PREFIX = ".tensorage-"
#: RFC 6761 reserves the domain: no mail to the address reaches anybody.
_DEFAULT_EMAIL = "local@tensorage.localhost"


class EmbeddedError(TensorageError, RuntimeError):
    """An error of the embedded backend, explained by the message."""


class FolderError(EmbeddedError):
    """The data folder cannot be used."""


@dataclass(frozen=True)
class Secrets:
    """Keys and passwords of a data folder, made once and never changed.

    Parameters
    ----------
    jwt_secret
        The HS256 key of every token.
    anon_key, service_role_key
        The project's API keys.
    email, password
        The default user of :func:`tensorage.local`.
    database_passwords
        Passwords of the roles in `LOGIN_ROLES`, by role.
    """

    jwt_secret: str = field(repr=False)
    anon_key: str = field(repr=False)
    service_role_key: str = field(repr=False)
    email: str
    password: str = field(repr=False)
    database_passwords: Mapping[str, str] = field(repr=False)

    @classmethod
    def new(cls) -> Secrets:
        # Imported here, so that processes that only read a folder do not load the JWT library.
        from tensorage.embedded.tokens import Tokens, new_secret

        jwt_secret = new_secret()
        tokens = Tokens(jwt_secret)
        return cls(
            jwt_secret=jwt_secret,
            anon_key=tokens.make_api_key("anon"),
            service_role_key=tokens.make_api_key("service_role"),
            email=_DEFAULT_EMAIL,
            password=secrets.token_urlsafe(18),
            database_passwords={role: secrets.token_urlsafe(24) for role in LOGIN_ROLES},
        )

    def database_url(self, role: str, port: int) -> str:
        """Return the URL at which `role` reaches PostgreSQL through TCP."""
        return f"postgresql://{role}:{self.database_passwords[role]}@127.0.0.1:{port}/postgres"

    def socket_url(self, role: str, port: int, socket_dir: str) -> str:
        """Return the URL at which `role` reaches PostgreSQL through its Unix socket in `socket_dir`."""
        login = f"{role}:{self.database_passwords[role]}"
        return f"postgresql://{login}@/postgres?host={quote(socket_dir, safe='')}&port={port}"


@dataclass(frozen=True)
class ServerState:
    """State of a server, written for other processes.

    Parameters
    ----------
    pid, create_time
        Process of the server. The time (seconds since the epoch) tells it from a later process of the same pid.
    api_port, postgres_port
        Ports on which the server and its PostgreSQL listen.
    jwt_lifetime_s
        Seconds for which the server's access tokens are good.
    ready
        False while the server is starting.
    """

    pid: int
    create_time: float
    api_port: int
    postgres_port: int
    jwt_lifetime_s: int
    ready: bool = False


@dataclass(frozen=True)
class Ports:
    """Ports of a data folder's last run."""

    api: int = 0
    postgres: int = 0


@dataclass(frozen=True)
class DataFolder:
    """The folder of one embedded backend. :meth:`open` and :meth:`find` make checked ones."""

    path: Path

    @classmethod
    def open(cls, data_dir: str | os.PathLike[str] | None = None) -> DataFolder:
        """Open a data folder, and create it with mode 0700 if it is missing.

        Raises
        ------
        FolderError
            The folder is somebody else's, others can enter or replace it, a newer release made it, it holds other
            files, or it cannot be written.
        """
        folder = cls(_find_safe_path(data_dir))
        with _explain_refusals(folder.path):
            make_private_folder(folder.path)
            if not folder.is_ours():
                folder.check_empty()
            folder.check_private()
            if not folder.is_ours():
                write_private(folder.path / "tensorage.json", json.dumps({"format": FORMAT_VERSION}))
            folder.check_format()
            # A folder with the right mode may still be on a read-only file system.
            if not os.access(folder.path, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return folder

    @classmethod
    def find(cls, data_dir: str | os.PathLike[str] | None = None) -> DataFolder | None:
        """Return the data folder, or None if there is none. Nothing is created.

        Raises
        ------
        FolderError
            For the same reasons as :meth:`open`.
        """
        folder = cls(_find_safe_path(data_dir))
        with _explain_refusals(folder.path):
            if not folder.is_ours():
                return None
            folder.check_private()
            folder.check_format()
            return folder

    def is_ours(self) -> bool:
        return (self.path / "tensorage.json").is_file()

    def check_empty(self) -> None:
        # Another process may be creating the same data folder: its temporary file is no stranger.
        strangers = [
            entry.name for entry in self.path.iterdir() if not entry.name.startswith(_TEMPORARY_PREFIX)
        ]
        # That process may have finished since the listing, and its files are no strangers either.
        if strangers and not self.is_ours():
            raise FolderError(
                f"{self.path} holds other files ({min(strangers)!r}, ...) and is no data folder of "
                "tensorage: choose an empty or a new one"
            )

    def check_private(self) -> None:
        """Refuse the folder unless it is this user's alone.

        Others who can write in it could put a server of theirs in place of ours, and read every password sent to it.
        """
        if flaw := flaw_of_private_folder(self.path):
            raise _unsafe(self.path, flaw)

    def check_format(self) -> None:
        found = self._read_json("tensorage.json").get("format")
        if not isinstance(found, int):
            raise FolderError(
                f"{self.path / 'tensorage.json'} does not say the folder's format: it is damaged"
            )
        if found > FORMAT_VERSION:
            raise FolderError(
                f"the data folder {self.path} was made by a newer release of tensorage (its format is "
                f"{found}, this release knows {FORMAT_VERSION}): upgrade tensorage, or choose another folder"
            )

    @property
    def postgres_dir(self) -> Path:
        return self.path / "postgres"

    @property
    def storage_dir(self) -> Path:
        return self.path / "storage"

    @property
    def log_file(self) -> Path:
        return self.path / "server.log"

    @property
    def start_log_file(self) -> Path:
        return self.path / "start.log"

    def server_lock(self) -> FileLock:
        return FileLock(self.path / "server.lock", mode=0o600, poll_interval=0.02)

    def control_lock(self) -> FileLock:
        return FileLock(self.path / "control.lock", mode=0o600, poll_interval=0.02)

    def remove(self) -> None:
        """Remove the folder with all its files. Only for the holder of both locks."""
        marker = self.path / "tensorage.json"
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry != marker:
                entry.unlink()
        # Removed last: after a crash halfway, the folder is still known as a data folder and can be removed again.
        marker.unlink()
        with contextlib.suppress(OSError):
            # An empty folder may stay: it may be a mount point, or another process may be using it anew.
            self.path.rmdir()

    def read_secrets(self) -> Secrets:
        return Secrets(**self._read_json("secrets.json"))

    def make_secrets(self) -> Secrets:
        """Return the folder's secrets, made if the folder is new. Only for the holder of the server's lock."""
        if (self.path / "secrets.json").exists():
            return self.read_secrets()
        # New passwords would not open the old database.
        if self.postgres_dir.exists():
            raise FolderError(
                f"{self.path / 'secrets.json'} is gone, and with it the passwords of the database beside it: "
                "put the file back, or begin anew with `tensorage local reset`"
            )
        made = Secrets.new()
        self._write_json("secrets.json", made)
        return made

    def read_state(self) -> ServerState | None:
        """Return the state that the last server wrote. That server may have died since."""
        try:
            return ServerState(**self._read_json("server.json"))
        except FileNotFoundError:
            return None

    def write_state(self, state: ServerState) -> None:
        self._write_json("server.json", state)

    def remove_state(self) -> None:
        (self.path / "server.json").unlink(missing_ok=True)

    def read_ports(self) -> Ports:
        try:
            return Ports(**self._read_json("ports.json"))
        except FileNotFoundError:
            return Ports()

    def write_ports(self, ports: Ports) -> None:
        self._write_json("ports.json", ports)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            with path.open("rb") as file:
                # The folder may have been open to others before, and this file may be theirs.
                # The open file is checked: its name could be given to another file meanwhile.
                if flaw := flaw_of_file(path, os.fstat(file.fileno())):
                    raise _unsafe(self.path, replace(flaw, remedy=None) if flaw.is_foreign else flaw)
                content = json.loads(file.read().decode("utf-8"))
        except ValueError as error:
            raise FolderError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise FolderError(f"{path} is damaged: it holds no JSON object")
        return content

    def _write_json(self, name: str, record: Secrets | ServerState | Ports) -> None:
        write_private(self.path / name, json.dumps(asdict(record), indent=2))


#: Advice of several messages.
_CHOOSE_ANOTHER = f"choose another one, with --data-dir, data_dir= or {DATA_DIR_VARIABLE}"


@contextmanager
def _explain_refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FolderError(
            f"the data folder {path} cannot be used ({error.strerror}): {_CHOOSE_ANOTHER}"
        ) from error


def _unsafe(path: Path, flaw: Flaw) -> FolderError:
    return FolderError(
        f"the data folder {path} is not used: {flaw}, so that others could read the passwords in it, or have new ones "
        f"sent to a server of theirs. {flaw.advice(_CHOOSE_ANOTHER)}"
    )


def resolve_data_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the absolute path of a data folder: the given one, the environment's, or the user's own."""
    return _choose_path(data_dir).resolve()


def _choose_path(data_dir: str | os.PathLike[str] | None) -> Path:
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    path = Path(chosen) if chosen else platformdirs.user_data_path("tensorage") / "local"
    return path.expanduser()


def _find_safe_path(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the absolute path of a data folder, or refuse it if others could put another folder there."""
    path = _choose_path(data_dir)
    with _explain_refusals(path):
        # The check covers links on the way. The resolved path has none, so that nobody can change one afterwards.
        if flaw := flaw_on_way(path):
            raise _unsafe(path, flaw)
        return path.resolve()


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 in one step: readers, also after a crash, find the old file or the new one, whole."""
    # mkstemp gives the file mode 0600, whatever the umask is.
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            # The content has to be on disk before the name: a crash could leave an empty file otherwise.
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_names(path.parent)


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on disk. A crash before could lose a file whose content is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
