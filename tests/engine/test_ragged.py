"""Elements of any length: ragged arrays and arrays of text, compared with lists of Python and arrays of numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
import workers
from hypothesis import given, settings
from project import Project, User
from proxy import Proxy
from selections import selections

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.errors import (
    DTypeError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    QuotaExceededError,
)
from tensorage.types import Engine

Sql = psycopg.Connection[tuple[Any, ...]]

TEXT = np.dtypes.StringDType()

BOXES = [np.arange(4 * n, dtype="f4").reshape(n, 4) for n in (3, 0, 1, 7)]
CLIPS = [np.arange(2 * n, dtype="i2").reshape(n, 2) for n in (300, 1, 20)]
TEXTS = ["", "a", "größe", "\N{GRINNING FACE}" * 30, "nul \0 and \\ and \\000", "end"]


@pytest.fixture
def other_store(new_session: BackendSession, engine: Engine) -> TensorStore:
    return TensorStore(new_session, quiet=True, engine=engine)


def same(got: Any, expected: Any) -> bool:
    """Tell whether samples, or lists of them, are equal in value, type and shape."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, np.ndarray):
        return bool(
            isinstance(got, np.ndarray)
            and got.dtype == expected.dtype
            and got.shape == expected.shape
            and np.array_equal(got, expected)
        )
    return type(got) is type(expected) and bool(got == expected)


@pytest.fixture
def counted(project: Project, user: User, proxy: Proxy) -> Iterator[TensorStore]:
    """A store whose requests pass the proxy."""
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        assert store.keys() is not None
        yield store


@pytest.mark.parametrize(
    ("samples", "dtype"),
    [
        (BOXES, None),
        (CLIPS, None),
        (TEXTS, None),
        ([b"", b"\x00\xff", bytes(1000)], None),
        ([np.zeros((2, 3, 4), "c8"), np.ones((1, 3, 4), "c8")], None),
        ([np.array(["2020-01-01"], "M8[D]"), np.array([], "M8[D]")], None),
        ([np.zeros(2, [("t", "<f4"), ("n", "<i8")])], None),
    ],
    ids=["boxes", "audio", "text", "bytes", "3 axes", "days", "records"],
)
def test_samples_come_back(store: TensorStore, samples: list[Any], dtype: Any) -> None:
    handle = store.write_ragged("r", samples, dtype)
    assert handle.shape == (len(samples),)
    assert len(handle) == len(samples)
    assert same(handle[:], samples)
    assert same(store["r"], samples)
    assert same(list(handle), samples)
    assert same(list(reversed(handle)), samples[::-1])
    for number, sample in enumerate(samples):
        assert same(handle[number], sample)
        assert same(handle[number - len(samples)], sample)
    assert same(handle[[0, -1, 0]], [samples[0], samples[-1], samples[0]])
    assert same(handle[np.arange(len(samples)) % 2 == 0], samples[::2])
    assert handle[len(samples) :] == []
    encoded = [s.encode() if isinstance(s, str) else s for s in samples]
    assert handle.lengths().tolist() == [len(sample) for sample in encoded]
    if store.engine == "database":
        assert handle.nbytes == sum(len(s) if isinstance(s, bytes) else s.nbytes for s in encoded)


def test_samples_are_the_callers_own(store: TensorStore) -> None:
    store.write_ragged("r", BOXES)
    first, again = store["r", [0, 0]]
    first[:] = 7
    assert np.array_equal(again, BOXES[0])


@pytest.mark.parametrize("selection", [4, -5, [0, 9], np.ones(5, bool), (0, 0)])
def test_selections_that_do_not_fit_raise_as_those_of_numpy_do(store: TensorStore, selection: Any) -> None:
    handle = store.write_ragged("r", BOXES)
    expected = np.empty(4, object)
    with pytest.raises(IndexError) as of_numpy:
        expected[selection]
    with pytest.raises(IndexError) as raised:
        handle[selection]
    assert str(raised.value) == str(of_numpy.value)


