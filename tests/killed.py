"""Writers that are killed, each in a process of its own, at a moment that a proxy sees."""

from __future__ import annotations

import signal
from collections import Counter

import workers
from processes import PROCESSES
from project import Project, User
from proxy import Exchange, Proxy

from tensorage import TensorStore


class Killed:
    """A process that is killed when an answer comes for it, and does not hear it.

    Parameters
    ----------
    moment
        `Exchange.kind` of the request whose answer that is, and how many of them have been made.
    """

    def __init__(
        self, project: Project, user: User, store: TensorStore, key: str, moment: tuple[str, int]
    ) -> None:
        self._moment = moment
        self._calls: Counter[str] = Counter()
        self._proxy = Proxy(project.url, self._kills)
        through = Project(self._proxy.url, project.key)
        arguments = (through, user, key, store.engine)
        self._process = PROCESSES.Process(target=workers.change, args=arguments)
        self._process.start()

    def _kills(self, exchange: Exchange) -> bool:
        self._calls[exchange.kind] += 1
        if (exchange.kind, self._calls[exchange.kind]) != self._moment:
            return False
        self._process.kill()
        return True

    def join(self) -> None:
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        self._process.close()
        self._proxy.close()
