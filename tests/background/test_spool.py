"""Background writers with a spool: what they store, their errors, outages, and several of them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from cache_folder import small_disk
from gate import Gate
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import TensorStore
from tensorage.backend.staging import as_operation
from tensorage.background.changes import Change, Settings, Stores
from tensorage.background.spool import sending
from tensorage.background.spool.folder import Identity, SpoolFolder
from tensorage.background.spool.sync import list_left, sync
from tensorage.errors import (
    BackendUnavailableError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
)
from tensorage.types import Engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.entry"))


def states(folder: Path) -> list[tuple[int, str, str | None]]:
    return [(left.number, left.state, left.what) for left in list_left(folder)]


@pytest.fixture
def away(project: Project, user: User) -> Iterator[TensorStore]:
    """A store whose backend is away until its session has the right URL again, and that waits for nobody."""
    session = project.session(user)
    session.login_by_mail()
    store = TensorStore(session, quiet=True)
    assert len(store) == 0
    session.patience_s = 0
    session.transfer.http.base_url = "http://127.0.0.1:9"
    yield store
    session.transfer.http.base_url = project.url
    session.logout()


# Changes that are stored -----------------------------------------------------------------------------------------


def test_it_stores_what_a_store_does(store: TensorStore, folder: Path) -> None:
    weights = np.arange(12.0).reshape(3, 4)
    with store.background(spool=folder) as bg:
        bg["w"] = weights
        bg["w", 1] = 5
        bg["w", np.array([0, 2]), ::2] = [[1, 2], [3, 4]]
        weights[...] = -1
        bg["n"] = 7
        bg["texts"] = np.array(["a", "bcd"], object)
        bg["records"] = np.zeros(1, [("n", "<i4"), ("x", "<f8")])
        bg.append("records", [(3, 2.5)])
        bg.append("rows", np.ones((2, 3), "f4"), create=True)
        bg.append("rows", [[2, 2, 2]])
        bg.write("named", np.arange(6).reshape(2, 3), attrs={"units": "K"}, dims=["t", "x"])
        bg["gone"] = [1]
        del bg["gone"]
        bg.flush()
        assert entries(folder) == []
    expected = np.arange(12.0).reshape(3, 4)
    expected[1] = 5
    expected[np.array([0, 2]), ::2] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(store["w"], expected)
    assert store["n"] == 7
    assert store["texts"].tolist() == ["a", "bcd"]
    assert store["records"].tolist() == [(0, 0.0), (3, 2.5)]
    np.testing.assert_array_equal(store["rows"], [[1, 1, 1], [1, 1, 1], [2, 2, 2]])
    assert store["rows"].dtype == np.dtype("f4")
    named = store.open("named")
    assert (named.attrs, named.dims) == ({"units": "K"}, ("t", "x"))
    assert store.keys() == ["n", "named", "records", "rows", "texts", "w"]


def test_labels_come_along(store: TensorStore, folder: Path) -> None:
    first = xarray.DataArray(
        np.arange(6.0).reshape(2, 3), dims=("t", "x"), coords={"t": [1, 2]}, name="a", attrs={"units": "K"}
    )
    second = first.assign_coords(t=[3, 4])
    with store.background(spool=folder) as bg:
        bg["stored"] = first
        bg.append("stored", second)
        bg.append("made", first, create=True)
        bg.append("made", second, create=True)
    whole = xarray.concat([first, second], "t")
    for key in ("stored", "made"):
        xarray.testing.assert_identical(store.open(key).to_xarray(), whole)


def test_groups_and_settings_of_the_store(rows: TensorStore, folder: Path) -> None:
    run = tensorage.TensorStore(rows.backend, quiet=True, chunk_size=10, allow_overwrite=True, prefix="run/")
    with run.background(spool=folder) as bg:
        bg["w"] = np.zeros(100)
        bg["w"] = np.ones(100)
        bg.append("w", [2.0])
    assert rows.keys() == ["run/w"]
    assert rows.open("run/w").dataset.block_size == 10
    assert rows["run/w"].sum() == 102


def test_operations_of_one_key_are_in_order(store: TensorStore, folder: Path) -> None:
    with store.background(spool=folder) as bg:
        for key in "ab":
            bg[key] = np.zeros(0)
        for i in range(40):
            bg.append("ab"[i % 2], [i])
    assert store["a"].tolist() == list(range(0, 40, 2))
    assert store["b"].tolist() == list(range(1, 40, 2))


def test_a_mistake_that_shows_at_once_leaves_no_entry(rows: TensorStore, folder: Path) -> None:
    with rows.background(spool=folder) as bg:
        with pytest.raises(tensorage.DTypeError):
            bg["x"] = np.array([object()])
        with pytest.raises(InvalidInputError):
            bg["x", object()] = 1
        with pytest.raises(InvalidInputError):
            bg[""] = [1]
    assert entries(folder) == []
    assert len(rows) == 0


def test_limits_are_checked(rows: TensorStore, folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="give spool= as well"):
        rows.background(spool_bytes=100)
    with pytest.raises(InvalidInputError, match="spool_bytes=0"):
        rows.background(spool=folder, spool_bytes=0)
    with rows.background() as bg, pytest.raises(InvalidInputError, match="arrays would be lost"):
        bg.close(wait=False)


# Errors of entries ---------------------------------------------------------------------------------------


def test_an_error_stays_in_the_folder_until_somebody_decides(rows: TensorStore, folder: Path) -> None:
    rows["taken"] = [1]
    bg = rows.background(spool=folder)
    bg["taken"] = [2]
    with pytest.raises(KeyExistsError) as caught:
        bg.flush()
    assert any(f"kept as entry 1 of the spool {folder}" in note for note in caught.value.__notes__)
    # Other keys go on, and the same one waits.
    bg["free"] = [3]
    bg.append("taken", [4])
    with pytest.raises(SpoolError, match=r"entry 3 .* waits behind entry 1 .*KeyExistsError.*--drop 1"):
        bg.flush()
    with pytest.raises(SpoolError, match="waits behind"):
        bg.close()
    assert rows["free"].tolist() == [3]
    assert states(folder) == [(1, "failed", "storing 'taken'"), (3, "behind", "appending to 'taken'")]
    # The error lasts.
    assert [left.number for left in sync(folder, rows)] == [1, 3]
    assert [left.number for left in sync(folder, rows, retry=True)] == [1, 3]
    assert sync(folder, rows, drop=[1]) == []
    assert rows["taken"].tolist() == [1, 4]


def test_an_error_that_has_passed_is_retried(rows: TensorStore, folder: Path) -> None:
    bg = rows.background(spool=folder)
    bg.append("late", [1])
    bg.append("late", [2])
    with pytest.raises(KeyNotFoundError):
        bg.close()
    assert [state for _, state, _ in states(folder)] == ["failed", "behind"]
    rows["late"] = [0]
    done: list[str] = []
    assert sync(folder, rows, retry=True, on_done=lambda entry: done.append(str(entry))) == []
    assert done == ["appending to 'late'"] * 2
    assert rows["late"].tolist() == [0, 1, 2]


def test_the_next_call_raises_and_takes_nothing(rows: TensorStore, folder: Path) -> None:
    rows["taken"] = [1]
    with rows.background(spool=folder) as bg:
        bg["taken"] = [2]
        while not list(folder.glob("*.failed")):
            threading.Event().wait(0.01)
        while not bg.workers.failures:
            threading.Event().wait(0.01)
        with pytest.raises(KeyExistsError) as caught:
            bg["free"] = [3]
        assert any("storing 'free' was not begun" in note for note in caught.value.__notes__)
        assert len(entries(folder)) == 1


def test_errors_of_an_earlier_writer_are_logged(
    rows: TensorStore, folder: Path, caplog: pytest.LogCaptureFixture, away: TensorStore
) -> None:
    assert away.background(spool=folder).close() == 0
    bg = away.background(spool=folder)
    bg.append("not there", [1])
    bg.close(wait=False)
    away.backend.transfer.http.base_url = rows.backend.transfer.http.base_url
    with rows.background(spool=folder) as later:
        later["x"] = [1]
    assert "(appending to 'not there') failed: KeyNotFoundError" in caplog.text
    assert states(folder) == [(1, "failed", "appending to 'not there'")]


def test_a_damaged_entry_stops_what_comes_after_it(
    rows: TensorStore, folder: Path, away: TensorStore
) -> None:
    bg = away.background(spool=folder)
    for i in range(4):
        bg[f"x/{i}"] = np.full(1000, i)
    assert bg.close(wait=False) == 4
    path = entries(folder)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpoolDamagedError, match=r"entry 2 .*--skip-damaged"):
        sync(folder, rows)
    # Entries that were given to the workers before its elements were read may be under way.
    assert "x/1" not in rows
    cut = entries(folder)[0] if entries(folder)[0] != path else path
    cut.write_bytes(cut.read_bytes()[:50])
    with rows.background(spool=folder) as later:
        later["y"] = [1]
        with pytest.raises(SpoolDamagedError):
            later.flush()
        with pytest.raises(SpoolDamagedError):
            later.close()
    assert "y" not in rows
    assert sync(folder, rows, skip_damaged=True) == []
    assert rows["y"].tolist() == [1]
    assert [path.name for path in (folder / "damaged").iterdir()] == [cut.name]


def test_a_full_folder_is_an_error_at_the_write_that_meets_it(away: TensorStore, folder: Path) -> None:
    bg = away.background(spool=folder, spool_bytes=20_000)
    bg["a"] = np.zeros(1000)
    bg["b"] = np.zeros(1000)
    with pytest.raises(SpoolFullError, match="It was not taken"):
        bg["c"] = np.zeros(1000)
    assert bg.close(wait=False) == 2


def test_an_error_that_finds_no_room_on_the_disk_stops_no_other_key(
    rows: TensorStore, tmp_path: Path
) -> None:
    """The rest makes room, so that the error can be noted."""
    rows.update({"taken": [1], "rest": np.zeros(0)})
    with small_disk(tmp_path / "disk", "1m"):
        folder = SpoolFolder.open(tmp_path / "disk" / "spool", Identity.of(rows.arrays.project), None)
        for key in ("taken", "rest"):
            verb: Any = "storing" if key == "taken" else "appending to"
            folder.add(Change(verb, key, Settings("database"), np.ones(40_000)))
        folder.add(Change("appending to", "taken", Settings("database"), np.ones(3)))
        with (folder.path / "of others").open("wb", buffering=0) as others, contextlib.suppress(OSError):
            while True:
                others.write(bytes(4096))
        for _ in range(2):
            assert [left.what for left in sync(folder.path, rows)] == [
                "storing 'taken'",
                "appending to 'taken'",
            ]
        assert [state for _, state, _ in states(folder.path)] == ["failed", "behind"]
    assert rows["rest"].tolist() == [1] * 40_000
    assert rows["taken"].tolist() == [1]


def test_another_user(rows: TensorStore, folder: Path, project: Project) -> None:
    rows.background(spool=folder).close()
    session = project.session(project.register())
    session.login_by_mail()
    other = TensorStore(session, quiet=True)
    for act in (lambda: other.background(spool=folder), lambda: sync(folder, other)):
        with pytest.raises(SpoolError, match="and not of user"):
            act()
    session.logout()


# Outages -------------------------------------------------------------------------------------------------


def test_an_outage_loses_nothing(
    away: TensorStore, rows: TensorStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bg = away.background(spool=folder)
    for i in range(5):
        bg.append("x", [i], create=True)
    with pytest.raises(BackendUnavailableError) as caught:
        bg.flush()
    assert any("5 entries left in the spool" in note for note in caught.value.__notes__)
    # The loop goes on, and the end of it is no error.
    bg.append("x", [5], create=True)
    assert bg.close() == 6
    assert (
        f"6 entries left in the spool {folder}: `tensorage sync {folder}` sends what is there" in caplog.text
    )
    assert sync(folder, rows) == []
    assert rows["x"].tolist() == list(range(6))


def test_a_writer_goes_on_when_the_backend_is_back(
    away: TensorStore, project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(sending, "LONGEST_PAUSE_S", 0.05)
    with away.background(spool=folder) as bg:
        bg.append("x", [1], create=True)
        with pytest.raises(BackendUnavailableError):
            bg.flush()
        away.backend.transfer.http.base_url = project.url
        bg.append("x", [2], create=True)
        # Without a flush, too.
        while entries(folder):
            threading.Event().wait(0.01)
    assert away["x"].tolist() == [1, 2]


@pytest.mark.parametrize("engine", ["database"])
def test_ctrl_c_at_the_end_keeps_the_rest(
    gated: TensorStore, gate: Gate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bg = gated.background(spool=folder)
    bg["a"] = [1]
    bg.flush()
    gate.close()
    for i in range(10):
        bg.append("a", [i])
    gate.wait_for(1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    assert bg.sender is not None
    monkeypatch.setattr(bg.sender, "flush", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        bg.close()
    assert caught.value.__notes__ == [f"background writer: 10 entries left in the spool {folder}"]
    gate.open()
    # The one that is under way ends, and no other begins.
    while any(thread.name == "tensorage-spool" for thread in threading.enumerate()):
        threading.Event().wait(0.01)
    assert len(entries(folder)) == 9
    assert sync(folder, gated) == []
    assert gated["a"].tolist() == [1, *range(10)]


# Exactly once ---------------------------------------------------------------------------------------------


def count_kept(store: TensorStore, folder: Path) -> int:
    first, last = SpoolFolder.join(folder).operations()
    asked = {"first": first, "last": last}
    return len(store.backend.transfer.call("tensorage_answered", asked, "looking"))


def test_the_database_is_told_what_it_may_forget(rows: TensorStore, folder: Path) -> None:
    bg = rows.background(spool=folder)
    bg["x"] = np.zeros(0)
    bg.append("x", [1])
    bg.flush()
    assert count_kept(rows, folder) == 2
    bg.close()
    assert count_kept(rows, folder) == 0


def test_a_close_waits_for_the_thread_that_tells_the_database(
    project: Project, user: User, rows: TensorStore, folder: Path
) -> None:
    def hold(head: bytes) -> bytes:
        if b"/tensorage_acknowledge " in head:
            time.sleep(0.2)
        return head

    with contextlib.closing(Proxy(project.url, changes=hold)) as proxy:
        session = Project(proxy.url, project.key).session(user)
        bg = TensorStore(session, quiet=True).background(spool=folder)
        bg["x"] = [1]
        bg.flush()
        bg.sender.stop()

        def join(_: int) -> int:
            bg.sender.join()
            return count_kept(rows, folder)

        # One of them tells the database, as the thread that sends may do.
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(join, range(2))) == [0, 0]
        bg.close()
        session.logout()


def test_the_database_remembers_what_a_writer_that_is_closed_has_left(
    project: Project, user: User, rows: TensorStore, folder: Path
) -> None:
    """Entries whose process was killed when they were done wait behind others when the next writer is closed."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def hold(head: bytes) -> bytes:
        if b"/tensorage_append " in head:
            begun.release()
            assert go_on.wait(60)
        return head

    keys = "abcdef"
    rows.update({key: np.zeros(0) for key in keys})
    spool = SpoolFolder.open(folder, Identity.of(rows.arrays.project), None)
    for key in keys:
        spool.add(Change("appending to", key, Settings("database"), [1.0]))
    for number in spool.numbers()[4:]:
        make(spool, number, rows)
    with contextlib.closing(Proxy(project.url, changes=hold)) as proxy:
        session = Project(proxy.url, project.key).session(user)
        spool.move_to(Identity(proxy.url, session.user_id))
        bg = TensorStore(session, quiet=True).background(spool=folder)
        for _ in range(4):
            assert begun.acquire(timeout=60)
        bg.close(wait=False)
        go_on.set()
        bg.sender.join()
        session.logout()
    assert [left.key for left in list_left(folder)] == ["e", "f"]
    assert count_kept(rows, folder) == 2
    assert sync(folder, rows, is_moved=True) == []
    assert [rows[key].tolist() for key in keys] == [[1]] * 6
    assert count_kept(rows, folder) == 0


