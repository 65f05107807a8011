"""Arrays of Storage by plain HTTP: objects that are told to the catalogue, their bytes never looked at."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import httpx
from sql.api import Caller, Json, answer_of, binary, new_key

BUCKET = "tensors"
PREFIX = f"/object/{BUCKET}"

#: Head of each shard: its number, bytes of its object, of the object's name, of its index, of its tail and of its loose
#: rows, and the row that these begin at.
_HEAD = struct.Struct(">qqIIIII")

#: An array of five shards, the last one with a row less.
SHAPE, EXTENTS = (9, 3), (2, 3)
NUMBERS = range(5)

INDEX = struct.pack("<QQ", 0, 16)


class Shard(NamedTuple):
    """A shard, as the catalogue describes it."""

    name: str
    nbytes: int
    index: bytes
    tail: bytes = b""
    loose: bytes = b""
    loose_at: int = 0


def metadata(extents: Sequence[Any] = EXTENTS, **more: Any) -> str:
    """Metadata of Zarr, of shards of these extents."""
    grid = {"name": "regular", "configuration": {"chunk_shape": list(extents)}}
    return json.dumps({"zarr_format": 3, "node_type": "array", "chunk_grid": grid, "fill_value": 0} | more)


def storage(caller: Caller, method: str, path: str, **options: Any) -> httpx.Response:
    """Ask the Storage API."""
    root = str(caller.http.base_url).replace("/rest/v1", "/storage/v1").rstrip("/")
    return caller.request(method, root + path, **options)


def upload(caller: Caller, name: str, content: bytes = b"bytes of a shard", **headers: str) -> httpx.Response:
    sent = {"Content-Type": "application/octet-stream", "x-upsert": "true"} | headers
    return storage(caller, "POST", f"{PREFIX}/{name}", content=content, headers=sent)


def remove(caller: Caller, names: Sequence[str]) -> list[str]:
    """Delete objects, and return the names of those that were deleted."""
    if not names:
        return []
    answer = storage(caller, "DELETE", PREFIX, json={"prefixes": list(names)})
    return sorted(row["name"] for row in answer_of(answer))


def content_of(caller: Caller, name: str) -> bytes | None:
    """Bytes of an object, None for somebody who cannot read it."""
    answer = storage(caller, "GET", f"/object/authenticated/{BUCKET}/{name}")
    return answer.content if answer.status_code == 200 else None


def folder_of(begun: Json) -> str:
    return f"{begun['user_id']}/{begun['id']}"


def name_of(begun: Json, number: int) -> str:
    return f"{folder_of(begun)}/c/{number}/0"


def entry(number: Any, name: str | None, **more: Any) -> Json:
    """A shard as the catalogue is told of it; without a name, one that needs no object."""
    known = {"number": number, "name": name, "nbytes": 0 if name is None else 16}
    return known | {"index": base64.b64encode(b"" if name is None else INDEX).decode()} | more


def put(caller: Caller, begun: Json, *shards: Json) -> httpx.Response:
    return caller.call("tensorage_put_shards", data_id=begun["id"], shards=list(shards))


def begin(
    caller: Caller, key: str, shape: Sequence[int] = SHAPE, extents: Any = EXTENTS, **more: Any
) -> Json:
    asked = {"engine": "storage", "zarr": metadata(extents)} | more
    return caller.begin(key, shape, **asked)


def fill(caller: Caller, begun: Json, numbers: Iterable[int] = NUMBERS, **based_on: str) -> list[Json]:
    """Upload the objects of shards, and give what the catalogue is to be told.

    Parameters
    ----------
    **based_on
        Names of the objects that are replaced: ``of_n`` for the shard with number ``n``.
    """
    entries = []
    for number in numbers:
        name = name_of(begun, number)
        assert upload(caller, name, f"{number} of {begun['id']}".encode()).status_code == 200
        entries.append(entry(number, name, based_on=based_on.get(f"of_{number}")))
    return entries


def store(caller: Caller, key: str | None = None, **more: Any) -> Json:
    """Store an array, with an object for each of its shards."""
    begun = begin(caller, key or new_key(), **more)
    stored: Json = answer_of(caller.commit(begun["id"], shards=fill(caller, begun)))
    return stored


def with_tails(
    tails: Sequence[bytes], *, key: str, shape: Sequence[int] = SHAPE, extents: Any = EXTENTS, **meta: Any
) -> bytes:
    """The request that stores an array without objects: a tail for each of its shards, empty for none."""
    data = b"".join(tails)
    shards = [
        {"number": number, "index": base64.b64encode(INDEX if tail else b"").decode(), "tail": len(tail)}
        for number, tail in enumerate(tails)
    ]
    described = {
        "key": key, "shape": list(shape), "dtype": "<i4", "chunk": 10, "engine": "storage", "zarr": metadata(extents),
        "shards": shards,
    }  # fmt: skip
    return binary(data, count=len(data), chunk=1, meta=described | meta)


def begin_append(caller: Caller, dataset: Json, rows: int, **more: Any) -> Json:
    begun: Json = answer_of(ask_to_append(caller, dataset, rows, **more))
    return begun


def ask_to_append(caller: Caller, dataset: Json, rows: int, **more: Any) -> httpx.Response:
    """The answer to the beginning of an append, whatever it is."""
    shape = [rows, *dataset["shape"][1:]]
    named = {"data_id": dataset["id"], "shape": shape, "base_rows": dataset["shape"][0]} | more
    return caller.call("tensorage_begin_append", named)


def begin_assign(caller: Caller, dataset: Json, **more: Any) -> Json:
    return caller.begin_assign(dataset, **{"engine": "storage"} | more)


def append(caller: Caller, dataset: Json, rows: int, numbers: Iterable[int], **based_on: str) -> Json:
    begun = begin_append(caller, dataset, rows)
    appended: Json = answer_of(caller.commit(begun["id"], shards=fill(caller, begun, numbers, **based_on)))
    return appended


def assign(caller: Caller, dataset: Json, **based_on: str) -> Json:
    begun = begin_assign(caller, dataset)
    numbers = [int(of.removeprefix("of_")) for of in based_on]
    assigned: Json = answer_of(caller.commit(begun["id"], shards=fill(caller, begun, numbers, **based_on)))
    return assigned


def ask_shards(caller: Caller, dataset: Json, numbers: Any = tuple(NUMBERS), **more: Any) -> httpx.Response:
    """The answer to what the shards are, whatever it is: of a staged dataset, those that are there."""
    version = dataset["version"] if dataset["state"] == "committed" else None
    asked = {"data_id": dataset["id"], "version": version, "numbers": numbers} | more
    headers = {"Accept": "application/vnd.tensorage"}
    return caller.request("POST", "/rpc/tensorage_shards", json=asked, headers=headers)


def shards(caller: Caller, dataset: Json, numbers: Sequence[int] = NUMBERS) -> dict[int, Shard]:
    answer = ask_shards(caller, dataset, list(numbers))
    assert answer.status_code == 200, (answer.status_code, answer.text)
    return parse_shards(answer.content)


def parse_shards(content: bytes) -> dict[int, Shard]:
    found, at = {}, 0
    while at < len(content):
        number, nbytes, *lengths, loose_at = _HEAD.unpack_from(content, at)
        ends = list(accumulate(lengths, initial=at + _HEAD.size))
        name, index, tail, loose = (content[low:high] for low, high in pairwise(ends))
        found[number] = Shard(name.decode(), nbytes, index, tail, loose, loose_at)
        at = ends[-1]
    assert at == len(content)
    assert list(found) == sorted(found)
    return found


def names(caller: Caller, dataset: Json, numbers: Sequence[int] = NUMBERS) -> list[str]:
    """Names of the objects of shards, in order."""
    return [shard.name for shard in shards(caller, dataset, numbers).values()]


def ask_to_sweep(caller: Caller, max_objects: Any = 1000) -> list[str]:
    named: list[str] = answer_of(caller.call("tensorage_sweep_objects", max_objects=max_objects))
    return named


def sweep(caller: Caller, max_objects: int = 1000) -> list[str]:
    """Delete all that is named until nothing is, as a client does, and return the names of what was deleted."""
    deleted: list[str] = []
    while named := ask_to_sweep(caller, max_objects):
        assert len(named) <= max_objects
        assert remove(caller, named) == sorted(named)
        deleted += named
    return sorted(deleted)
