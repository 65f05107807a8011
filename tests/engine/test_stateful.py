"""Any series of operations, through the store and through old handles, leaves what it leaves of numpy's arrays."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import leftovers
import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.extra.numpy import array_shapes
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from selections import selections

import tensorage
from tensorage import BackendSession, Tensor, TensorStore
from tensorage.backend.blocks import assigning, writing
from tensorage.backend.zarr import ranges, shard_records
from tensorage.backend.zarr import writing as zarr_writing
from tensorage.indexing import runs

Array = np.ndarray[Any, Any]

KEYS = st.sampled_from(["a", "b", "c", "dir/d", "ü"])
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
DTYPES = st.sampled_from(["i4", "f8", "u1", "?"])
CHUNK_SIZES = st.sampled_from([None, 1, 7, 20, 100])


@st.composite
def layouts(draw: st.DrawFn, ndim: int) -> dict[str, Any]:
    """Layouts of an array of Storage: objects so small that there are many, or one, with an index or without."""
    chunks = tuple(draw(st.integers(1, 4)) for _ in range(ndim))
    counts = [draw(st.integers(1, 3)) for _ in range(ndim)]
    # One object for each chunk of a small array would take too long.
    shards = tuple(
        max(chunk * count, 3 // chunk * chunk) for chunk, count in zip(chunks, counts, strict=True)
    )
    return draw(
        st.sampled_from(
            [{"chunks": chunks, "shards": shards}] * 4 + [{"chunks": shards, "shards": False}, {}]
        )
    )


def random_array(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


@dataclass(eq=False)
class Stored:
    """An array under a key; `changes` counts what makes it another array for those who read it."""

    value: Array
    changes: int = 0
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Opened:
    """A handle, and what it knows of its array: rows that others append are not seen until it looks again."""

    tensor: Tensor
    key: str
    stored: Stored
    changes: int
    shape: tuple[int, ...]

    def knows(self, stored: Stored) -> None:
        self.stored, self.changes, self.shape = stored, stored.changes, stored.value.shape


class Operations(RuleBasedStateMachine):
    """A store beside a dictionary of numpy's arrays."""

    def __init__(self, store: TensorStore) -> None:
        super().__init__()
        # An example that failed may have left arrays.
        for key in store:
            del store[key]
        self.store = store
        self.model: dict[str, Stored] = {}
        self.handles: list[Opened] = []

    def teardown(self) -> None:
        assert self.store.keys() == sorted(self.model)
        for key, stored in self.model.items():
            handle = self.store.open(key)
            assert dict(handle.attrs) == stored.attrs
            np.testing.assert_array_equal(handle[...], stored.value, strict=True)

    # Whole arrays ---------------------------------------------------------------------------------

    @rule(
        key=KEYS,
        shape=SHAPES,
        dtype=DTYPES,
        seed=SEEDS,
        chunk_size=CHUNK_SIZES,
        overwrite=st.booleans(),
        data=st.data(),
    )
    def write(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: str,
        seed: int,
        chunk_size: int | None,
        overwrite: bool,
        data: st.DataObject,
    ) -> None:
        array = random_array(shape, dtype, seed)
        self.store.chunk_size, self.store.allow_overwrite = chunk_size, overwrite
        layout = self.any_layout(data, array.ndim)
        if key in self.model and not overwrite:
            with pytest.raises(tensorage.KeyExistsError):
                self.put(key, array, layout)
            return
        self.put(key, array, layout)
        self.model[key] = Stored(array)

    @rule(
        key=KEYS, shape=SHAPES.filter(len), dtype=DTYPES, seed=SEEDS, chunk_size=CHUNK_SIZES, data=st.data()
    )
    def write_blocks(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: str,
        seed: int,
        chunk_size: int | None,
        data: st.DataObject,
    ) -> None:
        array = random_array(shape, dtype, seed)
        self.store.chunk_size, self.store.allow_overwrite = chunk_size, True
        cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=3), label="cuts"))
        attrs = {"cuts": cuts}
        layout = self.any_layout(data, array.ndim)
        blocks = np.split(array, cuts)
        if layout is None:
            handle = self.store.write(key, blocks, shape=shape, dtype=dtype, attrs=attrs)
            assert (handle.shape, handle.dtype) == (shape, array.dtype)
        else:
            how: dict[str, Any] = {"engine": "storage", "overwrite": True, "attrs": attrs, **layout}
            dataset = self.store.arrays.write_blocks(key, blocks, shape, dtype, **how)
            assert (dataset.shape, dataset.dtype) == (shape, array.dtype)
        self.model[key] = Stored(array, attrs=attrs)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        if key not in self.model:
            with pytest.raises(KeyError):
                del self.store[key]
            return
        del self.store[key]
        del self.model[key]

    @rule(key=KEYS, new_key=KEYS, overwrite=st.booleans())
    def rename(self, key: str, new_key: str, overwrite: bool) -> None:
        # The setting is for what is stored, and has no say in this.
        self.store.allow_overwrite = not overwrite
        if key not in self.model:
            with pytest.raises(KeyError):
                self.store.rename(key, new_key, overwrite=overwrite)
        elif new_key in self.model and new_key != key and not overwrite:
            with pytest.raises(tensorage.KeyExistsError):
                self.store.rename(key, new_key, overwrite=overwrite)
        else:
            self.store.rename(key, new_key, overwrite=overwrite)
            self.model[new_key] = self.model.pop(key)

    @rule(key=KEYS)
    def compact(self, key: str) -> None:
        if key in self.model:
            assert self.store.compact(key) >= 0

    # Parts of arrays --------------------------------------------------------------------------------

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        key = self.any_key(data)
        value = self.model[key].value
        _, index = data.draw(selections(st.just(value.shape)), label="index")
        assert_reads(value, index, lambda: self.store[(key, *index)] if isinstance(index, tuple) and index
                     else self.store.open(key)[index])  # fmt: skip

    @precondition(lambda self: self.model)
    @rule(data=st.data(), seed=SEEDS)
    def assign(self, data: st.DataObject, seed: int) -> None:
        key = self.any_key(data)
        stored = self.model[key]
        index, value = any_assignment(data, stored.value, seed)

        def assign() -> None:
            self.store[(key, *index) if isinstance(index, tuple) and index else (key, index)] = value

        if assert_assigns(stored.value, index, value, assign):
            stored.changes += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(0, 12), seed=SEEDS)
    def append(self, data: st.DataObject, count: int, seed: int) -> None:
        key = self.any_key(data)
        stored = self.model[key]
        rows = random_array((count, *stored.value.shape[1:]), stored.value.dtype, seed)
        if not stored.value.ndim:
            with pytest.raises(tensorage.InvalidInputError):
                self.store.append(key, rows)
            return
        self.store.append(key, rows)
        stored.value = np.concatenate([stored.value, rows])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), name=st.sampled_from("xyz"), seed=SEEDS)
    def describe(self, data: st.DataObject, name: str, seed: int) -> None:
        key = self.any_key(data)
        self.store.open(key).attrs[name] = seed
        self.model[key].attrs[name] = seed

    # Through handles, which may be old --------------------------------------------------------------

    @precondition(lambda self: self.model and len(self.handles) < 6)
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        key = self.any_key(data)
        stored = self.model[key]
        tensor = self.store.open(key)
        assert (tensor.shape, tensor.dtype) == (stored.value.shape, stored.value.dtype)
        self.handles.append(Opened(tensor, key, stored, stored.changes, stored.value.shape))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def read_by_handle(self, data: st.DataObject) -> None:
        handle = self.any_handle(data)
        if not self.looks_again_if_changed(handle):
            # An array without elements is not asked for any.
            with pytest.raises(KeyError) if handle.tensor.size else contextlib.nullcontext():
                handle.tensor[...]
            return
        seen = seen_by(handle)
        _, index = data.draw(selections(st.just(handle.shape)), label="index")
        assert_reads(seen, index, lambda: handle.tensor[index])

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), seed=SEEDS)
    def assign_by_handle(self, data: st.DataObject, seed: int) -> None:
        handle = self.any_handle(data)
        if not self.looks_again_if_changed(handle):
            # An array without elements is not asked for any.
            with pytest.raises(KeyError) if handle.tensor.size else contextlib.nullcontext():
                handle.tensor[...] = 1
            return
        seen = seen_by(handle)
        index, value = any_assignment(data, seen, seed)

        def assign() -> None:
            handle.tensor[index] = value

        if assert_assigns(seen, index, value, assign):
            handle.stored.changes += 1
            handle.knows(handle.stored)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), count=st.integers(0, 12), seed=SEEDS)
    def append_by_handle(self, data: st.DataObject, count: int, seed: int) -> None:
        handle = self.any_handle(data)
        stored = self.model.get(handle.key)
        if stored is None or stored.value.dtype != handle.tensor.dtype or not stored.value.ndim:
            return
        rows = random_array((count, *stored.value.shape[1:]), stored.value.dtype, seed)
        handle.tensor.append(rows)
        stored.value = np.concatenate([stored.value, rows])
        handle.knows(stored)
        assert handle.tensor.shape == stored.value.shape

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.handles.remove(self.any_handle(data))

    def any_layout(self, data: st.DataObject, ndim: int) -> dict[str, Any] | None:
        return data.draw(layouts(ndim), label="layout") if self.store.engine == "storage" else None

    def put(self, key: str, array: Array, layout: dict[str, Any] | None) -> None:
        if layout is None:
            self.store[key] = array
        else:
            overwrite = self.store.allow_overwrite
            self.store.arrays.write(key, array, engine="storage", overwrite=overwrite, **layout)

    def any_key(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model)), label="key")

    def any_handle(self, data: st.DataObject) -> Opened:
        return data.draw(st.sampled_from(self.handles), label="handle")

    def looks_again_if_changed(self, handle: Opened) -> bool:
        """True if there is an array under its key, in case that the one it knows is not what it was."""
        is_there = any(stored is handle.stored for stored in self.model.values())
        if is_there and handle.changes == handle.stored.changes:
            return True
        if handle.key not in self.model:
            return False
        # It looks again before it is used: an error of the index must not come of the old shape.
        handle.tensor.refresh()
        handle.knows(self.model[handle.key])
        return True


