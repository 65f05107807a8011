"""HTML of stored things: nothing that somebody wrote is markup, nothing is fetched, and everything has bounds."""

from __future__ import annotations

import doctest
import re
import types
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from examples import examples
from tensorage.display import html, pictures, pixels, shapes, tables, tensors, words
from tensorage.model import glimpse
from tensorage.model.tree import Tree
from tensorage.types import Dataset, Share, Usage

HOSTILE = "<script>alert(1)</script>'\"><img src=//x onerror=y>\u202e\x1b[2J&amp;"

#: All that our own HTML is made of.
TAGS = {
    *(
        "style",
        "div",
        "span",
        "b",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "pre",
        "br",
    ),
    *("svg", "text", "line", "rect", "polygon", "path", "img"),
}


class Seen(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in {"line", "rect", "polygon", "path", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


def seen(page: str) -> Seen:
    """The page, which is well-formed, has no other tags than ours, and fetches nothing."""
    found = Seen(page)
    assert not found.open
    assert found.tags <= TAGS
    for name, value in found.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "href", "xlink:href"} or (value or "").startswith("data:image/png;base64,")
    assert "url(" not in page
    assert "@import" not in page
    return found


def dataset(key: str = "x", shape: tuple[int, ...] = (4, 3), **more: Any) -> Dataset:
    return Dataset(1, key, shape, np.dtype("f4"), block_size=more.pop("block_size", 1000), **more)


def shown(**more: Any) -> tensors.Shown:
    plain: dict[str, Any] = {
        "key": "x", "kind": "Tensor", "elements": "float32", "shape": (4, 3), "size": 12, "nbytes": 48,
        "stored_bytes": 48, "engine": "database", "owner": "me@lab.org", "is_shared": False,
    }  # fmt: skip
    return tensors.Shown(**{**plain, **more})


def hostile_pages() -> list[str]:
    share = Share(HOSTILE, HOSTILE, "id", HOSTILE)
    entry = dataset(HOSTILE, shares=(share,))
    labels = tensors.Labels(HOSTILE, (HOSTILE,), HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    return [
        tables.store(HOSTILE, [entry], is_all=True, whole=Tree.of([(HOSTILE, HOSTILE)])),
        tables.tree(Tree.of([(f"{HOSTILE}/{HOSTILE}", HOSTILE), (f"{HOSTILE}/b/{HOSTILE}", HOSTILE)])),
        tables.session(HOSTILE, HOSTILE, is_logged_in=True, used=None, problem=HOSTILE),
        tables.share(share),
        tables.unseen("TensorStore", HOSTILE, HOSTILE),
        tensors.tensor(
            shown(
                key=HOSTILE, elements=HOSTILE, owner=HOSTILE, dims=(HOSTILE, "b"), fill_value=HOSTILE,
                attrs={HOSTILE: {"deep": HOSTILE}}, coords=[labels], more=[(HOSTILE, HOSTILE)],
            )
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("page", hostile_pages())
def test_nothing_that_somebody_wrote_is_markup(page: str) -> None:
    found = seen(page)
    assert "alert(1)" in found.words
    # Characters that would steer the text are written out.
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "\\u202e" in found.words


def test_long_words_are_cut_and_wrap() -> None:
    page = tensors.tensor(shown(attrs={"long": "x" * 10**6, **{f"n{n}": n for n in range(10**4)}}))
    assert len(page) < 60_000
    assert "…" in seen(page).words
    assert "9,901 more" in page
    assert "overflow-wrap:anywhere" in page


def test_a_store_shows_fifty_arrays_and_says_how_many_more() -> None:
    entries = [dataset(f"k{n:04}") for n in range(71)]
    words = seen(tables.store("of me", entries, is_all=True)).words
    assert "71 arrays" in words
    assert "k0049" in words
    assert "k0050" not in words
    assert "21 more" in words
    assert "more than 21 more" in seen(tables.store("of me", entries, is_all=False)).words
    assert "more" not in seen(tables.store("of me", entries[:50], is_all=True)).words
    assert "no arrays" in seen(tables.store("of me", [], is_all=True)).words


def test_readers_of_an_array_in_a_word() -> None:
    def words(*readers: str | None) -> str:
        shares = tuple(Share("x", "me", "id", reader) for reader in readers)
        return seen(tables.store("s", [dataset(shares=shares)], is_all=True)).words

    assert "everybody" in words("a@lab.org", None)
    assert "a@lab.org" in words("a@lab.org")
    assert "2 readers" in words("a@lab.org", "b@lab.org")
    assert "with you" in seen(tables.store("s", [dataset(shares=None)], is_all=True)).words


def test_a_tree_of_many_keys_has_bounds() -> None:
    page = tables.tree(Tree.of((f"a/b{n % 7}/{n}", "note") for n in range(10_000)))
    assert len(page) < 100_000
    assert re.search(r"and 9,5\d\d more", seen(page).words)
    deep = seen(tables.tree(Tree.of([("/".join("ab" * 250), "note"), ("a/x", "other")])))
    assert len([tag for tag in deep.tags if tag == "details"]) == 1
    assert "note" in deep.words
    # Groups that are as deep as a key is long, with something in each, are no deeper than a page has room for.
    ladder = Tree.of(("a/" * level + "b", "note") for level in range(500))
    assert len(ladder) == 500
    assert 300 < seen(tables.tree(ladder)).words.count("note") <= 500
    assert str(ladder).count("note") == 500


def test_a_quota_is_a_bar() -> None:
    page = tables.usage(Usage(3, 950, 100, 1000, None))
    told = seen(page).words
    assert "width:95.0%" in page
    assert "tsg-full'" in page
    assert "950 B of 0.977 KiB" in told
    assert "without a limit" in told
    assert "100 B" in told
    assert "tsg-full'" not in tables.usage(Usage(3, 10, 0, 1000, 100))


def test_a_share_says_whether_it_has_ended() -> None:
    end = datetime(2026, 1, 1, tzinfo=UTC)
    share = Share("exp/", "me@lab.org", "id", None, write=True, expires_at=end)
    words = seen(tables.share(share, end + timedelta(days=1))).words
    assert "every signed-in user reads, appends and assigns" in words
    assert "it has ended" in words
    assert "it has ended" not in tables.share(share, end - timedelta(days=1))


@given(
    st.lists(st.integers(0, 10**9), max_size=6).flatmap(
        lambda shape: st.tuples(
            st.just(shape), st.lists(st.integers(1, 10**6), min_size=len(shape), max_size=len(shape))
        )
    )
)
@settings(max_examples=examples(300))
def test_any_shape_is_drawn_within_bounds(pair: tuple[list[int], list[int]]) -> None:
    shape, chunks = pair
    drawn = shapes.draw_shape(shape, chunks)
    if not shape or 0 in shape:
        assert drawn == ""
        return
    seen(drawn)
    assert drawn.count("<line") <= 54
    box = re.search(r"viewBox='(-?\d+) (-?\d+) (\d+) (\d+)'", drawn)
    assert box is not None
    left, above, width, height = map(int, box.groups())
    assert 0 < width < 500
    assert 0 < height < 300
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", " ".join(re.findall(r"points='([^']*)'", drawn))):
        assert left <= float(x) <= left + width
        assert above <= float(y) <= above + height


def test_a_drawing_shows_the_cut() -> None:
    assert shapes.draw_shape((100, 60), (25, 20)).count("<line") == 3 + 2
    assert shapes.draw_shape((100, 60), None).count("<line") == 0
    assert shapes.draw_shape((10, 100, 60), (5, 50, 30)).count("<line") == 6
    assert "5" in shapes.draw_shape((5, 10, 100, 60), (1, 5, 50, 30))


def test_blocks_of_the_database_and_chunks_of_storage() -> None:
    assert glimpse.cut_of(dataset(shape=(100, 30), block_size=300)) == ((10, 30), None)
    assert glimpse.cut_of(dataset(shape=(100, 30), block_size=10)) == ((1, 10), None)
    assert glimpse.cut_of(dataset(shape=(4, 5, 6), block_size=12)) == ((1, 2, 6), None)
    assert glimpse.cut_of(dataset(shape=())) == (None, None)
    assert glimpse.cut_of(dataset(shape=(0, 3))) == (None, None)


@pytest.mark.parametrize("module", [html, pictures, pixels, shapes, words, glimpse])
def test_examples_of_docstrings(module: types.ModuleType) -> None:
    globs = {"np": np, "datetime": datetime, "UTC": UTC}
    assert doctest.testmod(module, extraglobs=globs).failed == 0


# Previews -----------------------------------------------------------------------------------------------------

indices = numpy_strategies.basic_indices((9, 7, 5), allow_newaxis=False)


@given(indices)
@settings(max_examples=examples(300))
def test_a_selection_is_that_of_numpy(selection: Any) -> None:
    array = np.arange(9 * 7 * 5).reshape(9, 7, 5)
    items = glimpse.items_of(selection, array.shape, "x")
    np.testing.assert_array_equal(array[glimpse.selection_of(items)], array[selection])
    # The words are those that one would write.
    words = glimpse.words_of(items, array.shape)
    np.testing.assert_array_equal(eval(f"array[{words}]"), array[selection])


@given(
    numpy_strategies.basic_indices((500, 300), allow_newaxis=False),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 9),
)
@settings(max_examples=examples(300))
def test_a_part_lies_in_few_chunks_of_one_object(
    selection: Any, chunks: tuple[int, int], times: tuple[int, int], room: int
) -> None:
    items = glimpse.items_of(selection, (500, 300), "x")
    if 0 in glimpse.shape_of(items):
        return
    shards = tuple(chunk * n for chunk, n in zip(chunks, times, strict=True))
    part = glimpse.within_chunks(items, chunks, shards, room)
    touched, objects = 1, 1
    for before, now, chunk, shard in zip(items, part, chunks, shards, strict=True):
        if isinstance(now, int):
            assert now == before
            continue
        assert isinstance(before, range)
        assert len(now) > 0
        # A run of members of the selection, in their order.
        at = before.index(now[0])
        assert now == before[at : at + len(now)]
        touched *= len({member // chunk for member in now})
        objects *= len({member // shard for member in now})
    assert touched <= room
    assert objects == 1


@given(
    st.lists(st.integers(1, 10**7), min_size=1, max_size=4), st.sampled_from([1, 2, 4, 8, 16, 5000]),
    st.sampled_from("ufibc"),
)  # fmt: skip
@settings(max_examples=examples(300))
def test_a_thinned_part_has_few_bytes_and_few_axes(shape: list[int], itemsize: int, kind: str) -> None:
    whole = glimpse.choose_picture(glimpse.items_of(None, shape, "x"), kind)
    part = glimpse.thin_out(whole, itemsize, 200_000)
    assert np.prod(glimpse.shape_of(part), dtype=float) * itemsize <= 200_000
    assert len(glimpse.shape_of(part)) <= (3 if shape[-1] in (3, 4) and kind in "uf" else 2)
    assert min(glimpse.shape_of(part), default=1) >= 1


def test_a_png_is_one(tmp_path: Any) -> None:
    from PIL import Image

    drawn = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype("u1")
    path = tmp_path / "x.png"
    path.write_bytes(pictures.png(drawn))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), drawn)


@given(numpy_strategies.arrays("f8", st.integers(1, 50)))
@settings(max_examples=examples(200))
def test_any_numbers_are_drawn(numbers: Any) -> None:
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    seen(pictures.line(numbers, low, high))
    if high > low:
        seen(pictures.histogram(numbers, low, high))
    assert "nan" not in pictures.line(numbers, low, high)
    assert pictures.line_pixels(numbers, low, high).shape == (140, 360, 3)
