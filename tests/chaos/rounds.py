"""Rounds: writers do operations, something is killed and comes back, and all is looked at."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from chaos import check
from chaos.backend import Backend
from chaos.kills import Killer
from chaos.model import FAULTS, Difference, Entry, Outcome, State, Stored, Verdict, judge, judge_log, log_rows
from chaos.operations import CHUNK_SIZE, LogAppend, layout
from chaos.plan import USER_OF_WRITER, Part, Plan
from chaos.writer import End, Order, Writer, store_for
from project import User

from tensorage import TensorStore

#: Arrays of so many rounds before are looked at again in each round.
ROUNDS_KEPT = 2

#: A round that takes longer than this waits for something that the kill puts an end to.
_ROUND_S = 60.0

#: No more than anything of these rounds needs: an upper bound has to be asked for, and locks taken for it.
_QUOTA_BYTES = 1 << 30

#: The entry of a log that it begins with.
_FIRST_ENTRY = Entry(999_999, 3, -1, Outcome.ACKNOWLEDGED)


@dataclass(frozen=True)
class Met:
    """An operation that was begun in a round, and its end."""

    kind: str
    engine: str
    verdict: Verdict
    end: End
    is_victim: bool


@dataclass
class Result:
    """A round's outcome.

    Parameters
    ----------
    requests
        Kinds of the requests of the victim.
    problems
        All that is not as it has to be, in words: none if the round is good.
    """

    plan: Plan
    met: list[Met] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    was_met: bool = False
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [str(self.plan), f"  requests of the victim: {', '.join(self.requests)}"]
        lines += [f"  {met.kind} ({met.engine}): {met.verdict.value} {met.end.error}" for met in self.met]
        return "\n".join([*lines, *(f"  PROBLEM {problem}" for problem in self.problems)])


class Arena:
    """A backend, its users and their writers, for many rounds.

    Parameters
    ----------
    fault
        Name of a mistake that all writers make on purpose: see `chaos.deliberate`.
    """

    def __init__(self, data_dir: Path, *, postgres_bin: Path | None = None, fault: str | None = None) -> None:
        self._exit = ExitStack()
        self.backend = Backend(data_dir, postgres_bin)
        self._exit.callback(self.backend.stop)
        project = self.backend.project
        self.users = [project.register() for _ in sorted(set(USER_OF_WRITER))]
        with self.backend.sql() as database:
            for user in self.users:
                query = "insert into tensorage.quotas (user_id, max_bytes) values (%s, %s)"
                database.execute(query, [user.id, _QUOTA_BYTES])
        self.writers = [Writer(project, self.users[user], fault) for user in USER_OF_WRITER]
        for writer in self.writers:
            self._exit.callback(writer.close)
        #: A store of each user, straight to the backend.
        self.stores = [self._store(user) for user in self.users]
        #: Prefixes of the last rounds, and the arrays of each user that are there below them.
        self._kept: deque[tuple[str, list[State]]] = deque()

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def run(self, plan: Plan) -> Result:
        """Run a round."""
        result = Result(plan)
        initial = self._prepare(plan)
        ends = self._let_them_write(plan, result)
        self._look(plan, initial, ends, result)
        return result

    def _store(self, user: User) -> TensorStore:
        session = self.backend.project.session(user)
        session.login_by_mail()
        return TensorStore(session, quiet=True, chunk_size=CHUNK_SIZE)

    # Preparation ----------------------------------------------------------------------------------------------

    def _prepare(self, plan: Plan) -> dict[int, State]:
        """Store what the operations need: the state of each writer's keys."""
        initial: dict[int, State] = {}
        for part in plan.parts:
            self.writers[part.writer].ensure()
            store = self.stores[USER_OF_WRITER[part.writer]]
            state: State = {}
            for operation in part.initial:
                operation.do(store_for(store, operation))
                state = operation.then(state)
            initial[part.writer] = state
        for user, engine in plan.logs:
            rows = log_rows(_FIRST_ENTRY.number, _FIRST_ENTRY.count)
            self.stores[user].write(
                f"{plan.prefix}log {user}/{engine}", rows, engine=engine, **layout(engine)
            )
        return initial

    # The round ------------------------------------------------------------------------------------------------

    def _let_them_write(self, plan: Plan, result: Result) -> dict[int, list[End]]:
        """Give each writer its operations, kill, and return the ends of what each began."""
        victim = self.writers[plan.kill.victim]
        starts = self.backend.starts
        killer = Killer(plan.kill, self.backend, victim)
        killer.begin()
        for part in plan.parts:
            self.writers[part.writer].give(Order(part.operations, part.parallel))
        ends: dict[int, list[End]] = {}
        threads = [threading.Thread(target=self._hear, args=(part, ends)) for part in plan.parts]
        for thread in threads:
            thread.start()
        until = time.monotonic() + _ROUND_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
            if killer.has_killed.wait(0.01):
                self._revive()
                break
        while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
            time.sleep(0.01)
        result.was_met = killer.end()
        self._revive()
        for thread in threads:
            thread.join()
        result.requests = victim.relay.seen()
        self.backend.wait_until_idle()
        if self.backend.starts > starts and (undecided := self.backend.undecided()):
            result.problems.append(f"a new server has not decided about the files {sorted(undecided)}")
        return ends

    def _hear(self, part: Part, ends: dict[int, list[End]]) -> None:
        writer = self.writers[part.writer]
        heard = writer.ends(2 * _ROUND_S)
        if heard is None:
            hangs = f"hangs; PostgreSQL: {self.backend.activity()}"
            writer.kill()
            heard = [*(writer.ends(_ROUND_S) or [])[:-1], End(Outcome.UNKNOWN, hangs, is_expected=False)]
        # Killed after its last operation, it says one end more.
        ends[part.writer] = heard[: len(part.operations)]

    def _revive(self) -> None:
        self.backend.revive()
        for writer in self.writers:
            writer.relay.send_to(self.backend.running.api_url)

    # Judgement ------------------------------------------------------------------------------------------------

    def _look(
        self, plan: Plan, initial: Mapping[int, State], ends: Mapping[int, list[End]], result: Result
    ) -> None:
        seen = [check.look(store, plan.prefix) for store in self.stores]
        verdicts: dict[int, list[Verdict]] = {}
        differences: list[Difference] = []
        for part in plan.parts:
            own = f"{plan.prefix}{part.writer}/"
            mine = {
                key: stored
                for key, stored in seen[USER_OF_WRITER[part.writer]].items()
                if key.startswith(own)
            }
            outcomes = [end.outcome for end in ends[part.writer]]
            judged, wrong = judge(initial[part.writer], part.operations, outcomes, mine)
            verdicts[part.writer] = judged
            differences += wrong
        for user, engine in plan.logs:
            key = f"{plan.prefix}log {user}/{engine}"
            differences += _judge_appends(plan, ends, verdicts, key, seen[user].get(key))
        result.problems += [str(difference) for difference in differences]
        for part in plan.parts:
            for operation, verdict, end in zip(
                part.operations, verdicts[part.writer], ends[part.writer], strict=False
            ):
                is_victim = part.writer == plan.kill.victim
                result.met.append(Met(operation.kind, operation.engine, verdict, end, is_victim))
                if not end.is_expected:
                    result.problems.append(f"{operation} ended with {end.error}")
                elif verdict in FAULTS and not differences:
                    result.problems.append(f"{operation}: {verdict.value}")
        for prefix, states in self._kept:
            for store, state in zip(self.stores, states, strict=True):
                if (now := check.look(store, prefix)) != state:
                    changed = [key for key in {*now, *state} if now.get(key) != state.get(key)]
                    result.problems.append(f"{changed} of a round before are not what they were")
        whole = [
            {key: stored for key, stored in of_user.items() if isinstance(stored, Stored)} for of_user in seen
        ]
        self._kept.append((plan.prefix, whole))
        self._sweep(result)

    def _sweep(self, result: Result) -> None:
        with self.backend.sql() as database:
            for user, store in zip(self.users, self.stores, strict=True):
                check.let_a_day_pass(database, user.id)
                check.sweep(store)
            states = {
                user.id: {key: stored for _, states in self._kept for key, stored in states[number].items()}
                for number, user in enumerate(self.users)
            }
            result.problems += check.leftovers_of(self.backend, database, states)
        if len(self._kept) > ROUNDS_KEPT:
            prefix, _ = self._kept.popleft()
            for store in self.stores:
                for key in store.keys(prefix):
                    del store[key]


def _judge_appends(
    plan: Plan,
    ends: Mapping[int, list[End]],
    verdicts: Mapping[int, list[Verdict]],
    key: str,
    seen: Stored | check.Unreadable | None,
) -> list[Difference]:
    """Judge the appends to one log, in place of the verdicts on their writers' own keys."""
    entries, places = [_FIRST_ENTRY], []
    for part in plan.parts:
        for at, (operation, end) in enumerate(zip(part.operations, ends[part.writer], strict=False)):
            if isinstance(operation, LogAppend) and operation.key == key:
                entries.append(Entry(operation.seed, operation.rows, part.writer, end.outcome))
                places.append((part.writer, at))
    judged, differences = judge_log(key, entries, seen)
    for (writer, at), verdict in zip(places, judged[1:], strict=True):
        verdicts[writer][at] = verdict
    return differences