def test_rows_that_another_process_has_appended_get_their_labels(rows: TensorStore, folder: Path) -> None:
    """A process that is killed between the two steps of an entry that was given here, and that nobody has asked for."""
    first = xarray.DataArray(np.arange(6.0).reshape(2, 3), dims=("t", "x"), coords={"t": [1, 2]})
    rows["x"] = first
    killed = SpoolFolder.open(folder, Identity.of(rows.arrays.project), None)
    with rows.background(spool=folder) as bg:
        bg["warm"] = [1]
        bg.flush()
        with contextlib.ExitStack() as held:
            # The thread that has sent the first entry is about to give the lock up.
            while not held.enter_context(killed.sending()):
                time.sleep(0.001)
            bg.append("x", first.assign_coords(t=[3, 4]))
            [number] = killed.numbers()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tensorage.adapters.labelled.label_rows", die)
                with pytest.raises(Killed):
                    make(killed, number, rows)
        assert rows.open("x").shape == (4, 3)
        bg.flush()
    xarray.testing.assert_identical(
        rows.open("x").to_xarray(), xarray.concat([first, first.assign_coords(t=[3, 4])], "t")
    )


class Killed(BaseException):
    """The end of a process that is killed."""


def die(*_arguments: Any) -> None:
    raise Killed