def seen_by(handle: Opened) -> Array:
    """A view of the rows that it knows."""
    value = handle.stored.value
    return value[: handle.shape[0]] if value.ndim else value


def any_assignment(data: st.DataObject, value: Array, seed: int) -> tuple[Any, Array]:
    """An index, and values of a shape that mostly broadcasts to it."""
    _, index = data.draw(selections(st.just(value.shape)), label="index")
    try:
        shape = np.shape(value[index])
    except (IndexError, TypeError, ValueError, OverflowError):
        shape = ()
    kept = shape[data.draw(st.integers(0, len(shape))) :]
    kept = tuple(data.draw(st.sampled_from([n, n, n, n, 1, n + 1])) for n in kept)
    leading = (1,) * data.draw(st.sampled_from([0, 0, 1])) if shape and len(kept) == len(shape) else ()
    return index, random_array(leading + kept, value.dtype, seed)


def assert_reads(value: Array, index: Any, read: Any) -> None:
    try:
        expected = value[index]
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        with pytest.raises(type(error)):
            read()
        return
    result = read()
    assert type(result) is type(expected)
    np.testing.assert_array_equal(result, expected, strict=True)


def assert_assigns(value: Array, index: Any, assigned: Array, assign: Any) -> bool:
    """Assign to both. True if an element was assigned to."""
    try:
        selected = value[index]
        # Numpy drops leading axes of length 1, but does not where the index is a single mask.
        surplus = max(assigned.ndim - np.ndim(selected), 0)
        value[index] = assigned.reshape(assigned.shape[surplus:])
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        with pytest.raises(type(error)):
            assign()
        return False
    assign()
    return np.size(selected) > 0


