"""Coordinates as the catalogue keeps them: what comes back is what was given, and what is damaged is refused."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensorage.errors import CorruptTensorError, DTypeError, InvalidInputError, SchemaError
from tensorage.model.coords import (
    Coord,
    Coords,
    as_coords,
    as_labels,
    check_room,
    coords_of,
    encode_coords,
    extend_coord,
    rename_dims,
    replace_coords,
)
from tensorage.model.values import MAX_ATTRS_BYTES
from tensorage.types import COORDS_ATTRIBUTE, Dataset

NUMBERS = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


def dataset(coords: Any, dims: tuple[str, ...] | None = None, shape: tuple[int, ...] = ()) -> Dataset:
    return Dataset(1, "k", shape, np.dtype("f4"), 1, dims=dims, coords=coords)


def back(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels after a round through JSON, as PostgreSQL keeps it."""
    axes = tuple(f"d{axis}" for axis in range(values.ndim))
    kept = json.loads(json.dumps(encode_coords([Coord("c", axes, values)])))
    (coord,) = coords_of(dataset(kept))
    assert (coord.name, coord.dims, coord.is_index) == ("c", axes, False)
    return coord.values


@given(NUMBERS.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
@settings(deadline=None)
def test_numbers_come_back_bit_by_bit(values: npt.NDArray[Any]) -> None:
    came = back(as_labels("c", values))
    assert (came.shape, came.dtype) == (values.shape, values.dtype.newbyteorder("<"))
    assert came.tobytes() == values.astype(came.dtype).tobytes()
    assert came.flags.writeable


@given(hnp.arrays(hnp.unicode_string_dtypes(max_len=4, min_len=1), SHAPES))
@settings(deadline=None)
def test_text_of_one_length_comes_back(values: npt.NDArray[Any]) -> None:
    came = back(as_labels("c", values))
    assert (came.shape, came.dtype) == (values.shape, values.dtype.newbyteorder("<"))
    assert came.tolist() == values.tolist()


@given(st.lists(st.text()))
@pytest.mark.parametrize("dtype", [object, np.dtypes.StringDType()], ids=["object", "StringDType"])
@settings(deadline=None)
def test_text_of_any_length_comes_back(dtype: Any, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    values = np.empty(len(texts), dtype)
    values[:] = texts
    came = back(as_labels("c", values))
    assert came.dtype == values.dtype
    assert came.tolist() == texts


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324]),
        np.array(["2020-01-01", "NaT", "1677-09-22"], "M8[ns]"),
        np.array([1, "NaT"], "m8[25s]"),
        np.array([2**63, 0, 2**64 - 1], "u8"),
        np.array([-(2**63), 2**63 - 1]),
        np.array([complex(np.nan, -0.0)]),
        np.array(True),
        np.array("a\nü\U0001f600"),
        np.zeros((0, 3)),
        np.arange(256).astype("i1"),
    ],
    ids=lambda values: str(values.dtype),
)
def test_values_at_the_edges_come_back(values: npt.NDArray[Any]) -> None:
    came = back(values)
    assert (came.shape, came.dtype) == (values.shape, values.dtype)
    assert came.tobytes() == values.tobytes()


def test_a_long_double_comes_back() -> None:
    values = np.array([np.longdouble(1) / 3])
    assert np.array_equal(back(values), values)


def test_regular_labels_take_next_to_no_room() -> None:
    hours = np.arange("1980-01-01", "2020-01-01", dtype="M8[h]").astype("M8[ns]")
    grid = np.linspace(-90, 90, 721)
    kept = encode_coords([Coord("time", ("time",), hours), Coord("lat", ("lat",), grid)])
    assert len(json.dumps(kept)) < hours.nbytes / 1000 + 4000


# Damage ----------------------------------------------------------------------------------------------


