"""Calls of the project's functions, and jobs in parallel.

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
from typing import Any, ClassVar, Protocol, TypeVar

from tensorage.backend.afterwards import Afterwards, Leftovers
from tensorage.backend.entries import EntryMemory, RecordMemory
from tensorage.backend.wire.faults import check_version, error_of
from tensorage.backend.wire.header import as_json
from tensorage.backend.wire.http import PARALLEL, Answer, Attempt, Http, Login, Request, TooMuchError
from tensorage.backend.wire.patience import Hurry, Patience, current_hurry, end_waits_on
from tensorage.backend.wire.progress import Advance, progress
from tensorage.backend.wire.together import Exchange, Job, do_together
from tensorage.errors import BackendUnavailableError, TensorageError
from tensorage.types import Dataset
from tensorage.wording import one_line

__all__ = ["MEDIA_TYPE", "Project", "Transfer", "Work"]

T = TypeVar("T")

#: Media type of array bytes, and name of the domain that the reading function returns.
MEDIA_TYPE = "application/vnd.tensorage"

#: Function that tells the version of the project's migrations.
VERSION_FUNCTION = "tensorage_version"

#: Functions that change nothing, and whose answers tell the version of the project's migrations.
_TELLING_FUNCTIONS = frozenset({"tensorage_open", "tensorage_read_many"})

#: Functions that may change the array under a key, or remove it.
CHANGING_FUNCTIONS = frozenset(
    f"tensorage_{name}"
    for name in (
        "append",
        "append_tails",
        "assign",
        "commit",
        "remove",
        "remove_all",
        "rename",
        "rename_all",
        "resize",
        "share",
        "store",
        "store_tails",
        "transact",
        "unshare",
    )
)


@dataclass
class ChangeCount:
    """Number of a session's requests that may have changed an array, failed requests included. It only grows."""

    number: int = 0


