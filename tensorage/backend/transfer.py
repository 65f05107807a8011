"""The byte mover: calls of the project's functions, and jobs in parallel.

Array bytes go up as ``application/octet-stream`` and come down as ``application/vnd.tensorage``, never as text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from tensorage.backend.wire.faults import check_version, error_of
from tensorage.backend.wire.header import as_json
from tensorage.backend.wire.http import PARALLEL, Http, Login, Request, TooMuchError
from tensorage.backend.wire.patience import Hurry, Patience, current_hurry, end_waits_on
from tensorage.backend.wire.progress import Advance, progress
from tensorage.errors import BackendUnavailableError
from tensorage.types import Dataset

__all__ = ["MEDIA_TYPE", "Project", "Transfer", "Work"]

T = TypeVar("T")

#: Media type of array bytes, and name of the domain that the reading function returns.
MEDIA_TYPE = "application/vnd.tensorage"

#: The function that says which migrations a project has.
VERSION_FUNCTION = "tensorage_version"

#: Functions after which there may be another array under a key, or none.
CHANGING_FUNCTIONS = frozenset(
    f"tensorage_{name}" for name in ("append", "assign", "commit", "remove", "rename", "share", "store")
)


@dataclass
class Transfer:
    """Calls of one project's functions as one login. Safe to use from many threads; after a fork, make another.

    Parameters
    ----------
    base_url
        URL of the project, without a path.
    login
        Whose requests they are.
    parallel
        Jobs at once in `run`.
    patience
        Of its requests: see `tensorage.backend.wire.http.Http`.
    """

    base_url: str
    login: Login
    parallel: int = PARALLEL
    patience: Patience = field(default_factory=Patience, repr=False)
    http: Http = field(init=False, repr=False)
    #: Grows with every request that may have changed what is under a key, also with one that failed.
    changes: int = field(default=0, init=False, repr=False)
    _version_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _version_fits: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.http = Http(self.base_url, self.login, patience=self.patience)

    def call(self, function: str, arguments: Mapping[str, Any], asked: str) -> Any:
        """Call a function with JSON arguments: its JSON answer.

        Parameters
        ----------
        asked
            What the caller wanted, for error messages: ``opening 'weather'``.
        """
        try:
            return self._json(function, [as_json(arguments)], "application/json", asked)
        except TooMuchError as error:
            # There is no smaller request of the kind.
            raise error_of(error.fault, asked) from error

    def schema_version(self) -> Any:
        """What the project answers for the version of its migrations."""
        return self._json(VERSION_FUNCTION, [b"{}"], "application/json", "checking the project")

    def send(self, function: str, parts: Sequence[bytes | memoryview], asked: str) -> Any:
        """Call a function with `parts`, one after the other, as its one binary argument: its JSON answer."""
        return self._json(function, parts, "application/octet-stream", asked)

    def read(self, function: str, arguments: Mapping[str, Any], asked: str) -> bytes:
        """Call a function that answers with bytes: all of them."""
        return self._bytes(function, arguments, None, asked)

    def read_into(self, function: str, arguments: Mapping[str, Any], out: memoryview, asked: str) -> None:
        """Call a function that answers with bytes, exactly as many as `out` holds, and put them there."""
        self._bytes(function, arguments, out, asked)

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Do jobs in parallel, taking no more of them from the iterable than are under way.

        The first error ends it: no further job begins, those under way are waited for, which wait for no outage any
        more, and it is raised.
        """
        source = iter(jobs)
        first, second = next(source, None), next(source, None)
        if first is None:
            return
        if second is None:
            first()
            return
        waiting = chain((first, second), source)
        hurry = Hurry(current_hurry())
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="tensorage") as pool:
            running: set[Future[None]] = set()
            try:
                running |= {_begin(pool, _under(hurry, job)) for job in islice(waiting, self.parallel)}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for finished in done:
                        finished.result()
                    # Even if nothing runs any more: all may have finished at once, with jobs left.
                    running |= {
                        _begin(pool, _under(hurry, job))
                        for job in islice(waiting, self.parallel - len(running))
                    }
            except BaseException:
                hurry.begin()
                for unfinished in running:
                    unfinished.cancel()
                raise

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        self.http.close()

    def _json(self, function: str, body: Sequence[bytes | memoryview], content_type: str, asked: str) -> Any:
        if function != VERSION_FUNCTION:
            self._check_version_once()
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        try:
            answer = self.http.ask(Request("POST", _path(function), headers, body), asked)
        finally:
            if function in CHANGING_FUNCTIONS:
                self.changes += 1
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise BackendUnavailableError(
                f"{asked}: {self.base_url}{_path(function)} did not answer with JSON ({error}). "
                "Is this the URL of a Supabase project?"
            ) from error

    def _bytes(
        self, function: str, arguments: Mapping[str, Any], out: memoryview | None, asked: str
    ) -> bytes:
        self._check_version_once()
        headers = {"Content-Type": "application/json", "Accept": MEDIA_TYPE}
        request = Request("POST", _path(function), headers, [as_json(arguments)], out)
        return self.http.ask(request, asked).body

    def _check_version_once(self) -> None:
        """Before the first request: other migrations give wrong answers, or errors that do not say why."""
        if self._version_fits:
            return
        with self._version_lock:
            if not self._version_fits:
                check_version(self.schema_version())
                self._version_fits = True