@pytest.mark.parametrize("samples", [[[1, 2], [], [3]], [(1, 2), np.array([], "i4"), range(3)]])
def test_lists_of_tokens_take_the_dtype_that_is_asked_for(store: TensorStore, samples: list[Any]) -> None:
    handle = store.write_ragged("tokens", samples, dtype="int32")
    assert handle.dtype == np.int32
    assert same(handle[:], [np.array(list(sample), "i4") for sample in samples])


def test_the_first_sample_with_elements_shows_the_dtype(store: TensorStore) -> None:
    handle = store.write_ragged("tokens", iter([[], [], [5]]))
    assert same(handle[:], [np.array([], "i8"), np.array([], "i8"), np.array([5], "i8")])


def test_no_samples_need_a_dtype(store: TensorStore) -> None:
    with pytest.raises(InvalidInputError, match="dtype="):
        store.write_ragged("none", [])
    for dtype in (str, bytes, "f4"):
        handle = store.write_ragged(f"none of {dtype}", [], dtype=dtype)
        assert handle.shape == (0,)
        assert handle[:] == []
        assert handle.lengths().tolist() == []


@pytest.mark.parametrize("engine", get_args(Engine))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_selections_are_those_of_a_list(login: BackendSession, engine: Engine, data: st.DataObject) -> None:
    """A property: whatever is stored, appended and selected, the result is that of a list of Python."""
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    arrays = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9).map(lambda values: np.array(values, "i4"))
    kind = data.draw(st.sampled_from([texts, st.binary(max_size=20), arrays]))
    samples = data.draw(st.lists(kind, min_size=1, max_size=30))
    chunk_size = data.draw(st.sampled_from([1, 3, None]))
    store = TensorStore(login, engine=engine, chunk_size=chunk_size, allow_overwrite=True, quiet=True)
    handle = store.write_ragged("property", iter(samples))
    for _ in range(data.draw(st.integers(0, 4))):
        more = data.draw(st.lists(kind, max_size=5))
        handle.append(more)
        samples = samples + more
    n = len(samples)
    assert same(handle[:], samples)
    chosen = data.draw(st.lists(st.integers(-n, n - 1), max_size=20))
    assert same(handle[chosen], [samples[number] for number in chosen])
    low, high = data.draw(st.integers(-n - 2, n + 2)), data.draw(st.integers(-n - 2, n + 2))
    step = data.draw(st.sampled_from([1, 2, -1, -3]))
    assert same(handle[low:high:step], samples[low:high:step])
    assert same(store["property", chosen], [samples[number] for number in chosen])


def test_a_selection_is_one_request(counted: TensorStore, proxy: Proxy) -> None:
    texts = [f"{number} " * (number % 300) for number in range(5000)]
    with proxy.counted() as exchanges:
        handle = counted.write_ragged("texts", texts)
    assert [exchange.function for exchange in exchanges] == ["store"]
    chosen = np.random.default_rng(0).choice(5000, 64, replace=False)
    with proxy.counted() as exchanges:
        got = handle[chosen]
    assert got == [texts[number] for number in chosen]
    assert [exchange.function for exchange in exchanges] == ["read_ragged"]
    with proxy.counted() as exchanges:
        handle.append(["one more"])
        counted.append("texts", iter(["another"]))
    assert [exchange.function for exchange in exchanges] == ["append", "open", "append"]
    assert handle.read([5000]) == ["one more"]


def test_samples_that_need_many_requests(store: TensorStore) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 40_000, 700)
    made = 0

    def samples() -> Iterator[npt.NDArray[Any]]:
        nonlocal made
        buffer = np.empty(40_000, "f8")
        for length in lengths:
            made += 1
            # The memory of one sample is used again for the next.
            buffer[:length] = np.arange(length)
            yield buffer[:length]

    handle = store.write_ragged("long", samples())
    assert made == 700
    assert handle.lengths().tolist() == lengths.tolist()
    got = handle[:]
    assert all(np.array_equal(sample, np.arange(length)) for sample, length in zip(got, lengths, strict=True))
    handle.append(iter(got[:300]))
    assert handle.shape == (1000,)
    assert same(handle[700:], got[:300])


