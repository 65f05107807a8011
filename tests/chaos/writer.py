"""Writers: processes that do operations one after the other, and say of each how it ended."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from chaos import deliberate
from chaos.model import Outcome
from chaos.operations import CHUNK_SIZE, REQUEST_BYTES, Operation, Overwrite
from chaos.relay import Relay
from processes import PROCESSES
from project import Project, User

import tensorage
from tensorage import TensorStore
from tensorage.backend.blocks import block_engine
from tensorage.backend.blocks import writing as block_writing
from tensorage.backend.zarr import writing as zarr_writing
from tensorage.errors import BackendUnavailableError, TensorageError
from tensorage.indexing import runs
from tensorage.transactions import recorder

#: Errors that a writer may get though nobody but it writes to its keys: work that was not on disk yet is lost.
_EXPECTED = (tensorage.ChangedError, tensorage.IncompleteTensorError)


@dataclass(frozen=True)
class Order:
    """Operations, to be done one after the other as far as each is acknowledged."""

    operations: Sequence[Operation]
    #: Requests at once.
    parallel: int


@dataclass(frozen=True)
class End:
    """End of an operation.

    Parameters
    ----------
    error
        Error of a change that was not acknowledged.
    is_expected
        True if a kill explains the error.
    """

    outcome: Outcome
    error: str = ""
    is_expected: bool = True


class Writer:
    """A writer's process and its way to the backend, seen from outside.

    Parameters
    ----------
    fault
        Name of a mistake that it makes on purpose: see `chaos.deliberate`.
    """

    def __init__(self, project: Project, user: User, fault: str | None = None) -> None:
        self.relay = Relay(project.url)
        self._through = replace(project, url=self.relay.url)
        self._user = user
        self._fault = fault
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._is_killed = False
        self._heard: list[End] = []

    def ensure(self) -> None:
        """Start it if it does not run, and wait until it has logged in."""
        if self._process is not None and not self._is_killed:
            return
        if self._process is not None:
            # It had done all that it was given.
            self._forget()
        pipe, theirs = PROCESSES.Pipe()
        arguments = (theirs, self._through, self._user, self._fault)
        process = PROCESSES.Process(target=_serve, args=arguments, daemon=True)
        with _without_complaints():
            process.start()
        self._process, self._pipe = process, pipe
        theirs.close()
        assert self._pipe.poll(60), "a writer does not start"
        assert self._pipe.recv() == "ready"

    def give(self, order: Order) -> None:
        assert self._pipe is not None
        self._heard = []
        self._pipe.send(order)

    def ends(self, timeout_s: float) -> list[End] | None:
        """Wait for the ends of what was begun. None if it does not come to one in time: it may be asked again."""
        assert self._pipe is not None
        ends = self._heard
        try:
            while True:
                if not self._pipe.poll(timeout_s):
                    return None
                end = self._pipe.recv()
                if end is None:
                    return ends
                ends.append(end)
        except (EOFError, ConnectionError):
            self._forget()
            return [*ends, End(Outcome.UNKNOWN, "killed")]

    def kill(self) -> None:
        """Kill it. Threads that wait for its ends are told."""
        self._is_killed = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        try:
            if self._process is not None:
                self._process.kill()
                self._forget()
        finally:
            # Its threads would keep this process alive.
            self.relay.close()

    def _forget(self) -> None:
        assert self._process is not None
        assert self._pipe is not None
        self._process.join(60)
        assert self._process.exitcode == -signal.SIGKILL, f"a writer ended with {self._process.exitcode}"
        self._process.close()
        self._pipe.close()
        self._process = self._pipe = None
        self._is_killed = False


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """Start processes that may be killed: the semaphore of a codec is then left to others, who would warn of it."""
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "ignore:resource_tracker:UserWarning"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _serve(pipe: Connection, project: Project, user: User, fault: str | None) -> None:
    """Do what comes through the pipe, until it breaks: a writer does not outlive those who look at it."""
    # Ctrl-C is for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("tensorage").setLevel(logging.ERROR)
    for module in (runs, block_writing, block_engine, recorder):
        module.MAX_REQUEST_BYTES = REQUEST_BYTES
    zarr_writing.RECORDS_PER_REQUEST = 2
    deliberate.commit(fault)
    session = project.session(user)
    session.login_by_mail()
    store = TensorStore(session, quiet=True, chunk_size=CHUNK_SIZE)
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send("ready")
        while True:
            order: Order = pipe.recv()
            session.transfer.parallel = order.parallel
            for operation in order.operations:
                end = _attempt(store, operation)
                pipe.send(end)
                if end.outcome is not Outcome.ACKNOWLEDGED:
                    break
            pipe.send(None)


def _attempt(store: TensorStore, operation: Operation) -> End:
    try:
        operation.do(store_for(store, operation))
    except BackendUnavailableError as error:
        return End(Outcome.UNKNOWN, str(error))
    except TensorageError as error:
        return End(Outcome.REFUSED, f"{type(error).__name__}: {error}", isinstance(error, _EXPECTED))
    except Exception as error:  # noqa: BLE001 - told to those who look, who fail with it
        return End(Outcome.UNKNOWN, f"{type(error).__name__}: {error}", False)
    return End(Outcome.ACKNOWLEDGED)


def store_for(store: TensorStore, operation: Operation) -> TensorStore:
    """Give the store of the same login that an operation is done with."""
    return TensorStore(
        store.backend,
        quiet=True,
        engine=operation.engine,
        chunk_size=CHUNK_SIZE,
        allow_overwrite=isinstance(operation, Overwrite),
    )
