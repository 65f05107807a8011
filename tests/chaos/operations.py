"""The operations that are interrupted. Each does something to a store, and says what the store holds then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from chaos.model import ROW, Array, State, Stored, log_rows

import tensorage
from tensorage import TensorStore
from tensorage.backend import staging
from tensorage.types import Engine

#: Bytes of one request of a writer, far less than users have: small arrays then take several requests.
REQUEST_BYTES = 16 * 1024

#: Elements of a block, and of a chunk: 8 rows.
CHUNK_SIZE = 8 * ROW

#: Shapes of a chunk and of an object of Storage, in elements.
CHUNKS, SHARDS = (8, ROW), (32, ROW)

#: Rows that fit one request and one object, and rows that take five.
SMALL, LARGE = 16, 160

ENGINES: tuple[Engine, ...] = ("database", "storage")


class NeverAppearedError(tensorage.IncompleteTensorError):
    """All rows of a declared array were taken, and it is not there."""


def values(seed: int, shape: Sequence[int], dtype: str) -> Array:
    """Elements that no other seed has in the same places."""
    rng = np.random.default_rng(seed)
    return rng.random(shape).astype(dtype) if dtype == "<f8" else rng.integers(1, 2**62, shape, dtype)


def layout(engine: Engine) -> dict[str, Any]:
    """Options that cut an array into several objects."""
    return {"chunks": CHUNKS, "shards": SHARDS} if engine == "storage" else {}


@dataclass(frozen=True)
class Operation:
    """Something that is done to a key of a writer.

    Parameters
    ----------
    kind
        Its row of the table.
    engine
        Engine that keeps the array, or is to keep it.
    seed
        Seed of its values.
    """

    kind: str
    engine: Engine
    key: str
    seed: int

    #: True if there has to be an array under the key already.
    changes: ClassVar[bool] = True

    @property
    def keys(self) -> Sequence[str]:
        return [self.key]

    def do(self, store: TensorStore) -> None:
        raise NotImplementedError

    def then(self, state: State) -> State:
        raise NotImplementedError


@dataclass(frozen=True)
class Write(Operation):
    """A new array. `pieces` says how it comes: whole, as blocks, or by filling what was declared."""

    rows: int
    dtype: str
    pieces: str = "whole"

    changes: ClassVar[bool] = False

    @property
    def array(self) -> Array:
        return values(self.seed, (self.rows, ROW), self.dtype)

    def do(self, store: TensorStore) -> None:
        attrs = {"seed": self.seed}
        if self.pieces == "whole":
            store.write(self.key, self.array, attrs=attrs, engine=self.engine, **layout(self.engine))
        elif self.pieces == "blocks":
            shape = (self.rows, ROW)
            store.write(
                self.key, self._blocks(), shape=shape, dtype=self.dtype, attrs=attrs, engine=self.engine,
                **layout(self.engine),
            )  # fmt: skip
        else:
            self._fill(store, attrs)

    def _blocks(self) -> Iterator[Array]:
        # The length fits neither blocks nor objects.
        for first in range(0, self.rows, 21):
            yield self.array[first : first + 21]

    def _fill(self, store: TensorStore, attrs: dict[str, Any]) -> None:
        session = store.backend
        with session.storage() if self.engine == "storage" else session.database() as context:
            options: dict[str, Any] = layout(self.engine) or {"chunk_size": CHUNK_SIZE}
            declared = context.insert_dataset(
                self.key, (self.rows, ROW), 2, self.dtype, attrs=attrs, **options
            )
            # The cuts are those of blocks, and go through objects.
            for first in range(0, self.rows, 40):
                context.insert_tensor(declared.id, self.array[first : first + 40], first)
        if self.key not in store:
            raise NeverAppearedError(f"all rows of {self.key!r} were taken, and it is not there")

    def then(self, state: State) -> State:
        return {**state, self.key: Stored(self.array, {"seed": self.seed}, self.engine)}


@dataclass(frozen=True)
class Overwrite(Write):
    """Another array under the same key, of other extents and maybe of another engine."""

    changes: ClassVar[bool] = True


@dataclass(frozen=True)
class Create(Operation):
    """An array without elements. Its attributes tell what it reads as, to the operations that follow."""

    rows: int
    dtype: str

    changes: ClassVar[bool] = False

    def do(self, store: TensorStore) -> None:
        store.create(
            self.key, (self.rows, ROW), self.dtype, fill_value=self.seed, attrs={"fill": self.seed}, engine=self.engine,
            **layout(self.engine),
        )  # fmt: skip

    def then(self, state: State) -> State:
        array = np.full((self.rows, ROW), self.seed, self.dtype)
        return {**state, self.key: Stored(array, {"fill": self.seed}, self.engine)}


@dataclass(frozen=True)
class Resize(Operation):
    """More or fewer rows."""

    rows: int

    def do(self, store: TensorStore) -> None:
        store.open(self.key).resize(self.rows)

    def then(self, state: State) -> State:
        old = state[self.key]
        array = np.full((self.rows, ROW), old.attrs.get("fill", 0), old.array.dtype)
        kept = min(self.rows, len(old.array))
        array[:kept] = old.array[:kept]
        return {**state, self.key: Stored(array, old.attrs, old.engine)}


@dataclass(frozen=True)
class Append(Operation):
    """Rows at the end of an array."""

    rows: int
    dtype: str

    @property
    def added(self) -> Array:
        return values(self.seed, (self.rows, ROW), self.dtype)

    def do(self, store: TensorStore) -> None:
        store.append(self.key, self.added)

    def then(self, state: State) -> State:
        old = state[self.key]
        return {**state, self.key: Stored(np.concatenate([old.array, self.added]), old.attrs, old.engine)}


@dataclass(frozen=True)
class LogAppend(Operation):
    """Rows at the end of an array that others append to at the same time. The seed is its number."""

    rows: int

    @property
    def keys(self) -> Sequence[str]:
        return []

    def do(self, store: TensorStore) -> None:
        store.append(self.key, log_rows(self.seed, self.rows))

    def then(self, state: State) -> State:
        """Leave the keys of the writer as they are: the log is no one writer's."""
        return state