def test_blocks_have_about_a_mebibyte(rows: TensorStore, database: Sql, user: User) -> None:
    lengths = np.random.default_rng(1).integers(0, 40_000, 200)
    handle = rows.write_ragged("long", (np.zeros(length) for length in [*lengths, *[0] * 20_000]))
    assert handle.nbytes == 8 * lengths.sum()
    query = "select max(octet_length(tensor)), max(count) from public.tensors where user_id = %s"
    ((longest, most),) = database.execute(query, [user.id]).fetchall()
    assert longest <= 1.01 * 2**20
    assert most == 8192


def test_a_few_samples_may_be_much_longer_than_the_others(counted: TensorStore, proxy: Proxy) -> None:
    """The client asks by the mean, the server refuses, and the client asks for half as many."""
    samples = [b"x"] * 3000
    for number in range(0, 3000, 120):
        samples[number] = bytes([number % 251]) * 2**20
    handle = counted.write_ragged("skewed", samples)
    with proxy.counted() as exchanges:
        got = handle[::120]
    assert got == samples[::120]
    assert 3 <= len(exchanges) <= 7
    assert handle[:] == samples


def test_samples_longer_than_a_request(store: TensorStore) -> None:
    text = "größe" * 2_000_000
    handle = store.write_ragged("texts", ["a", text, "b"])
    assert handle[:] == ["a", text, "b"]
    assert handle[1] == text
    assert handle.lengths().tolist() == [1, 14_000_000, 1]
    handle.append([text[:4_000_000]])
    assert handle[[3, 0]] == [text[:4_000_000], "a"]
    clip = np.arange(12_000_000, dtype="i2").reshape(-1, 2)
    with store.transaction() as tx:
        tx.write_ragged("clips", [clip, clip[:1]])
    assert same(store["clips"], [clip, clip[:1]])


