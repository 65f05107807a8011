"""Data folders that others own, can enter, or can put another one in the place of."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import others
import psutil
import pytest

import tensorage
from tensorage.embedded import control, postgres
from tensorage.embedded.folder import DataFolder, FolderError, ServerState
from tensorage.embedded.postgres import PostgresError

USES: dict[str, Callable[[Path], object]] = {
    "start": control.start,
    "status": control.status,
    "stop": control.stop,
    "reset": control.reset,
    "local": lambda path: tensorage.local(path, "ada@example.com", "SECRET"),
}


@pytest.fixture(params=USES.values(), ids=USES)
def use(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Something that is done with a data folder."""
    chosen: Callable[[Path], object] = request.param
    return chosen


def listed(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, but for locks, which hold nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.suffix != ".lock"
    }


def prepare(path: Path) -> Path:
    """A data folder whose server runs, as far as its files say: it would be joined."""
    folder = DataFolder.open(path)
    folder.make_secrets()
    me = psutil.Process(os.getppid())
    folder.write_state(
        ServerState(me.pid, me.create_time(), api_port=1, postgres_port=2, jwt_lifetime_s=3600, ready=True)
    )
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return prepare(tmp_path / "above" / "data")


def refused(use: Callable[[Path], object], path: Path, match: str) -> str:
    before = listed(path)
    with pytest.raises(FolderError, match=match) as caught:
        use(path)
    assert "is not used" in str(caught.value)
    assert "TENSORAGE_DATA_DIR" in str(caught.value)
    assert listed(path) == before
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o710, 0o701])
def test_others_can_enter(data_dir: Path, use: Callable[[Path], object], mode: int) -> None:
    data_dir.chmod(mode)
    said = refused(use, data_dir, f"can be entered or read by others .*{mode:04o}")
    assert f"Run `chmod 700 {data_dir}`, or choose another one" in said


def test_others_can_enter_a_folder_that_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(0o755)
    for use in (control.start, USES["local"]):
        refused(use, path, "can be entered")
    # Nothing is there yet that could be told, stopped or removed.
    assert control.status(path) is None
    assert not control.stop(path)


def test_others_can_replace_a_folder_above(data_dir: Path, use: Callable[[Path], object]) -> None:
    data_dir.parent.chmod(0o777)
    said = refused(use, data_dir, f"{data_dir.parent} can be written by others")
    assert f"chmod go-w {data_dir.parent}" in said
    data_dir.parent.chmod(0o1777)
    assert DataFolder.find(data_dir) is not None


@others.needs_root
def test_another_users_folder(data_dir: Path, use: Callable[[Path], object]) -> None:
    others.give_away(data_dir)
    for mode in (0o777, 0o700):
        data_dir.chmod(mode)
        refused(
            use, data_dir, rf"{data_dir} belongs to uid {others.UID}.*Work as uid {others.UID}, or choose"
        )


@others.needs_root
def test_another_users_folder_above(data_dir: Path, use: Callable[[Path], object]) -> None:
    others.give_away(data_dir.parent)
    refused(use, data_dir, rf"{data_dir.parent} belongs to uid {others.UID}")


@others.needs_root
def test_another_users_link(data_dir: Path, use: Callable[[Path], object]) -> None:
    link = data_dir.parent / "link"
    link.symlink_to(data_dir)
    found = DataFolder.find(link)
    assert found is not None
    assert found.path == data_dir
    others.give_away(link)
    refused(use, link, rf"{link} belongs to uid {others.UID}")


@others.needs_root
def test_a_file_that_another_user_left(data_dir: Path, use: Callable[[Path], object]) -> None:
    """The folder was open once: what others put into it then is not believed later."""
    for name in ("tensorage.json", "server.json", "secrets.json"):
        others.give_away(data_dir / name)
        if name != "secrets.json" or use in (USES["start"], USES["local"], USES["status"]):
            refused(use, data_dir, rf"{name} belongs to uid {others.UID}")
        os.chown(data_dir / name, os.geteuid(), os.getegid())


def test_a_file_that_others_can_write(data_dir: Path) -> None:
    (data_dir / "secrets.json").chmod(0o666)
    refused(control.start, data_dir, r"secrets\.json can be written by others")


def test_folders_that_are_made_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = prepare(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for made in (path, path.parent, *path.iterdir()):
        assert stat.S_IMODE(made.stat().st_mode) == (0o700 if made.is_dir() else 0o600)
    assert json.loads((path / "tensorage.json").read_text())


@others.needs_root
def test_root_does_not_run_another_users_database(tmp_path: Path) -> None:
    """Its configuration names programs, which would run with more rights than their owner has."""
    tmp_path.chmod(0o700)
    cluster = tmp_path / "postgres"
    cluster.mkdir()
    assert postgres.make_command_prefix(cluster)
    others.give_away(cluster)
    with pytest.raises(PostgresError, match=rf"another user \(uid {others.UID}\).*chown -R nobody"):
        postgres.make_command_prefix(cluster)