class Project(Protocol):
    """One user's access to a project: a session, as far as arrays and files need one."""

    @property
    def backend_url(self) -> str | None:
        """URL of the project."""
        ...

    @property
    def user_id(self) -> str:
        """Id of the logged-in user, as ``auth.uid()`` gives it in SQL."""
        ...

    @property
    def transfer(self) -> Transfer:
        """The byte mover: another one after a fork, as connections are never shared."""
        ...


@dataclass(frozen=True)
class Work:
    """One piece of work on one array: its requests, its name in error messages, and its progress bar.

    Parameters
    ----------
    transfer
        Carries the requests.
    dataset
        The array, as it was opened or declared.
    asked
        Beginning of error messages: ``reading 'weather'``.
    quiet
        Never show a bar.
    """

    transfer: Transfer
    dataset: Dataset
    asked: str
    quiet: bool = True

    @classmethod
    def reading(cls, transfer: Transfer, dataset: Dataset, *, quiet: bool = True) -> Work:
        """Return the work of reading an array."""
        return cls(transfer, dataset, f"reading {dataset.key!r}", quiet)

    @classmethod
    def storing(cls, transfer: Transfer, dataset: Dataset, *, quiet: bool = True) -> Work:
        """Return the work of filling a declared array."""
        return cls(transfer, dataset, f"storing {dataset.key!r}", quiet)

    def on(self, dataset: Dataset) -> Work:
        """Return the same work on another entry, such as the staged one of an assignment."""
        return replace(self, dataset=dataset)

    def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call a function with JSON arguments and return its JSON answer."""
        return self.transfer.call(function, arguments, self.asked)

    def send(self, function: str, parts: Sequence[bytes | memoryview]) -> Any:
        """Call a function with `parts`, one after the other, as its one binary argument, and return its JSON answer."""
        return self.transfer.send(function, parts, self.asked)

    def read(self, function: str, arguments: Mapping[str, Any]) -> bytes:
        """Call a function that answers with bytes, and return all of them."""
        return self.transfer.read(function, arguments, self.asked)

    def read_into(self, function: str, arguments: Mapping[str, Any], out: memoryview) -> None:
        """Call a function that answers with exactly as many bytes as `out` holds, and put them there."""
        self.transfer.read_into(function, arguments, out, self.asked)

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Do jobs in parallel: see `Transfer.run`."""
        self.transfer.run(jobs)

    def in_halves(self, do: Callable[[T], None], part: T, halve: Callable[[T], tuple[T, T] | None]) -> None:
        """Do a part of the work in one request or, if that is too much for the backend, in halves of it.

        Too much is an HTTP 413, or a statement that takes too long.

        Parameters
        ----------
        do
            Sends the one request for a part.
        halve
            Cuts a part in two. None if it is as small as it can be: then the error is raised.
        """
        try:
            do(part)
        except TooMuchError as error:
            halves = halve(part)
            if halves is None:
                raise error_of(error.fault, self.asked) from error
            for half in halves:
                self.in_halves(do, half, halve)

    def bar(self, nbytes: int) -> AbstractContextManager[Advance]:
        """Return a progress bar for so many bytes."""
        return progress(nbytes, self.dataset.key, quiet=self.quiet)


def _under(hurry: Hurry, job: Callable[[], None]) -> Callable[[], None]:
    """The job, whose waits end when the hurry begins."""

    def do() -> None:
        with end_waits_on(hurry):
            job()

    return do


def _begin(pool: ThreadPoolExecutor, job: Callable[[], None]) -> Future[None]:
    """Do a job in the pool; here and now, where no thread can be had.

    So it is when the interpreter ends: it waits for the threads that are there, and this may be one of them, but lets
    no pool begin anything.
    """
    claim, future = threading.Lock(), Future[None]()
    try:
        pool.submit(_do, claim, job, future)
    except RuntimeError:
        _do(claim, job, future)
    return future


def _do(claim: threading.Lock, job: Callable[[], None], future: Future[None]) -> None:
    """Do a job, unless that has been done: a pool that cannot start a thread may keep what it has refused."""
    if not claim.acquire(blocking=False) or not future.set_running_or_notify_cancel():
        return
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - raised by whoever asks for the result
        future.set_exception(error)
        # The error knows this function's names: not to keep each other alive, one of them goes.
        del future
    else:
        future.set_result(None)


def _path(function: str) -> str:
    return f"/rest/v1/rpc/{function}"
