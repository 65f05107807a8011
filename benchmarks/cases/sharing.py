"""Cost of sharing, quotas, records and large catalogues, on PostgreSQL 15 and 17."""

from __future__ import annotations

import itertools
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

import tensorage
from benchmarks.bench import Bench
from benchmarks.cases.postgres import find_programs
from benchmarks.measure import Result, Timed, measure_in_turns, milliseconds, ratio
from benchmarks.straight import Straight
from tensorage.embedded import control

#: Hosted projects have these.
VERSIONS = (15, 17)

BATCHES = 200
CALLS = 100

#: Arrays of one user, and shares that the user has given.
ARRAYS = 100_000
SHARES = 10_000

#: Arrays that each of the writers stores in one repetition, and the writers.
STORED = 12
WRITERS = 8


def sharing(bench: Bench) -> Iterator[Result]:
    """Reads with and without shares, catalogues of 100,000 arrays, writers with a quota, and the cost of records."""
    for version in VERSIONS:
        programs = find_programs(version)
        if programs is None:
            print(f"   no PostgreSQL {version} on this machine: left out")
            continue
        with ExitStack() as stack:
            folder = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorage-bench-"))) / "data"
            )
            running = control.start(folder, postgres_bin=programs)
            stack.callback(control.stop, folder)
            straight = stack.enter_context(Straight(running.superuser_url))
            name = f"PostgreSQL {version}"
            users = [_Store(folder, stack) for _ in range(4)]
            yield from _reads(name, bench, straight, *users[:3])
            yield from _catalogue(name, straight, users[0], users[3])
            yield from _writers(name, straight, users[1], users[2])
            yield from _records(name, straight, users[1])


