"""Elements of any length, as the REST API has them: blocks with a table of ends, and answers that are cut out of
them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation, whole
from sql.conftest import wait_for_waiter

from tensorage.embedded import control

Sql = psycopg.Connection[tuple[Any, ...]]

BYTES, TEXT, PAIRS = '{"ragged":"bytes"}', "text", '{"ragged":"<i2","shape":[2]}'


def block(elements: Sequence[bytes], ends: Sequence[int] | None = None) -> bytes:
    """A block of a request: its head, its table, which may lie, and its elements."""
    if ends is None:
        ends = np.cumsum([len(element) for element in elements]).tolist()
    joined = b"".join(elements)
    return struct.pack(f">II{len(ends)}I", len(elements), len(joined), *ends) + joined


def request(elements: Sequence[bytes], dtype: str = BYTES, **meta: Any) -> bytes:
    described = {"key": new_key(), "shape": [len(elements)], "dtype": dtype, "chunk": 100} | meta
    body = block(elements) if elements else b""
    return binary(body, count=len(elements), chunk=1, meta=described)


def store(caller: Caller, elements: Sequence[bytes], dtype: str = BYTES, **meta: Any) -> Json:
    stored: Json = answer_of(caller.call("tensorage_store", request(elements, dtype, **meta)))
    return stored


def begin(caller: Caller, dtype: str = BYTES, **more: Any) -> Json:
    return caller.begin(new_key(), [0], dtype, chunk=100, **more)


def put(caller: Caller, begun: Json, body: bytes, index: int, count: int) -> httpx.Response:
    return caller.call("tensorage_put", binary(body, count=count, chunk=1, data_id=begun["id"], index=index))


def ask(caller: Caller, stored: Json, starts: list[int] | None, lengths: list[int] | None) -> httpx.Response:
    arguments = {"data_id": stored["id"], "version": stored["version"], "starts": starts, "lengths": lengths}
    headers = {"Accept": "application/vnd.tensorage"}
    return caller.request("POST", "/rpc/tensorage_read_ragged", json=arguments, headers=headers)


def parse(answer: bytes) -> list[bytes]:
    """Take the elements out of an answer."""
    (pieces,) = struct.unpack_from(">I", answer)
    heads = struct.unpack_from(f">{2 * pieces}I", answer, 4)
    ends_at = 4 + 8 * pieces
    at = ends_at + 4 * sum(heads[::2])
    elements = []
    for count, base in zip(heads[::2], heads[1::2], strict=True):
        ends = struct.unpack_from(f">{count}I", answer, ends_at)
        for begin_at, end in zip((base, *ends), ends, strict=False):
            elements.append(answer[at : at + end - begin_at])
            at += end - begin_at
        ends_at += 4 * count
    assert at == len(answer)
    return elements


def read(caller: Caller, stored: Json, starts: list[int], lengths: list[int]) -> list[bytes]:
    answer = ask(caller, stored, starts, lengths)
    assert answer.status_code == 200, answer.text
    return parse(answer.content)


def counts(database: Sql, stored: Json) -> list[int]:
    query = "select count from public.tensors where data_id = %s order by index"
    return [count for (count,) in database.execute(query, [stored["id"]]).fetchall()]


ELEMENTS = [bytes([65 + number]) * (number % 5) for number in range(30)]


@pytest.mark.parametrize("chunk", [1, 4, 30, 100])
def test_a_block_is_cut_to_the_block_size(owner: Caller, database: Sql, chunk: int) -> None:
    stored = store(owner, ELEMENTS, chunk=chunk)
    assert max(counts(database, stored)) == min(chunk, 30)
    assert stored["stored_bytes"] == 4 * 30 + sum(map(len, ELEMENTS))
    assert read(owner, stored, [0], [30]) == ELEMENTS
    assert read(owner, stored, [29, 3, 3, 10], [1, 2, 5, 12]) == [
        *ELEMENTS[29:], *ELEMENTS[3:5], *ELEMENTS[3:8], *ELEMENTS[10:22],
    ]  # fmt: skip
    assert read(owner, stored, [], []) == []


def test_appends_are_merged_with_new_tables(owner: Caller, database: Sql) -> None:
    key = new_key()
    stored = store(owner, ELEMENTS[:1], key=key)
    for element in ELEMENTS[1:]:
        stored = answer_of(
            owner.call("tensorage_append", request([element], key=key, operation=new_operation()))
        )
    assert len(counts(database, stored)) <= 6
    assert stored["stored_bytes"] == 4 * 30 + sum(map(len, ELEMENTS))
    assert read(owner, stored, list(range(30)), [1] * 30) == ELEMENTS
    answer_of(owner.call("tensorage_compact", key=key))
    assert counts(database, stored) == [30]
    assert read(owner, stored, [2], [28]) == ELEMENTS[2:]


def test_an_append_is_done_once(owner: Caller) -> None:
    key, again = new_key(), new_operation()
    store(owner, ELEMENTS, key=key)
    body = request([b"new"], key=key, operation=again)
    first, second = (answer_of(owner.call("tensorage_append", body)) for _ in range(2))
    assert first == second
    assert first["shape"] == [31]


def test_several_requests(owner: Caller, database: Sql) -> None:
    begun = begin(owner)
    answer_of(put(owner, begun, block(ELEMENTS[10:20]) + block(ELEMENTS[20:]), 10, 20))
    answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[30]))
    refused = owner.commit(begun["id"])
    assert code_of(refused) == "TS004"
    assert "20 of the 30 elements" in refused.json()["message"]
    for _ in range(2):
        answer_of(put(owner, begun, block(ELEMENTS[:10]), 0, 10))
    for shape in ([29], [31], [20]):
        answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=shape))
        assert code_of(owner.commit(begun["id"])) == "TS004"
    answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[30]))
    stored = answer_of(owner.commit(begun["id"]))
    assert stored["stored_bytes"] == 4 * 30 + sum(map(len, ELEMENTS))
    assert counts(database, stored) == [10, 10, 10]
    assert read(owner, stored, [5], [20]) == ELEMENTS[5:25]


def test_shards_come_when_it_is_known_how_many_samples_there_are(owner: Caller) -> None:
    grid = {"chunk_grid": {"configuration": {"chunk_shape": [10]}}}
    begun = begin(owner, engine="storage", zarr=json.dumps(grid))

    def put_shards(*numbers: int) -> httpx.Response:
        shards = [{"number": number, "name": None, "nbytes": 0, "index": ""} for number in numbers]
        return owner.call("tensorage_put_shards", data_id=begun["id"], shards=shards)

    assert code_of(put_shards(0)) == "TS006"
    for shape in ([40], [25], [25]):
        assert (
            answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=shape))["shape"] == shape
        )
    assert code_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[25, 1])) == "TS006"
    assert code_of(put_shards(3)) == "TS006"
    answer_of(put_shards(0, 2))
    assert code_of(owner.commit(begun["id"])) == "TS004"
    # Their numbers depend on the shape.
    assert code_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[15])) == "TS006"
    answer_of(put_shards(1))
    stored = answer_of(owner.commit(begun["id"]))
    assert (stored["shape"], stored["engine"]) == ([25], "storage")
    assert code_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[15])) == "TS003"


@pytest.mark.parametrize(("index", "count"), [(5, 10), (0, 5), (0, 12), (8, 4), (9, 1)])
def test_blocks_that_overlap_others_are_refused(owner: Caller, index: int, count: int) -> None:
    begun = begin(owner)
    answer_of(put(owner, begun, block(ELEMENTS[:10]), 0, 10))
    assert code_of(put(owner, begun, block(ELEMENTS[:count]), index, count)) == "TS006"


@pytest.mark.parametrize(
    ("body", "count", "dtype"),
    [
        (block([b"ab", b"c"], [3, 2]), 2, BYTES),
        (block([b"ab", b"c"], [2, 2]), 2, BYTES),
        (block([b"ab", b"c"], [2, 4]), 2, BYTES),
        (block([b"ab", b"c"], [2**32 - 1, 3]), 2, BYTES),
        (block([b"ab"]), 2, BYTES),
        (block([b"ab", b"c"]), 1, BYTES),
        (block([b"ab"]) + b"\0\0\0", 1, BYTES),
        (struct.pack(">II", 0, 0), 0, BYTES),
        (struct.pack(">II", 2**32 - 1, 2**32 - 1) + bytes(100), 1, BYTES),
        (struct.pack(">III", 1, 100, 100) + bytes(50), 1, BYTES),
        (block([b"abc"]), 1, PAIRS),
        (block([b"abcd", b"ab", b"ab"]), 3, PAIRS),
        (block([b"\xff"]), 1, TEXT),
        (block(["ü".encode()[:1], "ü".encode()[1:]]), 2, TEXT),
        (block([b"", "ü".encode()[1:]]), 2, TEXT),
        (block([b"\0\xed\xa0\x80"]), 1, TEXT),
        (block([b"\0\\\\377", b"\xff"]), 2, TEXT),
    ],
    ids=lambda _value: "",
)  # fmt: skip
def test_blocks_that_nobody_means(owner: Caller, body: bytes, count: int, dtype: str) -> None:
    """A faulty writer is told: readers would get garbage."""
    key = new_key()
    meta = {"key": key, "shape": [count], "dtype": dtype, "chunk": 100}
    assert code_of(owner.call("tensorage_store", binary(body, count=count, chunk=1, meta=meta))) == "TS006"
    begun = begin(owner, dtype)
    assert code_of(put(owner, begun, body, 0, count)) == "TS006"
    store(owner, [], dtype, key=key)
    append = binary(body, count=count, chunk=1, meta={"key": key, "shape": [count], "dtype": dtype})
    assert code_of(owner.call("tensorage_append", append)) == "TS006"


@pytest.mark.parametrize("text", ["", "\0", "a\0\\000\\\\", "größe\0", "\N{GRINNING FACE}" * 9])
def test_texts_that_are_some(owner: Caller, text: str) -> None:
    encoded = [text.encode(), b"", "é".encode(), b""]
    assert read(owner, store(owner, encoded, TEXT), [0], [4]) == encoded


def test_what_is_for_elements_of_one_length_is_refused(owner: Caller) -> None:
    stored = store(owner, ELEMENTS)
    named = {"data_id": stored["id"], "version": stored["version"]}
    for function, more in (
        ("tensorage_read", {"rows": [0], "runs": [0], "run_length": 1}),
        ("tensorage_read_run", {"first": 0, "elements": 1}),
        ("tensorage_read_spans", {"starts": [0], "lengths": [1]}),
        ("tensorage_read_fields", {"starts": [0], "lengths": [1], "offsets": [0], "sizes": [1]}),
    ):
        assert code_of(owner.call(function, named | more)) == "TS006"
    meta = {"version": stored["version"], "starts": [0], "lengths": [1]}
    assert (
        code_of(owner.call("tensorage_assign", binary(b"x", count=1, data_id=stored["id"], meta=meta)))
        == "TS006"
    )
    begun = answer_of(owner.call("tensorage_begin_assign", named))
    patch = binary(b"x", count=1, data_id=begun["id"], meta={"starts": [0], "lengths": [1]})
    assert code_of(owner.call("tensorage_patch", patch)) == "TS006"
    assert read(owner, stored, [0], [30]) == ELEMENTS
    even = answer_of(owner.call("tensorage_store", whole(np.arange(3, dtype="<i4"), key=new_key())))
    assert code_of(ask(owner, even, [0], [1])) == "TS006"
    plain = owner.begin(new_key(), [3])
    assert code_of(owner.call("tensorage_end_ragged", data_id=plain["id"], shape=[2])) == "TS006"


@pytest.mark.parametrize(
    ("starts", "lengths", "code"),
    [
        ([30], [1], "TS004"),
        ([-1], [1], "TS004"),
        ([29], [2], "TS004"),
        ([2**62], [2**62], "PT413"),
        ([0], [0], "TS004"),
        ([0, 1], [1], "TS006"),
        ([0], [], "TS006"),
        ([None], [1], "TS006"),
        (None, None, "TS006"),
        ([0], [3_000_000], "PT413"),
        ([0] * 1_100_000, [1] * 1_100_000, "TS006"),
    ],
)
def test_selections_that_cannot_be_read(owner: Caller, starts: Any, lengths: Any, code: str) -> None:
    assert code_of(ask(owner, store(owner, ELEMENTS), starts, lengths)) == code


def test_more_than_an_answer_holds(owner: Caller) -> None:
    """The client asks for half as much then."""
    stored = store(owner, [bytes(2**20)] * 3)
    answer = ask(owner, stored, [0] * 20, [1] * 20)
    assert answer.status_code == 413
    assert len(read(owner, stored, [0] * 15, [1] * 15)) == 15


def test_blocks_that_were_lost_are_missed(owner: Caller, database: Sql) -> None:
    stored = store(owner, ELEMENTS, chunk=10)
    database.execute("delete from public.tensors where data_id = %s and index = 10", [stored["id"]])
    for starts, lengths in (([12], [1]), ([0], [30]), ([5, 9], [1, 2])):
        assert code_of(ask(owner, stored, starts, lengths)) == "TS004"
    assert read(owner, stored, [0, 20], [10, 10]) == [*ELEMENTS[:10], *ELEMENTS[20:]]


def test_the_trailing_shape_stays(owner: Caller) -> None:
    begun = owner.begin(new_key(), [0, 2], TEXT)
    for shape in ([2], [2, 3], [], [1, 2, 1], [-1, 2]):
        answer = owner.call("tensorage_end_ragged", data_id=begun["id"], shape=shape)
        assert 400 <= answer.status_code < 500
    assert answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[5, 2]))["shape"] == [5, 2]


MIB = 2**20


def put_part(
    caller: Caller, begun: Json, part: Any, elements: bytes, total: int, index: int = 0
) -> httpx.Response:
    head = struct.pack(">II", 1, total)
    meta = {"part": part}
    body = binary(head + elements, count=1, chunk=1, data_id=begun["id"], index=index, meta=meta)
    return caller.call("tensorage_put", body)


def test_an_element_in_parts(owner: Caller) -> None:
    begun = begin(owner)
    whole_element = bytes(range(256)) * 4096 * 3
    for part in (0, 0, MIB, 2 * MIB, MIB, 0, 2 * MIB):
        answer_of(put_part(owner, begun, part, whole_element[part : part + MIB], 3 * MIB, index=1))
    answer_of(put(owner, begun, block([b"first"]), 0, 1))
    answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[2]))
    stored = answer_of(owner.commit(begun["id"]))
    assert stored["stored_bytes"] == 3 * MIB + 5 + 8
    assert read(owner, stored, [0], [2]) == [b"first", whole_element]
    arguments = {"data_id": stored["id"], "version": stored["version"], "starts": [1], "lengths": [1]}
    headers = {"Accept": "application/vnd.tensorage"}
    for part, most in ((0, 10), (MIB + 3, MIB), (3 * MIB - 1, 100), (3 * MIB, 1)):
        asked = arguments | {"part": part, "most": most}
        answer = owner.request("POST", "/rpc/tensorage_read_ragged", json=asked, headers=headers)
        assert answer.content == whole_element[part : part + most]
    for more in (
        {"part": -1, "most": 1}, {"part": 0}, {"most": 1}, {"part": 0, "most": 0}, {"part": 0, "most": 2**25},
        {"part": 3 * MIB + 1, "most": 1}, {"part": 0, "most": 1, "starts": [0], "lengths": [2]},
    ):  # fmt: skip
        assert code_of(owner.call("tensorage_read_ragged", arguments | more)) == "TS006"


@pytest.mark.parametrize(
    ("part", "length", "total"),
    [(1, MIB, 2 * MIB), (-1, MIB, 2 * MIB), (0, 2 * MIB + 1, 2 * MIB), (0, 0, 2 * MIB), (0, 10, 10), (0, 10, 2**29),
     (2**40, 10, 2 * MIB)],
)  # fmt: skip
def test_parts_that_are_none(owner: Caller, part: int, length: int, total: int) -> None:
    assert code_of(put_part(owner, begin(owner), part, bytes(length), total)) == "TS006"
    if total % 4 == 0:
        assert code_of(put_part(owner, begin(owner, PAIRS), part, bytes(length), total)) == "TS006"
    assert code_of(put_part(owner, owner.begin(new_key(), [3]), 0, bytes(12), 12)) == "TS006"


def test_parts_that_are_missing_or_no_text(owner: Caller) -> None:
    begun = begin(owner, TEXT)
    answer_of(put_part(owner, begun, 0, b"a" * MIB, 2 * MIB))
    answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[1]))
    assert code_of(owner.commit(begun["id"])) == "TS004"
    answer_of(put_part(owner, begun, MIB, b"b" * (MIB - 1) + b"\xff", 2 * MIB))
    assert code_of(owner.commit(begun["id"])) == "TS006"


def test_a_part_that_comes_twice_at_a_time_is_stored_once(owner: Caller, backend: control.Running) -> None:
    """A client that gives up waiting sends it again. Twice in the element, it would be taken for the part after it."""
    begun = begin(owner)
    parts = [bytes([number]) * MIB for number in range(3)]
    for number, part in enumerate(parts):
        with psycopg.connect(backend.superuser_url) as holder, ThreadPoolExecutor(2) as pool:
            holder.execute("select from public.tensors where data_id = %s for update", [begun["id"]])
            if not number:
                holder.execute("lock table public.tensors in exclusive mode")
            twice = [pool.submit(put_part, owner, begun, number * MIB, part, 3 * MIB) for _ in range(2)]
            wait_for_waiter(holder, 2)
            holder.commit()
            for answer in twice:
                answer_of(answer.result())
    answer_of(owner.call("tensorage_end_ragged", data_id=begun["id"], shape=[1]))
    assert read(owner, answer_of(owner.commit(begun["id"])), [0], [1]) == [b"".join(parts)]


def test_parts_are_not_too_many(owner: Caller) -> None:
    """Each part rewrites those before it."""
    begun, total = begin(owner), 4 * MIB
    answer_of(put_part(owner, begun, 0, bytes(2 * MIB), total))
    assert code_of(put_part(owner, begun, 2 * MIB, bytes(total // 256 - 1), total)) == "TS006"
    answer_of(put_part(owner, begun, 2 * MIB, bytes(2 * MIB - 1), total))
    answer_of(put_part(owner, begun, total - 1, b"x", total))


def test_the_end_is_told_by_two_at_a_time(owner: Caller) -> None:
    begun = begin(owner)
    answer_of(put(owner, begun, block([b"a"]), 0, 1))
    with ThreadPoolExecutor(8) as pool:
        told = [
            pool.submit(owner.call, "tensorage_end_ragged", data_id=begun["id"], shape=[1]) for _ in range(32)
        ]
        assert [answer_of(answer.result())["shape"] for answer in told] == [[1]] * 32


@pytest.mark.parametrize("shape", [[-1], [None]])
def test_an_end_that_is_none(owner: Caller, shape: list[Any]) -> None:
    assert code_of(owner.call("tensorage_end_ragged", data_id=begin(owner)["id"], shape=shape)) == "TS006"


@pytest.mark.parametrize("shift", range(4))
def test_long_texts_are_looked_at_in_parts(owner: Caller, shift: int) -> None:
    """Characters lie across the bounds of the parts, and NUL characters within them."""
    text = ("a" * shift + "\0\N{GRINNING FACE}" * 600_000).encode()
    assert read(owner, store(owner, [text], TEXT), [0], [1]) == [text]
    for at in (MIB - 1, MIB, MIB + 1, len(text) - 1):
        broken = request([text[:at] + b"\xff" + text[at + 1 :]], TEXT)
        assert code_of(owner.call("tensorage_store", broken)) == "TS006"
