"""The kill of a round: once, from whatever thread its moment comes in."""

from __future__ import annotations

import threading

from chaos.backend import PATIENCE_S, Backend
from chaos.plan import Kill, Target
from chaos.writer import Writer


class Killer:
    """Kills what is meant, and has it started again.

    Parameters
    ----------
    victim
        The client that is killed, and whose requests are counted.
    """

    def __init__(self, kill: Kill, backend: Backend, victim: Writer) -> None:
        self._kill = kill
        self._backend = backend
        self._victim = victim
        self._lock = threading.Lock()
        self._timer = threading.Timer(kill.delay_s, self.fire) if kill.phase is None else None
        self._has_fired = threading.Event()
        #: Set when all that is meant is dead.
        self.has_killed = threading.Event()

    def begin(self) -> None:
        """Wait for the moment, from now on."""
        if self._kill.freezes:
            self._backend.freeze_wal_writer()
        self._victim.relay.arm(self._kill, self.fire)
        if self._timer is not None:
            self._timer.start()

    def fire(self) -> None:
        """Kill, unless that is done already. A thread that holds a request up returns when all is back."""
        with self._lock:
            if self._has_fired.is_set():
                return
            self._has_fired.set()
        target = self._kill.target
        if target in {Target.CLIENT, Target.ALL}:
            self._victim.kill()
        if target is Target.POSTGRES:
            self._backend.kill_postgres()
        elif target is Target.SERVER:
            self._backend.kill_server()
        elif target is Target.ALL:
            self._backend.kill_both()
        self.has_killed.set()
        if self._kill.holds:
            self._backend.revive()

    def end(self) -> bool:
        """Kill now, if the moment has not come, and return whether it had. Acknowledged work has to hold then, too."""
        had_fired = self._has_fired.is_set()
        self.fire()
        assert self.has_killed.wait(PATIENCE_S)
        if self._timer is not None:
            self._timer.join()
        self._victim.relay.disarm()
        return had_fired