@dataclass(frozen=True)
class Assign(Operation):
    """Other elements in some places of an array: rows from `first` on, every `step`-th column."""

    rows: int
    first: int
    step: int
    dtype: str

    @property
    def selection(self) -> tuple[slice, slice]:
        return np.s_[self.first : self.first + self.rows, :: self.step]

    @property
    def assigned(self) -> Array:
        return values(self.seed, (self.rows, len(range(0, ROW, self.step))), self.dtype)

    def do(self, store: TensorStore) -> None:
        store[(self.key, *self.selection)] = self.assigned

    def then(self, state: State) -> State:
        old = state[self.key]
        array = old.array.copy()
        array[self.selection] = self.assigned
        return {**state, self.key: Stored(array, old.attrs, old.engine)}


@dataclass(frozen=True)
class Copy(Operation):
    """The array under another key, which must be free, in the engine that the operation says."""

    new_key: str

    @property
    def keys(self) -> Sequence[str]:
        return [self.new_key]

    def do(self, store: TensorStore) -> None:
        store.copy(self.key, self.new_key, engine=self.engine)

    def then(self, state: State) -> State:
        old = state[self.key]
        return {**state, self.new_key: Stored(old.array, old.attrs, self.engine)}


@dataclass(frozen=True)
class Rename(Operation):
    """The array under another key, in place of what may be there."""

    new_key: str

    @property
    def keys(self) -> Sequence[str]:
        return [self.key, self.new_key]

    def do(self, store: TensorStore) -> None:
        store.rename(self.key, self.new_key, overwrite=True)

    def then(self, state: State) -> State:
        rest = {key: stored for key, stored in state.items() if key != self.key}
        return {**rest, self.new_key: state[self.key]}


@dataclass(frozen=True)
class Delete(Operation):
    """No array any more."""

    def do(self, store: TensorStore) -> None:
        del store[self.key]

    def then(self, state: State) -> State:
        return {key: stored for key, stored in state.items() if key != self.key}


@dataclass(frozen=True)
class Transact(Operation):
    """Several operations in one step, each of them of other keys."""

    parts: tuple[Operation, ...]

    @property
    def keys(self) -> Sequence[str]:
        return [key for part in self.parts for key in part.keys]

    def do(self, store: TensorStore) -> None:
        with store.transaction() as tx:
            for part in self.parts:
                # A transaction has the methods of a store that the parts call.
                part.do(cast("TensorStore", tx))

    def then(self, state: State) -> State:
        for part in self.parts:
            state = part.then(state)
        return state


@dataclass(frozen=True)
class Sweep(Operation):
    """A write that is begun, given up, and swept away."""

    changes: ClassVar[bool] = False

    @property
    def keys(self) -> Sequence[str]:
        return []

    def do(self, store: TensorStore) -> None:
        session = store.backend
        with session.storage() if self.engine == "storage" else session.database() as context:
            options: dict[str, Any] = layout(self.engine) or {"chunk_size": CHUNK_SIZE}
            declared = context.insert_dataset(self.key, (LARGE, ROW), 2, "<i8", **options)
            context.insert_tensor(declared.id, values(self.seed, (LARGE - 32, ROW), "<i8"))
            transfer = session.transfer
            transfer.call("tensorage_abort", {"data_id": declared.id}, f"giving up {self.key!r}")
            staging.sweep_rows(transfer)
            staging.sweep_objects(transfer)

    def then(self, state: State) -> State:
        return state
