"""Calls look at as many pages of PostgreSQL as what they ask for takes, however much else is stored: on every version.

Pages are counted by EXPLAIN, never times. The same calls are counted in a project that is nearly empty, and when it is
crowded: by the connection that planned them when there was next to nothing, and by new ones before and after ANALYZE,
with each of the two kinds of plans that PostgreSQL may choose.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

import numpy as np
import psycopg
import pytest
from clusters import PRISTINE, dsn
from crowds import BLOCK, BLOCKS, ME, SHARER, STRANGER, Numbers, Project, buffers
from sql.api import binary, transaction, whole
from sql.objects import entry, metadata, with_tails

from tensorage.embedded.migrate import migrate
from tensorage.embedded.postgres import SUPERUSER, Cluster
from tensorage.migrations import migration_files

#: When calls were planned, and how. Left to itself, PostgreSQL takes the one or the other way.
_PASSES = {
    "planned before": "force_generic_plan",
    "not analyzed, generic": "force_generic_plan",
    "not analyzed, custom": "force_custom_plan",
    "analyzed, generic": "force_generic_plan",
    "analyzed, custom": "force_custom_plan",
}
#: Id of an operation of a spool that nobody has done.
_OF_A_SPOOL = "00000000-0000-8000-8000-000000000000"

_ANALYZED = ("analyzed, generic", "analyzed, custom")


@dataclass(frozen=True)
class Call:
    """A statement that a user sends, and those that have to come before it.

    Parameters
    ----------
    looks
        Blocks, shards or owners that it asks for, each of which may take some pages more where an index is deeper.
    grows_with
        The reason for which it looks at more pages of a larger array; empty: it does not.
    """

    statement: str
    before: tuple[str, ...] = ()
    looks: int = 1
    grows_with: str = ""


def _spread(count: int, blocks: int) -> list[int]:
    """First elements of blocks all over an array, in no order."""
    chosen = np.random.default_rng(1).choice(blocks, count, replace=count > blocks)
    return [int(block) * BLOCK for block in chosen]


def _array(numbers: list[int]) -> str:
    return "'{" + ",".join(map(str, numbers)) + "}'"


def _request(body: bytes) -> str:
    return rf"'\x{body.hex()}'::bytea"


def _texts(**meta: str) -> bytes:
    """Two texts, as one block: their number, their bytes, the end of each, and the bytes."""
    block = struct.pack(">IIII", 2, 3, 1, 3) + b"abc"
    return binary(block, count=2, chunk=1, meta={"shape": [2], "dtype": "text", **meta})


_BEGIN_OBJECTS = f"begin('new', '{{20}}', '<i4', 16, 'storage', zarr => '{metadata([BLOCK])}')"


def _begun(call: str) -> str:
    """Begin something: its number is to be had by `_IT`."""
    return f"select set_config('tests.begun', public.tensorage_{call} ->> 'id', true)"


_IT = "current_setting('tests.begun')::bigint"


def _put(elements: int) -> str:
    """Fill a new array of numbers that is being written. Its number has at most three bytes."""
    body = _request(binary(bytes(4 * elements), count=elements, chunk=BLOCK))
    for place in range(3):
        body = f"set_byte({body}, {15 - place}, ({_IT} >> {8 * place} & 255)::int)"
    return f"select public.tensorage_put({body})"


def _patch(positions: list[int]) -> str:
    meta = {"starts": sorted(positions), "lengths": [1] * len(positions)}
    body = _request(binary(bytes(4 * len(positions)), count=len(positions), chunk=BLOCK, meta=meta))
    for place in range(3):
        body = f"set_byte({body}, {15 - place}, ({_IT} >> {8 * place} & 255)::int)"
    return f"select public.tensorage_patch({body})"


def _assigned(number: int, positions: list[int]) -> str:
    meta = {"version": 1, "starts": sorted(positions), "lengths": [1] * len(positions)}
    elements = bytes(4 * len(positions))
    return _request(binary(elements, count=len(positions), data_id=number, meta=meta))


def _shards(*numbers: int) -> str:
    """Shards of a staged dataset, none of which needs an object."""
    entries = [entry(number, None) for number in numbers]
    return f"'{json.dumps(entries)}'"


def _reads(name: str, n: Numbers) -> Iterator[tuple[str, Call]]:
    """Calls that read one of the two arrays."""
    blocks = BLOCKS[name]
    middle = blocks // 2 * BLOCK
    dense = _array(list(range(middle - 512, middle + 512, 2)))
    for whose, rows, objects in (("own", n.own, n.own_objects), ("shared", n.shared, n.shared_objects)):
        key = name if whose == "own" else f"shared {name}"
        for count in (1, 64, 1024):
            at = _array(_spread(count, blocks))
            yield (
                f"read, {count} {whose}",
                Call(f"select public.tensorage_read({rows}, 1, {at}, '{{3}}', 4)", looks=count),
            )
        at, lengths = _array(_spread(64, blocks)), _array([5] * 64)
        yield (
            f"read_spans, 64 {whose}",
            Call(f"select public.tensorage_read_spans({rows}, 1, {at}, {lengths})", looks=64),
        )
        yield (
            f"read_fields, 64 {whose}",
            Call(
                f"select public.tensorage_read_fields({rows}, 1, {at}, {lengths}, '{{1}}', '{{2}}')", looks=64
            ),
        )
        yield (
            f"read, dense {whose}",
            Call(f"select public.tensorage_read({rows}, 1, {dense}, '{{0}}', 1)"),
        )
        yield (
            f"read_spans, dense {whose}",
            Call(f"select public.tensorage_read_spans({rows}, 1, {dense}, {_array([1] * 512)})"),
        )
        yield (
            f"read, long {whose}",
            Call(f"select public.tensorage_read({rows}, 1, '{{{middle}}}', '{{0}}', 500)"),
        )
        yield f"read_run, {whose}", Call(f"select public.tensorage_read_run({rows}, 1, {middle}, 500)")
        of = "" if whose == "own" else f", '{SHARER}@example.com'"
        yield f"open, {whose}", Call(f"select public.tensorage_open('{key}'{of})")
        of_one = f"null{of}" if of else "null, null"
        yield f"read_many, {whose}", Call(f"select public.tensorage_read_many('{{{key}}}', {of_one}, 0)")
        for count in (1, 64):
            numbers = _array([at // BLOCK for at in _spread(count, blocks)])
            yield (
                f"shards, {count} {whose}",
                Call(f"select public.tensorage_shards({objects}, 1, {numbers})", looks=count),
            )
        yield f"has_object, {whose}", Call(f"select public.tensorage_has_object({objects}, {blocks // 2})")
        yield (
            f"table of blocks, {whose}",
            Call(
                f"select * from public.tensors where data_id = {rows} and index >= {middle} and index < {middle + 99}"
            ),
        )
        yield (
            f"table of shards, {whose}",
            Call(f"select * from public.shards where data_id = {objects} and number = {blocks // 2}"),
        )
        yield f"table of datasets, {whose}", Call(f"select * from public.datasets where id = {rows}")
    for whose, texts in (("own", n.own_texts), ("shared", n.shared_texts)):
        for count in (1, 64, 1024):
            at, lengths = _array(_spread(count, blocks)), _array([5] * count)
            # Each is looked up once to find its block, once for its ends, and once for its bytes.
            yield (
                f"read_ragged, {count} {whose}",
                Call(f"select public.tensorage_read_ragged({texts}, 1, {at}, {lengths})", looks=3 * count),
            )
        yield (
            f"ragged_lengths, {whose}",
            Call(f"select public.tensorage_ragged_lengths({texts}, 1, '{{{middle}}}', '{{500}}')", looks=2),
        )
    yield "dataset", Call(f"select public.tensorage_dataset({n.own})")
    yield from _reads_of_holes(blocks, n)


def _reads_of_holes(blocks: int, n: Numbers) -> Iterator[tuple[str, Call]]:
    """Calls that read arrays of which every second block was never written."""
    at, numbers = _spread(64, blocks), _array([at // BLOCK for at in _spread(64, blocks)])
    middle = blocks // 2 * BLOCK
    yield (
        "read, holes",
        Call(f"select public.tensorage_read({n.holes}, 1, {_array(at)}, '{{3}}', 4)", looks=64),
    )
    yield (
        "read_spans, holes",
        Call(f"select public.tensorage_read_spans({n.holes}, 1, {_array(at)}, {_array([5] * 64)})", looks=64),
    )
    dense = _array(list(range(middle - 512, middle + 512, 2)))
    yield "read, dense holes", Call(f"select public.tensorage_read({n.holes}, 1, {dense}, '{{0}}', 1)")
    yield (
        "read, long holes",
        Call(f"select public.tensorage_read({n.holes}, 1, '{{{middle}}}', '{{0}}', 500)"),
    )
    yield "read_run, holes", Call(f"select public.tensorage_read_run({n.holes}, 1, {middle}, 500)")
    yield (
        "shards, holes",
        Call(f"select public.tensorage_shards({n.hole_objects}, 1, {numbers})", looks=64),
    )


def _writes_of_holes(name: str, n: Numbers) -> Iterator[tuple[str, Call]]:
    """Calls that write to arrays of which every second block was never written, or change their length."""
    rows = BLOCKS[name] * BLOCK
    near, far = list(range(0, 8 * BLOCK, BLOCK)), _spread(64, BLOCKS[name])
    yield "assign, holes", Call(f"select public.tensorage_assign({_assigned(n.holes, near)})", looks=8)
    yield "assign, far holes", Call(f"select public.tensorage_assign({_assigned(n.holes, far)})", looks=64)
    assign = _begun(f"begin_assign({n.holes}, 1)")
    yield "patch, holes", Call(_patch(near), (assign,))
    yield "commit, assign to holes", Call(f"select public.tensorage_commit({_IT})", (assign, _patch(near)))
    assign = _begun(f"begin_assign({n.hole_objects}, 1, null, 'storage')")
    yield (
        "commit, assign to holes of objects",
        Call(f"select public.tensorage_commit({_IT}, null, {_holes(1, 3)})", (assign,)),
    )
    added = _request(whole(np.zeros(5, "<i4"), key=f"{name} with holes"))
    yield "append, holes", Call(f"select public.tensorage_append({added})")
    for number in (n.holes, n.hole_objects):
        for longer in (5, -5, -4 * BLOCK):
            resize = f"tensorage_resize({number}, {rows}, {rows + longer}, 'AAAAAA==')"
            yield f"resize by {longer}, {number == n.holes}", Call(f"select public.{resize}")
    yield (
        "resize of one without holes",
        Call(
            f"select public.tensorage_resize({n.own}, {rows}, {rows + 5}, 'AAAAAA==')",
            grows_with="the blocks, each of which is written down",
        ),
    )


def _holes(*numbers: int) -> str:
    """Shards without an object, in place of those without one."""
    return f"'{json.dumps([entry(number, None, based_on='') for number in numbers])}'"


def _policies(name: str, n: Numbers) -> Iterator[tuple[str, Call]]:
    """The functions that policies of the bucket call, and a read of an object."""
    for owner, objects in ((ME, n.own_objects), (SHARER, n.shared_objects)):
        whose = "own" if owner == ME else "shared"
        object_name = f"{owner}/{objects}/c/{BLOCKS[name] // 2}"
        for function in ("is_shared_object", "may_write_object", "may_delete_object"):
            yield f"{function}, {whose}", Call(f"select tensorage.{function}('{object_name}')")
        yield (
            f"object, {whose}",
            Call(f"select * from storage.objects where bucket_id = 'tensors' and name = '{object_name}'"),
        )


def _writes(name: str, n: Numbers) -> Iterator[tuple[str, Call]]:
    """Calls that change one of the two arrays."""
    blocks = BLOCKS[name]
    rows, objects = blocks * BLOCK, f"{name} objects"
    row = np.zeros(5, "<i4")
    append = _request(whole(row, key=name, operation="10000000-0000-4000-8000-000000000001"))
    texts = _request(_texts(key=f"{name} texts", operation="10000000-0000-4000-8000-000000000003"))
    yield "append, texts", Call(f"select public.tensorage_append({texts})", looks=2)
    near, far = list(range(0, 8 * BLOCK, BLOCK)), _spread(64, blocks)
    yield "append", Call(f"select public.tensorage_append({append})")
    theirs = _request(whole(row, key=f"shared {name}", owner=f"{SHARER}@example.com"))
    yield "append, shared", Call(f"select public.tensorage_append({theirs})")
    yield "assign, shared", Call(f"select public.tensorage_assign({_assigned(n.shared, [rows // 2])})")
    yield "begin_assign, shared", Call(f"select public.tensorage_begin_assign({n.shared}, 1)")
    yield "assign, 1", Call(f"select public.tensorage_assign({_assigned(n.own, [rows // 2])})")
    yield "assign, near", Call(f"select public.tensorage_assign({_assigned(n.own, near)})", looks=8)
    yield (
        "assign, far",
        Call(
            f"select public.tensorage_assign({_assigned(n.own, far)})",
            looks=64,
        ),
    )
    steps = transaction(
        ("tensorage_store", whole(row, key="new")),
        ("tensorage_append", whole(row, key=name)),
        ("tensorage_append", whole(row, key=f"shared {name}", owner=f"{SHARER}@example.com")),
        keys=["new", name],
        appended=[{"key": f"shared {name}", "owner": f"{SHARER}@example.com"}],
        assigned=[{"data_id": n.own, "version": 1}],
    )
    yield "transact", Call(f"select public.tensorage_transact({_request(steps)})")
    assign = _begun(f"begin_assign({n.own}, 1)")
    yield "begin_assign", Call(f"select public.tensorage_begin_assign({n.own}, 1)")
    yield "patch", Call(_patch(near), (assign,))
    yield (
        "patch, far",
        Call(
            _patch(far),
            (assign,),
            looks=64,
        ),
    )
    yield (
        "commit, assign",
        Call(
            f"select public.tensorage_commit({_IT})",
            (assign, _patch(near)),
        ),
    )
    yield (
        "abort, assign",
        Call(f"select public.tensorage_abort({_IT})", (assign, _patch(near))),
    )
    begin_append = f"begin('{name}', '{{160}}', '<i4', {BLOCK}, append => true)"
    yield "begin, append", Call(f"select public.tensorage_{begin_append}")
    yield "commit, append", Call(f"select public.tensorage_commit({_IT})", (_begun(begin_append), _put(160)))
    more = f"begin_append({n.own_objects}, '{{{BLOCK}}}', {rows})"
    yield "begin_append", Call(f"select public.tensorage_{more}")
    yield "put_shards", Call(f"select public.tensorage_put_shards({_IT}, {_shards(blocks)})", (_begun(more),))
    yield (
        "commit, append of objects",
        Call(
            f"select public.tensorage_commit({_IT}, null, {_shards(blocks)})",
            (_begun(more),),
        ),
    )
    first, second = (
        f"select public.tensorage_append_tails({n.own_objects}, '{{1}}', {base}, '{json.dumps([tail])}')"
        for base, tail in (
            (rows, entry(blocks, None, tail="AAAA")),
            (rows + 1, entry(blocks, None, tail="AAAA", kept=3, based_on="+" + md5(bytes(3)).hexdigest())),
        )
    )
    loose = _request(whole(np.zeros(5, "<i4"), key=objects))
    yield "append, loose", Call(f"select public.tensorage_append({loose})")
    yield (
        "append, loose again",
        Call(f"select public.tensorage_append({loose})", (f"select public.tensorage_append({loose})",)),
    )
    yield "append_tails", Call(first)
    yield "append_tails, kept", Call(second, (first,))
    yield from _writes_of_holes(name, n)
    yield "annotate", Call(f"""select public.tensorage_annotate({n.own}, '{{"a": 1}}')""")
    for key in (name, objects):
        yield f"rename {key == name}", Call(f"select public.tensorage_rename('{key}', 'renamed')")
        yield f"share {key == name}", Call(f"select public.tensorage_share('{key}')")
        yield (
            f"share with somebody {key == name}",
            Call(f"select public.tensorage_share('{key}', '{{a@example.com}}')"),
        )
        shared = f"select public.tensorage_share('{key}')"
        yield f"unshare {key == name}", Call(f"select public.tensorage_unshare('{key}')", (shared,))
        yield f"shares {key == name}", Call(f"select public.tensorage_shares('{key}')", (shared,))
        yield (
            f"rename over {key == name}",
            Call(
                f"select public.tensorage_rename('another', '{key}', true)",
                (f"select public.tensorage_store({_request(whole(row, key='another'))})",),
                grows_with="the blocks that are swept, at most 64",
            ),
        )
        yield (
            f"remove {key == name}",
            Call(
                f"select public.tensorage_remove('{key}')",
                grows_with="the blocks that are swept, at most 256",
            ),
        )
    yield (
        "sweep",
        Call(
            "select public.tensorage_sweep()",
            (f"select public.tensorage_remove('{name}')",),
            grows_with="the blocks that are swept, at most 256",
        ),
    )
    yield (
        "sweep_objects",
        Call(
            "select public.tensorage_sweep_objects(10)",
            (f"select public.tensorage_remove('{objects}')",),
            grows_with="the shards of a page, at most 1000",
        ),
    )
    yield (
        "compact",
        Call(f"select public.tensorage_compact('{name}')", grows_with="the blocks, at most 65536 in a call"),
    )


def _other_reads() -> Iterator[tuple[str, Call]]:
    """Calls that read, and are about no array of a certain size."""
    yield "version", Call("select public.tensorage_version()")
    yield "list of a prefix", Call("select public.tensorage_list('few')")
    yield "list of nothing", Call("select public.tensorage_list('no such')")
    yield "list of a page", Call("select public.tensorage_list('few', '', 1)")
    yield "open of many", Call("select public.outcome('select public.tensorage_open(''common'')')")
    yield (
        "open of one of many",
        Call("select public.outcome('select public.tensorage_open(''common'', ''sharer7@example.com'')')"),
    )
    sharer = f"{SHARER}@example.com"
    yield "list of one of many", Call("select public.tensorage_list(owner => 'sharer7@example.com')")
    yield "sharer", Call("select public.outcome('select public.tensorage_sharer(''sharer7@example.com'')')")
    yield "shared_with_me, a page", Call("select public.tensorage_shared_with_me(0, 1)")
    yield "catalogue of a prefix", Call("select public.tensorage_catalogue('few')")
    yield "catalogue of nothing", Call("select public.tensorage_catalogue('no such')")
    yield "catalogue of a page", Call("select public.tensorage_catalogue('few', max_rows => 1)")
    yield "catalogue by attributes", Call("""select public.tensorage_catalogue(attrs => '{"no": "such"}')""")
    for below in ("no such", "few"):
        yield (
            f"read_many below {below}",
            Call(f"select public.tensorage_read_many(below => '{below}', max_bytes => 0)"),
        )
    yield (
        "read_many of nothing",
        Call("select public.outcome('select public.tensorage_read_many(''{no such}'')')"),
    )
    yield "usage", Call("select public.tensorage_usage()")
    yield "answered", Call(f"select public.tensorage_answered('{_OF_A_SPOOL}', '{_OF_A_SPOOL}')")
    yield "acknowledge", Call(f"select public.tensorage_acknowledge('{{{_OF_A_SPOOL}}}')")
    yield "doctor", Call("select public.tensorage_doctor()")
    yield (
        "quotas of nobody's",
        Call("select public.outcome('select public.tensorage_quotas(''a@example.com'')')"),
    )
    yield "audit", Call("select public.tensorage_audit('few')")
    yield (
        "set_quota of nobody's",
        Call("select public.outcome('select public.tensorage_set_quota(''a@example.com'', 1, 1)')"),
    )
    yield (
        "open of what is not shared",
        Call(f"select public.outcome('select public.tensorage_open(''no'', ''{sharer}'')')"),
    )
    yield "open of nothing", Call("select public.outcome('select public.tensorage_open(''no such'')')")
    yield (
        "read of nothing",
        Call("select public.outcome('select public.tensorage_read(5000000, 1, ''{0}'', ''{0}'', 1)')"),
    )
    yield "dataset of nothing", Call("select public.outcome('select public.tensorage_dataset(5000000)')")
    yield (
        "shards of what is written",
        Call(
            f"select public.tensorage_shards({_IT}, null, '{{0}}')",
            (_begun(_BEGIN_OBJECTS), f"select public.tensorage_put_shards({_IT}, {_shards(0)})"),
        ),
    )


def _other_writes() -> Iterator[tuple[str, Call]]:
    """Calls that make an array."""
    new = _request(
        whole(np.zeros(30, "<i4"), key="new", chunk=BLOCK, operation="10000000-0000-4000-8000-000000000002")
    )
    over = _request(whole(np.zeros(30, "<i4"), key="new", chunk=BLOCK, overwrite=True))
    begin = "begin('new', '{160}', '<i4', 16)"
    yield "store", Call(f"select public.tensorage_store({new})")
    tails = _request(with_tails([b"tail"] * 2, key="new", shape=[20], extents=[BLOCK]))
    yield "store_tails", Call(f"select public.tensorage_store_tails({tails})")
    yield "create", Call("select public.tensorage_create('new', '{1000000}', '<i4', 16, 'AAAAAA==')")
    yield (
        "remove_all",
        Call("select public.tensorage_remove_all('new')", (f"select public.tensorage_store({new})",)),
    )
    yield (
        "rename_all",
        Call(
            "select public.tensorage_rename_all('new', 'newer')", (f"select public.tensorage_store({new})",)
        ),
    )
    yield (
        "store over",
        Call(f"select public.tensorage_store({over})", (f"select public.tensorage_store({new})",)),
    )
    yield "begin", Call(f"select public.tensorage_{begin}")
    yield "put", Call(_put(160), (_begun(begin),))
    yield "commit", Call(f"select public.tensorage_commit({_IT})", (_begun(begin), _put(160)))
    text = "begin('new', '{0}', 'text', 16)"
    yield "end_ragged", Call(f"select public.tensorage_end_ragged({_IT}, '{{0}}')", (_begun(text),))
    yield "abort", Call(f"select public.tensorage_abort({_IT})", (_begun(begin), _put(160)))
    yield "begin, objects", Call(f"select public.tensorage_{_BEGIN_OBJECTS}")
    yield (
        "commit, objects",
        Call(f"select public.tensorage_commit({_IT}, null, {_shards(0, 1)})", (_begun(_BEGIN_OBJECTS),)),
    )


_NOT_MADE = Numbers(0, 0, 0, 0, 0, 0, 0, 0)


def _calls_of_readers(name: str, numbers: Numbers) -> dict[str, Call]:
    return dict([*_reads(name, numbers), *_other_reads()])


def _calls_of_writers(name: str, numbers: Numbers) -> dict[str, Call]:
    return dict([*_policies(name, numbers), *_writes(name, numbers), *_other_writes()])


@dataclass
class Counted:
    """Pages of each call: in the project that is nearly empty, and by pass and array when it is crowded."""

    empty: dict[str, int] = field(default_factory=dict)
    crowded: dict[tuple[str, str, str], int] = field(default_factory=dict)
    #: To count the keys, by somebody who sees a tenth of all arrays; and pages of the table.
    keys: int = 0
    table: int = 0


@pytest.fixture(scope="module")
def counted(cluster: Cluster) -> Counted:
    """Pages of all calls."""
    with psycopg.connect(dsn(cluster, SUPERUSER, "template1"), autocommit=True) as connection:
        connection.execute(f"create database crowd template {PRISTINE} owner postgres")
    asyncio.run(migrate(dsn(cluster, "postgres", "crowd"), migration_files()))
    project = Project(dsn(cluster, SUPERUSER, "crowd"))
    project.install()
    counted = Counted()
    few = project.numbers["few"]
    with project.user() as first:
        first.execute("set plan_cache_mode = force_generic_plan")
        calls = _calls_of_readers("few", few) | _calls_of_writers("few", few)
        _count(first, calls)
        counted.empty = _count(first, calls)
        project.crowd()
        _pass(counted, project, "planned before", first, _calls_of_readers)
    for name, mode in list(_PASSES.items())[1:]:
        if name == "analyzed, generic":
            project.analyze()
        with project.user() as user:
            user.execute(f"set plan_cache_mode = {mode}")
            for made in (_calls_of_readers, _calls_of_writers) if name in _ANALYZED else (_calls_of_readers,):
                # The catalogues are looked into once.
                _count(user, made("few", few))
                _pass(counted, project, name, user, made)
    with project.user(STRANGER) as stranger:
        # The catalogues are looked into once.
        buffers(stranger, "select public.tensorage_count()")
        counted.keys = buffers(stranger, "select public.tensorage_count()")
        size = "select pg_relation_size('public.datasets') / current_setting('block_size')::int"
        (counted.table,) = stranger.execute(size).fetchone() or (0,)
    return counted


def _pass(
    counted: Counted,
    project: Project,
    name: str,
    user: psycopg.Connection[Any],
    made: Callable[[str, Numbers], dict[str, Call]],
) -> None:
    for array, numbers in project.numbers.items():
        for call, pages in _count(user, made(array, numbers)).items():
            counted.crowded[name, array, call] = pages


def _count(user: psycopg.Connection[Any], calls: dict[str, Call]) -> dict[str, int]:
    return {name: buffers(user, call.statement, *call.before) for name, call in calls.items()}


def _check(name: str, call: Call, counted: Counted, passes: Iterable[str]) -> None:
    empty = counted.empty[name]
    for each in passes:
        few, many = (counted.crowded[each, array, name] for array in BLOCKS)
        # An index of a crowded table is a level or two deeper, for each look into it.
        assert few <= 2 * empty + 64 + 4 * (call.looks - 1), (each, empty, few)
        assert call.grows_with or many <= 1.25 * few + 4 * call.looks + 16, (each, few, many)


@pytest.mark.parametrize("name", _calls_of_readers("few", _NOT_MADE))
def test_pages_of_a_call_that_reads(name: str, counted: Counted) -> None:
    """The bound holds however the call was planned."""
    _check(name, _calls_of_readers("few", _NOT_MADE)[name], counted, _PASSES)


@pytest.mark.parametrize("name", _calls_of_writers("few", _NOT_MADE))
def test_pages_of_a_call_that_writes(name: str, counted: Counted) -> None:
    """The bound holds with statistics, as an autovacuum has made them."""
    _check(name, _calls_of_writers("few", _NOT_MADE)[name], counted, _ANALYZED)


def test_keys_are_counted_without_those_of_others(counted: Counted) -> None:
    assert counted.table > 3000
    assert counted.keys < counted.table / 4


def test_every_function_of_the_rest_api_is_counted(cluster: Cluster, counted: Counted) -> None:
    with psycopg.connect(dsn(cluster, "postgres", "crowd")) as connection:
        functions = connection.execute(
            "select distinct proname from pg_proc where pronamespace = 'public'::regnamespace "
            "and starts_with(proname, 'tensorage_')"
        ).fetchall()
    calls = (_calls_of_readers("few", _NOT_MADE) | _calls_of_writers("few", _NOT_MADE)).values()
    said = " ".join(call.statement for call in calls)
    assert {name for (name,) in functions if f"public.{name}(" not in said} == {"tensorage_count"}