def make(folder: SpoolFolder, number: int, store: TensorStore) -> None:
    """Make the change of an entry, as a process that is killed before it can delete the entry."""
    entry = folder.read(number)
    assert entry is not None
    with as_operation(entry.operation):
        entry.change().make(Stores(store))


def test_what_was_done_and_not_heard_of_is_not_done_again(
    rows: TensorStore, folder: Path, tmp_path: Path
) -> None:
    """Entries whose files came back, as after a crash of the machine before their deletion was on the disk."""
    copies = tmp_path / "copies"
    copies.mkdir()
    bg = rows.background(spool=folder)
    bg["x"] = np.zeros(2)
    bg["gone"] = [1]
    bg.flush()
    add = SpoolFolder.add

    def keep_copy(self: SpoolFolder, *arguments: Any) -> int:
        number = add(self, *arguments)
        name = f"{number:016d}.entry"
        (copies / name).write_bytes((folder / name).read_bytes())
        return number

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(SpoolFolder, "add", keep_copy)
        patch.setattr(sending.Sender, "kick", lambda _self, **_how: None)
        bg.append("x", [1.0])
        bg["x", 0] = 5
        bg["new"] = [1]
        del bg["gone"]
    bg.flush()
    # Others change the arrays meanwhile, so that some entries could not even be made again.
    del rows["new"]
    rows["x", 0] = 6
    for copy in copies.iterdir():
        copy.rename(folder / copy.name)
    assert sync(folder, rows) == []
    assert rows["x"].tolist() == [6, 0, 1]
    assert rows.keys() == ["x"]
    assert count_kept(rows, folder) == 0
    bg.close()