@dataclass
class Transfer:
    """Calls one project's functions as one user. Safe to use from many threads. A forked process makes another one.

    Parameters
    ----------
    base_url
        URL of the project, without a path.
    login
        Login that the requests are sent with.
    parallel
        Jobs that `run` does at once.
    patience
        Patience of the requests: see `tensorage.backend.wire.http.Http`.
    changes
        Count of the session's changes, which goes on in a forked process.
    """

    #: True if changes are steps of a transaction, which go together in one request at its end.
    is_transaction: ClassVar[bool] = False

    base_url: str
    login: Login
    parallel: int = PARALLEL
    patience: Patience = field(default_factory=Patience, repr=False)
    changes: ChangeCount = field(default_factory=ChangeCount, repr=False)
    http: Http = field(init=False, repr=False)
    #: Entries of arrays that requests have told of.
    entries: EntryMemory = field(default_factory=EntryMemory, init=False, repr=False)
    #: Records of shards that requests have told of.
    records: RecordMemory[Any] = field(default_factory=RecordMemory, init=False, repr=False)
    #: Work that no caller waits for.
    afterwards: Afterwards = field(default_factory=Afterwards, init=False, repr=False)
    #: Failures to delete what writes have replaced.
    leftovers: Leftovers = field(default_factory=Leftovers, init=False, repr=False)
    _version_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _version_fits: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.http = Http(self.base_url, self.login, patience=self.patience)

    def call(self, function: str, arguments: Mapping[str, Any], asked: str) -> Any:
        """Call a function with JSON arguments, and return its JSON answer.

        Parameters
        ----------
        asked
            The user's wish, for error messages: ``opening 'weather'``.
        """
        try:
            return self._json(function, [as_json(arguments)], "application/json", asked)
        except TooMuchError as error:
            # A request with JSON arguments cannot be made smaller.
            raise error_of(error.fault, asked) from error

    def schema_version(self) -> Any:
        """Ask for the version of the project's migrations."""
        return self._json(VERSION_FUNCTION, [b"{}"], "application/json", "checking the project")

    def send(self, function: str, parts: Sequence[bytes | memoryview], asked: str) -> Any:
        """Call a function with the bytes of `parts` as its one argument, and return its JSON answer."""
        return self._json(function, parts, "application/octet-stream", asked)

    def read(self, function: str, arguments: Mapping[str, Any], asked: str) -> bytes:
        """Call a function that answers with bytes, and return them."""
        return self._bytes(function, arguments, None, asked)

    def read_into(self, function: str, arguments: Mapping[str, Any], out: memoryview, asked: str) -> None:
        """Call a function that answers with exactly as many bytes as `out` holds, and fill `out`."""
        self._bytes(function, arguments, out, asked)

    def run(self, jobs: Iterable[Callable[[], None]], parallel: int | None = None) -> None:
        """Do jobs in parallel, taking no more of them from the iterable than are under way.

        After the first error, no further job begins. Jobs under way are waited for, but wait for no outage any more.
        Then the error is raised.

        Parameters
        ----------
        parallel
            Jobs to do at once, by default as many as requests to REST may be.
        """
        most = parallel or self.parallel
        later = iter(jobs)
        first, second = next(later, None), next(later, None)
        if first is None:
            return
        if second is None:
            # A single job gains nothing from a thread, and starting one takes time.
            first()
            return
        waiting = chain((first, second), later)
        hurry = Hurry(current_hurry())
        with ThreadPoolExecutor(most, thread_name_prefix="tensorage") as pool:
            running: set[Future[None]] = set()
            try:
                running |= {_begin(pool, _with_hurry(hurry, job)) for job in islice(waiting, most)}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for finished in done:
                        finished.result()
                    # All running jobs may have finished at once, with further jobs left.
                    running |= {
                        _begin(pool, _with_hurry(hurry, job)) for job in islice(waiting, most - len(running))
                    }
            except BaseException:
                hurry.begin()
                for unfinished in running:
                    unfinished.cancel()
                raise

    def run_small(self, jobs: Iterable[Job], parallel: int) -> None:
        """Do jobs of small requests: by one thread as far as that goes, and what is left in parallel.

        For the same errors as `run`. The work on answers is done in this thread, so that it should be short.

        Parameters
        ----------
        parallel
            Requests to make at once.
        """
        self.run(do_together(self.http, iter(jobs), parallel), parallel)

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        self.http.close()

    def finish(self, within_s: float) -> None:
        """Wait some seconds for work that no caller waits for. The rest is left for the next write."""
        self.afterwards.end(within_s)

    def _json(self, function: str, body: Sequence[bytes | memoryview], content_type: str, asked: str) -> Any:
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        try:
            answer = self._ask(function, Request("POST", _path(function), headers, body), asked)
        finally:
            # Failed requests count, too: the database may have done one whose answer was lost.
            if function in CHANGING_FUNCTIONS:
                self.changes.number += 1
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise BackendUnavailableError(
                f"{asked}: {self.base_url}{_path(function)} did not answer with JSON ({one_line(str(error))}). "
                "Is this the URL of a Supabase project?"
            ) from error

    def exchange(self, function: str, arguments: Mapping[str, Any], asked: str) -> Exchange | None:
        """Return the call of a function that answers with bytes, which are dropped, for `run_small`."""
        if not self._version_fits:
            # The first request of a session goes the ordinary way, which checks the version.
            return None
        request = _bytes_request(function, arguments)

        def end(attempt: Attempt) -> None:
            self.http.ask(request, asked, attempt)

        return Exchange(request, asked, end)

    def _bytes(
        self, function: str, arguments: Mapping[str, Any], out: memoryview | None, asked: str
    ) -> bytes:
        return self._ask(function, _bytes_request(function, arguments, out), asked).body

    def _ask(self, function: str, request: Request, asked: str) -> Answer:
        """Send a request of a function, once the version of the migrations is known, or if the answer tells it."""
        if function == VERSION_FUNCTION:
            return self.http.ask(request, asked)
        if self._version_fits or function not in _TELLING_FUNCTIONS:
            self._check_version_once()
            return self.http.ask(request, asked)
        try:
            return self.http.ask(request, asked)
        except TensorageError:
            # Other migrations give misleading errors.
            self._check_version_once()
            raise

    def learn_version(self, version: Any) -> None:
        """Check the version of the migrations that an answer tells, so that no request of its own has to.

        Raises
        ------
        SchemaError
            If the project has other migrations than this client needs.
        """
        if not self._version_fits:
            check_version(version)
            self._version_fits = True

    def _check_version_once(self) -> None:
        """Check the migrations: others would give wrong answers, or misleading errors."""
        # Read without the lock: it becomes true once, and never false again.
        if self._version_fits:
            return
        # Threads that begin together wait for one request, and do not send one each.
        with self._version_lock:
            if not self._version_fits:
                check_version(self.schema_version())
                self._version_fits = True


