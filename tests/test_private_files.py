"""Others who could change or replace a file: owners and modes of it, and of what leads to it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import others
import pytest

from tensorage import private_files
from tensorage.private_files import (
    Flaw,
    flaw_of_file,
    flaw_of_private_folder,
    flaw_on_way,
    make_private_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "above" / "folder"
    folder.mkdir(parents=True)
    return folder


def found(flaw: Flaw | None) -> Flaw:
    assert flaw is not None
    return flaw


def flaw_of(path: Path, *, is_private: bool = False) -> Flaw | None:
    return flaw_of_file(path, path.stat(), is_private=is_private)


class TestTheWay:
    def test_is_sound(self, folder: Path) -> None:
        for path in (folder / "file", folder / "not" / "there", folder / ".." / "folder" / "file", folder):
            assert flaw_on_way(path) is None

    def test_others_may_write_to_a_folder_above(self, folder: Path) -> None:
        folder.parent.chmod(0o777)
        flaw = found(flaw_on_way(folder / "file"))
        assert (flaw.path, flaw.is_foreign) == (folder.parent, False)
        assert "0777" in flaw.why
        assert flaw.remedy == f"run `chmod go-w {folder.parent}`"
        folder.parent.chmod(0o755)
        assert flaw_on_way(folder / "file") is None

    def test_others_may_write_to_the_last_folder(self, folder: Path) -> None:
        folder.chmod(0o757)
        assert found(flaw_on_way(folder / "file")).path == folder
        # The end of the way is looked at by other functions.
        assert flaw_on_way(folder) is None

    def test_what_is_in_a_sticky_folder_stays_there(self, folder: Path) -> None:
        folder.parent.chmod(0o1777)
        assert flaw_on_way(folder / "file") is None

    @others.needs_root
    def test_another_users_folder(self, folder: Path) -> None:
        others.give_away(folder.parent)
        flaw = found(flaw_on_way(folder / "file"))
        assert (flaw.path, flaw.is_foreign) == (folder.parent, True)
        assert f"belongs to uid {others.UID}" in str(flaw)
        # A folder that is made anew in a sticky one is found, too.
        folder.parent.parent.chmod(0o1777)
        assert found(flaw_on_way(folder / "file")).path == folder.parent

    def test_links_are_followed(self, folder: Path, tmp_path: Path) -> None:
        for target in (folder, Path("above/folder"), Path("./above/../above/folder")):
            link = tmp_path / "link"
            link.symlink_to(target)
            assert flaw_on_way(link / "file") is None
            folder.parent.chmod(0o777)
            assert found(flaw_on_way(link / "file")).path == folder.parent
            assert found(flaw_on_way(link)).path == folder.parent
            folder.parent.chmod(0o755)
            link.unlink()

    @others.needs_root
    def test_another_users_link(self, folder: Path) -> None:
        shared = folder / "shared"
        shared.mkdir()
        shared.chmod(0o1777)
        target = folder / "target"
        target.mkdir(mode=0o700)
        (shared / "link").symlink_to(target)
        assert flaw_on_way(shared / "link") is None
        others.give_away(shared / "link")
        assert found(flaw_on_way(shared / "link")).path == shared / "link"
        assert found(flaw_on_way(shared / "link" / "below")).is_foreign

    def test_links_without_an_end(self, folder: Path) -> None:
        (folder / "a").symlink_to(folder / "b")
        (folder / "b").symlink_to(folder / "a")
        with pytest.raises(OSError, match="symbolic links"):
            flaw_on_way(folder / "a" / "file")


class TestGroups:
    def test_a_group_with_others_in_it(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "file").write_text("")
        (folder / "file").chmod(0o664)
        members = [user for user in pwd.getpwall() if user.pw_uid not in (0, os.geteuid())]
        if not members:
            pytest.skip("this machine has no other user")
        monkeypatch.setattr(
            grp, "getgrgid", lambda gid: grp.struct_group(("lab", "x", gid, [members[0].pw_name]))
        )
        assert "0664" in found(flaw_of(folder / "file")).why
        folder.chmod(0o775)
        assert found(flaw_on_way(folder / "file")).path == folder

    def test_a_group_of_this_user_alone(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "file").write_text("")
        (folder / "file").chmod(0o664)
        me = pwd.getpwuid(os.geteuid()).pw_name
        monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((me, "x", gid, [me])))
        monkeypatch.setattr(pwd, "getpwall", lambda: [pwd.getpwuid(os.geteuid())])
        assert flaw_of(folder / "file") is None

    def test_a_group_that_nobody_knows(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(gid: int) -> object:
            raise KeyError(gid)

        (folder / "file").write_text("")
        (folder / "file").chmod(0o664)
        monkeypatch.setattr(grp, "getgrgid", unknown)
        assert flaw_of(folder / "file") is not None


class TestFiles:
    @pytest.mark.parametrize("mode", [0o602, 0o646, 0o666, 0o777])
    def test_others_may_write(self, folder: Path, mode: int) -> None:
        (folder / "file").write_text("")
        (folder / "file").chmod(mode)
        flaw = found(flaw_of(folder / "file"))
        assert flaw.remedy == f"run `chmod go-w {folder / 'file'}`"

    def test_others_may_read(self, folder: Path) -> None:
        (folder / "file").write_text("")
        for mode in (0o604, 0o640, 0o644):
            (folder / "file").chmod(mode)
            assert flaw_of(folder / "file") is None
            assert "chmod 600" in str(found(flaw_of(folder / "file", is_private=True)).remedy)
        (folder / "file").chmod(0o600)
        assert flaw_of(folder / "file", is_private=True) is None

    @others.needs_root
    def test_another_users_file(self, folder: Path) -> None:
        (folder / "file").write_text("")
        others.give_away(folder / "file")
        assert found(flaw_of(folder / "file")).is_foreign


class TestPrivateFolders:
    @pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o777])
    def test_others_may_enter(self, folder: Path, mode: int) -> None:
        folder.chmod(mode)
        flaw = found(flaw_of_private_folder(folder))
        assert flaw.remedy == f"run `chmod 700 {folder}`"
        folder.chmod(0o700)
        assert flaw_of_private_folder(folder) is None

    @others.needs_root
    def test_another_users_folder(self, folder: Path) -> None:
        folder.chmod(0o700)
        others.give_away(folder)
        assert found(flaw_of_private_folder(folder)).is_foreign

    def test_are_made_private_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            make_private_folder(tmp_path / "a" / "b" / "c")
        finally:
            os.umask(before)
        for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            make_private_folder(tmp_path / "file" / "below")


class TestUserNamespaces:
    """Some sandboxes show folders of the system's root as those of a user whom they do not know."""

    @pytest.fixture(autouse=True)
    def _anew(self) -> Iterator[None]:
        private_files.unmapped_root_uids.cache_clear()
        yield
        private_files.unmapped_root_uids.cache_clear()

    @pytest.mark.parametrize(
        ("uid_map", "trusted"),
        [("0 0 4294967295\n", set()), ("1000 1000 1\n", {65534}), ("0 1000 1\n1 100000 65536\n", set())],
        ids=["none", "one user", "many users"],
    )
    def test_unmapped_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid_map: str, trusted: set[int]
    ) -> None:
        (tmp_path / "map").write_text(uid_map)
        (tmp_path / "overflow").write_text("65534\n")
        monkeypatch.setattr(private_files, "UID_MAP", tmp_path / "map")
        monkeypatch.setattr(private_files, "OVERFLOW_UID", tmp_path / "overflow")
        assert private_files.unmapped_root_uids() == trusted