def test_samples_longer_than_may_be(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorage.model.ragged.MAX_SAMPLE_BYTES", 1000)
    with pytest.raises(InvalidInputError, match=r"sample 1 .* has 1001 bytes, and 1000 is the most"):
        store.write_ragged("r", [bytes(1000), bytes(1001)])
    assert store.keys() == []


def test_a_generator_that_fails_stores_nothing(store: TensorStore) -> None:
    def samples() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(2**20)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.write_ragged("r", samples())
    assert store.keys() == []
    handle = store.write_ragged("r", [b"first"])
    with pytest.raises(RuntimeError, match="no more"):
        handle.append(samples())
    assert store["r"] == [b"first"]


@pytest.mark.parametrize(
    ("samples", "error", "said"),
    [
        ([np.zeros((1, 4)), np.zeros((1, 5))], InvalidInputError, r"sample 1 .*\(1, 5\)"),
        ([np.zeros((1, 4)), np.zeros(4)], InvalidInputError, r"sample 1 .*\(4,\)"),
        ([np.zeros(1, "f4"), np.zeros(1, "f8")], DTypeError, "sample 1.*without loss"),
        ([[1], [2.5]], DTypeError, "sample 1"),
        ([1.0, 2.0], InvalidInputError, "sample 0 .*single float"),
        (["a", 3], DTypeError, "sample 1 .*int"),
        (["a", "\ud800"], InvalidInputError, "sample 1 .*surrogate at character 0"),
        ([b"a", "b"], DTypeError, "sample 1 .*str"),
        ([[1], "b"], DTypeError, "sample 1 .*str"),
        ([np.zeros(1), bytearray(b"b")], DTypeError, "sample 1"),
        ([np.zeros((2, 0))], InvalidInputError, "0 bytes"),
        ([np.array([None])], DTypeError, "sample 0 .*objects, such as a NoneType"),
        ([[1], [2, None]], DTypeError, "sample 1 .*objects, such as a int"),
        ("text", InvalidInputError, "not a str"),
    ],
)
def test_samples_that_do_not_fit(store: TensorStore, samples: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        store.write_ragged("r", samples)
    assert store.keys() == []


def test_samples_that_do_not_fit_are_not_appended(store: TensorStore) -> None:
    handle = store.write_ragged("r", BOXES)
    for samples, error in (
        ([np.zeros((1, 3), "f4")], InvalidInputError),
        ([np.zeros((1, 4))], DTypeError),
        ("x", InvalidInputError),
    ):
        with pytest.raises(error):
            handle.append(samples)
    with pytest.raises(InvalidInputError, match="assigning to 'r'"):
        handle[0] = BOXES[0]
    assert same(store["r"], BOXES)


def test_appends_by_key_find_out_what_the_array_is(store: TensorStore) -> None:
    store.write_ragged("texts", ["a"])
    store.append("texts", ["bc", "d"])
    store.append("texts", (text for text in ["e"]))
    assert store["texts"] == ["a", "bc", "d", "e"]
    store.write_ragged("tokens", [[1]], dtype="i4")
    store.append("tokens", [[2, 3], [4]])
    store.append("tokens", [np.array([5, 6], "i4"), np.array([7, 8], "i4")])
    store.append("tokens", np.array([[9]], "i4"))
    assert [sample.tolist() for sample in store["tokens"]] == [[1], [2, 3], [4], [5, 6], [7, 8], [9]]
    with pytest.raises(KeyNotFoundError):
        store.append("nothing", iter(["a"]))


def test_many_small_appends_leave_few_blocks(rows: TensorStore, database: Sql, user: User) -> None:
    handle = rows.write_ragged("texts", ["0"])
    for number in range(1, 70):
        handle.append([str(number)])
    query = "select count from public.tensors where user_id = %s order by index"
    counts = [row[0] for row in database.execute(query, [user.id])]
    assert len(counts) <= 8
    assert handle[::-1] == [str(number) for number in range(69, -1, -1)]
    assert rows.compact("texts") == len(counts) - 1
    assert handle[::7] == [str(number) for number in range(0, 70, 7)]


def test_overwriting_has_to_be_allowed(store: TensorStore) -> None:
    store.write_ragged("r", BOXES)
    with pytest.raises(KeyExistsError):
        store.write_ragged("r", TEXTS)
    assert same(store["r"], BOXES)
    handle = store.open("r")
    bold = tensorage.TensorStore(store.backend, engine=store.engine, allow_overwrite=True)
    bold.write_ragged("r", TEXTS)
    assert handle[:] == TEXTS
    bold["r"] = np.arange(3)
    assert handle[1] == 1
    with pytest.raises(InvalidInputError, match="one length"):
        handle.lengths()


# Text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 1, 2), (0, 4)])
@pytest.mark.parametrize("dtype", [TEXT, object])
def test_arrays_of_text_come_back(store: TensorStore, shape: tuple[int, ...], dtype: Any) -> None:
    array = np.array(TEXTS, dtype)[: np.prod(shape)].reshape(shape)
    store["labels"] = array
    got = store["labels"]
    assert got.dtype == TEXT
    assert got.shape == shape
    assert np.array_equal(got, array.astype(TEXT))
    handle = store.open("labels")
    assert handle.dtype == TEXT
    for selection in (np.s_[::-1], np.s_[..., :1], np.s_[:, None], np.s_[[0, -1]] if shape[0] else np.s_[:]):
        expected = array.astype(TEXT)[selection]
        assert handle[selection].shape == expected.shape
        assert np.array_equal(handle[selection], expected)
    if array.size:
        assert handle[(0,) * array.ndim] == array.flat[0]
        assert type(handle[(0,) * array.ndim]) is str
    assert np.array_equal(np.asarray(handle), array.astype(TEXT))
    out = np.empty(shape, TEXT)
    assert handle.read(..., out=out) is out
    assert np.array_equal(out, array.astype(TEXT))


@pytest.mark.parametrize("engine", get_args(Engine))
@settings(max_examples=60, deadline=None)
@given(selection=selections(st.just((4, 5, 3))))
def test_selections_of_text_are_those_of_numpy(
    login: BackendSession, engine: Engine, selection: tuple[Any, Any]
) -> None:
    """A property: any index expression gives what numpy gives, or raises what numpy raises."""
    array = np.array([f"{number} " * (number % 7) for number in range(60)], TEXT).reshape(4, 5, 3)
    store = TensorStore(login, engine=engine, quiet=True, chunk_size=7)
    key = f"text of a property in {engine}"
    if key not in store:
        store[key] = array
    handle = store.open(key)
    _, index = selection
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises(IndexError):
            handle[index]
        return
    got = handle[index]
    assert type(got) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(got, expected)


def test_a_single_text(store: TensorStore) -> None:
    store["text"] = np.array("größe", TEXT)
    got = store["text"]
    assert got.shape == ()
    assert got == np.array("größe", TEXT)
    assert store["text", ()] == "größe"


def test_rows_of_text_are_appended(store: TensorStore) -> None:
    store["labels"] = np.array([["a", "b"]], TEXT)
    handle = store.open("labels")
    handle.append(np.array([["c", "d" * 5000]], TEXT))
    handle.append([["e", "f"]])
    store.append("labels", np.array([["g", "h"]], object))
    store.append("labels", np.array([["i", "j"]]))
    # numpy takes the last character of this for padding.
    store.append("labels", [["k\0", "l"]])
    with store.transaction() as tx:
        tx.append("labels", [["m\0", "n"]])
    handle.refresh()
    assert handle[:].tolist() == store["labels"].tolist()
    assert [row[0] for row in store["labels"].tolist()] == ["a", "c", "e", "g", "i", "k\0", "m\0"]
    with pytest.raises(InvalidInputError, match="first axis"):
        handle.append(["x"])
    with pytest.raises(DTypeError, match="text"):
        handle.append([[1, 2]])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array(["a", 3], object), "element at 1 is a int"),
        (np.array([["a", "b"], ["c", None]], object), r"element at \(1, 1\) is a NoneType"),
        (np.array(["a", np.nan], np.dtypes.StringDType(na_object=np.nan)), "element at 1 is a float"),
        (np.array([{}], object), "element at 0 is a dict"),
    ],
)
def test_objects_that_are_no_text(store: TensorStore, array: npt.NDArray[Any], said: str) -> None:
    with pytest.raises(DTypeError, match=said):
        store["labels"] = array
    assert store.keys() == []