class Project(Protocol):
    """One user's access to a project: the part of a session that arrays and files need."""

    @property
    def backend_url(self) -> str | None:
        """URL of the project."""
        ...

    @property
    def user_id(self) -> str:
        """Id of the logged-in user: ``auth.uid()`` in SQL."""
        ...

    @property
    def transfer(self) -> Transfer:
        """The byte mover. A forked process gets another one, since connections are never shared."""
        ...


@dataclass(frozen=True)
class Work:
    """Work on one array: its requests, its name in error messages, and its progress bar.

    Parameters
    ----------
    transfer
        Carries the requests.
    dataset
        Entry of the array, as it was opened or declared.
    asked
        Beginning of error messages: ``reading 'weather'``.
    quiet
        Never show a bar.
    known
        Key, owner and shape of an array whose entry was remembered, for the database to check. None for an array that
        was looked at.
    """

    transfer: Transfer
    dataset: Dataset
    asked: str
    quiet: bool = True
    known: Mapping[str, Any] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Arguments that name the array in a request, in the version that was opened."""
        return {"data_id": self.dataset.id, **self.checks}

    @property
    def checks(self) -> dict[str, Any]:
        """Arguments by which the database checks that the array is as the client knows it."""
        version = {"version": self.dataset.version}
        return version if self.known is None else {**version, "known": self.known}

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
        """Call a function with the bytes of `parts` as its one argument, and return its JSON answer."""
        return self.transfer.send(function, parts, self.asked)

    def read(self, function: str, arguments: Mapping[str, Any]) -> bytes:
        """Call a function that answers with bytes, and return its answer."""
        return self.transfer.read(function, arguments, self.asked)

    def read_into(self, function: str, arguments: Mapping[str, Any], out: memoryview) -> None:
        """Fill `out` by a function that answers with exactly as many bytes as `out` holds."""
        self.transfer.read_into(function, arguments, out, self.asked)

    def run(self, jobs: Iterable[Callable[[], None]], parallel: int | None = None) -> None:
        """Do jobs in parallel: see `Transfer.run`."""
        self.transfer.run(jobs, parallel)

    def in_halves(self, do: Callable[[T], None], part: T, halve: Callable[[T], tuple[T, T] | None]) -> None:
        """Do a part of the work in one request, or in halves if the backend finds the request too large.

        A request is too large if the answer is HTTP 413, or the statement takes too long.

        Parameters
        ----------
        do
            Sends the one request for a part.
        halve
            Cuts a part in two, or returns None for the smallest part, whose error is then raised.
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
        """Return a progress bar for a number of bytes."""
        return progress(nbytes, self.dataset.key, quiet=self.quiet)


def _with_hurry(hurry: Hurry, job: Callable[[], None]) -> Callable[[], None]:
    """Return the job with waits that end when the hurry begins."""

    def do() -> None:
        with end_waits_on(hurry):
            job()

    return do


def _begin(pool: ThreadPoolExecutor, job: Callable[[], None]) -> Future[None]:
    """Do a job in the pool, or at once if the pool can begin no thread.

    At its end, the interpreter waits for running threads, of which this may be one, but lets no pool begin anything.
    """
    claim, future = threading.Lock(), Future[None]()
    try:
        pool.submit(_do, claim, job, future)
    except RuntimeError:
        _do(claim, job, future)
    return future


def _do(claim: threading.Lock, job: Callable[[], None], future: Future[None]) -> None:
    """Do a job, unless it was done already: a pool that cannot start a thread may keep a job that it refused."""
    if not claim.acquire(blocking=False) or not future.set_running_or_notify_cancel():
        return
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - raised by whoever asks for the result
        future.set_exception(error)
        # The error's traceback refers to `future`, which refers to the error. Without this, they keep each other alive.
        del future
    else:
        future.set_result(None)


def _bytes_request(function: str, arguments: Mapping[str, Any], out: memoryview | None = None) -> Request:
    headers = {"Content-Type": "application/json", "Accept": MEDIA_TYPE}
    return Request("POST", _path(function), headers, [as_json(arguments)], out)


def _path(function: str) -> str:
    return f"/rest/v1/rpc/{function}"