def entry(**changes: Any) -> dict[str, Any]:
    kept = encode_coords([Coord("x", ("x",), np.arange(3))])
    kept["coords"][0].update(changes)
    return kept


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "kept",
    [
        5,
        [],
        {},
        {"format": "1"},
        {"format": 1, "coords": 3},
        {"format": 1, "coords": [None]},
        {"format": 1, "coords": [{"name": "x"}]},
        entry(name=3),
        entry(dims="x"),
        entry(dims=[1]),
        entry(dims=[]),
        entry(attrs=3),
        entry(shape=[4]),
        entry(shape=[-3]),
        entry(shape=[-1, -3], dims=["a", "b"]),
        entry(shape=[10**30]),
        entry(shape=None),
        entry(dtype="<f4"),
        entry(dtype="|V8"),
        entry(dtype="nonsense"),
        entry(dtype=None),
        entry(dtype="<i99"),
        entry(dtype="<U1"),
        entry(dtype="<U999999999", data=packed(b'["a", "b", "c"]')),
        entry(dtype="<U1", data=packed(b'["a", "b", "long"]')),
        entry(dtype="<U1", data=packed(b'["a", "b"]')),
        entry(dtype="<U1", data=packed(b'["a", "b", 3]')),
        entry(dtype="<U1", data=packed(b"[" * 100_000)),
        entry(dtype="StringDType", data=packed(b"{}")),
        entry(deltas=7),
        entry(deltas="x"),
        entry(data="no base64!"),
        entry(data=packed(b"")),
        entry(data=packed(b"\0" * 25)),
        entry(data=base64.b64encode(zlib.compress(b"\0" * 24)[:-1]).decode()),
        entry(data=None),
    ],
    ids=lambda kept: str(kept)[:60],
)
def test_what_is_damaged_is_refused(kept: Any) -> None:
    with pytest.raises(CorruptTensorError, match="coordinates of 'k' cannot be read"):
        coords_of(dataset(kept, ("x",), (3,)))


