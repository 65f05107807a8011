"""Jobs in parallel: every one is done, none more than can be under way, and the first error ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tensorage.backend.transfer import Transfer


class Nobody:
    """Jobs that ask nothing of a backend need no login."""

    def headers(self) -> dict[str, str]:
        raise AssertionError("no request was to be made")

    def renew(self, refused: str) -> None:
        raise AssertionError("no request was to be made")


def transfer(parallel: int) -> Transfer:
    return Transfer("http://127.0.0.1:9", Nobody(), parallel)


@pytest.mark.parametrize("parallel", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 24, 200])
def test_every_job_is_done_once(parallel: int, count: int) -> None:
    # Jobs that are over at once: all that are under way may be done when the next ones are taken.
    for _ in range(20):
        done: list[int] = []
        transfer(parallel).run(partial(done.append, number) for number in range(count))
        assert sorted(done) == list(range(count))


def test_no_more_jobs_are_taken_than_are_under_way() -> None:
    lock, taken, finished, most = threading.Lock(), 0, 0, 0

    def finish() -> None:
        nonlocal finished
        with lock:
            finished += 1

    def jobs() -> Iterator[partial[None]]:
        nonlocal taken, most
        for _ in range(100):
            with lock:
                taken += 1
                most = max(most, taken - finished)
            yield partial(finish)

    transfer(4).run(jobs())
    assert finished == 100
    assert most <= 4


def test_the_first_error_ends_it() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    def jobs() -> Iterator[partial[None]]:
        yield partial(done.append, 1)
        yield partial(fail)
        for number in range(2, 1000):
            yield partial(done.append, number)

    with pytest.raises(ValueError, match="no"):
        transfer(4).run(jobs())
    assert len(done) < 900


def test_an_error_of_the_iterable_is_raised() -> None:
    done: list[int] = []

    def jobs() -> Iterator[partial[None]]:
        for number in range(8):
            yield partial(done.append, number)
        raise KeyError("the producer failed")

    with pytest.raises(KeyError, match="the producer failed"):
        transfer(4).run(jobs())
    # Jobs that had not begun are given up.
    assert set(done) <= set(range(8))


def test_where_no_thread_can_be_had_every_job_is_done_once_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, started = threading.Thread.start, 0

    def start_two(thread: threading.Thread) -> None:
        nonlocal started
        started += 1
        if started > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    done: list[int] = []
    transfer(4).run(partial(done.append, number) for number in range(100))
    assert sorted(done) == list(range(100))


def test_when_the_interpreter_ends_jobs_are_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    transfer(4).run(partial(done.append, number) for number in range(10))
    assert done == list(range(10))
    with pytest.raises(ValueError, match="no"):
        transfer(4).run([fail, fail])