class _Store:
    """A new user, and the user's store."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.email = f"{secrets.token_hex(6)}@lab.org"
        session = tensorage.local(folder, email=self.email, password=secrets.token_urlsafe(12))
        stack.callback(session.logout)
        self.id = session.user_id
        self.store = tensorage.TensorStore(session, quiet=True, allow_overwrite=True)


def _reads(
    name: str, bench: Bench, straight: Straight, plain: _Store, crowded: _Store, reader: _Store
) -> Iterator[Result]:
    array = bench.array[:10_000]
    for user in (plain, crowded):
        user.store["images"] = array
    plain.store.share("images", reader.email)
    # The plain user is left with one share. The crowded one has given a thousand, and has been given as many.
    for owner, address in ((crowded.id, "'r' || n || '@lab.org'"), (reader.id, f"'{crowded.email}'")):
        straight.execute(
            "insert into tensorage.shares (user_id, pattern, reader) "
            f"select $1::text::uuid, 'exp/' || n || '/', {address} from generate_series(1, 1000) n",
            owner,
        )
    straight.execute("vacuum analyze")
    opened = {
        "own": plain.store.open("images"),
        "own, 1,000 shares": crowded.store.open("images"),
        "of somebody else": reader.store.open("images", owner=plain.email),
    }
    random = np.random.default_rng(8)
    indices = np.zeros(64, np.int64)

    def shuffle() -> None:
        indices[:] = random.integers(0, len(array), 64)

    shuffle()
    for tensor in opened.values():
        bench.check(tensor[indices], array[indices])
    took = measure_in_turns(
        {
            each: Timed(lambda tensor=tensor: tensor[indices], None if number else shuffle)
            for number, (each, tensor) in enumerate(opened.items())
        },
        BATCHES,
    )
    what = f"{name}: 64 random samples"
    for each, seconds in took.items():
        yield milliseconds(f"{what}, {each}", seconds)
    yield ratio(f"{what}, 1,000 shares / none", took["own, 1,000 shares"], took["own"], ("<=", 1.05))
    yield ratio(f"{what}, of somebody else / own", took["of somebody else"], took["own"], ("<=", 1.3))


def _catalogue(name: str, straight: Straight, few: _Store, many: _Store) -> Iterator[Result]:
    straight.execute(
        "insert into datasets (user_id, writer, key, shape, dtype, block_size, state, stored_bytes, attrs) "
        "select $1::text::uuid, $1::text::uuid, 'run/' || lpad(n::text, 6, '0'), '{0}', '<f4', 1, 'committed', 0, "
        "jsonb_build_object('run', n / 100, 'units', 'K') from generate_series(1, $2::int) n",
        many.id,
        ARRAYS,
    )
    straight.execute(
        "insert into tensorage.shares (user_id, pattern, reader) "
        "select $1::text::uuid, 'run/' || lpad(n::text, 6, '0'), 'r' || n || '@lab.org' "
        "from generate_series(1, $2::int) n",
        many.id,
        SHARES,
    )
    straight.execute("vacuum analyze")
    few.store["run/000007"] = np.zeros(0, "f4")
    new = itertools.count()
    numbers = np.arange(10.0)
    actions: dict[str, Callable[[_Store], object]] = {
        "open": lambda user: user.store.open("run/000007"),
        "in": lambda user: "run/000007" in user.store,
        "write of 10 numbers": lambda user: user.store.__setitem__(f"new/{next(new)}", numbers),
    }
    for what, action in actions.items():
        took = measure_in_turns(
            {"few": Timed(partial(action, few)), "many": Timed(partial(action, many))}, CALLS
        )
        yield milliseconds(f"{name}: {what}, a user of few arrays", took["few"])
        yield ratio(
            f"{name}: {what}, 100,000 arrays and 10,000 shares / few", took["many"], took["few"], None
        )
    took = measure_in_turns(
        {
            "prefix": Timed(lambda: many.store.catalogue("run/01")),
            "where": Timed(lambda: many.store.catalogue(where={"run": 77})),
        },
        20,
    )
    assert len(many.store.catalogue(where={"run": 77})) == 100
    assert len(many.store.catalogue("run/01")) == 10_000
    yield milliseconds(f"{name}: 10,000 entries, 1,000 a request", took["prefix"])
    yield milliseconds(f"{name}: 100 of 100,000 arrays by an attribute", took["where"], ("<=", 20))


def _writers(name: str, straight: Straight, with_quota: _Store, without: _Store) -> Iterator[Result]:
    straight.execute(
        "insert into tensorage.quotas (user_id, max_bytes, max_arrays) "
        "values ($1::text::uuid, 1e15::bigint, 1e9::bigint)",
        with_quota.id,
    )
    array = np.random.default_rng(0).random(32_768)

    def store(user: _Store) -> None:
        def write(writer: int) -> None:
            for number in range(STORED):
                user.store[f"parallel/{writer}/{number}"] = array

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, range(WRITERS)))

    users = {"with": with_quota, "without": without}
    for user in users.values():
        store(user)
    took = measure_in_turns({each: Timed(partial(store, user)) for each, user in users.items()}, 11)
    yield ratio(
        f"{name}: rate of 8 writers, with a quota / without", took["without"], took["with"], (">=", 0.9)
    )


def _records(name: str, straight: Straight, user: _Store) -> Iterator[Result]:
    """The function that keeps a record is replaced by one that keeps none, in turns."""
    keeping = straight.fetch("select pg_get_functiondef('tensorage.note'::regproc)")
    head, _, _ = keeping.partition("AS $function$")
    ignoring = f"{head} AS $function$ begin end $function$"
    new, numbers = itertools.count(), np.arange(10.0)

    def store() -> None:
        for _ in range(20):
            user.store[f"small/{next(new)}"] = numbers

    took = measure_in_turns(
        {
            "without": Timed(store, lambda: straight.execute(ignoring)),
            "with": Timed(store, lambda: straight.execute(keeping)),
        },
        25,
    )
    yield ratio(
        f"{name}: small write, with a record of it / without", took["with"], took["without"], ("<=", 1.05)
    )
