"""Operations that may begin, and room for more: no I/O, no threads."""

from __future__ import annotations

import threading

import pytest

from tensorage.background.operations import (
    Failure,
    Operation,
    Operations,
    describe_operations,
    error_to_raise,
)


def operation(key: str, nbytes: int = 1) -> Operation:
    return Operation("storing", key, nbytes, lambda: None)


def given(*operations: Operation, max_in_flight: int = 100, max_bytes: int = 100) -> Operations:
    all_of_them = Operations(max_in_flight, max_bytes)
    for each in operations:
        all_of_them.add(each)
    return all_of_them


def begin(operations: Operations) -> list[Operation]:
    """All that may begin."""
    begun = []
    while (each := operations.next()) is not None:
        each.is_under_way = True
        begun.append(each)
    return begun


def test_operations_of_one_key_begin_one_after_the_other() -> None:
    a1, b, a2, a3 = (operation(key) for key in "abaa")
    operations = given(a1, b, a2, a3)
    assert begin(operations) == [a1, b]
    operations.end(b)
    assert begin(operations) == []
    operations.end(a1)
    assert begin(operations) == [a2]
    operations.end(a2)
    assert begin(operations) == [a3]


def test_no_more_than_a_few_are_under_way() -> None:
    operations = given(*(operation(key) for key in "abcdefgh"))
    assert [each.key for each in begin(operations)] == list("abcd")


@pytest.mark.parametrize(
    ("sizes", "fits"), [([], True), ([50], True), ([50, 1], False), ([100], False), ([1, 1, 1], False)]
)
def test_room(sizes: list[int], fits: bool) -> None:
    operations = given(*(operation(str(n), size) for n, size in enumerate(sizes)), max_in_flight=3)
    assert operations.have_room_for(operation("new", 50)) is fits
    assert operations.have_room_for(operation("new", 1000)) is (not sizes)


def test_dropping_leaves_what_is_under_way() -> None:
    a1, a2, a3, b = (operation(key) for key in "aaab")
    operations = given(a1, a2, a3, b)
    a1.is_under_way = True
    assert operations.drop("a") == [a2, a3]
    assert list(operations) == [a1, b]
    assert operations.drop() == [b]
    assert a1 in operations


def test_the_first_error_says_all_that_failed() -> None:
    here = threading.current_thread()
    first = Failure.of(operation("a"), ValueError("no"), [operation("a"), operation("a")])
    second = Failure("deleting 'b'", KeyError("gone"), "", here)
    for _ in range(2):
        error = error_to_raise([first, second], refused=operation("c"))
        assert error is first.error
    # Raised twice, it says so once.
    assert error.__notes__ == [
        "background writer: storing 'a' failed; dropped because of it: storing 'a' (2 times)",
        "background writer: deleting 'b' failed, too: KeyError: 'gone'",
        "background writer: storing 'c' was not begun: if it is still wanted, give it again",
    ]


def test_operations_in_words() -> None:
    assert describe_operations([]) == ""
    assert (
        describe_operations([operation("b"), operation("a"), operation("b")])
        == "storing 'b' (2 times), storing 'a'"
    )