@pytest.mark.parametrize("max_request_bytes", [None, 200], ids=["one request", "many requests"])
def test_any_series_of_operations(
    rows: TensorStore, monkeypatch: pytest.MonkeyPatch, max_request_bytes: int | None
) -> None:
    if max_request_bytes is not None:
        # These caps stage even small arrays, and read them in parts.
        for module in (runs, writing):
            monkeypatch.setattr(module, "MAX_REQUEST_BYTES", max_request_bytes)
        monkeypatch.setattr(assigning, "MAX_BLOCKS", 2)
    run(rows, max_examples=25)


@pytest.mark.parametrize(
    ("max_over_read_bytes", "numbers_per_request"), [(None, None), (0, 2)], ids=["as it is", "many requests"]
)
def test_any_series_of_operations_on_objects(
    session: BackendSession,
    database: psycopg.Connection[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    max_over_read_bytes: int | None,
    numbers_per_request: int | None,
) -> None:
    if max_over_read_bytes is not None and numbers_per_request is not None:
        # These caps read even small objects by ranges, and ask and tell the catalogue more than once.
        monkeypatch.setattr(ranges, "MAX_OVER_READ_BYTES", max_over_read_bytes)
        monkeypatch.setattr(shard_records, "MAX_NUMBERS", numbers_per_request)
        monkeypatch.setattr(zarr_writing, "RECORDS_PER_REQUEST", numbers_per_request)
    run(TensorStore(session, quiet=True, engine="storage"), max_examples=30)
    leftovers.assert_only_arrays_are_kept(database, session.user_id)


def run(store: TensorStore, max_examples: int) -> None:
    run_state_machine_as_test(
        lambda: Operations(store),
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            # A failing example is told as it is: to look for less would take longer than all tests.
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
