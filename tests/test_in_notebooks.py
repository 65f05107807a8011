"""Stores, handles and sessions in a notebook: shown by one request or none, without an error, and without a wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import workers
from gate import Gate
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.backend import glances
from tensorage.model.glimpse import cut_of


def functions(seen: list[Exchange]) -> list[str]:
    return [exchange.kind for exchange in seen]


@pytest.fixture
def quick(watched: tuple[TensorStore, list[Exchange]]) -> tuple[TensorStore, list[Exchange]]:
    """A store whose requests are seen, and that has asked for the version of the project."""
    store, seen = watched
    store.quiet = True
    store.keys()
    seen.clear()
    return store, seen


# Objects that show themselves ---------------------------------------------------------------------------------


def test_a_store_is_one_request(quick: tuple[TensorStore, list[Exchange]]) -> None:
    store, seen = quick
    assert "no arrays" in store._repr_html_()
    store.update({f"exp/{n}/loss": np.zeros(3) for n in range(60)})
    store["<script>"] = np.zeros((2, 3), "f4")
    seen.clear()
    page = store._repr_html_()
    assert functions(seen) == ["catalogue"]
    assert "61 arrays" in page
    assert "11 more" in page
    assert "&lt;script&gt;" in page
    assert "(2, 3)" in page
    # The quota came with it.
    assert "without a limit" in page
    seen.clear()
    group = store.group("exp/7")._repr_html_()
    assert functions(seen) == ["catalogue"]
    assert "1 array" in group
    assert ">loss<" in group
    assert "exp/7/loss" not in group
    seen.clear()
    assert "60 arrays" in store.tree("exp/")._repr_html_()
    assert functions(seen) == ["catalogue"]


def test_a_handle_is_no_request(quick: tuple[TensorStore, list[Exchange]]) -> None:
    store, seen = quick
    for engine in ("database", "storage"):
        handle = store.write(
            f"{engine}/x", np.zeros((40, 30)), attrs={"units": "<K>"}, dims=("t", "x"), engine=engine,
        )  # fmt: skip
        handle.coords = {
            "t": np.arange("2020-01-01", "2020-02-10", dtype="M8[D]"),
            "x": np.linspace(0, 1, 30),
        }
        handle.coords = {"t": np.arange("2020-01-01", "2020-02-10", dtype="M8[D]").astype("M8[ns]")}
        assert "2020-01-01 2020-01-02" in handle._repr_html_()
        handle.coords = {"t": np.arange("2020-01", "2023-05", dtype="M8[M]")}
        assert "2020-01 2020-02" in handle._repr_html_()
        store[f"{engine}/plain"] = np.zeros(()) if engine == "database" else np.zeros((0, 4))
        others = store.write_ragged(f"{engine}/texts", ["a", "bc"], engine=engine)
        seen.clear()
        page = handle._repr_html_()
        assert "2020-01 2020-02" in page
        assert "&lt;K&gt;" in page
        assert "<svg" in page
        assert "ragged text" in others._repr_html_()
        assert not seen
        assert store.open(f"{engine}/plain")._repr_html_()


def test_a_damaged_coordinate_is_told(rows: TensorStore, database: Any) -> None:
    handle = rows.write("x", np.zeros(3), dims=("t",))
    handle.coords = {"t": [1, 2, 3]}
    database.execute(
        """update public.datasets set attrs = jsonb_set(attrs, '{tensorage.coords}', '{"format": 99}')
            where id = %s""",
        [handle.dataset.id],
    )
    assert "coords" in rows.open("x")._repr_html_()


def test_a_session_has_its_quota(project: Project, user: User) -> None:
    session = project.session(user)
    page = session._repr_html_()
    assert "not logged in" in page
    assert not session.is_logged_in, "nobody is logged in for being shown"
    store = session()
    page = session._repr_html_()
    assert user.email in page
    assert "without a limit" in page
    assert user.password not in page
    assert session.token not in page
    assert "stored" in store.usage()._repr_html_()
    session.logout()
    assert "logged out" in store._repr_html_()
    assert store._ipython_key_completions_() == []
    assert not session.is_logged_in


def test_shares_are_shown(rows: TensorStore) -> None:
    rows["x"] = [1]
    (share,) = rows.share("x", "ann@lab.example", write=True)
    assert "ann@lab.example reads, appends and assigns" in share._repr_html_()
    assert "ann@lab.example" in rows._repr_html_()
    assert "everybody" not in rows._repr_html_()


def test_other_users_see_what_is_shared_and_no_quota(
    project: Project, rows: TensorStore, new_session: BackendSession, user: User
) -> None:
    rows["shared"], rows["secret"] = [1], [2]
    rows.share("shared", new_session.email)
    page = new_session().shared_by(user.email)._repr_html_()
    assert "shared" in page
    assert "secret" not in page
    assert "without a limit" not in page


# A project that is away -----------------------------------------------------------------------------------------


@pytest.fixture
def gated(project: Project, user: User) -> Iterator[tuple[TensorStore, Gate, Proxy]]:
    """A store whose requests can be held back, or refused."""
    gate = Gate()
    proxy = Proxy(project.url, changes=gate)
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        store.keys()
        yield store, gate, proxy
        gate.open()
    proxy.close()


def test_what_is_shown_does_not_wait_for_an_answer(
    gated: tuple[TensorStore, Gate, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, gate, _ = gated
    monkeypatch.setattr(glances, "GLANCE_S", 0.05)
    gate.close()
    assert "no answer within" in store._repr_html_()
    assert "no answer within" in store.backend._repr_html_()
    assert store._ipython_key_completions_() == []
    assert "append" in dir(store)


def test_what_is_shown_does_not_wait_for_the_end_of_an_outage(
    project: Project, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(project.url)
    session = Project(proxy.url, project.key).session(user)
    session.patience_s = 3600
    store = session()
    store.keys()
    proxy.close()
    # An outage would be waited out for an hour: nothing in here may begin to.
    monkeypatch.setattr(glances, "GLANCE_S", 60.0)
    page = store._repr_html_()
    assert "no answer within" not in page
    assert "cannot be reached" in page or "Tried" in page
    assert user.password not in page
    session.patience_s = 0


# Keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_completed_by_one_request_in_some_seconds(
    quick: tuple[TensorStore, list[Exchange]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = quick
    store["weather"], store["exp/a"], store["class"] = [1], [2], [3]
    seen.clear()
    assert store._ipython_key_completions_() == ["class", "exp/a", "weather"]
    for _ in range(3):
        assert {"weather", "append"} <= set(dir(store))
        assert "class" not in dir(store)
    assert functions(seen) == ["list"]
    # Its own changes are seen at once.
    store["new"] = [1]
    assert "new" in store._ipython_key_completions_()
    group = store.group("exp")
    assert group._ipython_key_completions_() == ["a"]
    monkeypatch.setattr(glances, "FRESH_S", 0.0)
    seen.clear()
    store._ipython_key_completions_()
    store._ipython_key_completions_()
    assert functions(seen) == ["list"] * 2


def test_a_wrong_key_names_those_that_are_like_it(quick: tuple[TensorStore, list[Exchange]]) -> None:
    store, seen = quick
    store.update({"weather": [1], "exp/run/loss": [2], "other": [3]})
    seen.clear()
    named = r"Did you mean 'weather'\?$"
    for read in (lambda: store["wether"], lambda: store["WEATHER", 0], lambda: store.open("weathre")):
        with pytest.raises(tensorage.KeyNotFoundError, match=named):
            read()
    with pytest.raises(tensorage.KeyNotFoundError, match=r"Did you mean 'exp/run/loss'\?$"):
        store["loss"]
    with pytest.raises(AttributeError, match="wether"):
        _ = store.wether
    assert functions(seen).count("list") == 1, "keys are asked for once in some seconds"
    for change in (lambda: store.__delitem__("weathr"), lambda: store.rename("wheather", "x")):
        with pytest.raises(tensorage.KeyNotFoundError, match=named):
            change()
    with pytest.raises(tensorage.KeyNotFoundError) as error:
        store["nothing like it"]
    assert "Did you mean" not in str(error.value)
    assert "you have no array" in str(error.value)


def test_looking_for_a_key_asks_for_no_other(quick: tuple[TensorStore, list[Exchange]]) -> None:
    store, seen = quick
    store["weather"] = [1]
    seen.clear()
    assert "wether" not in store
    assert store.get("wether") is None
    assert store.get("wether", 7) == 7
    assert store.get("weather").tolist() == [1]
    assert store.get(("weather", 0)) == 1
    assert "list" not in functions(seen)
    assert len(seen) == 5


def test_keys_of_others_are_not_named(rows: TensorStore, new_session: BackendSession, user: User) -> None:
    rows["weather-shared"], rows["weather-secret"] = [1], [2]
    rows.share("weather-shared", new_session.email)
    theirs = new_session()
    with pytest.raises(tensorage.KeyNotFoundError) as error:
        theirs["weather-secre"]
    assert "Did you mean" not in str(error.value)
    with pytest.raises(tensorage.KeyNotFoundError) as error:
        theirs.shared_by(user.email)["weather-secre"]
    assert "weather-secret" not in str(error.value)
    assert theirs.shared_by(user.email)._ipython_key_completions_() == ["weather-shared"]


# Previews ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "part"),
    [
        ((2000, 2000), "f8", "::16, ::16"),
        ((7, 300, 800), "f4", "3, ::3, ::7"),
        ((3_000_000,), "u1", "::1465"),
        ((100, 100), "f4", ":, :"),
        ((40_000, 3), "f8", "::313, :"),
    ],
)
def test_a_preview_from_the_database_is_one_small_request(
    quick: tuple[TensorStore, list[Exchange]], shape: tuple[int, ...], dtype: str, part: str
) -> None:
    store, seen = quick
    array = np.random.default_rng(0).integers(0, 200, shape, "u1").astype(dtype)
    handle = store.write("x", array)
    seen.clear()
    picture = handle.preview()
    (asked,) = seen
    assert asked.kind == "read"
    assert asked.received_bytes + asked.sent_bytes <= 256_000
    assert picture.part == part
    np.testing.assert_array_equal(picture.elements, eval(f"array[{part}]"))
    assert "<img" in picture._repr_html_() or len(picture.shape) == 1
    png = picture._repr_png_()
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert not seen[1:], "it has its elements"


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks"),
    [
        ((500, 400), "f4", (100, 100)),
        ((9, 200, 300), "f8", None),
        ((1_000_000,), "i2", None),
        ((60, 300, 300), "u1", (2, 300, 300)),
    ],
)
def test_a_preview_from_storage_is_few_bytes_of_whole_chunks(
    quick: tuple[TensorStore, list[Exchange]], shape: tuple[int, ...], dtype: str, chunks: Any
) -> None:
    store, seen = quick
    array = np.random.default_rng(0).integers(0, 200, shape, "u1").astype(dtype)
    handle = store.write("x", array, engine="storage", chunks=chunks)
    seen.clear()
    picture = handle.preview()
    # Places of chunks that are large before they are encoded are asked for to know how large they are.
    assert functions(seen)[-2:] == ["shards", "download"]
    assert len(seen) == (3 if shape == (9, 200, 300) else 2)
    assert sum(each.received_bytes for each in seen) <= 256_000
    np.testing.assert_array_equal(picture.elements, eval(f"array[{picture.part}]"))
    assert min(picture.shape) > 1


def test_a_chunk_that_is_too_large_is_refused_unless_it_is_small_as_it_is_stored(rows: TensorStore) -> None:
    noise = np.random.default_rng(0).random((400, 400))
    handle = rows.write("noise", noise, engine="storage", chunks=(400, 400))
    with pytest.raises(tensorage.InvalidInputError, match="a chunk is read as a whole"):
        handle.preview()
    zeros = np.ones((400, 400))
    np.testing.assert_array_equal(
        rows.write("ones", zeros, engine="storage", chunks=(400, 400)).preview().elements, zeros
    )


def pictures() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    holes = rng.random((20, 30))
    holes[3, 4], holes[5, 6], holes[7] = np.nan, np.inf, -np.inf
    return {
        "32 not finite": holes,
        "absolute values": rng.random(50) + 1j,
        "300 of 600 true": np.arange(600).reshape(20, 30) % 2 == 0,
        "from 2020-01-01 to 2020-04-09": np.arange("2020-01-01", "2020-04-10", dtype="M8[D]"),
        "from 0 to 0, mean 0": np.zeros((5, 5), "i8"),
        "1 not finite": np.array(["2020-01-01", "NaT"], "M8[s]"),
        "2 not finite": np.full(2, np.nan),
        "from -1.79769e+308 to 1.79769e+308": np.array([-np.finfo("f8").max, np.finfo("f8").max]),
        "from 0 to 3": np.arange(4).astype(ml_dtypes.bfloat16),
        "no elements": np.zeros((0, 5)),
        "uint8": rng.integers(0, 255, (40, 50, 3)).astype("u1"),
        "cat": np.array(["cat", "<b>"] * 30),
        "(1, 2.5)": np.array([(1, 2.5)] * 9, [("a", "i4"), ("b", "f8")]),
        "3.": np.array(3.0),
    }


@pytest.mark.parametrize("words", pictures())
def test_any_elements_have_a_preview(store: TensorStore, words: str) -> None:
    array = pictures()[words]
    store["x"] = array
    picture = store.open("x").preview()
    assert words in repr(picture)
    page = picture._repr_html_()
    assert words.replace("<", "&lt;") in page or words in {"cat", "uint8"}
    assert "<b>'" not in page
    assert "nan" not in page.lower().partition("</style>")[2] or words in {"2 not finite", "1 not finite"}
    picture._repr_png_()


def test_a_selection_is_previewed(store: TensorStore) -> None:
    array = np.random.default_rng(0).random((30, 40, 50))
    store["x"] = array
    handle = store.open("x")
    for selection in (
        np.s_[3],
        np.s_[..., 7],
        np.s_[::-2, 5:9, 2],
        np.s_[-1, -2],
        np.s_[1:2],
        np.s_[3, 4, 5],
    ):
        picture = handle.preview(selection)
        np.testing.assert_array_equal(picture.elements, eval(f"array[{picture.part}]"))
        assert picture.elements.size
    with pytest.raises(IndexError, match="out of bounds"):
        handle.preview(30)
    with pytest.raises(IndexError, match="too many indices"):
        handle.preview(np.s_[0, 0, 0, 0])
    for wrong in ([1, 2], "a", True, np.s_[None, :]):
        with pytest.raises(tensorage.InvalidInputError, match="numbers, slices and"):
            handle.preview(wrong)
    assert handle.preview(np.s_[5:5])._repr_png_() is None


def test_samples_of_any_length_have_no_preview(store: TensorStore) -> None:
    handle = store.write_ragged("texts", ["a", "bc"])
    with pytest.raises(tensorage.InvalidInputError, match=r"handle\[:3\]"):
        handle.preview()


def test_large_elements_are_refused(rows: TensorStore) -> None:
    rows["x"] = np.zeros(2, "V300000")
    with pytest.raises(tensorage.InvalidInputError, match="an element has"):
        rows.open("x").preview()


def test_the_picture_is_of_the_present_version(store: TensorStore) -> None:
    store["x"] = np.zeros((5, 5))
    handle = store.open("x")
    store.allow_overwrite = True
    store["x"] = np.ones((3, 3))
    np.testing.assert_array_equal(handle.preview().elements, np.ones((3, 3)))


def test_drawings_know_the_cut_of_what_is_stored(store: TensorStore) -> None:
    store["x"] = np.zeros((4000, 300))
    chunks, shards = cut_of(store.open("x").dataset)
    assert chunks is not None
    assert chunks[1] == 300
    assert 1 < chunks[0] < 4000
    assert (shards is None) == (store.engine == "database")