def test_a_text_with_a_lone_surrogate(store: TensorStore) -> None:
    with pytest.raises(InvalidInputError, match=r"sample 1 .*surrogate"):
        store["labels"] = np.array(["a", "b\udc00"], object)
    assert store.keys() == []


# Together with the rest -------------------------------------------------------------------------------------


def test_entries_say_what_the_elements_are(store: TensorStore) -> None:
    store.write_ragged("boxes", BOXES, attrs={"unit": "px"}, dims=("image",))
    store["labels"] = np.array(TEXTS, TEXT)
    boxes, labels = store.catalogue()
    assert str(boxes.ragged) == "ragged float32 of shape (n, 4)"
    assert boxes.attrs == {"unit": "px"}
    assert boxes.dims == ("image",)
    if store.engine == "database":
        assert boxes.nbytes == sum(box.nbytes for box in BOXES)
        assert labels.nbytes == sum(len(text.encode()) for text in TEXTS)
    assert boxes.nbytes > 0
    assert "text of any length" in repr(labels)
    assert "ragged float32" in repr(store.open("boxes"))
    assert "ragged float32" in store.open("boxes")._repr_html_()
    assert "ragged float32" in str(store.tree())


def test_copies_renames_and_shares(store: TensorStore, other_store: TensorStore) -> None:
    store.write_ragged("boxes", BOXES, attrs={"unit": "px"}, dims=("image",))
    store["labels"] = np.array([TEXTS], TEXT)
    assert same(store.copy("boxes", "copy")[:], BOXES)
    assert store.open("copy").attrs == {"unit": "px"}
    assert np.array_equal(store.copy("labels", "copied labels")[...], np.array([TEXTS], TEXT))
    for engine in get_args(Engine):
        copied = store.copy("boxes", f"in {engine}", engine=engine)
        assert copied.dataset.engine == engine
        assert same(copied[:], BOXES)
        assert copied.dims == ("image",)
        copied = store.copy("labels", f"labels in {engine}", engine=engine)
        assert np.array_equal(copied[...], np.array([TEXTS], TEXT))
    store.rename("copy", "renamed")
    assert same(store["renamed"], BOXES)
    store.share("boxes", write=True)
    assert store.backend.email is not None
    theirs = other_store.shared_by(store.backend.email)
    theirs.open("boxes").append(BOXES[:1])
    assert same(theirs["boxes"], [*BOXES, BOXES[0]])
    assert same(other_store.shared_by(store.backend.email).copy("boxes", "mine")[:], [*BOXES, BOXES[0]])


