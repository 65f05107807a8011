"""The byte mover: requests to the functions of the project, in parallel, retried, never as text.

Array bytes go up as ``application/octet-stream`` and come down as ``application/vnd.tensorage``. Every
function of tensorage is idempotent (writes carry an operation id), so that every request may be repeated.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.request import getproxies, proxy_bypass

from tensorage.backend.faults import Fault, check_version, error_of
from tensorage.backend.protocol import as_json
from tensorage.errors import BackendUnavailableError

if TYPE_CHECKING:
    import urllib3

__all__ = ["MEDIA_TYPE", "Login", "TooMuchError", "Transfer", "new_pool"]

#: Media type of array bytes, and name of the domain that the reading function returns.
MEDIA_TYPE = "application/vnd.tensorage"

#: The function that says which migrations a project has.
VERSION_FUNCTION = "tensorage_version"

#: Requests at once. Hosted Supabase has about 10 connections behind REST, for all users together.
PARALLEL = 4

#: Tries of one request, and seconds before the second one; each further wait is twice as long.
ATTEMPTS = 5
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0

#: A backend that asks to be left alone for longer is asked again after this.
LONGEST_ASKED_WAIT_S = 60.0

CONNECT_TIMEOUT_S = 5.0
#: Between two pieces of an answer. Hosted Supabase ends a statement after 8 s.
READ_TIMEOUT_S = 60.0

#: Read from the socket at a time: large enough to be cheap, small enough to stay in the cache.
_READ_BYTES = 256 * 1024


class Login(Protocol):
    """What a transfer needs of a session: the headers of its user, and new ones when they expire."""

    def headers(self) -> Mapping[str, str]:
        """``apikey`` and ``Authorization``."""
        ...

    def renew(self, refused: str) -> None:
        """See to it that the next headers hold another token than the `refused` ``Authorization``."""
        ...


class TooMuchError(Exception):
    """The request was too large, or took too long: ask for less. Never leaves the engine."""

    def __init__(self, fault: Fault, asked: str) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.asked = asked


@dataclass
class Transfer:
    """Requests to one project as one login. Safe to use from many threads; after a fork, make another.

    Parameters
    ----------
    base_url
        URL of the project, without a path.
    login
        Whose requests they are.
    parallel
        Requests at once in `run`.
    """

    base_url: str
    login: Login
    parallel: int = PARALLEL
    _pool: urllib3.PoolManager | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _version_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _version_fits: bool = field(default=False, init=False, repr=False)

    def call(self, function: str, arguments: Mapping[str, Any], asked: str) -> Any:
        """Call a function with JSON arguments: its JSON answer.

        Parameters
        ----------
        asked
            What the caller wanted, for error messages: ``opening 'weather'``.
        """
        body = [as_json(arguments)]
        return self._request(function, body, "application/json", None, asked)

    def schema_version(self) -> Any:
        """What the project answers for the version of its migrations."""
        return self._request(VERSION_FUNCTION, [b"{}"], "application/json", None, "checking the project")

    def send(self, function: str, parts: Sequence[bytes | memoryview], asked: str) -> Any:
        """Call a function with `parts`, one after the other, as its one binary argument: its JSON answer."""
        return self._request(function, parts, "application/octet-stream", None, asked)

    def read_into(self, function: str, arguments: Mapping[str, Any], out: memoryview, asked: str) -> None:
        """Call a function that answers with bytes, exactly as many as `out` holds, and put them there."""
        body = [as_json(arguments)]
        self._request(function, body, "application/json", out, asked)

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Do jobs in parallel, taking no more of them from the iterable than are under way.

        The first error ends it: no further job begins, those under way are waited for, and it is raised.
        """
        source = iter(jobs)
        first, second = next(source, None), next(source, None)
        if first is None:
            return
        if second is None:
            first()
            return
        waiting = chain((first, second), source)
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="tensorage") as pool:
            running = {pool.submit(job) for job in islice(waiting, self.parallel)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for finished in done:
                        finished.result()
                    # Even if nothing runs any more: all may have finished at once, with jobs left.
                    running |= {pool.submit(job) for job in islice(waiting, self.parallel - len(running))}
            except BaseException:
                for unfinished in running:
                    unfinished.cancel()
                raise

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.clear()

    def _request(
        self,
        function: str,
        body: Sequence[bytes | memoryview],
        content_type: str,
        out: memoryview | None,
        asked: str,
    ) -> Any:
        if function != VERSION_FUNCTION:
            self._check_version_once()
        renewed = False
        attempt = 0
        while True:
            headers = {
                **self.login.headers(),
                "Content-Type": content_type,
                "Content-Length": str(sum(len(part) for part in body)),
                "Accept": "application/json" if out is None else MEDIA_TYPE,
            }
            outcome = self._attempt(function, body, headers, out, asked)
            if not isinstance(outcome, Fault):
                return outcome
            if outcome.is_expired_login and not renewed:
                renewed = True
                self.login.renew(headers["Authorization"])
                continue
            if outcome.is_too_much:
                raise TooMuchError(outcome, asked)
            attempt += 1
            if not outcome.is_passing or attempt >= ATTEMPTS:
                raise error_of(outcome, asked)
            time.sleep(pause_s(attempt, outcome))

    def _check_version_once(self) -> None:
        """Before the first request: other migrations give wrong answers, or errors that do not say why."""
        if self._version_fits:
            return
        with self._version_lock:
            if not self._version_fits:
                check_version(self.schema_version())
                self._version_fits = True

    def _attempt(
        self,
        function: str,
        body: Sequence[bytes | memoryview],
        headers: Mapping[str, str],
        out: memoryview | None,
        asked: str,
    ) -> Any:
        """One try: the answer (``None`` where it went to `out`), or the fault that came instead."""
        import urllib3

        url = f"{self.base_url}/rest/v1/rpc/{function}"
        try:
            response = self._connections().request(
                "POST",
                url,
                body=cast("Iterable[bytes]", body),
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                if not 200 <= response.status < 300:
                    retry_after = response.headers.get("Retry-After")
                    return Fault.parse(response.status, response.read(), retry_after)
                if out is None:
                    return json.loads(response.read())
                return _fill(out, response, asked)
            except BaseException:
                # Not read to its end: what is left of it must not be taken for the next answer.
                response.close()
                raise
            finally:
                response.release_conn()
        except BackendUnavailableError:
            # It is an OSError too; a complete answer of the wrong size comes again.
            raise
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            return Fault(503, "", f"{self.base_url} cannot be reached: {reason}")
        except ValueError as error:
            raise BackendUnavailableError(
                f"{asked}: {url} did not answer with JSON ({error}). Is this the URL of a Supabase project?"
            ) from error

    def _connections(self) -> urllib3.PoolManager:
        import urllib3

        with self._lock:
            if self._pool is None:
                timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
                self._pool = new_pool(self.base_url, 2 * self.parallel, timeout)
            return self._pool


def pause_s(attempt: int, fault: Fault) -> float:
    """Seconds to wait after a failed attempt (1, 2, ...): as the backend asks, or longer and longer.

    At random within a factor of three, so that clients that failed together do not come again together.
    """
    backing_off = min(FIRST_WAIT_S * 2.0 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    return max(backing_off, min(fault.retry_after_s or 0.0, LONGEST_ASKED_WAIT_S))


def _fill(out: memoryview, response: urllib3.BaseHTTPResponse, asked: str) -> None:
    announced = response.headers.get("Content-Length")
    if announced is not None and int(announced) != len(out):
        raise _wrong_size(asked, int(announced), len(out))
    filled = 0
    for part in response.stream(_READ_BYTES, decode_content=True):
        if filled + len(part) > len(out):
            raise _wrong_size(asked, filled + len(part), len(out))
        out[filled : filled + len(part)] = part
        filled += len(part)
    if filled != len(out):
        raise _wrong_size(asked, filled, len(out))


def _wrong_size(asked: str, received: int, expected: int) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{asked}: the backend sent {received} bytes where {expected} were asked for; nothing is returned"
    )


def new_pool(base_url: str, maxsize: int, timeout: urllib3.Timeout) -> urllib3.PoolManager:
    """Connections to a project, through the proxy that the environment names for it, if any."""
    import httpx
    import urllib3

    scheme, _, rest = base_url.partition("://")
    host = rest.partition("/")[0]
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    make = partial(urllib3.ProxyManager, proxy) if proxy else urllib3.PoolManager
    return make(
        maxsize=maxsize,
        block=False,
        timeout=timeout,
        # The roots that the SDK's own client trusts, so that both reach the same hosts.
        ssl_context=httpx.create_ssl_context() if scheme == "https" else None,
    )