def test_two_writers_of_one_folder(rows: TensorStore, folder: Path) -> None:
    with rows.background(spool=folder) as one, rows.background(spool=folder) as two:
        one["x"] = np.zeros(0)
        one.flush()
        for i in range(20):
            (one, two)[i % 2].append("x", [i])
        two.flush()
        one.flush()
        assert entries(folder) == []
    assert rows["x"].tolist() == list(range(20))


@pytest.mark.parametrize("engine", ["database"])
def test_a_writer_that_does_not_send_gets_its_errors_all_the_same(
    gated: TensorStore, gate: Gate, folder: Path
) -> None:
    gated["taken"] = [1]
    with gated.background(spool=folder) as sender, gated.background(spool=folder) as other:
        gate.close()
        sender["a"] = [1]
        gate.wait_for(1)
        other["taken"] = [2]
        other["b"] = [1]
        waits = threading.Thread(target=sender.flush)
        waits.start()
        gate.open()
        with pytest.raises(KeyExistsError):
            other.flush()
        waits.join()
    assert sorted(gated) == ["a", "b", "taken"]


def test_lost_answers(project: Project, user: User, folder: Path, engine: Engine) -> None:
    lost: set[str] = set()

    def loses(exchange: Exchange) -> bool:
        """Lose the first answer of each kind."""
        is_first = exchange.target.startswith("/rest/") and exchange.kind not in lost
        lost.add(exchange.kind)
        return is_first

    proxy = Proxy(project.url, loses)
    session = Project(proxy.url, project.key).session(user)
    store = TensorStore(session, quiet=True, engine=engine)
    with store.background(spool=folder) as bg:
        bg["x"] = np.zeros(3)
        for i in range(5):
            bg.append("x", [i])
            bg["x", 0] = i
    assert store["x"].tolist() == [4, 0, 0, 0, 1, 2, 3, 4]
    assert {"answered", "acknowledge"} <= lost
    del store["x"]
    session.logout()
    proxy.close()


def test_an_unclosed_writer_sends_and_says_so(rows: TensorStore, folder: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    writers = [rows.background(spool=folder)]
    writers[0]["x"] = [1]
    with pytest.warns(ResourceWarning, match="was not closed"):
        writers.clear()
    while entries(folder):
        threading.Event().wait(0.01)
    assert rows["x"].tolist() == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_memory_does_not_grow_with_what_waits(away: TensorStore, folder: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much memory a process has")
    array = np.ones(4_000_000)
    bg = away.background(spool=folder)
    bg["first"] = array
    before = resident()
    for i in range(8):
        bg[f"x/{i}"] = array
    assert resident() - before < array.nbytes
    assert bg.close(wait=False) == 9