def test_transactions_and_states(store: TensorStore) -> None:
    store.write_ragged("boxes", BOXES)
    labels = np.array(TEXTS, TEXT)
    with store.transaction() as tx:
        tx["labels"] = labels
        tx.write_ragged("clips", CLIPS)
        tx.append("boxes", BOXES[:2])
    assert same(store["clips"], CLIPS)
    assert same(store["boxes"], [*BOXES, *BOXES[:2]])
    read = store.read_many(["labels", "clips", "boxes"])
    assert np.array_equal(read["labels"], labels)
    assert same(read["clips"], CLIPS)
    assert same(read["boxes"], [*BOXES, *BOXES[:2]])
    store.save("state", {"names": labels, "step": 3})
    loaded = store.load("state")
    assert np.array_equal(loaded["names"], labels)
    assert loaded["step"] == 3


def test_appends_that_follow_each_other_in_a_transaction(rows: TensorStore) -> None:
    rows.write_ragged("boxes", BOXES)
    with rows.transaction() as tx:
        tx.append("boxes", BOXES[:2])
        tx.append("boxes", iter(BOXES[:1]))
    assert same(rows["boxes"], [*BOXES, *BOXES[:2], BOXES[0]])


def test_large_samples_in_a_transaction(store: TensorStore) -> None:
    samples = [bytes([number]) * 2**20 for number in range(20)]
    with store.transaction() as tx:
        tx.write_ragged("large", samples)
        tx["x"] = np.arange(3)
    assert store["large"] == samples


