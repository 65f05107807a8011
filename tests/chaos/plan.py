"""The choices of one round, all of them drawn from its seed: the operations of each writer, and the kill."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chaos.model import State
from chaos.operations import (
    ENGINES,
    LARGE,
    SMALL,
    Append,
    Assign,
    Copy,
    Create,
    Delete,
    LogAppend,
    Operation,
    Overwrite,
    Rename,
    Resize,
    Sweep,
    Transact,
    Write,
)

from tensorage.types import Engine

#: Writers, each a process of its own: the user of each. Three of them get into each other's way.
USER_OF_WRITER = (0, 0, 0, 1)


class Target(enum.Enum):
    """The process that is killed."""

    POSTGRES = "PostgreSQL"
    SERVER = "server"
    CLIENT = "client"
    ALL = "all"


class Phase(enum.Enum):
    """The moment at which the kill meets a request."""

    #: The request has come, and has not been passed on.
    UNSENT = "unsent"
    #: The request has been passed on, and is being answered.
    UNDER_WAY = "under way"
    #: The request has been answered, and the answer is lost.
    UNANSWERED = "unanswered"
    #: The answer has been passed on.
    ANSWERED = "answered"


@dataclass(frozen=True)
class Kill:
    """The process that is killed, and the moment.

    Parameters
    ----------
    victim
        The writer whose requests are counted, and which is the client that is killed.
    phase
        None: after `delay_s`, whatever happens then.
    function
        Only requests of this kind are counted: see `proxy.Exchange.kind`. All, if None.
    count
        Number of the request among them.
    holds
        True if requests of the victim wait until all is up again, rather than being refused.
    freezes
        True if the process that writes what need not be on disk yet is stopped before: what is not waited for is then
        lost for certain. Otherwise that is so within about 0.2 s.
    """

    target: Target
    victim: int
    phase: Phase | None
    function: str | None = None
    count: int = 1
    delay_s: float = 0.0
    holds: bool = False
    freezes: bool = False

    def __str__(self) -> str:
        if self.phase is None:
            when = f"after {self.delay_s:.3f} s"
        else:
            kind = self.function or "any kind"
            when = f"at request {self.count} of {kind} of writer {self.victim}, {self.phase.value}"
        flags = [name for name in ("holds", "freezes") if getattr(self, name)]
        return f"kill {self.target.value} {when}" + (f" ({', '.join(flags)})" if flags else "")


@dataclass(frozen=True)
class Part:
    """The part of one writer: arrays that are there before, and its operations."""

    writer: int
    initial: tuple[Operation, ...]
    operations: tuple[Operation, ...]
    parallel: int = 4


@dataclass(frozen=True)
class Plan:
    """A round."""

    seed: str
    parts: tuple[Part, ...]
    kill: Kill
    #: Engines of the logs of each user: the logs are there before.
    logs: tuple[tuple[int, Engine], ...] = ()

    @property
    def prefix(self) -> str:
        """Keys of the round begin with it."""
        return f"{self.seed}/"

    def __str__(self) -> str:
        lines = [f"round {self.seed}: {self.kill}"]
        for part in self.parts:
            lines += [f"  writer {part.writer}, {part.parallel} requests at once"]
            lines += [f"    there: {operation}" for operation in part.initial]
            lines += [f"    does:  {operation}" for operation in part.operations]
        return "\n".join(lines)


class _Drawer:
    """Draws operations that are possible in the state that the earlier ones lead to."""

    def __init__(self, rng: random.Random, prefix: str, writer: int) -> None:
        self.rng = rng
        self.writer = writer
        self.own = f"{prefix}{writer}/"
        self.logs = f"{prefix}log {USER_OF_WRITER[writer]}/"
        self.state: State = {}
        self._drawn = 0

    def draw(self, kind: str, engine: Engine) -> tuple[list[Operation], Operation]:
        """Draw an operation: what has to be there for it and is not, and itself."""
        needed: list[Operation] = []
        make = _MAKERS[kind]
        if kind not in _NEED_NOTHING and not self.keys_of(engine, kind):
            needed.append(self.write(engine))
        operation = make(self, kind, engine)
        self.state = operation.then(self.state)
        return needed, operation

    def write(self, engine: Engine) -> Operation:
        operation = Write(
            "store", engine, self.free(), self.number(), LARGE - self.rng.randint(0, 40), self.dtype()
        )
        self.state = operation.then(self.state)
        return operation

    def keys_of(self, engine: Engine, kind: str) -> list[str]:
        """Keys of arrays that an operation of the kind may be done to."""
        # A copy or another array may be of another engine than what it is made from or takes the place of.
        is_any = kind in {"copy", "overwrite"}
        return [key for key, stored in self.state.items() if is_any or stored.engine == engine]

    def key_of(self, engine: Engine, kind: str) -> str:
        return self.rng.choice(self.keys_of(engine, kind))

    def free(self) -> str:
        self._drawn += 1
        return f"{self.own}{self._drawn}"

    def number(self) -> int:
        """Seed of values, and number of an entry: of no other operation of the round."""
        self._drawn += 1
        return self.writer * 1000 + self._drawn

    def dtype(self) -> str:
        return self.rng.choice(["<i8", "<f8"])

    def dtype_of(self, key: str) -> str:
        return self.state[key].array.dtype.str


def _write(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    rows = drawer.rng.randint(1, SMALL) if kind == "store" else drawer.rng.randint(LARGE - 40, LARGE)
    pieces = {"write from blocks": "blocks", "fill": "filled"}.get(kind, "whole")
    return Write(kind, engine, drawer.free(), drawer.number(), rows, drawer.dtype(), pieces)


def _create(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    return Create(
        kind, engine, drawer.free(), drawer.number(), drawer.rng.randint(LARGE - 40, LARGE), drawer.dtype()
    )


def _resize(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    key = drawer.key_of(engine, kind)
    rows = drawer.rng.randint(1, 2 * len(drawer.state[key].array))
    return Resize(kind, engine, key, drawer.number(), rows)


def _overwrite(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    rows = drawer.rng.choice([SMALL, LARGE])
    key = drawer.key_of(engine, kind)
    return Overwrite(
        kind, engine, key, drawer.number(), rows, drawer.dtype(), drawer.rng.choice(["whole", "blocks"])
    )


def _append(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    rows = drawer.rng.randint(1, SMALL) if kind == "append" else drawer.rng.randint(90, 130)
    if drawer.rng.random() < 0.4:
        return LogAppend(kind, engine, f"{drawer.logs}{engine}", drawer.number(), rows)
    key = drawer.key_of(engine, kind)
    return Append(kind, engine, key, drawer.number(), rows, drawer.dtype_of(key))


def _assign(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    key = drawer.key_of(engine, kind)
    there = len(drawer.state[key].array)
    rows = drawer.rng.randint(1, min(there, 20)) if kind == "assign" else there
    # The rows are within one object, if it is to be one request.
    first = drawer.rng.choice([0, (there - rows) // 32 * 32]) if kind == "assign" else 0
    step = drawer.rng.choice([1, 2, 3])
    return Assign(kind, engine, key, drawer.number(), rows, first, step, drawer.dtype_of(key))


def _copy(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    return Copy(kind, engine, drawer.key_of(engine, kind), drawer.number(), drawer.free())


def _rename(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    key = drawer.key_of(engine, kind)
    others = [other for other in drawer.state if other != key]
    new_key = drawer.rng.choice([drawer.free(), *others])
    return Rename(kind, engine, key, drawer.number(), new_key)


def _delete(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    return Delete(kind, engine, drawer.key_of(engine, kind), drawer.number())


def _transact(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    """Store an array, change another one, and delete a third, if there is one."""
    rng, key, is_staged = drawer.rng, drawer.key_of(engine, kind), kind == "staged transaction"
    rows = rng.randint(90, 130) if is_staged else rng.randint(1, SMALL)
    dtype = drawer.dtype_of(key)
    made = Write("store", engine, drawer.free(), drawer.number(), rows, drawer.dtype())
    changed: Operation = Append("append", engine, key, drawer.number(), rows, dtype)
    if rng.random() < 0.5:
        there = min(len(drawer.state[key].array), rows)
        changed = Assign("assign", engine, key, drawer.number(), there, 0, rng.choice([1, 2, 3]), dtype)
    others = [other for other in drawer.state if other != key]
    gone = [Delete("delete", engine, rng.choice(others), drawer.number())] if others else []
    return Transact(kind, engine, key, drawer.number(), (made, changed, *gone))


def _sweep(drawer: _Drawer, kind: str, engine: Engine) -> Operation:
    return Sweep(kind, engine, drawer.free(), drawer.number())


_MAKERS: dict[str, Callable[[_Drawer, str, Engine], Operation]] = {
    "store": _write,
    "staged write": _write,
    "write from blocks": _write,
    "fill": _write,
    "append": _append,
    "staged append": _append,
    "assign": _assign,
    "staged assign": _assign,
    "create": _create,
    "resize": _resize,
    "overwrite": _overwrite,
    "copy": _copy,
    "rename": _rename,
    "delete": _delete,
    "sweep": _sweep,
    "transaction": _transact,
    "staged transaction": _transact,
}

_NEED_NOTHING = frozenset({"store", "staged write", "write from blocks", "fill", "create", "sweep"})

#: Operations that end with a commit, in each engine.
_STAGED = frozenset(
    {"staged write", "write from blocks", "fill", "staged append", "staged assign", "copy", "overwrite"}
)

#: Operations that end with the one request of a transaction.
_TRANSACTIONS = frozenset({"transaction", "staged transaction"})

#: Operations that end with a commit only in Storage.
_STAGED_IN_STORAGE = frozenset({"store", "append", "assign"})

KINDS = tuple(_MAKERS)

#: Each row of the table.
SUBJECTS: tuple[tuple[str, Engine], ...] = tuple((kind, engine) for kind in KINDS for engine in ENGINES)


def draw_plan(
    seed: str,
    number: int,
    kill: Kill | None = None,
    writers: Sequence[int] | None = None,
    parallel: int | None = None,
) -> Plan:
    """Draw round `number` of a seed: every row of the table has its turn to be what is met by the kill.

    Parameters
    ----------
    kill
        In place of one that is drawn.
    writers
        In place of those that are drawn. The first one is the victim.
    parallel
        Requests at once, in place of what is drawn.
    """
    rng = random.Random(f"{seed}/{number}")
    prefix = f"{seed}-{number}/"
    if writers is None:
        writers = rng.sample(range(len(USER_OF_WRITER)), rng.choice([1, 1, 2, 3, 4]))
    subject = SUBJECTS[number % len(SUBJECTS)]
    parts = []
    for writer in writers:
        drawer = _Drawer(rng, prefix, writer)
        wanted = [rng.choice(SUBJECTS) for _ in range(rng.randint(1, 3))]
        if writer == writers[0]:
            wanted = [subject, *wanted[: rng.randint(0, 2)]]
        initial: list[Operation] = []
        operations: list[Operation] = []
        for kind, engine in wanted:
            needed, operation = drawer.draw(kind, engine)
            initial += needed
            operations.append(operation)
        parts.append(Part(writer, tuple(initial), tuple(operations), parallel or rng.choice([1, 4])))
    logs = {
        (USER_OF_WRITER[part.writer], operation.engine)
        for part in parts
        for operation in part.operations
        if isinstance(operation, LogAppend)
    }
    kill = kill or _draw_kill(rng, writers[0], subject)
    return Plan(f"{seed}-{number}", tuple(parts), kill, tuple(sorted(logs)))


def _draw_kill(rng: random.Random, victim: int, subject: tuple[str, Engine]) -> Kill:
    target = rng.choices(list(Target), [5, 2, 2, 2])[0]
    holds = rng.random() < 0.5
    freezes = target in {Target.POSTGRES, Target.ALL} and rng.random() < 0.6
    drawn = rng.random()
    if drawn < 0.2:
        return Kill(target, victim, None, delay_s=rng.uniform(0, 0.2), holds=holds, freezes=freezes)
    phase = rng.choice(list(Phase))
    kind, engine = subject
    if drawn < 0.35 and kind in _TRANSACTIONS:
        return Kill(target, victim, phase, "transact", 1, holds=holds, freezes=freezes)
    if drawn < 0.55 and (kind in _STAGED or (engine == "storage" and kind in _STAGED_IN_STORAGE)):
        staging = "put_shards" if engine == "storage" else "patch" if kind == "staged assign" else "put"
        function = "commit" if drawn < 0.35 else staging
        count = 1 if function == "commit" else rng.randint(1, 2)
        return Kill(target, victim, phase, function, count, holds=holds, freezes=freezes)
    return Kill(target, victim, phase, None, rng.randint(1, 10), holds=holds, freezes=freezes)
