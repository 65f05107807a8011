"""A caller of the REST API that speaks plain HTTP, knows the binary format by itself, and nothing of the client."""

from __future__ import annotations

import json
import secrets
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

Json = dict[str, Any]

_HEADER = struct.Struct(">4sHHqqIIq")


def binary(
    elements: bytes = b"",
    *,
    count: int,
    chunk: int = 1000,
    data_id: int = 0,
    index: int = 0,
    meta: Any = None,
    magic: bytes = b"TNSR",
    version: int = 1,
    meta_bytes: int | None = None,
) -> bytes:
    """A binary request; what contradicts itself can be said, too."""
    encoded = meta if isinstance(meta, bytes) else b"" if meta is None else json.dumps(meta).encode()
    length = len(encoded) if meta_bytes is None else meta_bytes
    return _HEADER.pack(magic, version, 0, data_id, index, chunk, length, count) + encoded + elements


def whole(array: npt.NDArray[Any], *, chunk: int = 1000, **meta: Any) -> bytes:
    """The request of an array, or of rows of one, with all its elements."""
    described = {"shape": array.shape, "dtype": array.dtype.str, "chunk": chunk} | meta
    return binary(array.tobytes(), count=array.size, chunk=chunk, meta=described)


def transaction(*steps: tuple[str, bytes | Json], **meta: Any) -> bytes:
    """The request of a transaction: its steps by their functions, and the locks that it names."""
    requests = [given for _, given in steps if isinstance(given, bytes)]
    described = [
        {"function": function, **({"bytes": len(given)} if isinstance(given, bytes) else given)}
        for function, given in steps
    ]
    elements = b"".join(requests)
    return binary(elements, count=len(elements), chunk=1, meta={"steps": described} | meta)


def new_key() -> str:
    return f"key {secrets.token_hex(8)}"


def new_operation() -> str:
    return str(uuid.uuid4())


