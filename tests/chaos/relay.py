"""A relay between a writer and the backend, which counts requests and calls for the kill at the one that is meant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from chaos.plan import Kill, Phase
from proxy import Exchange, Proxy


class Relay:
    """A proxy of one writer, for many rounds.

    Parameters
    ----------
    url
        URL of the backend.
    """

    def __init__(self, url: str) -> None:
        self._lock = threading.Lock()
        self._kill: Kill | None = None
        self._fire: Callable[[], None] = lambda: None
        self._count = 0
        # Each connection is served by a thread of its own: it knows whether its request is the one.
        self._met = threading.local()
        self._proxy = Proxy(
            url, loses_answer=self._loses_answer, breaks=self._breaks, changes=self._count_request
        )
        self.url = self._proxy.url

    def send_to(self, url: str) -> None:
        """Pass on what comes from now on to another address: a backend may come back on another port."""
        address = urlsplit(url)
        assert address.hostname is not None
        self._proxy.server = (address.hostname, address.port or 80)

    def arm(self, kill: Kill, fire: Callable[[], None]) -> None:
        """Call `fire` at the request that `kill` means."""
        with self._lock:
            self._kill, self._fire, self._count = kill, fire, 0
            self._proxy.exchanges.clear()

    def disarm(self) -> None:
        with self._lock:
            self._kill = None

    def seen(self) -> list[str]:
        """Kinds of the requests since it was armed."""
        return [exchange.kind for exchange in self._proxy.exchanges]

    def close(self) -> None:
        self._proxy.close()

    def _count_request(self, head: bytes) -> bytes:
        self._met.kill = None
        method, target, _ = head.split(b" ", 2)
        exchange = Exchange(target.decode(), method=method.decode())
        with self._lock:
            kill = self._kill
            if kill is None or kill.phase is None or "/auth/" in exchange.target:
                return head
            if kill.function is not None and kill.function != exchange.kind:
                return head
            self._count += 1
            if self._count != kill.count:
                return head
            self._kill = None
            self._met.kill = kill
        if kill.phase is Phase.UNSENT:
            self._met.kill = None
            self._fire()
        return head

    def _loses_answer(self, exchange: Exchange) -> bool:
        return self._meets(Phase.UNANSWERED) is not None

    def _breaks(self, exchange: Exchange) -> bool:
        met = self._meets(Phase.ANSWERED if exchange.received_bytes else Phase.UNDER_WAY)
        return met is not None and not met.holds

    def _meets(self, phase: Phase) -> Kill | None:
        """Call for the kill, if this connection's request is the one and has come so far."""
        kill: Kill | None = getattr(self._met, "kill", None)
        if kill is None or kill.phase is not phase:
            return None
        self._met.kill = None
        self._fire()
        return kill