@given(st.data())
@settings(deadline=None)
def test_no_damage_of_the_data_makes_another_error(data: st.DataObject) -> None:
    kept = encode_coords([Coord("x", ("x",), np.arange(3.0))])
    raw = bytearray(base64.b64decode(kept["coords"][0]["data"]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    kept["coords"][0]["data"] = base64.b64encode(bytes(raw)).decode()
    try:
        (coord,) = coords_of(dataset(kept))
    except CorruptTensorError:
        return
    # The bits that zlib does not mind.
    assert coord.values.tolist() == [0, 1, 2]


def test_a_later_format_says_to_upgrade() -> None:
    with pytest.raises(SchemaError, match="upgrade tensorage"):
        coords_of(dataset({"format": 2}))


def test_a_mapping_decodes_what_is_looked_at() -> None:
    kept = encode_coords([Coord("x", ("x",), np.arange(3)), Coord("y", (), np.array(1.5))])
    kept["coords"][1]["data"] = "damaged"
    coords = Coords(dataset(kept))
    assert (list(coords), len(coords), repr(coords)) == (["x", "y"], 2, "<Coords 'x', 'y'>")
    assert coords["x"].tolist() == [0, 1, 2]
    with pytest.raises(CorruptTensorError):
        coords["y"]
    with pytest.raises(KeyError):
        coords["z"]
    assert repr(Coords(dataset(None))) == "<Coords none>"


# Ways of giving coords -------------------------------------------------------------------------------


def test_coords_are_given_in_several_ways() -> None:
    target = dataset(None, ("time", "x"), (2, 3))
    time, area, height = as_coords(
        {
            "time": np.array(["2020", "2021"], "M8[Y]"),
            "area": (("time", "x"), np.ones((2, 3)), {"units": "m2"}),
            "height": ((), 2.0),
        },
        target,
    )
    assert (time.dims, time.is_index, time.values.dtype) == (("time",), True, np.dtype("M8[Y]"))
    assert (area.dims, area.is_index, area.attrs) == (("time", "x"), False, {"units": "m2"})
    assert (height.dims, height.values.shape) == ((), ())


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"x": [1, 2]}, r"shape \(2,\), and the array \(3,\)"),
        ({"z": [1, 2]}, "has the dims"),
        ({"x": ("time", [1, 2])}, "is the name of an axis"),
        ({"c": (5, [1])}, "names no axes"),
        ({"c": ("x",)}, r"\(dims, labels\)"),
        ({3: ((), 1)}, "a name is text"),
        ({"a\0b": ((), 1)}, "a name is text"),
        ({"a\ud800": ((), 1)}, "a name is text"),
    ],
)
def test_coords_that_do_not_fit_are_refused(coords: dict[Any, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        as_coords(coords, dataset(None, ("time", "x"), (2, 3)))


def test_coords_need_axes_of_different_names() -> None:
    with pytest.raises(InvalidInputError, match="different names"):
        as_coords({"c": ((), 1)}, dataset(None, ("x", "x"), (2, 2)))
    with pytest.raises(InvalidInputError, match="has the dims None"):
        as_coords({"x": [1, 2]}, dataset(None, None, (2,)))


@pytest.mark.parametrize("values", [[object()], [None, "a"], [b"a"], np.zeros(1, "i4,i4")])
def test_what_is_neither_number_time_nor_text_is_refused(values: Any) -> None:
    with pytest.raises(DTypeError, match=r"drop_vars\('c'\)"):
        as_labels("c", values)


def test_there_is_little_room() -> None:
    noise = np.random.default_rng(0).random(200_000)
    kept = encode_coords([Coord("noise", ("x",), noise), Coord("x", ("x",), np.arange(200_000))])
    with pytest.raises(
        InvalidInputError, match=rf"'noise' of shape \(200000,\).*{MAX_ATTRS_BYTES}|drop_vars"
    ):
        check_room("k", {}, kept)
    with pytest.raises(InvalidInputError, match="under a key of its own"):
        as_labels("c", np.zeros(40_000_000))


def test_room_is_counted_as_postgresql_counts() -> None:
    kept = encode_coords([Coord("x", (), np.array(1))])
    used = len(json.dumps({"a": "", COORDS_ATTRIBUTE: kept}))
    check_room("k", {"a": "é" * ((MAX_ATTRS_BYTES - used) // 2)}, kept)
    with pytest.raises(InvalidInputError):
        check_room("k", {"a": "é" * ((MAX_ATTRS_BYTES - used) // 2 + 1)}, kept)


# Changes ---------------------------------------------------------------------------------------------


def test_coords_go_with_their_axes() -> None:
    made = [Coord("x", ("x",), np.arange(3), {}, True), Coord("area", ("x",), np.ones(3))]
    kept = rename_dims(dataset(encode_coords(made, name="t"), ("x",), (3,)), ["lon"])
    assert kept is not None
    assert kept["name"] == "t"
    assert [(entry["name"], entry["dims"], entry["index"]) for entry in kept["coords"]] == [
        ("lon", ["lon"], True),
        ("area", ["lon"], False),
    ]


def test_names_that_coords_cannot_follow_are_refused() -> None:
    kept = encode_coords(
        [Coord("x", ("x",), np.arange(3)), Coord("h", (), np.array(1)), Coord("y", ("y",), np.arange(2))]
    )
    known = dataset(kept, ("x", "y"), (3, 2))
    with pytest.raises(InvalidInputError, match=r"tensor\.coords = \{\}"):
        rename_dims(known, None)
    with pytest.raises(InvalidInputError, match="'h' is the name of a coordinate"):
        rename_dims(known, ["h", "y"])
    with pytest.raises(InvalidInputError, match="the same name"):
        rename_dims(known, ["z", "z"])
    swapped = rename_dims(known, ["y", "x"])
    assert swapped is not None
    assert [(entry["name"], entry["dims"]) for entry in swapped["coords"]] == [
        ("y", ["y"]),
        ("h", []),
        ("x", ["x"]),
    ]


def test_replaced_coords_leave_the_name() -> None:
    assert replace_coords(dataset(encode_coords([], name="t")), []) == {
        "format": 1,
        "name": "t",
        "coords": [],
    }
    assert replace_coords(dataset({"damaged": True}), []) is None
    assert replace_coords(dataset(None), []) is None


@pytest.mark.parametrize(
    ("before", "more", "wanted"),
    [
        (np.arange(2), np.array([7], "i4"), np.array([0, 1, 7])),
        (np.array(["2020"], "M8[ns]"), np.array(["2021"], "M8[s]"), np.array(["2020", "2021"], "M8[ns]")),
        (np.array(["a"]), np.array(["long"]), np.array(["a", "long"])),
        (np.array(["a"]), np.array(["b"], object), np.array(["a", "b"])),
        (np.array([1.5], "f4"), np.array([2.5]), np.array([1.5, 2.5], "f4")),
        (np.ones((2, 1)), np.zeros((2, 1)), np.array([[1.0, 0.0], [1.0, 0.0]])),
    ],
)
def test_coords_are_extended(before: Any, more: Any, wanted: Any) -> None:
    dims = ("x",) if before.ndim == 1 else ("y", "x")
    made = extend_coord(Coord("c", dims, before), before.ndim - 1, Coord("c", dims, more), "k")
    assert made.values.dtype == wanted.dtype
    assert made.values.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("before", "more"),
    [
        (np.arange(2), np.array(["a"])),
        (np.array(["a"]), np.arange(2)),
        (np.arange(2), np.array([0.5])),
        (np.arange(2), np.array(["2020"], "M8[ns]")),
        (np.array(["2020"], "M8[D]"), np.array(["2020-01-01T12"], "M8[h]")),
        (np.array([1.5], "f4"), np.array([0.1])),
        (np.array([1], "i1"), np.array([300])),
    ],
)
def test_labels_that_would_not_stay_what_they_are_are_refused(before: Any, more: Any) -> None:
    with pytest.raises(InvalidInputError, match="Nothing was appended"):
        extend_coord(Coord("c", ("x",), before), 0, Coord("c", ("x",), more), "k")