def test_what_has_no_place_for_them(store: TensorStore, tmp_path: Path) -> None:
    handle = store.write_ragged("boxes", BOXES)
    store["labels"] = np.array(TEXTS, TEXT)
    labels = store.open("labels")
    for each in (handle, labels):
        with pytest.raises(InvalidInputError, match="dask"):
            each.to_dask()
        with pytest.raises(InvalidInputError, match="xarray"):
            each.to_xarray()
        with pytest.raises(InvalidInputError, match="caching"):
            each.cached(tmp_path / "cache")
        with pytest.raises(BufferError):
            each.__dlpack__()
        with pytest.raises(InvalidInputError, match="assigning"):
            each[0] = "x"
    records = store.write_ragged("records", [np.zeros(2, [("t", "<f4"), ("n", "<i8")])])
    with pytest.raises(InvalidInputError, match="field 't' cannot be read alone"):
        records["t"]
    store["group/labels"] = labels[:]
    with pytest.raises(InvalidInputError, match="xarray"):
        store.open_dataset("group")
    with pytest.raises(InvalidInputError, match="out="):
        handle.read(..., out=np.empty(4, object))
    for name in ("one.npy", "all.npz", "all.h5", "all.nc", "all.zarr"):
        with pytest.raises((InvalidInputError, DTypeError), match="boxes"):
            store.export("boxes", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_handles_as_arrays_of_numpy(store: TensorStore) -> None:
    handle = store.write_ragged("r", [np.arange(2), np.arange(2)])
    array = np.asarray(handle)
    assert array.dtype == object
    assert array.shape == (2,)
    assert np.array_equal(array[1], np.arange(2))


def test_a_quota_is_kept_to(other_store: TensorStore, database: Sql, new_user: User) -> None:
    store = other_store
    database.execute("insert into tensorage.quotas (user_id, max_bytes) values (%s, 20000000)", [new_user.id])
    with pytest.raises(QuotaExceededError):
        store.write_ragged("r", (np.random.default_rng(n).bytes(2**20) for n in range(40)))
    assert store.keys() == []
    store.write_ragged("r", [bytes(2**20)])


def test_forms_are_those_of_the_database(database: Sql) -> None:
    query = "select tensorage.itemsize(%s)"
    for form, size in {
        "text": 1,
        '{"ragged":"text"}': 1,
        '{"ragged":"bytes"}': 1,
        '{"ragged":"<f4","shape":[]}': 1,
        '{"ragged":"<f4","shape":[4,2]}': 1,
        json.dumps({"ragged": '[["t","<f4"]]', "shape": [3]}): 1,
        '{"ragged":"text","shape":[]}': 0,
        '{"ragged":"<f4"}': 0,
        '{"ragged":"<f4","shape":[0]}': 0,
        '{"ragged":"<f4","shape":["1"]}': 0,
        '{"ragged":"<f4","shape":[1000000,1000000]}': 0,
        '{"ragged":"none","shape":[]}': 0,
        '{"ragged":"<f4","shape":[],"more":1}': 0,
        '{"ragged":{},"shape":[]}': 0,
        '{"ragged":"{\\"ragged\\":\\"text\\"}","shape":[]}': 0,
        "{": 0,
        '[["t","text"]]': 0,
        '[["t","{\\"ragged\\":\\"text\\"}"]]': 0,
    }.items():
        assert database.execute(query, [form]).fetchall() == [(size,)], form


# Batches ----------------------------------------------------------------------------------------------------


def test_batches_are_lists(store: TensorStore) -> None:
    handle = store.write_ragged("boxes", BOXES)
    batches = list(handle.batches(3))
    assert same(batches, [BOXES[:3], BOXES[3:]])
    labels = store.write("y", np.arange(4))
    for boxes, numbers in tensorage.batches(handle, labels, batch_size=2, shuffle=True, seed=1):
        assert same(boxes, [BOXES[number] for number in numbers])
    pairs = tensorage.zip(handle, labels)
    assert same([box for box, _ in pairs.__getitems__([2, 0])], [BOXES[2], BOXES[0]])
    assert same(handle.__getitems__([3, 1]), [BOXES[3], BOXES[1]])


def test_padded_batches(store: TensorStore) -> None:
    handle = store.write_ragged("boxes", BOXES)
    labels = store.write("y", np.arange(4))
    (first, _), (last, numbers) = tensorage.batches(handle, labels, batch_size=3, pad_value=np.nan)
    assert first.shape == (3, 3, 4)
    assert first.dtype == np.float32
    assert np.array_equal(first[0], BOXES[0])
    assert np.isnan(first[1]).all()
    assert np.isnan(first[2, 1:]).all()
    assert np.array_equal(last, BOXES[3][None])
    assert numbers.tolist() == [3]
    empty = store.write_ragged("empty", [[], []], dtype="i4")
    (batch,) = empty.batches(2, pad_value=0)
    assert batch.shape == (2, 0)


def test_values_that_nothing_can_be_padded_with(store: TensorStore) -> None:
    tokens = store.write_ragged("tokens", [[1], [2, 3]], dtype="u1")
    for value in (300, -1, "x", 0.5, [0, 0]):
        with pytest.raises(InvalidInputError, match="pad_value"):
            tokens.batches(2, pad_value=value)
    boxes = store.write_ragged("boxes", BOXES)
    for value in (1j, "0", [0.0]):
        with pytest.raises(InvalidInputError, match="pad_value"):
            boxes.batches(2, pad_value=value)
    with pytest.raises(InvalidInputError, match="only arrays"):
        store.write_ragged("texts", TEXTS).batches(2, pad_value=0)
    with pytest.raises(InvalidInputError, match="none of the arrays"):
        store.write("dense", np.arange(3)).batches(2, pad_value=0)


def test_texts_in_the_background(store: TensorStore) -> None:
    labels = np.array(TEXTS, TEXT)
    with store.background() as bg:
        bg["labels"] = labels
        bg.append("labels", labels[:2])
    assert store["labels"].tolist() == [*TEXTS, *TEXTS[:2]]
