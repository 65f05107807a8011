"""A byte mover that keeps the last request of each change, to send all of them as the steps of one transaction."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar

from tensorage.backend.entries import EntryMemory
from tensorage.backend.staging import abort, new_operation, sweep
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.faults import Fault, OtherDTypeError, StoredElsewhereError, error_of
from tensorage.backend.wire.header import Header, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.errors import InvalidInputError
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.types import Dataset

__all__ = ["Recorder", "Step"]

#: Functions that change nothing that a reader sees. A transaction calls them while it is made up.
_AT_ONCE = frozenset(
    f"tensorage_{name}"
    for name in (
        "abort", "begin", "begin_append", "begin_assign", "dataset", "end_ragged", "has_object", "open", "patch", "put",
        "put_shards", "read", "read_ragged", "read_run", "read_spans", "shards", "sweep", "sweep_objects", "version",
    )
)  # fmt: skip


#: A transaction of n arrays asks n times for the bytes of all of its steps.
_SIZE_OF = attrgetter("size")


@dataclass(frozen=True)
class Step:
    """One change of a transaction.

    Parameters
    ----------
    key
        Key of the array. Empty for an assignment, which names the array by its id.
    described
        Function and arguments of the step, as ``tensorage_transact`` reads them.
    request
        Binary request of the step, if its function takes one.
    locks
        Arrays that the step changes, as ``tensorage.lock_for_steps`` reads them: lists by name.
    """

    key: str
    described: dict[str, Any]
    request: bytes = b""
    locks: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def is_staged(self) -> bool:
        """True if its elements were sent before, and it commits them alone."""
        return bool(self.described["function"] == "tensorage_commit")

    @cached_property
    def size(self) -> int:
        """Bytes of elements that the step brings along."""
        return len(self.request) + sum(
            len(shard.get("tail", "")) + len(shard.get("loose", ""))
            for shard in self.described.get("shards") or ()
        )


class Recorder(Transfer):
    """Records the steps of a transaction, and passes on all that only prepares them.

    An engine works with it as with any other byte mover. A request that would make a change visible becomes a step, and
    is answered here with the array as the engine declared it. A request that does not fit beside the others is refused
    as too large: the engine then stages its elements, and the step is a short commit.

    Parameters
    ----------
    transfer
        Carries the requests.
    """

    is_transaction: ClassVar[bool] = True

    def __init__(self, transfer: Transfer) -> None:
        super().__init__(transfer.base_url, transfer.login, transfer.parallel, transfer.patience)
        self.http = transfer.http
        # A step needs an array that was opened, and reads see nothing of what the transaction changes.
        self.entries = EntryMemory(most=0)
        self._transfer = transfer
        self.steps: list[Step] = []
        #: Staged datasets, as they were begun, with the arguments of their beginning.
        self._begun: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        #: Arrays as they were opened, by id.
        self._opened: dict[int, Mapping[str, Any]] = {}
        #: Arrays as far as they are known, by key.
        self._known: dict[str, Mapping[str, Any]] = {}
        self._replaced: set[str] = set()
        #: Keys of arrays of Storage that take no loose rows now: see `tensorage.backend.zarr.tails`.
        self._without_loose: set[str] = set()

    def know(self, description: Mapping[str, Any]) -> None:
        """Take an array's dtype and engine from its description: rows to append have to fit it."""
        self._known[description["key"]] = description
        # An array that a step will store has no id yet.
        if description["id"]:
            self._opened[description["id"]] = description

    def opened(self, data_id: int) -> Mapping[str, Any]:
        """Return the description of an array, as it was opened."""
        return self._opened[data_id]

    def refuse_loose(self, key: str) -> None:
        """Have appends to an array of Storage rest on the rows that it has now."""
        self._without_loose.add(key)

    def try_loose(self, key: str) -> None:
        """Have small appends to an array of Storage go behind whatever there is."""
        self._without_loose.discard(key)

    def send(self, function: str, parts: Sequence[bytes | memoryview], asked: str) -> Any:
        """Record a request with elements, or send it if it is one of a staged array."""
        if function in _AT_ONCE:
            return super().send(function, parts, asked)
        head = Header.parse(parts[0])
        if function == "tensorage_append":
            self._check_known(head.meta, asked)
        size = sum(map(len, parts))
        if self._size() + size > MAX_REQUEST_BYTES:
            raise TooMuchError(_no_room(), asked)
        # Copied: the caller may change the array before the transaction is committed.
        request = b"".join(parts)
        described = {"function": function, "bytes": len(request)}
        if function == "tensorage_assign":
            opened = self._opened[head.data_id]
            assigned = {"data_id": head.data_id, "version": head.meta["version"], "key": opened["key"]}
            self.steps.append(Step("", described, request, {"assigned": [assigned]}))
            return opened
        self.steps.append(Step(head.meta["key"], described, request, self._locks_of(head.meta)))
        if function == "tensorage_append":
            return self._known.get(head.meta["key"]) or _describe(head.meta)
        return self._note_stored(head.meta)

    def call(self, function: str, arguments: Mapping[str, Any], asked: str) -> Any:
        """Record a commit or a removal, or send what only prepares one."""
        if function == "tensorage_commit":
            return self._record_commit(arguments)
        if function == "tensorage_remove":
            key = arguments["key"]
            self._replaced.add(key)
            self._known.pop(key, None)
            self.steps.append(
                Step(key, {"function": function, "key": key}, locks={"keys": [key], "replaced": [key]})
            )
            return {}
        if function == "tensorage_append_tails":
            return self._record_tails(arguments, asked)
        if function not in _AT_ONCE:
            raise InvalidInputError(
                f"{asked}: this cannot be a part of a transaction. Arrays are stored, appended to, assigned to and "
                "deleted there. Do it before or after."
            )
        if function == "tensorage_open":
            self._check_is_there([arguments["key"]], asked)
        if function == "tensorage_begin_assign" and self._is_assigned(arguments["data_id"]):
            raise InvalidInputError(
                f"{asked}: this transaction has assigned to it before. An assignment to an array of Storage, or a "
                "large one, has to be the only one: make one of both, or two transactions."
            )
        answer = super().call(function, arguments, asked)
        if function == "tensorage_open":
            self._opened[answer["id"]] = answer
            self.know(answer)
        elif function in ("tensorage_begin", "tensorage_begin_append", "tensorage_begin_assign"):
            self._begun[answer["id"]] = (answer, arguments)
        elif function == "tensorage_abort":
            self._begun.pop(arguments["data_id"], None)
        return answer

    def read(self, function: str, arguments: Mapping[str, Any], asked: str) -> bytes:
        """Read elements, as they are before the transaction."""
        if function == "tensorage_read_many":
            self._check_is_there(arguments["keys"] or [], asked)
        return super().read(function, arguments, asked)

    def _check_is_there(self, keys: Iterable[str], asked: str) -> None:
        if not self._replaced.isdisjoint(keys):
            raise InvalidInputError(
                f"{asked}: this transaction stores or deletes it, and it is not there before the end. Give the array "
                "its content before it is stored."
            )

    def commit(self, open_for_s: float) -> None:
        """Send all steps in one request.

        Parameters
        ----------
        open_for_s
            Seconds since the transaction was begun.
        """
        asked = "committing a transaction"
        locks: dict[str, list[Any]] = {}
        for step in self.steps:
            for name, entries in step.locks.items():
                locks.setdefault(name, []).extend(entries)
        meta: dict[str, Any] = {
            "operation": new_operation(), "steps": [step.described for step in self.steps], **locks
        }  # fmt: skip
        requests = [step.request for step in self.steps]
        meta["open_for"] = round(open_for_s, 6)
        meta["read"] = self._read_since(time.monotonic() - open_for_s, locks.get("replaced", ()))
        head = header(count=sum(map(len, requests)), block_size=1, meta=meta)
        try:
            answer = self._transfer.send("tensorage_transact", [head, *requests], asked)
        except TooMuchError as error:
            raise error_of(error.fault, asked) from error
        self._begun.clear()
        sweep(self._transfer, answer)

    def _read_since(self, since: float, keys: Iterable[str]) -> list[dict[str, Any]]:
        """Return those of the keys whose arrays this thread has read since a time, in the versions that it read."""
        entries = {key: self._transfer.entries.used_since(None, key, since) for key in keys}
        return [
            {"key": key, "data_id": entry.id, "version": entry.version}
            for key, entry in entries.items()
            if entry is not None
        ]

    def base_of(self, step: Step) -> tuple[Any, ...] | None:
        """Return what an append to an array of Storage rests on: the array, its rows, and the ends of its shards.

        None for any other step.
        """
        if step.described["function"] == "tensorage_append_tails":
            told = [(shard["number"], shard.get("based_on")) for shard in step.described["shards"]]
            return step.described["data_id"], step.described["base_rows"], *told
        if step.is_staged:
            _, begun_by = self._begun[step.described["data_id"]]
            if "base_rows" in begun_by:
                return begun_by["data_id"], begun_by["base_rows"]
        return None

    def drop(self, step: Step, reason: BaseException) -> None:
        """Give up what was staged for a step that is replaced by another one."""
        begun = self._begun.pop(step.described.get("data_id", 0), None)
        if begun is not None:
            abort(self._transfer, Dataset.from_json(begun[0]), reason)

    def abort(self, reason: BaseException) -> None:
        """Give up what was staged. After this, nothing of the transaction is left."""
        while self._begun:
            _, (description, _) = self._begun.popitem()
            abort(self._transfer, Dataset.from_json(description), reason)
        self.steps.clear()

    def _is_assigned(self, data_id: int) -> bool:
        return any(
            assigned["data_id"] == data_id
            for step in self.steps
            for assigned in step.locks.get("assigned", ())
        )

    def _size(self) -> int:
        return sum(map(_SIZE_OF, self.steps))

    def _check_known(self, meta: Mapping[str, Any], asked: str) -> None:
        """Raise as the database would if it were asked now, so that the engine sends rows that fit."""
        key = meta["key"]
        known = self._known.get(key)
        takes_rows = (
            known is None or known["engine"] == "database" or key not in self._without_loose | self._replaced
        )
        if known is None or (takes_rows and known["dtype"] == meta["dtype"]):
            return
        error = OtherDTypeError(asked) if takes_rows else StoredElsewhereError(asked)
        error.description = known
        raise error

    def _record_commit(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        data_id = arguments["data_id"]
        description, begun_by = self._begun[data_id]
        described = {"function": "tensorage_commit", **arguments}
        if "data_id" in begun_by:
            changed = {
                "data_id": begun_by["data_id"], "version": begun_by.get("version"), "key": description["key"]
            }  # fmt: skip
            locks: Mapping[str, list[Any]] = {"assigned": [changed]}
        else:
            locks = self._locks_of(begun_by)
            if not begun_by.get("append"):
                self._note_stored(begun_by, description)
        self.steps.append(Step(description["key"], described, locks={"staged": [data_id], **locks}))
        return description

    def _record_tails(self, arguments: Mapping[str, Any], asked: str) -> Mapping[str, Any]:
        """Record an append to an array of Storage that needs no objects."""
        described = {"function": "tensorage_append_tails", **arguments}
        # The step itself says how many rows the array has: another version of it will do.
        changed = {"data_id": arguments["data_id"], "version": None}
        opened = self._opened[arguments["data_id"]]
        step = Step(opened["key"], described, locks={"assigned": [changed]})
        if self._size() + step.size > MAX_REQUEST_BYTES:
            raise TooMuchError(_no_room(), asked)
        self.steps.append(step)
        return opened

    def _note_stored(
        self, meta: Mapping[str, Any], description: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        description = description or _describe(meta)
        self._replaced.add(meta["key"])
        self.know(description)
        return description

    @staticmethod
    def _locks_of(meta: Mapping[str, Any]) -> dict[str, list[Any]]:
        key = meta["key"]
        if meta.get("owner") is not None:
            return {"appended": [{"key": key, "owner": meta["owner"]}]}
        return {"keys": [key], "replaced": [key]} if meta.get("overwrite") else {"keys": [key]}


def _no_room() -> Fault:
    return Fault(413, "", "the transaction has no room for it in its last request")


def _describe(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of an array that a step will store or append to, as far as it is known."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "id": 0, "user_id": None, "owner": meta.get("owner"), "key": meta["key"], "shape": list(meta["shape"]),
        "dtype": meta["dtype"], "chunk": meta.get("chunk", 1), "engine": meta.get("engine", "database"),
        "is_shared": bool(meta.get("is_shared")), "shares": None, "stored_bytes": None,
        "attrs": meta.get("attrs") or {}, "dims": meta.get("dims"), "state": "staged", "version": 0, "created_at": now,
        "updated_at": now, "zarr": meta.get("zarr"), "fill": None,
    }  # fmt: skip
