"""Arrays of Storage as zarr, xarray and dask open them. A proxy counts their requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
import xarray
import zarr
from processes import preloading
from project import Project, User
from proxy import Exchange, Proxy
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer.cpu import Buffer, buffer_prototype

from tensorage import (
    BackendSession,
    ChangedError,
    CorruptTensorError,
    IncompleteTensorError,
    InvalidInputError,
    TensorStore,
)
from tensorage.backend.transfer import Work
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.shard_records import ShardRecord, fetch_records
from tensorage.backend.zarr.zarr_engine import codec_of
from tensorage.backend.zarr.zarr_keys import byte_bounds, number_at
from tensorage.backend.zarr.zarr_store import CatalogueStore
from tensorage.types import Dataset

Array = npt.NDArray[Any]
Database = psycopg.Connection[tuple[Any, ...]]

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
CRC32C = {"name": "crc32c"}
GZIP = {"name": "gzip", "configuration": {"level": 1}}

DTYPES = ["?", "i1", "u2", "<i4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "<M8[s]", "<m8[25us]"]


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    """Return a store without an engine of its own: each test says which engine an array is for."""
    return session()


def numbers(shape: tuple[int, ...], dtype: str = "<f4") -> Array:
    return np.arange(1, np.prod(shape, dtype=int) + 1).astype(dtype).reshape(shape)


def write(store: TensorStore, key: str, array: Array, **how: Any) -> Dataset:
    return store.arrays.write(key, array, engine="storage", **how)


def opened(store: TensorStore, key: str, as_group: str | None = None) -> CatalogueStore:
    transfer = partial(getattr, store.backend, "transfer")
    return CatalogueStore(transfer, store.arrays.open(key), as_group=as_group)


def read(store: CatalogueStore) -> Array:
    return np.asarray(zarr.open_array(store)[...])


def record_of(store: TensorStore, key: str, number: int) -> ShardRecord:
    dataset = store.arrays.open(key)
    work = Work.reading(store.backend.transfer, dataset)
    return fetch_records(work, codec_of(dataset).layout, [number])[number]


def assert_same(array: Any, expected: Array) -> None:
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.tobytes() == expected.tobytes()


@contextlib.contextmanager
def counted(project: Project, user: User) -> Iterator[tuple[TensorStore, Proxy]]:
    """A store whose requests pass a proxy."""
    proxy = Proxy(project.url)
    session = Project(proxy.url, project.key).session(user)
    try:
        yield session(), proxy
    finally:
        session.logout()
        proxy.close()


def of_objects(exchanges: list[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if "/storage/" in exchange.target]


# --- zarr ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_reads_every_dtype(store: TensorStore, dtype: str) -> None:
    array = numbers((11, 7), dtype)
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    assert_same(read(opened(store, "a")), array)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (0, 3), (3, 0), (3, 1, 2, 1, 5)])
def test_zarr_reads_any_shape(store: TensorStore, shape: tuple[int, ...]) -> None:
    array = numbers(shape)
    write(store, "a", array)
    opened_array = zarr.open_array(opened(store, "a"))
    assert (opened_array.shape, opened_array.dtype) == (array.shape, array.dtype)
    assert_same(np.asarray(opened_array[...]), array)


@pytest.mark.parametrize("how", [{"shards": False}, {"shards": (4, 6)}, {"codecs": [LITTLE, GZIP]}], ids=str)
@pytest.mark.parametrize(
    "selection", [np.s_[:], np.s_[3], np.s_[4:9, 2:5], np.s_[10, 6], np.s_[::5, ::-1][0]]
)
def test_zarr_reads_any_layout(store: TensorStore, how: dict[str, Any], selection: Any) -> None:
    array = numbers((11, 7))
    write(store, "a", array, chunks=(2, 3), **how)
    assert_same(np.asarray(zarr.open_array(opened(store, "a"))[selection]), np.asarray(array[selection]))


def test_every_way_of_zarr_opens_it(store: TensorStore) -> None:
    array = numbers((5, 4))
    write(store, "a", array)
    source = opened(store, "a")
    for node in (
        zarr.open_array(source),
        zarr.open_array(source, mode="r"),
        zarr.open(source),
        zarr.open(source, mode="r"),
    ):
        assert isinstance(node, zarr.Array)
        assert node.read_only
        assert_same(node[...], array)


def test_attributes_and_dimension_names_are_there(store: TensorStore) -> None:
    attrs = {"units": "K", "valid": [1, 2.5, None], "of": {"place": "Zürich"}}
    write(store, "a", numbers((5, 4)), attrs=attrs, dims=("time", "x"))
    array = zarr.open_array(opened(store, "a"))
    assert array.attrs.asdict() == attrs
    assert array.metadata.dimension_names == ("time", "x")


def test_shards_without_objects_are_fill_values(store: TensorStore) -> None:
    array = np.zeros((12, 6), "<f4")
    array[5, 1] = 7
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    source = opened(store, "a")
    assert_same(read(source), array)
    keys = sorted(asyncio.run(_listed(source)))
    assert keys == ["c/1/0", "zarr.json"]


def test_what_was_appended_and_assigned_is_read(store: TensorStore) -> None:
    array = numbers((10, 7))
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    store.append("a", -array[:5])
    store["a", 2, 3] = 0.5
    expected = np.concatenate([array, -array[:5]])
    expected[2, 3] = 0.5
    names = {record_of(store, "a", number).name.split("/")[1] for number in range(8)}
    assert len(names) > 2
    assert_same(read(opened(store, "a")), expected)


def test_an_array_is_read_as_it_was_opened_although_rows_were_appended(store: TensorStore) -> None:
    array = numbers((10, 7))
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    source = opened(store, "a")
    store.append("a", -array)
    assert_same(read(source), array)


@pytest.mark.parametrize("shards", [False, (4, 6)])
def test_an_object_that_an_append_replaced_is_not_mixed_with_its_successor(
    store: TensorStore, shards: Any
) -> None:
    array = numbers((10, 7))
    write(store, "a", array, chunks=(4, 6), shards=shards)
    source = opened(store, "a")
    assert_same(read(source), array)
    store.append("a", -array)
    # The object that was replaced may still come, as it was, until it is swept.
    store.backend.transfer.finish(30)
    assert_same(zarr.open_array(source)[:8], array[:8])
    with pytest.raises(ChangedError, match="'a' has changed since it was opened"):
        zarr.open_array(source)[8:]


def test_an_object_that_was_used_is_used_again_or_not_at_all(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorage.backend.zarr.zarr_store.PAGES_PER_REQUEST", 10**9)
    monkeypatch.setattr("tensorage.backend.zarr.zarr_store.MAX_PAGES", 1)
    array = numbers((10, 7))
    write(store, "a", array, chunks=(2, 7), shards=(4, 7))
    source = opened(store, "a")
    assert_same(read(source), array)
    assert_same(zarr.open_array(source)[:4], array[:4])
    # The catalogue's records of the last rows have been forgotten.
    store.append("a", -array)
    with pytest.raises(ChangedError, match="has changed"):
        zarr.open_array(source)[9]


@pytest.mark.parametrize("change", ["assigned", "overwritten", "deleted"])
def test_an_array_that_has_changed_is_refused(session: BackendSession, change: str) -> None:
    store = TensorStore(session, quiet=True, allow_overwrite=True)
    array = numbers((10, 7))
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    fresh, used = opened(store, "a"), opened(store, "a")
    read(used)
    if change == "assigned":
        store["a", ...] = 0.5
    elif change == "overwritten":
        store["a"] = -array
    else:
        del store["a"]
    # Objects that were looked up before may still come, as they were, until they are swept.
    store.backend.transfer.finish(30)
    for source in (fresh, used):
        with pytest.raises(ChangedError, match="'a'"):
            read(source)


def test_a_lost_object_is_no_fill_value(store: TensorStore, database: Database) -> None:
    array = numbers((8, 6))
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    lost = record_of(store, "a", 1)
    database.execute("delete from storage.objects where name = %s", [lost.name])
    opened_array = zarr.open_array(opened(store, "a"))
    assert_same(opened_array[:4], array[:4])
    for selection in (np.s_[:], np.s_[7], np.s_[4:]):
        with pytest.raises(IncompleteTensorError, match=rf"Storage has lost '{lost.name}'.*\[4:8, 0:6\]"):
            opened_array[selection]
    with pytest.raises(IncompleteTensorError):
        store["a"]


def test_an_object_that_became_shorter_is_refused(store: TensorStore) -> None:
    dataset = write(store, "a", numbers((8, 6)), chunks=(8, 6), shards=False)
    record = record_of(store, "a", 0)
    # Nobody but the database's owner could change the object. This changes the record of it.
    source = opened(store, "a")
    shards = source.shards
    longer = ShardRecord(0, record.name, record.nbytes + 1, record.index)
    shards.pages[0] = {0: longer}
    assert shards.record(0) == longer
    with pytest.raises(CorruptTensorError, match=f"does not have the {record.nbytes + 1} bytes"):
        zarr.open_array(source)[...]
    assert dataset.version == source.dataset.version


@pytest.mark.parametrize(
    "index", [b"", bytes(64), np.full(8, 5, "<u8").tobytes() + np.full(8, 2**40, "<u8").tobytes()]
)
def test_an_index_that_is_damaged_in_the_catalogue_is_refused(store: TensorStore, index: bytes) -> None:
    write(store, "a", numbers((4, 6)), chunks=(2, 3), shards=(4, 6))
    record = record_of(store, "a", 0)
    source = opened(store, "a")
    source.shards.pages[0] = {0: ShardRecord(0, record.name, record.nbytes, index)}
    with pytest.raises(CorruptTensorError, match=f"{record.name}.*its index in the catalogue"):
        zarr.open_array(source)[0, 0]


def test_what_others_share_is_read(project: Project, store: TensorStore) -> None:
    array = numbers((8, 6))
    write(store, "shared by me", array, is_shared=True)
    session = project.session(project.register())
    try:
        assert_same(read(opened(session().shared_by(store.backend.email), "shared by me")), array)
    finally:
        store.unshare("shared by me")
        session.logout()


def test_a_pickled_store_reads_on(store: TensorStore) -> None:
    array = numbers((8, 6))
    write(store, "a", array)
    source = opened(store, "a", as_group="x")
    read_before = zarr.open_group(source, mode="r")["x"]
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert hash(again) == hash(source)
    assert_same(zarr.open_array(again, path="x")[...], array)
    assert_same(pickle.loads(pickle.dumps(read_before))[...], array)


# --- what is asked for --------------------------------------------------------------------------------


def test_a_small_selection_takes_a_small_part_of_a_shard(
    project: Project, user: User, store: TensorStore
) -> None:
    array = np.random.default_rng(0).random((64, 4096), "<f4")
    write(store, "a", array, chunks=(4, 4096), shards=(32, 4096))
    with counted(project, user) as (mine, proxy):
        opened_array = zarr.open_array(opened(mine, "a"))
        with proxy.counted() as exchanges:
            assert_same(opened_array[41], array[41])
        # The index comes with the record, and not from the object.
        (catalogue,) = [exchange for exchange in exchanges if exchange.function == "shards"]
        (chunk,) = of_objects(exchanges)
        assert len(exchanges) == 2
        assert catalogue.received_bytes < 4096
        assert chunk.received_bytes <= 4 * 4096 * 4 * 1.1
        with proxy.counted() as exchanges:
            assert_same(opened_array[60, :5], array[60, :5])
        # The catalogue has said so already.
        assert [exchange.function for exchange in exchanges] == [exchanges[0].target]


def test_whole_shards_are_read_at_once(project: Project, user: User, store: TensorStore) -> None:
    array = np.random.default_rng(0).random((256, 64), "<f4")
    write(store, "a", array, chunks=(2, 64), shards=(8, 64))
    with counted(project, user) as (mine, proxy):
        opened_array = zarr.open_array(opened(mine, "a"))
        with proxy.counted() as exchanges:
            assert_same(opened_array[...], array)
        assert len(of_objects(exchanges)) == 32
        assert len(exchanges) == 33


def test_metadata_are_not_asked_for(project: Project, user: User, store: TensorStore) -> None:
    write(store, "a", numbers((8, 6)), attrs={"units": "K"})
    with counted(project, user) as (mine, proxy):
        source, group = opened(mine, "a"), opened(mine, "a", as_group="a")
        with proxy.counted() as exchanges:
            assert zarr.open(source).attrs["units"] == "K"
            assert xarray.open_zarr(group)["a"].attrs["units"] == "K"
            assert xarray.open_zarr(group, consolidated=False)["a"].attrs["units"] == "K"
        assert exchanges == []


def test_no_more_is_kept_than_a_few_pages(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorage.backend.zarr.zarr_store.PAGES_PER_REQUEST", 2048)
    monkeypatch.setattr("tensorage.backend.zarr.zarr_store.MAX_PAGES", 3)
    array = numbers((20, 2))
    write(store, "a", array, chunks=(1, 2), shards=(1, 2))
    source = opened(store, "a")
    assert source.shards.page_count == 10
    assert_same(read(source), array)
    assert len(source.shards.pages) == 3
    assert_same(read(source), array)


# --- xarray and dask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("consolidated", [None, False, True])
def test_xarray_opens_the_group(store: TensorStore, consolidated: bool | None) -> None:
    array = numbers((10, 7))
    attrs = {"units": "K"}
    write(store, "a", array, chunks=(2, 3), shards=(4, 6), attrs=attrs, dims=("time", "x"))
    source = opened(store, "a", as_group="temperature")
    for dataset in (
        xarray.open_zarr(source, consolidated=consolidated),
        xarray.open_dataset(source, engine="zarr", consolidated=consolidated),
    ):
        variable = dataset["temperature"]
        assert (variable.dims, variable.attrs) == (("time", "x"), attrs)
        assert_same(variable.values, array)
        assert_same(variable.isel(time=3).values, array[3])


def test_xarray_names_dimensions_that_have_no_names(store: TensorStore) -> None:
    array = numbers((3, 2))
    write(store, "a", array)
    variable = xarray.open_zarr(opened(store, "a", as_group="a"))["a"]
    assert variable.dims == ("dim_0", "dim_1")
    assert_same(variable.values, array)
    # Zarr itself is given no names.
    assert zarr.open_array(opened(store, "a")).metadata.dimension_names is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_xarray_takes_no_value_for_missing(store: TensorStore, dtype: str) -> None:
    array = numbers((5, 4), dtype)
    array[:2] = np.zeros((), "i8").astype(dtype)
    write(store, "a", array)
    assert_same(xarray.open_zarr(opened(store, "a", as_group="a"))["a"].values, array)


def test_xarray_takes_a_scalar(store: TensorStore) -> None:
    write(store, "a", np.array(7, "<i4"))
    variable = xarray.open_zarr(opened(store, "a", as_group="a"))["a"]
    assert (variable.dims, int(variable)) == ((), 7)


def test_xarray_takes_the_array_itself(store: TensorStore) -> None:
    array = numbers((3, 2))
    write(store, "a", array)
    assert_same(xarray.DataArray(zarr.open_array(opened(store, "a"))).values, array)


def test_the_group_is_one_of_zarr(store: TensorStore) -> None:
    array = numbers((3, 2))
    write(store, "a", array)
    group = zarr.open(opened(store, "a", as_group="x"))
    assert isinstance(group, zarr.Group)
    assert list(group.array_keys()) == ["x"]
    assert_same(group["x"][...], array)
    assert "y" not in group


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "__x", "zarr.json"])
def test_some_names_are_none_in_a_group(store: TensorStore, name: str) -> None:
    write(store, "a", numbers((3, 2)))
    with pytest.raises(InvalidInputError, match="can be no name of an array in a group"):
        opened(store, "a", as_group=name)


def test_dask_opens_it(store: TensorStore) -> None:
    array = numbers((10, 7))
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    source = opened(store, "a")
    for lazy in (
        dask.array.from_zarr(source),
        dask.array.from_zarr(zarr.open_array(source)),
        dask.array.from_zarr(opened(store, "a", as_group="x"), component="x"),
        xarray.open_zarr(opened(store, "a", as_group="x"))["x"].data,
    ):
        assert isinstance(lazy, dask.array.Array)
        assert_same(lazy.compute(), array)
        assert lazy[3:8].sum().compute() == array[3:8].sum()


@pytest.fixture(scope="module")
def _processes_of_dask() -> Iterator[None]:
    """The processes that dask starts are forked from one that has loaded what they need."""
    with preloading("dask.array"), dask.config.set({"multiprocessing.context": "forkserver"}):
        yield


@pytest.mark.usefixtures("_processes_of_dask")
def test_processes_of_dask_read_it(store: TensorStore) -> None:
    array = numbers((10, 7))
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    lazy = dask.array.from_zarr(opened(store, "a"))
    assert_same(lazy.compute(scheduler="processes", num_workers=2), array)


# --- a store as zarr asks it --------------------------------------------------------------------------


async def _listed(source: CatalogueStore, prefix: str | None = None) -> list[str]:
    return [key async for key in (source.list() if prefix is None else source.list_prefix(prefix))]


async def _bytes(source: CatalogueStore, key: str, byte_range: Any = None) -> bytes:
    found = await source.get(key, buffer_prototype, byte_range)
    assert found is not None
    return found.to_bytes()


async def _below(source: CatalogueStore, prefix: str) -> list[str]:
    return sorted([key async for key in source.list_dir(prefix)])


@pytest.mark.parametrize("as_group", [None, "x"])
def test_keys_are_listed(store: TensorStore, as_group: str | None) -> None:
    array = numbers((10, 7))
    array[4:8] = 0
    write(store, "a", array, chunks=(2, 3), shards=(4, 6))
    source = opened(store, "a", as_group)
    root = "" if as_group is None else "x/"
    shards = [f"{root}c/0/0", f"{root}c/0/1", f"{root}c/2/0", f"{root}c/2/1"]
    documents = [f"{root}zarr.json"] if as_group is None else ["x/zarr.json", "zarr.json"]

    async def ask() -> None:
        assert sorted(await _listed(source)) == sorted(shards + documents)
        assert await _listed(source, f"{root}c/2") == shards[2:]
        assert await _listed(source, "nothing") == []
        for prefix in ("", "/"):
            below = ["c", "zarr.json"] if as_group is None else ["x", "zarr.json"]
            assert await _below(source, prefix) == below
        assert await _below(source, f"{root}c") == ["0", "2"]
        assert await _below(source, f"{root}c/2/") == ["0", "1"]
        assert await _below(source, "nothing") == []
        if as_group is not None:
            assert await _below(source, "x") == ["c", "zarr.json"]
        for key in (*shards, *documents):
            assert await source.exists(key)
            assert await source.getsize(key) == len(await _bytes(source, key))
        assert await source.getsize_prefix(f"{root}c/") == sum(
            [record_of(store, "a", number).nbytes for number in (0, 1, 4, 5)]
        )
        assert not await source.is_empty(root)
        for key in (f"{root}c/1/0", f"{root}c/3/0", f"{root}c/0", "c/0/0/0", ".zarray", f"{root}c"):
            assert not await source.exists(key)
            assert await source.get(key, buffer_prototype) is None
            with pytest.raises(FileNotFoundError):
                await source.getsize(key)

    asyncio.run(ask())


def test_an_array_of_fill_values_has_no_shards(store: TensorStore) -> None:
    write(store, "a", np.zeros((10, 7)))
    assert asyncio.run(_below(opened(store, "a"), "")) == ["zarr.json"]
    assert asyncio.run(_listed(opened(store, "a"))) == ["zarr.json"]


def test_a_scalar_has_one_key(store: TensorStore) -> None:
    write(store, "a", np.array(7))
    assert sorted(asyncio.run(_listed(opened(store, "a")))) == ["c", "zarr.json"]
    assert asyncio.run(_below(opened(store, "a"), "")) == ["c", "zarr.json"]


@pytest.mark.parametrize("location", ["end", "start"])
@pytest.mark.parametrize("index_codecs", [[LITTLE], [LITTLE, CRC32C]], ids=str)
def test_the_index_is_that_of_the_object(store: TensorStore, location: Any, index_codecs: list[Any]) -> None:
    codec = codec_of(write(store, "a", numbers((4, 6)), chunks=(2, 3), shards=(4, 6)))
    layout = codec.layout
    changed = Layout(
        layout.shape, layout.dtype, layout.chunks, layout.shards, True, layout.codecs, layout.fill_value,
        tuple(index_codecs), location,
    )  # fmt: skip
    of_index = type(codec)(changed)
    shard = of_index.encode(numbers((4, 6)))
    blob, nbytes = b"".join(shard.parts), of_index.index_nbytes
    expected = blob[:nbytes] if location == "start" else blob[-nbytes:]
    assert of_index.encode_index(shard.index) == expected
    source = opened(store, "a")
    blob = asyncio.run(_bytes(source, "c/0/0"))
    tail = SuffixByteRequest(codec.index_nbytes)
    index = asyncio.run(_bytes(source, "c/0/0", tail))
    assert index == blob[-codec.index_nbytes :]


def test_ranges_of_bytes(store: TensorStore) -> None:
    write(store, "a", numbers((4, 6)), shards=False, codecs=[LITTLE])
    source = opened(store, "a")

    async def ask() -> None:
        for key in ("c/0/0", "zarr.json"):
            whole = await _bytes(source, key)
            wanted: list[tuple[Any, bytes]] = [
                (None, whole),
                (RangeByteRequest(0, 10), whole[:10]),
                (RangeByteRequest(3, 10), whole[3:10]),
                (RangeByteRequest(3, 10**9), whole[3:]),
                (RangeByteRequest(5, 5), b""),
                (OffsetByteRequest(7), whole[7:]),
                (OffsetByteRequest(len(whole)), b""),
                (SuffixByteRequest(4), whole[-4:]),
                (SuffixByteRequest(10**9), whole),
                (SuffixByteRequest(0), b""),
            ]
            answers = await source.get_partial_values(buffer_prototype, [(key, asked) for asked, _ in wanted])
            got = [None if answer is None else answer.to_bytes() for answer in answers]
            assert got == [expected for _, expected in wanted]
            with pytest.raises(InvalidInputError, match=f"outside of the {len(whole)} bytes"):
                await source.get(key, buffer_prototype, RangeByteRequest(len(whole) + 1, len(whole) + 2))

    asyncio.run(ask())


def test_extents_of_ranges() -> None:
    assert byte_bounds(None, 5) == (0, 5)
    assert byte_bounds(RangeByteRequest(2, 9), 5) == (2, 5)
    assert byte_bounds(RangeByteRequest(5, 9), 5) == (5, 5)
    assert byte_bounds(RangeByteRequest(4, 2), 5) == (4, 4)
    assert byte_bounds(OffsetByteRequest(4), 5) == (4, 5)
    assert byte_bounds(SuffixByteRequest(9), 5) == (0, 5)
    assert byte_bounds(SuffixByteRequest(0), 5) == (5, 5)
    for wrong in (RangeByteRequest(6, 9), RangeByteRequest(-1, 2), OffsetByteRequest(6), "0-5"):
        with pytest.raises(InvalidInputError):
            byte_bounds(wrong, 5)  # type: ignore[arg-type]


def test_keys_of_shards() -> None:
    layout = Layout.choose((100, 6, 5), np.dtype("<f4"), chunks=(4, 3, 5), shards=(8, 6, 5))
    for number in range(layout.shard_count):
        assert number_at(layout, layout.key_of(number)) == number
    for key in (
        "c", "c/", "c/0/0", "c/0/0/0/0", "c/13/0/0", "c/0/1/0", "c/00/0/0", "c/+1/0/0", "c/-1/0/0", "c/1 /0/0",
        "d/0/0/0", "c.0.0.0", "c//0/0", "C/0/0/0", "/c/0/0/0", "c/0/0/0/", "c/\N{ARABIC-INDIC DIGIT ONE}/0/0",
        f"c/{'9' * 5000}/0/0", "", "zarr.json",
    ):  # fmt: skip
        assert number_at(layout, key) is None
    scalar = Layout.choose((), np.dtype("<f4"))
    assert number_at(scalar, "c") == 0
    assert number_at(scalar, "c/0") is None


def test_nothing_can_be_written(store: TensorStore) -> None:
    array = numbers((4, 6))
    write(store, "a", array)
    source = opened(store, "a")
    content = Buffer.from_bytes(b"x")

    async def ask() -> None:
        for refused in (
            source.set("c/0/0", content), source.set("x", content), source.set_if_not_exists("x", content),
            source.delete("c/0/0"), source.delete_dir(""), source.clear(),
        ):  # fmt: skip
            with pytest.raises(
                InvalidInputError, match=r"'a' as a store of zarr is read-only.*store\.import_zarr"
            ):
                await refused

    asyncio.run(ask())
    assert source.read_only
    assert source.with_read_only(True) == source
    with pytest.raises(InvalidInputError, match="read-only"):
        source.with_read_only(False)
    for mode in ("r+", "a", "w", "w-"):
        with pytest.raises(ValueError, match="read-only"):
            zarr.open_array(source, mode=mode)
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_array(source)[0, 0] = 1
    assert_same(store["a"], array)


def test_stores_of_the_same_array_are_equal(store: TensorStore) -> None:
    for key in ("a", "b"):
        write(store, key, numbers((4, 6)))
    source = opened(store, "a")
    assert source == opened(store, "a")
    assert source != opened(store, "b")
    assert source != opened(store, "a", as_group="a")
    assert source != "a"
    assert str(source) == "tensorage://a"
    assert repr(source) == f"<CatalogueStore of 'a', version {source.dataset.version}>"
    store["a", 0] = 1
    assert source != opened(store, "a")


def test_an_array_of_the_database_is_none(store: TensorStore) -> None:
    store.arrays.write("a", numbers((4, 6)), engine="database")
    with pytest.raises(InvalidInputError, match=r"store.copy\('a', new_key, engine='storage'\) makes it one"):
        opened(store, "a")


def test_the_document_is_that_of_the_array(store: TensorStore) -> None:
    dataset = write(store, "a", numbers((4, 6)), attrs={"a": 1}, dims=("x", "y"))
    document = json.loads(asyncio.run(_bytes(opened(store, "a"), "zarr.json")))
    assert document == codec_of(dataset).layout.document({"a": 1}, ("x", "y"))
