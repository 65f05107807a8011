"""Reads of grids and of spans against numpy, whichever way PostgreSQL goes to get them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key

Connection = psycopg.Connection[tuple[Any, ...]]

_DTYPES = ["|u1", "<i2", "<f4", "<i8", "<c16"]

#: Numbers whose sums overflow, or nearly do.
_HUGE = [2**31, 2**62 - 1, 2**62, 2**63 - 2, 2**63 - 1, -(2**62), -(2**63)]


@dataclass(frozen=True)
class Stored:
    """An array in blocks of all sizes up to its block size, and its elements in numpy."""

    dataset: Json
    elements: npt.NDArray[Any]

    def grid(self, rows: list[int], runs: list[int], length: int) -> bytes:
        starts = np.add.outer(rows, runs).reshape(-1, 1) + np.arange(length)
        return self.elements[starts.astype("i8")].tobytes()

    def spans(self, starts: list[int], lengths: list[int]) -> bytes:
        pieces = zip(starts, lengths, strict=True)
        return b"".join(self.elements[start : start + length].tobytes() for start, length in pieces)


def store_in_blocks(owner: Caller, dtype: str, size: int, chunk: int, dice: random.Random) -> Stored:
    elements = np.frombuffer(dice.randbytes(size * np.dtype(dtype).itemsize), dtype)
    begun = owner.begin(new_key(), [size], dtype=dtype, chunk=chunk)
    first = 0
    while first < size:
        # Three at a time, the last one of them as short as may be.
        block = dice.choice([chunk, chunk, 1 + dice.randrange(chunk)])
        piece = elements[first : first + 2 * block + 1]
        answer_of(owner.put(begun["id"], piece, first, chunk=block))
        first += piece.size
    return Stored(answer_of(owner.commit(begun["id"])), elements)


def apart(dice: random.Random, count: int, distance: int, end: int) -> list[int]:
    """Positions in order, each at least `distance` from the next, and the last one from the end."""
    slack = end - count * distance
    gaps = sorted(dice.randrange(slack + 1) for _ in range(count))
    return [gap + number * distance for number, gap in enumerate(gaps)]


def grid_of(dice: random.Random, size: int) -> tuple[list[int], list[int], int]:
    """Rows and runs in order, of which none overlaps the next: what is read densely where it pays."""
    length = dice.choice([1, 1, 2, 3, 7, 40])
    runs = apart(dice, dice.choice([1, 2, 3, 10]), length, dice.choice([60, 150, 450]) + 10 * length)
    extent = runs[-1] + length
    return apart(dice, dice.randint(1, size // extent), extent, size), runs, length


def spans_of(dice: random.Random, size: int) -> tuple[list[int], list[int]]:
    """Spans in order, of which none overlaps the next."""
    count = dice.choice([1, 5, 63, 64, 65, 300])
    cuts = sorted(dice.sample(range(size + 1), 2 * count))
    return cuts[::2], [end - start for start, end in zip(cuts[::2], cuts[1::2], strict=True)]


@pytest.fixture(scope="module")
def stored(new_user: Callable[[], Caller]) -> Callable[[str, int], tuple[Caller, Stored]]:
    """Arrays of 5000 elements by their dtype and their block size, each made once."""
    owner, made = new_user(), dict[tuple[str, int], Stored]()

    def get(dtype: str, chunk: int) -> tuple[Caller, Stored]:
        if (dtype, chunk) not in made:
            made[dtype, chunk] = store_in_blocks(owner, dtype, 5000, chunk, random.Random(f"{dtype}{chunk}"))
        return owner, made[dtype, chunk]

    return get


Get = Callable[[str, int], tuple[Caller, Stored]]


@pytest.mark.parametrize("chunk", [25, 100, 5000])
@pytest.mark.parametrize("dtype", _DTYPES)
def test_selections_in_order(dtype: str, chunk: int, stored: Get) -> None:
    owner, array = stored(dtype, chunk)
    dice = random.Random(f"{dtype} of {chunk}")
    for _ in range(15):
        grid = grid_of(dice, 5000)
        assert owner.ask(array.dataset, *grid).content == array.grid(*grid), grid
        spans = spans_of(dice, 5000)
        assert owner.ask_spans(array.dataset, *spans).content == array.spans(*spans), spans


@pytest.mark.parametrize("dtype", ["|u1", "<c16"])
def test_selections_in_any_order_and_again(dtype: str, stored: Get) -> None:
    """Many of them, so that only their order keeps them from being read densely."""
    owner, array = stored(dtype, 100)
    dice = random.Random(dtype)
    for count in (3, 64, 400):
        for length in (1, 5, 300):
            rows = [dice.randrange(4000) for _ in range(count)]
            runs = [dice.randrange(1000 - length) for _ in range(dice.choice([1, 3]))]
            for grid in ((rows, runs, length), (sorted(rows), sorted(runs), length)):
                assert owner.ask(array.dataset, *grid).content == array.grid(*grid), grid
            lengths = [dice.randint(1, length) for _ in rows]
            for spans in ((rows, lengths), (sorted(rows), lengths)):
                assert owner.ask_spans(array.dataset, *spans).content == array.spans(*spans), spans


@pytest.mark.parametrize("chunk", [25, 100, 5000])
@pytest.mark.parametrize("dtype", _DTYPES)
def test_runs(dtype: str, chunk: int, stored: Get) -> None:
    owner, array = stored(dtype, chunk)
    dice = random.Random(f"runs of {dtype} in {chunk}")
    for first, behind in [(0, 5000), (0, 1), (4999, 5000)] + [
        sorted(dice.sample(range(5001), 2)) for _ in range(15)
    ]:
        answer = owner.ask_run(array.dataset, first, behind - first)
        assert answer.content == array.elements[first:behind].tobytes(), (first, behind)


def test_runs_that_are_not_there(stored: Get) -> None:
    """Each gets the error that a read of a grid gets."""
    owner, array = stored("<i2", 100)
    for first in (0, 4999, 5000, -1, *_HUGE, None):
        for elements in (1, 5001, 0, -1, *_HUGE, None):
            if (first, elements) in ((0, 1), (4999, 1)):
                continue
            answer = owner.ask_run(array.dataset, first, elements)
            grid = owner.ask(array.dataset, [first], [0], elements)
            assert code_of(answer) == code_of(grid), (first, elements)


def test_run_with_holes(owner: Caller, database: Connection) -> None:
    """Elements that were never written have the fill value. Lost blocks have none."""
    elements = np.zeros(500, "<i2")
    elements[100:300] = 7
    created = answer_of(
        owner.call("tensorage_create", key=new_key(), shape=[500], dtype="<i2", chunk=100, fill="AAA=")
    )
    answer_of(owner.assign(created, elements[100:300], [100], [200]))
    opened = owner.open(created["key"])
    for first, behind in ((0, 500), (50, 450), (120, 250), (300, 400)):
        assert owner.ask_run(opened, first, behind - first).content == elements[first:behind].tobytes()
    lost = "delete from public.tensors where data_id = %s and index = 200"
    database.execute(lost, (opened["id"],))
    whole = owner.store(new_key(), np.arange(500), chunk=100)
    database.execute(lost, (whole["id"],))
    for dataset in (opened, whole):
        assert code_of(owner.ask_run(dataset, 0, 500)) == "TS004"


def test_ways_of_reading_agree(stored: Get, database: Connection) -> None:
    """Each of them, whether or not it would be taken."""
    dice = random.Random(7)
    for dtype, chunk in [("<f4", 25), ("<i2", 100), ("|u1", 5000), ("<c16", 100)]:
        _, array = stored(dtype, chunk)
        for _ in range(25):
            rows, runs, length = grid_of(dice, 5000)
            starts = np.add.outer(rows, runs).reshape(-1)
            answers = database.execute(
                """
                select tensorage.gather(d, %(starts)s, %(lengths)s),
                       tensorage.gather_grid(d, %(rows)s, %(runs)s, %(length)s),
                       tensorage.gather_dense(d, %(starts)s, %(lengths)s)
                  from public.datasets d where d.id = %(id)s
                """,
                {"starts": starts.tolist(), "lengths": [length] * starts.size, "rows": rows, "runs": runs}
                | {"length": length, "id": array.dataset["id"]},
            ).fetchone()
            assert answers == (array.grid(rows, runs, length),) * 3


def test_both_ways_are_taken(stored: Get, backend: Any) -> None:
    """A selection of many runs costs looks at few blocks; one of few runs looks at no others."""
    owner, array = stored("<f4", 100)
    with psycopg.connect(backend.superuser_url) as connection:
        connection.execute("set track_functions = 'all'")
        connection.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        connection.execute("set local role authenticated")
        named = (array.dataset["id"], array.dataset["version"])
        taken = []
        for rows in (list(range(0, 4000, 10)), list(range(0, 4000, 400)), list(range(4000, 0, -10))):
            before = _calls(connection)
            connection.execute("select public.tensorage_read(%s, %s, %s, '{0}', 2)", (*named, rows))
            connection.execute(
                "select public.tensorage_read_spans(%s, %s, %s, %s)", (*named, rows, [2] * len(rows))
            )
            after = _calls(connection)
            taken.append({name for name in after if after[name] > before.get(name, 0)})
    assert taken == [{"gather_grid", "gather_dense"}, {"gather"}, {"gather"}]


def _calls(connection: Connection) -> dict[str, int]:
    rows = connection.execute(
        "select funcname, calls from pg_stat_xact_user_functions where funcname like 'gather%'"
    )
    return dict(rows.fetchall())


# Fields of records ---------------------------------------------------------------------------------------------


def test_fields_are_cut_out_of_records(stored: Get) -> None:
    dice = random.Random(8)
    owner, array = stored("<c16", 100)
    records = np.frombuffer(array.elements.tobytes(), "u1").reshape(-1, 16)
    for _ in range(25):
        starts = apart(dice, dice.choice([1, 5, 300]), 3, 4990)
        lengths = [dice.randrange(1, 4) for _ in starts]
        offsets = [dice.randrange(16) for _ in range(dice.randrange(1, 4))]
        sizes = [dice.randrange(1, 17 - offset) for offset in offsets]
        answer = owner.ask_fields(array.dataset, starts, lengths, offsets, sizes)
        assert answer.status_code == 200
        chosen = np.concatenate(
            [np.arange(at, at + length) for at, length in zip(starts, lengths, strict=True)]
        )
        fields = [records[chosen, at : at + size] for at, size in zip(offsets, sizes, strict=True)]
        assert answer.content == np.concatenate(fields, axis=1).tobytes()
    assert owner.ask_fields(array.dataset, [], [], [0], [1]).content == b""


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [([], []), ([0], []), ([0], [1, 1]), ([-1], [1]), ([0], [0]), ([16], [1]), ([15], [2]), ([2**31 - 1], [2**31 - 1]),
     ([None], [1]), ([0], [None]), (None, [1]), ([0], None)],
)  # fmt: skip
def test_bytes_outside_of_records_are_refused(stored: Get, offsets: Any, sizes: Any) -> None:
    owner, array = stored("<c16", 100)
    assert code_of(owner.ask_fields(array.dataset, [0], [1], offsets, sizes)) == "TS006"


def test_fields_of_what_is_not_there_are_refused(stored: Get) -> None:
    owner, array = stored("<c16", 100)
    for starts, lengths in (
        ([-1], [1]),
        ([4999], [2]),
        ([0], [0]),
        ([0], [None]),
        ([0, 1], [1]),
        ([2**62], [2**62]),
    ):
        code = code_of(owner.ask_fields(array.dataset, starts, lengths, [0], [1]))
        assert code == code_of(owner.ask_spans(array.dataset, starts, lengths))
    many = [1] * 300
    assert code_of(owner.ask_fields(array.dataset, [0], [5000], many, many)) == "TS006"


def test_fields_are_not_asked_for_again_and_again(owner: Caller) -> None:
    record = owner.store(new_key(), np.zeros(1, "S1048576"), chunk=1)
    assert code_of(owner.ask_fields(record, [0], [1], [0] * 17, [2**20] * 17)) == "TS006"


# Requests for no selection, or none of this array ------------------------------------------------------------


def _bad_lists(dice: random.Random) -> list[list[Any]]:
    """Lists of as many positions as are read densely and of fewer, with one that is none of the array."""
    bad: list[list[Any]] = []
    for count in (1, 100):
        good = apart(dice, count, 3, 4990)
        for value in (None, -1, 4999, 5000, *_HUGE):
            for place in (0, count // 2, count - 1):
                bad.append([*good[:place], value, *good[place + 1 :]])
            bad.append(sorted(bad[-1], key=lambda at: -1 if at is None else at))
    return bad


def test_positions_outside_are_refused(stored: Get) -> None:
    """The answer is one of our codes, and no part of what is asked for."""
    owner, array = stored("<f4", 100)
    for positions in _bad_lists(random.Random(3)):
        expected = ("TS006",) if None in positions else ("TS004", "TS006")
        for answer in (
            owner.ask(array.dataset, positions, [0], 2),
            owner.ask(array.dataset, [0], positions, 2),
            owner.ask(array.dataset, [1, 0], positions, 2),
            owner.ask_spans(array.dataset, positions, [2] * len(positions)),
        ):
            assert code_of(answer) in expected, (positions, answer.text)


def test_lengths_that_are_none_are_refused(stored: Get) -> None:
    owner, array = stored("<f4", 100)
    for count in (1, 100):
        starts = list(range(0, 50 * count, 50))
        for length in (None, 0, -1, 5001, *_HUGE):
            for place in (0, count - 1):
                lengths: list[Any] = [1] * count
                lengths[place] = length
                answer = owner.ask_spans(array.dataset, starts, lengths)
                assert code_of(answer) in ("TS004", "TS006"), (count, length, answer.text)
            answer = owner.ask(array.dataset, starts, [0], length)
            assert code_of(answer) in ("TS004", "TS006"), (count, length, answer.text)
        for lengths in ([], [1] * (count + 1), [1] * (count - 1), None):
            assert code_of(owner.ask_spans(array.dataset, starts, lengths)) == "TS006"
    assert code_of(owner.ask_spans(array.dataset, None, None)) == "TS006"


def test_positions_may_be_huge_where_their_sums_are_not(stored: Get) -> None:
    """No sum of what is asked for overflows, also where nothing would be wrong with it."""
    owner, array = stored("<f4", 100)
    for offset in (10, 2**40, 2**62, 2**63 - 100):
        for count in (1, 80):
            rows, runs = [-offset + 3 * number for number in range(count)], [offset + 1]
            assert owner.ask(array.dataset, rows, runs, 2).content == array.grid(
                [0], [1 + 3 * n for n in range(count)], 2
            )
            assert owner.ask(array.dataset, runs, rows, 2).content == array.grid(
                [0], [1 + 3 * n for n in range(count)], 2
            )
        for rows, runs in (([-offset, 0], [offset, 0]), ([0, -offset], [0, offset])):
            assert code_of(owner.ask(array.dataset, rows, runs, 2)) == "TS004"


@pytest.mark.parametrize("empty", [([], [0]), ([0], []), ([], [])])
def test_nothing_is_nothing(empty: tuple[list[int], list[int]], stored: Get) -> None:
    owner, array = stored("<f4", 100)
    for length in (1, 5001, 2**40):
        answer = owner.ask(array.dataset, *empty, length)
        assert (answer.status_code, answer.content) == (200, b"")
    assert code_of(owner.ask(array.dataset, *empty, 0)) == "TS006"
    answer = owner.ask_spans(array.dataset, [], [])
    assert (answer.status_code, answer.content) == (200, b"")


def test_arrays_of_other_bounds_are_read_as_the_lists_they_are(stored: Get) -> None:
    """PostgreSQL takes them as text: with any first number, and of any number of dimensions."""
    owner, array = stored("<f4", 100)
    starts = list(range(0, 2000, 20))
    lengths = [1 + number % 19 for number in range(100)]
    for bounds in ("[0:99]=", "[2:101]=", "[-4:95]=", ""):
        numbers = bounds + _as_text(starts)
        answer = owner.ask(array.dataset, numbers, [0, 5], 2)
        assert answer.content == array.grid(starts, [0, 5], 2), bounds
        for spans in ((numbers, lengths), (starts, bounds + _as_text(lengths))):
            assert owner.ask_spans(array.dataset, *spans).content == array.spans(starts, lengths), spans
    nested = np.reshape(starts, (2, 50)).tolist()
    assert owner.ask(array.dataset, nested, [0, 5], 2).content == array.grid(starts, [0, 5], 2)


def _as_text(numbers: list[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def test_too_much_for_a_request_is_refused(stored: Get) -> None:
    owner, array = stored("<c16", 100)
    assert code_of(owner.ask(array.dataset, [0] * 4000, [0], 5000)) == "TS006"
    assert code_of(owner.ask(array.dataset, [0] * 30000, [0] * 30000, 1)) == "TS006"
    assert code_of(owner.ask_spans(array.dataset, [0] * 4000, [5000] * 4000)) == "TS006"


def test_missing_blocks_are_noticed_both_ways(owner: Caller, database: Connection) -> None:
    array = store_in_blocks(owner, "<i4", 1000, 10, random.Random(1))
    index, _ = owner.blocks(array.dataset["id"])[40]
    database.execute(
        "delete from public.tensors where data_id = %s and index = %s", (array.dataset["id"], index)
    )
    for step in (1, 100):
        starts = [*range(0, index, step), index, *range(index + 1, 1000, step)]
        assert code_of(owner.ask(array.dataset, starts)) == "TS004"
        assert code_of(owner.ask_spans(array.dataset, starts, [1] * len(starts))) == "TS004"


def test_readers_follow_what_leaves_elements_alone(owner: Caller) -> None:
    """No others do: an assignment changes what was opened before it."""
    key = new_key()
    opened = owner.store(key, np.arange(100, dtype="<i4"), chunk=30)
    answer_of(owner.append(key, np.arange(5, dtype="<i4")))
    answer_of(owner.call("tensorage_annotate", data_id=opened["id"], attrs={"a": 1}))
    answer_of(owner.call("tensorage_compact", key=key))
    key = answer_of(owner.call("tensorage_rename", key=key, new_key=new_key()))["key"]
    answer_of(owner.call("tensorage_share", key=key))
    assert np.array_equal(owner.read(opened), np.arange(100))
    assert owner.ask_spans(opened, [7], [3]).content == np.arange(7, 10, dtype="<i4").tobytes()
    last = owner.open(key)
    assert last["version"] > opened["version"]
    assert answer_of(owner.assign(opened, np.zeros(1, "<i4"), [50], [1]))["version"] == last["version"] + 1
    for old in (opened, last):
        assert code_of(owner.ask(old, [0])) == "TS003"
        assert code_of(owner.ask_spans(old, [0], [1])) == "TS003"
        assert code_of(owner.ask_spans(old, [], [])) == "TS003"
    assert np.count_nonzero(owner.read(owner.open(key)) == 0) == 3


def test_a_look_at_many_arrays_has_a_bound_on_their_attributes(owner: Caller) -> None:
    """Each may have a megabyte of them, and the server holds the answer several times."""
    dataset = owner.store(new_key(), np.zeros(3, "<i4"), attrs={"long": "x" * 900_000})

    headers = {"Accept": "application/vnd.tensorage"}

    def look(times: int) -> httpx.Response:
        return owner.request(
            "POST", "/rpc/tensorage_read_many", json={"keys": [dataset["key"]] * times}, headers=headers
        )

    assert code_of(look(40)) == "TS006"
    answer = look(20)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) > 20 * 900_000