def code_of(answer: httpx.Response) -> str:
    """The code of an answer that has to be an error of the caller's making."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    return str(answer.json()["code"])


def answer_of(answer: httpx.Response) -> Any:
    """Return the content of an answer that has to be a success."""
    assert answer.status_code == 200, (answer.status_code, answer.text)
    return answer.json()


def described(written: Json) -> Json:
    """The description of an array in what a writing function answered."""
    return {name: value for name, value in written.items() if name not in ("left", "objects_left")}


@dataclass(frozen=True)
class Caller:
    """The REST API as one user sees it, or (without an id) as nobody does."""

    http: httpx.Client
    headers: Mapping[str, str] = field(repr=False)
    id: str = ""
    email: str = ""

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**self.headers, **options.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **options)

    def call(self, function: str, arguments: Json | bytes | None = None, **named: Any) -> httpx.Response:
        """Call a function: with bytes, with the given arguments, or with those named."""
        if isinstance(arguments, bytes):
            headers = {"Content-Type": "application/octet-stream"}
            return self.request("POST", f"/rpc/{function}", content=arguments, headers=headers)
        return self.request("POST", f"/rpc/{function}", json={**(arguments or {}), **named})

    def store(self, key: str, array: npt.NDArray[Any], **meta: Any) -> Json:
        stored: Json = answer_of(self.call("tensorage_store", whole(array, key=key, **meta)))
        return stored

    def begin(self, key: str, shape: Sequence[int], dtype: str = "<i4", chunk: int = 10, **more: Any) -> Json:
        begun: Json = answer_of(
            self.call("tensorage_begin", key=key, shape=list(shape), dtype=dtype, chunk=chunk, **more)
        )
        return begun

    def put(self, data_id: int, array: npt.NDArray[Any], index: int = 0, chunk: int = 10) -> httpx.Response:
        body = binary(array.tobytes(), count=array.size, chunk=chunk, data_id=data_id, index=index)
        return self.call("tensorage_put", body)

    def commit(self, data_id: int, **more: Any) -> httpx.Response:
        return self.call("tensorage_commit", data_id=data_id, **more)

    def append(self, key: str, rows: npt.NDArray[Any], **meta: Any) -> httpx.Response:
        given = {"operation": new_operation(), "chunk": max(rows.size, 1)} | meta
        return self.call("tensorage_append", whole(rows, key=key, **given))

    def assign(
        self, dataset: Json, elements: npt.NDArray[Any], starts: Any, lengths: Any, **meta: Any
    ) -> httpx.Response:
        """Put elements into places of an array as it was opened; other meta, such as rows, goes beside them."""
        meta = {"version": dataset["version"], "starts": starts, "lengths": lengths} | meta
        body = binary(elements.tobytes(), count=elements.size, data_id=dataset["id"], meta=meta)
        return self.call("tensorage_assign", body)

    def begin_assign(self, dataset: Json, **more: Any) -> Json:
        begun: Json = answer_of(self.ask_to_assign(dataset, **more))
        return begun

    def ask_to_assign(self, dataset: Json, **more: Any) -> httpx.Response:
        """The answer to the beginning of an assignment, whatever it is."""
        named = {"data_id": dataset["id"], "version": dataset["version"]}
        return self.call("tensorage_begin_assign", named, **more)

    def patch(
        self, data_id: int, elements: npt.NDArray[Any], starts: Any, lengths: Any, **meta: Any
    ) -> httpx.Response:
        meta = {"starts": starts, "lengths": lengths} | meta
        body = binary(elements.tobytes(), count=elements.size, data_id=data_id, meta=meta)
        return self.call("tensorage_patch", body)

    def open(self, key: str, owner: Caller | None = None) -> Json:
        """The array under a key of the caller, or of somebody who shares it."""
        whose = {} if owner is None else {"owner": owner.email}
        opened: Json = answer_of(self.call("tensorage_open", key=key, **whose))
        return opened

    def ask(self, dataset: Json, rows: Any, runs: Any = (0,), run_length: Any = 1) -> httpx.Response:
        """The answer to a read, whatever it is."""
        return self.request(
            "POST",
            "/rpc/tensorage_read",
            json={"data_id": dataset["id"], "version": dataset["version"], "rows": rows, "runs": runs}
            | {"run_length": run_length},
            headers={"Accept": "application/vnd.tensorage"},
        )

    def ask_spans(self, dataset: Json, starts: Any, lengths: Any) -> httpx.Response:
        """The answer to a read of spans, whatever it is."""
        return self.request(
            "POST",
            "/rpc/tensorage_read_spans",
            json={"data_id": dataset["id"], "version": dataset["version"]}
            | {"starts": starts, "lengths": lengths},
            headers={"Accept": "application/vnd.tensorage"},
        )

    def ask_run(self, dataset: Json, first: Any, elements: Any) -> httpx.Response:
        """The answer to a read of a long run, whatever it is."""
        named = {"data_id": dataset["id"], "version": dataset["version"]}
        return self.request(
            "POST",
            "/rpc/tensorage_read_run",
            json=named | {"first": first, "elements": elements},
            headers={"Accept": "application/vnd.tensorage"},
        )

    def ask_fields(
        self, dataset: Json, starts: Any, lengths: Any, offsets: Any, sizes: Any
    ) -> httpx.Response:
        """The answer to a read of fields, whatever it is."""
        return self.request(
            "POST",
            "/rpc/tensorage_read_fields",
            json={"data_id": dataset["id"], "version": dataset["version"]}
            | {"starts": starts, "lengths": lengths, "offsets": offsets, "sizes": sizes},
            headers={"Accept": "application/vnd.tensorage"},
        )

    def blocks(self, data_id: int) -> list[tuple[int, int]]:
        """The first element of each block of a dataset, and the number of its elements, in order."""
        query = f"/tensors?data_id=eq.{data_id}&select=index,count&order=index"
        return [(row["index"], row["count"]) for row in self.request("GET", query).json()]

    def read(self, dataset: Json, first: int = 0, count: int | None = None) -> npt.NDArray[Any]:
        """Elements of an array in their order, all of them unless told."""
        total = int(np.prod(dataset["shape"])) - first if count is None else count
        answer = self.ask(dataset, [first] if total else [], run_length=max(total, 1))
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return np.frombuffer(answer.content, dataset["dtype"])
