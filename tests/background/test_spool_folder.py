"""The folder of a spool: entries as they were given, damage, limits, and processes that die. No backend."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_folder
import ml_dtypes
import numpy as np
import others
import pytest

from tensorage.background.changes import Change, Settings
from tensorage.background.spool.folder import Identity, SpoolFolder
from tensorage.background.spool.sync import list_left
from tensorage.background.spool.values import Loose, decode, encode
from tensorage.errors import InvalidInputError, SpoolDamagedError, SpoolError, SpoolFullError

ME = Identity("http://127.0.0.1:1", "8c3f2f6e-0000-4000-8000-000000000000")
SETTINGS = Settings("database")
RECORDS = np.array([(1, 2.5), (3, -1.0)], dtype=[("n", "<i4"), ("x", "<f8")])


def appending(value: Any, key: str = "x", **more: Any) -> Change:
    return Change("appending to", key, SETTINGS, value, **more)


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder.open(tmp_path / "spool", ME, None)


def change_of(folder: SpoolFolder, number: int) -> Change:
    entry = folder.read(number)
    assert entry is not None
    return entry.change()


# Values that come back --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="f4").reshape(3, 4),
        np.arange(12).reshape(3, 4)[::2, ::-1],
        np.array(3.5),
        np.empty((0, 7), "i2"),
        np.arange(5, dtype=">i8"),
        np.array([True, False]),
        np.array(["one", "zwölf"]),
        np.array([b"a", b"bcd"]),
        np.array(["2026-01-01", "NaT"], "M8[s]"),
        RECORDS,
        np.arange(4).astype(ml_dtypes.bfloat16),
        np.array([1 + 2j, 3]),
    ],
    ids=str,
)
def test_arrays_come_back(folder: SpoolFolder, array: np.ndarray[Any, Any]) -> None:
    given = array.copy()
    number = folder.add(appending(array))
    array[...] = np.zeros((), array.dtype)
    found = change_of(folder, number).value
    np.testing.assert_array_equal(found, given)
    assert (found.shape, found.dtype) == (given.shape, given.dtype.newbyteorder("<"))


def test_text_of_any_length_comes_back(folder: SpoolFolder) -> None:
    texts = np.array([["a", ""], ["ä" * 100, "\0b"]], object)
    for given in (texts, texts.astype(np.dtypes.StringDType())):
        found = change_of(folder, folder.add(appending(given))).value
        assert found.tolist() == texts.tolist()


@pytest.mark.parametrize(
    "value",
    [
        None, 5, 2.5, float("inf"), True, "text", b"bytes", 1 - 2j, ..., slice(None, -3, 2), [1, [2, 3.0]],
        [(1, 2.5), (3, "x")], (slice(2, None), ..., None, 4), np.float32(1.5), np.int64(7), np.str_("word"),
    ],
    ids=repr,
)  # fmt: skip
def test_values_and_selections_come_back(value: Any) -> None:
    arrays: list[np.ndarray[Any, Any]] = []
    found = decode(json.loads(json.dumps(encode(value, arrays))), arrays)
    assert found == value
    assert type(found) is type(value)


def test_arrays_within_a_selection_come_back() -> None:
    arrays: list[np.ndarray[Any, Any]] = []
    mask, rows = np.array([True, False]), np.array([3, 1])
    found = decode(json.loads(json.dumps(encode((mask, slice(3), rows, [np.arange(2)]), arrays))), arrays)
    assert found[1] == slice(3)
    np.testing.assert_array_equal(found[0], mask)
    np.testing.assert_array_equal(found[2], rows)
    np.testing.assert_array_equal(found[3][0], [0, 1])


def test_a_value_whose_dtype_nobody_chose_stays_one() -> None:
    arrays: list[np.ndarray[Any, Any]] = []
    found = decode(encode(Loose(np.array(3)), arrays), arrays)
    assert isinstance(found, Loose)
    assert np.asarray(found) == 3


@pytest.mark.parametrize("value", [object(), {1: 2}, [object()]], ids=["object", "dict", "list"])
def test_other_values_are_refused(folder: SpoolFolder, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="cannot wait in a spool"):
        folder.add(appending(value))
    assert folder.numbers() == []


def test_options_come_back(folder: SpoolFolder) -> None:
    options = {
        "attrs": {"units": "K"},
        "dims": ["t"],
        "chunks": (np.int64(4), 5),
        "codecs": [{"name": "bytes"}],
    }
    found = change_of(folder, folder.add(Change("storing", "x", SETTINGS, np.arange(3), options=options)))
    assert found.options == {**options, "chunks": [4, 5]}
    assert (found.verb, found.key, found.settings) == ("storing", "x", SETTINGS)
    with pytest.raises(InvalidInputError, match="cannot wait in a spool"):
        folder.add(appending([1], options={"chunks": object()}))


def test_entries_are_in_the_order_in_which_they_were_given(folder: SpoolFolder) -> None:
    numbers = [folder.add(appending([i])) for i in range(12)]
    assert numbers == sorted(numbers) == folder.numbers()
    assert [change_of(folder, number).value for number in numbers] == [[i] for i in range(12)]
    folder.remove(numbers[-1])
    again = SpoolFolder.open(folder.path, ME, None)
    # The number of one that is gone is not given again.
    assert again.add(appending([12])) == numbers[-1] + 1


def test_ids_of_operations_are_those_of_the_spool(folder: SpoolFolder, tmp_path: Path) -> None:
    other = SpoolFolder.open(tmp_path / "other", ME, None)
    ids = []
    for one in (folder, other):
        entry = one.read(one.add(appending([1])))
        assert entry is not None
        first, last = one.operations()
        assert uuid.UUID(entry.operation).version == uuid.UUID(first).version == uuid.UUID(last).version == 8
        assert first < entry.operation < last
        ids.append((first, last))
    assert ids[0] != ids[1]


# Damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 20, 60, -1])
def test_a_changed_byte_is_noticed(folder: SpoolFolder, at: int) -> None:
    number = folder.add(appending(np.arange(1000)))
    path = folder.path / f"{number:016d}.entry"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert folder.is_damaged(number)


@pytest.mark.parametrize("length", [0, 10, 100, -1])
def test_an_entry_that_was_cut_off_is_noticed(folder: SpoolFolder, length: int) -> None:
    number = folder.add(appending(np.arange(1000)))
    path = folder.path / f"{number:016d}.entry"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        SpoolDamagedError, match=rf"entry {number} of the spool .* is damaged: .* --skip-damaged"
    ):
        folder.read(number)
    [left] = list_left(folder.path)
    assert (left.number, left.state, left.what) == (number, "damaged", None)
    aside = folder.set_aside(number)
    assert aside.parent.name == "damaged"
    assert folder.numbers() == []


def test_an_entry_of_another_spool_is_not_sent(folder: SpoolFolder, tmp_path: Path) -> None:
    """It may be of another project or user, and the database would not be asked whether it was done."""
    other = SpoolFolder.open(tmp_path / "other", Identity("http://127.0.0.1:2", ME.user_id), None)
    number = other.add(appending([1]))
    name = f"{number:016d}.entry"
    (other.path / name).rename(folder.path / name)
    with pytest.raises(SpoolDamagedError, match="written for another spool"):
        folder.read(number)
    assert [left.state for left in list_left(folder.path)] == ["damaged"]
    assert folder.is_damaged(number)


def test_a_damaged_marker_is_an_error(folder: SpoolFolder) -> None:
    folder.add(appending([1]))
    (folder.path / "tensorage-spool").write_text("{")
    with pytest.raises(SpoolError, match="is damaged, so that nobody can tell whose spool this is"):
        SpoolFolder.open(folder.path, ME, None)
    assert folder.numbers() == [1]


# Folders that are no spool of this user ------------------------------------------------------------------


def test_another_project_or_user(folder: SpoolFolder) -> None:
    there = Identity("http://127.0.0.1:2", ME.user_id)
    with pytest.raises(
        SpoolError, match=r"is of the project http://127.0.0.1:1, and this login of .*:2.*--moved"
    ):
        SpoolFolder.open(folder.path, there, None)
    somebody = Identity(ME.url, str(uuid.uuid4()))
    with pytest.raises(SpoolError, match=rf"is of user {ME.user_id} .*, and not of user {somebody.user_id}"):
        SpoolFolder.open(folder.path, somebody, None)
    with pytest.raises(SpoolError, match="and not of user"):
        folder.move_to(somebody)
    folder.move_to(there)
    assert SpoolFolder.open(folder.path, there, None).spool == folder.spool


def test_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(SpoolError, match=r"holds other files, such as 'thesis\.tex'"):
        SpoolFolder.open(tmp_path / "mine", ME, None)
    with pytest.raises(SpoolError, match="there is no spool in"):
        SpoolFolder.join(tmp_path / "mine")
    with pytest.raises(SpoolError, match="there is no spool in"):
        SpoolFolder.join(tmp_path / "not there")
    with pytest.raises(SpoolError, match="cannot be used"):
        SpoolFolder.open(tmp_path / "mine" / "thesis.tex", ME, None)


def test_a_folder_that_others_can_enter(folder: SpoolFolder) -> None:
    folder.path.chmod(0o755)
    for opened in (lambda: SpoolFolder.open(folder.path, ME, None), lambda: SpoolFolder.join(folder.path)):
        with pytest.raises(SpoolError, match=r"can be entered or read by others .* Run `chmod 700"):
            opened()


def test_files_are_for_this_user_alone(folder: SpoolFolder) -> None:
    folder.add(appending([1]))
    folder.fail(1, ValueError("no"))
    with folder.sending():
        pass
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == dict.fromkeys(
        ["tensorage-spool", "adding", "sending", "0000000000000001.entry", "0000000000000001.failed"], 0o600
    )


@pytest.mark.parametrize("damage", [0, 7, 15])
def test_damaged_counters_lose_nothing(folder: SpoolFolder, damage: int) -> None:
    """Numbers without end, numbers that are taken, and bytes that cannot be counted further."""
    counters = folder.path / "adding"
    folder.add(appending([1]))
    other = SpoolFolder.open(folder.path, ME, 10**9)
    other.add(appending([2]))
    other.add(appending([3]))
    content = bytearray(counters.read_bytes())
    content[damage] = 255 if damage else 1
    counters.write_bytes(content)
    folder.add(appending([4]))
    SpoolFolder.open(folder.path, ME, 10**9).add(appending([5]))
    other.add(appending([6]))
    counters.unlink()
    folder.add(appending([7]))
    assert [change_of(folder, n).value for n in folder.numbers()] == [[n] for n in range(1, 8)]


def test_a_spool_without_further_numbers_takes_nothing(folder: SpoolFolder) -> None:
    number = folder.add(appending([1]))
    (folder.path / f"{number:016d}.entry").rename(folder.path / f"{'9' * 16}.entry")
    with pytest.raises(SpoolError, match=r"no number left .* not taken"):
        SpoolFolder.open(folder.path, ME, None).add(appending([2]))
    assert len(folder.numbers()) == 1
    assert list(folder.path.glob("*.unfinished")) == []


# Room -------------------------------------------------------------------------------------------------------


def test_a_full_spool_is_an_error_at_the_write_that_meets_it(tmp_path: Path) -> None:
    folder = SpoolFolder.open(tmp_path / "spool", ME, 50_000)
    other = SpoolFolder.open(tmp_path / "spool", ME, None)
    array = np.zeros(1000)
    for _ in range(3):
        folder.add(appending(array))
    # Another process adds without a limit.
    others_one = other.add(appending(array))
    folder.add(appending(array))
    with pytest.raises(
        SpoolFullError, match=r"has 41.* KiB of at most 48.* KiB, .* takes 8.*It was not taken"
    ):
        folder.add(appending(array))
    assert len(folder.numbers()) == 5
    folder.remove(others_one)
    folder.add(appending(array))
    with pytest.raises(SpoolFullError, match="not taken"):
        folder.add(appending(np.zeros(10_000)))
    assert list(folder.path.glob("*.unfinished")) == []


def test_a_full_disk_is_an_error_at_the_write_that_meets_it(tmp_path: Path) -> None:
    with cache_folder.small_disk(tmp_path / "disk", "1m"):
        folder = SpoolFolder.open(tmp_path / "disk" / "spool", ME, None)
        folder.add(appending(np.zeros(50_000)))
        with pytest.raises(
            SpoolFullError, match=r"the disk of the spool in .* has no room .*It was not taken"
        ):
            folder.add(appending(np.zeros(100_000)))
        assert folder.numbers() == [1]
        assert list(folder.path.glob("*.unfinished")) == []
        folder.add(appending(np.zeros(50_000)))
        np.testing.assert_array_equal(change_of(folder, 1).value, np.zeros(50_000))


# Processes that die --------------------------------------------------------------------------------------


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do some work in a child that kills itself at a step: a call that changes the disk. True if it came so far."""
    child = os.fork()
    if child == 0:
        steps = iter(range(step))

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("pwrite", "fsync", "open", "posix_fallocate", "ftruncate"):
            setattr(os, name, counted(getattr(os, name)))
        for name in ("rename", "unlink", "mkdir"):
            setattr(Path, name, counted(getattr(Path, name)))
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_kill_at_any_step_loses_nothing_that_was_taken(tmp_path: Path) -> None:
    given = [np.arange(20_000) + i for i in range(3)]
    step = 0
    while True:
        path, taken = tmp_path / f"spool{step}", tmp_path / f"taken{step}"
        taken.touch()

        def work(path: Path = path, taken: Path = taken) -> None:
            folder = SpoolFolder.open(path, ME, 10**9)
            for array in given:
                folder.add(appending(array))
                with taken.open("a") as file:
                    file.write("x")

        was_killed = killed_at(step, work)
        folder = SpoolFolder.open(path, ME, None)
        found = [change_of(folder, number).value for number in folder.numbers()]
        # One whose call has not returned may be there, or not: never a part of it.
        count = len(taken.read_text())
        assert count <= len(found) <= count + 1
        for array, expected in zip(found, given, strict=False):
            np.testing.assert_array_equal(array, expected)
        assert list(folder.path.glob("*.unfinished")) == []
        # The next one comes behind.
        number = folder.add(appending([7]))
        assert number == folder.numbers()[-1]
        if not was_killed:
            break
        step += 1
    assert step > 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_one_process_sends_at_a_time(folder: SpoolFolder) -> None:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with folder.sending() as is_held:
            os.write(ready[1], b"1" if is_held else b"0")
            os.read(go[0], 1)
        os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    with folder.sending() as is_held:
        assert not is_held
        assert folder.sender() == f"process {child}"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with folder.sending() as is_held:
        assert is_held
        # A forked child does not keep it.
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            os._exit(0)
    with folder.sending() as is_held:
        assert is_held
    os.write(go[1], b"1")
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_keep_the_lock_of_a_parent_that_died(folder: SpoolFolder) -> None:
    """Workers of a loop are forked while entries are sent, and may outlive it."""
    ready, go = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        with folder.sending():
            if os.fork() == 0:
                os.write(ready[1], b"1")
                os.read(go[0], 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(ready[0], 1) == b"1"
    with folder.sending() as is_held:
        assert is_held
    os.write(go[1], b"1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_many_processes_add_at_once(folder: SpoolFolder) -> None:
    children = []
    for writer in range(4):
        child = os.fork()
        if child == 0:
            own = SpoolFolder.open(folder.path, ME, None)
            for i in range(20):
                own.add(appending([writer, i]))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    values = [change_of(folder, number).value for number in folder.numbers()]
    assert len(values) == 80
    for writer in range(4):
        assert [i for by, i in values if by == writer] == list(range(20))


def test_a_folder_of_somebody_else(folder: SpoolFolder) -> None:
    others.give_away(folder.path)
    with pytest.raises(SpoolError, match=r"is not used: .* belongs to"):
        SpoolFolder.join(folder.path)
