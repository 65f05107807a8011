"""Several requests of one user meet."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, answer_of, code_of, new_key, new_operation, whole

Connection = psycopg.Connection[tuple[Any, ...]]

_THREADS = 8
_NUMBERS = np.arange(3000, dtype="<i4")


def _at_once(job: Callable[[int], httpx.Response], threads: int = _THREADS) -> list[httpx.Response]:
    """Answers to requests that are sent at the same moment."""
    ready = Barrier(threads)

    def one(number: int) -> httpx.Response:
        ready.wait(30)
        return job(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


def _store(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.call("tensorage_store", whole(_NUMBERS, key=key, operation=operation))


def _append(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.append(key, _NUMBERS, operation=operation, chunk=1000)


def _remove(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.call("tensorage_remove", key=key, operation=operation)


def _begin(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.call(
        "tensorage_begin", key=key, shape=[3], dtype="<i4", chunk=3, overwrite=True, operation=operation
    )


@pytest.mark.parametrize("write", [_store, _append, _remove, _begin])
def test_repeated_operation_is_done_once(
    write: Callable[[Caller, str, str], httpx.Response], owner: Caller
) -> None:
    for repeated in range(1, 4):
        key, operation = new_key(), new_operation()
        if write is not _store:
            owner.store(key, _NUMBERS)

        def repeat(_: int, key: str = key, operation: str = operation) -> httpx.Response:
            return write(owner, key, operation)

        answers = [answer_of(answer) for answer in _at_once(repeat)]
        assert all(answer == answers[0] for answer in answers)
        if write is _remove:
            assert code_of(owner.call("tensorage_open", key=key)) == "TS001"
        else:
            assert owner.open(key)["shape"] == [6000 if write is _append else 3000]
        staged = owner.request("GET", "/datasets?state=eq.staged&expires_at=gt.now").json()
        assert len(staged) == (repeated if write is _begin else 0)


@pytest.mark.parametrize("append", [False, True])
def test_repeated_commit_is_done_once(append: bool, owner: Caller) -> None:
    key, operation = new_key(), new_operation()
    if append:
        owner.store(key, _NUMBERS)
    begun = owner.begin(key, [3000], chunk=1000, append=append)
    answer_of(owner.put(begun["id"], _NUMBERS, chunk=1000))
    answers = [answer_of(a) for a in _at_once(lambda _: owner.commit(begun["id"], operation=operation))]
    assert all(answer == answers[0] for answer in answers)
    assert np.array_equal(owner.read(owner.open(key)), np.tile(_NUMBERS, 1 + append))


def test_blocks_in_parallel_and_twice(owner: Caller) -> None:
    begun = owner.begin(new_key(), [_THREADS * 300], chunk=100)
    data = np.arange(_THREADS * 300, dtype="<i4")

    def put(number: int) -> httpx.Response:
        first = number // 2 * 600
        return owner.put(begun["id"], data[first : first + 600], first, chunk=100)

    for answer in _at_once(put):
        answer_of(answer)
    assert np.array_equal(owner.read(answer_of(owner.commit(begun["id"]))), data)


def test_one_of_many_creates_the_key(owner: Caller) -> None:
    for _ in range(3):
        key = new_key()
        answers = _at_once(
            lambda number, key=key: owner.call("tensorage_store", whole(np.full(10, number), key=key))
        )
        winners = [number for number, answer in enumerate(answers) if answer.status_code == 200]
        assert len(winners) == 1
        assert {code_of(answer) for answer in answers if answer.status_code != 200} == {"TS002"}
        assert np.array_equal(owner.read(owner.open(key)), np.full(10, winners[0]))


@pytest.mark.parametrize("exists", [False, True])
def test_everybody_who_may_overwrite_does(exists: bool, owner: Caller) -> None:
    for _ in range(3):
        key = new_key()
        if exists:
            owner.store(key, np.full(10, 99))

        def store(number: int, key: str = key) -> httpx.Response:
            return owner.call("tensorage_store", whole(np.full(10, number), key=key, overwrite=True))

        answers = [answer_of(answer) for answer in _at_once(store)]
        assert sorted(answer["version"] for answer in answers) == list(range(1 + exists, 9 + exists))
        last = max(range(_THREADS), key=lambda number: answers[number]["version"])
        assert np.array_equal(owner.read(owner.open(key)), np.full(10, last))


def test_reader_gets_one_array_or_the_other(owner: Caller) -> None:
    """A read by id and version gets the elements of that array, or the news that it has changed."""
    key, size = new_key(), 3000
    owner.store(key, np.full(size, 0), chunk=100)
    done = Event()

    def write() -> None:
        try:
            for number in range(1, 40):
                owner.store(key, np.full(size, number), chunk=100, overwrite=True)
                answer_of(owner.append(key, np.full(100, number), chunk=100))
        finally:
            done.set()

    def read() -> set[str]:
        seen = set()
        while not done.is_set():
            opened = owner.open(key)
            for _ in range(3):
                count = opened["shape"][0]
                answer = owner.ask(opened, [0], run_length=count)
                if answer.status_code == 200:
                    elements = np.frombuffer(answer.content, opened["dtype"])
                    assert elements.size == count
                    assert np.ptp(elements) == 0
                    seen.add("read")
                else:
                    assert code_of(answer) == "TS003"
                    seen.add("changed")
        return seen

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        reading = [pool.submit(read) for _ in range(2)]
        writing.result()
        assert set.union(*(reader.result() for reader in reading)) == {"read", "changed"}


@pytest.mark.parametrize("staged", [False, True])
def test_appends_lose_and_double_nothing(staged: bool, owner: Caller) -> None:
    """The rows of each append stay together, in their order."""
    key, rows, rounds = new_key(), 7, 6
    owner.store(key, np.empty((0, 3), "<i4"), chunk=60)

    def append(writer: int) -> httpx.Response:
        for number in range(rounds):
            mine = np.arange(rows * 3, dtype="<i4").reshape(rows, 3) + 1000 * (writer * rounds + number)
            if staged:
                begun = owner.begin(key, mine.shape, chunk=9, append=True)
                answer_of(owner.put(begun["id"], mine, chunk=9))
                answer = owner.commit(begun["id"])
            else:
                answer = owner.append(key, mine)
            answer_of(answer)
        return answer

    _at_once(append)
    opened = owner.open(key)
    assert opened["shape"] == [_THREADS * rounds * rows, 3]
    pieces = owner.read(opened).reshape(-1, rows * 3)
    assert np.array_equal(pieces - pieces[:, :1], np.tile(np.arange(rows * 3), (len(pieces), 1)))
    assert sorted(pieces[:, 0] // 1000) == list(range(_THREADS * rounds))
    for writer in range(_THREADS):
        mine = [int(piece) % rounds for piece in pieces[:, 0] // 1000 if piece // rounds == writer]
        assert mine == list(range(rounds))


def test_writers_of_one_key_do_not_wait_in_a_circle(owner: Caller, database: Connection) -> None:
    """Each writer locks the quota, the key and the array's row."""
    database.execute("insert into tensorage.quotas values (%s, %s)", (owner.id, 10**9))
    key = new_key()
    owner.store(key, _NUMBERS)

    def work(number: int) -> httpx.Response:
        for _ in range(15):
            if number % 2:
                answer = owner.append(key, _NUMBERS[:10])
            else:
                answer = owner.call("tensorage_store", whole(_NUMBERS, key=key, overwrite=True))
            # An append may meet an array that was just replaced.
            assert answer.status_code == 200 or (number % 2 and code_of(answer) == "TS003"), answer.text
        return answer

    _at_once(work)


def test_commit_and_abort_at_once(owner: Caller) -> None:
    for _ in range(5):
        begun = owner.begin(new_key(), [3000], chunk=1000)
        answer_of(owner.put(begun["id"], _NUMBERS, chunk=1000))

        def end(number: int, data_id: int = begun["id"]) -> httpx.Response:
            return owner.commit(data_id) if number else owner.call("tensorage_abort", data_id=data_id)

        aborted, committed = _at_once(end, 2)
        assert aborted.status_code == 200
        opened = owner.call("tensorage_open", key=begun["key"])
        if committed.status_code == 200:
            assert np.array_equal(owner.read(answer_of(opened)), _NUMBERS)
        else:
            assert code_of(committed) in ("TS001", "TS003")
            assert code_of(opened) == "TS001"
