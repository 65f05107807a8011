"""Each command, beyond its examples: what it prints, writes, changes and refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
from cli.conftest import Terminal
from PIL import Image
from project import Project, User

from tensorage import TensorStore
from tensorage.cli import entries, main
from tensorage.cli.completing import keys_below

GRID = np.arange(24 * 6 * 5, dtype="<i4").reshape(24, 6, 5)


def entry(key: str, **other: Any) -> dict[str, Any]:
    return {"kind": "array", "key": key, **other}


# Looking --------------------------------------------------------------------------------------------------


def test_ls(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.run("ls").stdout == ""
    keys = ["a", "exp", "exp-2", "exp/run1/loss", "exp/run1/w", "exp/run2/loss", "z/y/x"]
    terminal.store.update({key: [1.0, 2.0] for key in keys})
    for page in (1000, 2, 1):
        # The pages of answers: what lies behind a group is not fetched in between.
        monkeypatch.setattr(entries, "PAGE", page)
        assert terminal.run("ls").stdout.split() == ["a", "exp", "exp-2", "exp/", "z/"]
        assert terminal.run("ls", "exp").stdout.split() == ["exp/run1/", "exp/run2/"]
        assert terminal.run("ls", "-r", "exp/").stdout.split() == keys[3:6]
        assert terminal.run("ls", "exp/run1/", "a").stdout.split() == ["exp/run1/loss", "exp/run1/w", "a"]
        assert terminal.run("ls", "exp/*/loss").stdout.split() == ["exp/run1/loss", "exp/run2/loss"]
    long = terminal.run("ls", "-l", "exp/run1").stdout.splitlines()
    assert re.fullmatch(r"key +shape +dtype +stored +engine +owner +age", long[0])
    assert re.fullmatch(r"exp/run1/loss +\(2,\) +float64 +16 B +database +\S+@\S+ +\d+ (s|min)", long[1])
    for name in ("nothing", "exp/run3/", "*/nothing"):
        assert "there is no array" in terminal.refusal("ls", name, status=3) or name == "nothing"


def test_ls_as_json(terminal: Terminal, user: User) -> None:
    terminal.store.write("exp/x", GRID, attrs={"units": "K"}, dims=("t", "y", "x"))
    assert terminal.json("ls") == [{"kind": "group", "key": "exp/"}]
    (found,) = terminal.json("ls", "exp/")
    assert (found["kind"], found["key"], found["shape"], found["dtype"]) == (
        "array",
        "exp/x",
        [24, 6, 5],
        "int32",
    )
    assert (found["owner"], found["attrs"], found["dims"]) == (user.email, {"units": "K"}, ["t", "y", "x"])
    assert (found["stored_bytes"], found["engine"], found["is_shared"]) == (GRID.nbytes, "database", False)
    assert terminal.json("info", "exp/x") == {**found, "coords": [], "shares": [], "zarr": None}


def test_keys_that_steer_terminals(terminal: Terminal) -> None:
    terminal.store["evil\x1b[2J\nname"] = [1]
    for command in (["ls"], ["ls", "-l"], ["tree"], ["find", "*"], ["du"]):
        shown = terminal.run(*command).stdout
        assert "\x1b" not in shown
        assert "evil\\x1b[2J\\nname" in shown
    assert terminal.json("ls")[0]["key"] == "evil\x1b[2J\nname"


def test_tree_find_du_info_usage_whoami(terminal: Terminal, user: User) -> None:
    terminal.store.write("exp/t", GRID, attrs={"units": "K", "level": 500})
    terminal.store.write("exp/deep/u", GRID[0], attrs={"units": "K", "level": "500"})
    assert terminal.run("tree", "exp").stdout.splitlines() == [
        "exp",
        "├── deep/",
        "│   └── u  (6,5) int32",
        "└── t  (24,6,5) int32",
    ]
    assert terminal.json("tree")["exp/"]["t/"][""]["key"] == "exp/t"
    assert terminal.run("find", "--where", "units=K").stdout.split() == ["exp/deep/u", "exp/t"]
    assert terminal.run("find", "--where", "level=500").stdout.split() == ["exp/t"]
    assert terminal.run("find", "**/u", "--where", 'level="500"').stdout.split() == ["exp/deep/u"]
    assert terminal.json("find", "nothing*") == []
    assert "NAME=VALUE" in terminal.refusal("find", "--where", "units", status=2)
    sums = {"exp/deep/": GRID[0].nbytes, "exp/t": GRID.nbytes}
    assert {each["key"]: each["stored_bytes"] for each in terminal.json("du", "exp")} == sums
    assert terminal.run("du").stdout.splitlines()[-1].split()[-1] == "total"
    assert 'attr:     units = "K"' in terminal.run("info", "exp/t").stdout
    assert terminal.json("usage")["arrays"] == 2
    assert "arrays: 2, no quota" in terminal.run("usage").stdout
    said = terminal.json("whoami")
    assert (said["email"], said["id"]) == (user.email, user.id)


def test_arrays_of_somebody_else(terminal: Terminal, other: TensorStore) -> None:
    other["theirs/x"] = GRID
    owner = ("--owner", str(other.backend.email))
    # Nobody is told if there is such an account.
    assert terminal.run("ls", *owner).stdout == ""
    assert "KeyNotFoundError" in terminal.refusal("cat", "theirs/x", *owner, status=3)
    other.share("theirs/", str(terminal.environment["USER_EMAIL"]))
    assert terminal.run("ls", "-r", *owner).stdout == "theirs/x\n"
    assert terminal.run("cat", "theirs/x[0, 0, :2]", *owner).stdout == "0\n1\n"
    assert terminal.json("shares", "--with-me")[0]["key"] == "theirs/"
    terminal.run("cp", "theirs/x", "mine", *owner)
    np.testing.assert_array_equal(terminal.store["mine"], GRID)
    more = terminal.folder / "more.npy"
    np.save(more, GRID[:1])
    assert "PermissionDeniedError" in terminal.refusal("append", more, "theirs/x", *owner, status=4)


# Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    ["", "[10:20, :, 3]", "[3]", "[2, 1]", "[-1, 2, 1]", "[::-3]", "[5:5]", "[..., 0]", "[2, ::-1, None]",
     "[[3, 1], 2]", "[None]"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".zarr"])
def test_get(terminal: Terminal, selection: str, suffix: str) -> None:
    terminal.store["exp/x"] = GRID
    expected = eval(f"GRID{selection}", {"GRID": GRID})
    path = terminal.folder / f"part{suffix}"
    said = terminal.json("get", f"exp/x{selection}", "-o", path)
    assert said == {"key": "exp/x", "file": str(path), "shape": list(expected.shape), "dtype": "int32"}
    terminal.store.import_file(path, "back/")
    (key,) = [key for key in terminal.store.keys("back/") if key.rpartition("/")[2] in {"x", "part"}]
    np.testing.assert_array_equal(terminal.store[key], expected)
    assert os.listdir(terminal.folder) == [path.name]  # noqa: PTH208 - names alone


def test_get_in_blocks(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorage.interchange import grouped

    monkeypatch.setattr(grouped, "BLOCK_BYTES", 200)
    terminal.store["x"] = GRID
    for selection in ("", "[::-1, 2]", "[3:20:4, ..., None]", "[2]", "[4, 1:, ::2]"):
        done = terminal.run("get", f"x{selection}", "-o", "-")
        (terminal.folder / "x.npy").write_bytes(done.stdout_bytes)
        np.testing.assert_array_equal(
            np.load(terminal.folder / "x.npy"), eval(f"GRID{selection}", {"GRID": GRID})
        )


def test_get_text(terminal: Terminal) -> None:
    terminal.store["x"] = GRID
    terminal.store.write_ragged("words", ["cat", "a, dog", "tab\there"])
    terminal.store["flags"] = [True, False]
    terminal.store["times"] = np.array(["2026-01-01T00:00:00.000000001"], "M8[ns]")
    terminal.run("get", "x[0, :2, :3]", "-o", "x.csv")
    assert Path("x.csv").read_text() == "0,1,2\n5,6,7\n"
    assert terminal.run("get", "flags", "-o", "-", "--format", "csv").stdout == "True\nFalse\n"
    assert terminal.run("cat", "x[:2, :2, :2]").stdout == "0\t1\n5\t6\n\n30\t31\n35\t36\n"
    assert terminal.run("cat", "x[1, 1, 1]").stdout == "36\n"
    assert terminal.run("cat", "words").stdout == "cat\na, dog\ntab\\there\n"
    assert terminal.run("cat", "times").stdout == "2026-01-01T00:00:00.000000001\n"
    assert terminal.json("cat", "words[1]") == "a, dog"
    assert terminal.json("cat", "words[:2]") == ["cat", "a, dog"]
    assert terminal.json("cat", "x[0, 0]") == [0, 1, 2, 3, 4]
    # JSON has no form for these, and most readers of JSON refuse them.
    terminal.store["gaps"] = [1.0, np.nan, -np.inf]
    assert terminal.json("cat", "gaps") == [1.0, "nan", "-inf"]
    terminal.store["e/x"] = [1]
    for name in ("e", "e/"):
        for command in (("get", name, "-o", "e.npy"), ("cat", name), ("show", name)):
            assert "is a group" in terminal.refusal(*command, status=3)
    assert "CSV has rows and columns" in terminal.refusal("get", "x", "-o", "y.csv")
    assert "of any length" in terminal.refusal("get", "words", "-o", "y.npy")
    assert not Path("y.csv").exists()


def test_get_refuses(terminal: Terminal) -> None:
    terminal.store["x"] = GRID
    there = terminal.folder / "there.npy"
    there.write_bytes(b"years of work")
    assert "--force replaces it" in terminal.refusal("get", "x", "-o", there)
    assert "does not fit" in terminal.refusal("get", "x[99]", "-o", there, "--force")
    assert "does not fit" in terminal.refusal("get", "x[0, 0, 0, 0]", "-o", there, "--force")
    assert "KeyNotFoundError" in terminal.refusal("get", "nothing", "-o", there, "--force", status=3)
    assert "is no part of a selection" in terminal.refusal("get", "x[os.getcwd()]", "-o", there, status=2)
    assert "none of .npy" in terminal.refusal("get", "x", "-o", "x.txt", status=2)
    assert "no folder" in terminal.refusal("get", "x", "-o", "none/x.npy", status=3)
    assert there.read_bytes() == b"years of work"
    terminal.run("get", "x", "-o", there, "--force")
    np.testing.assert_array_equal(np.load(there), GRID)
    # A folder gets a file of the array's name.
    (terminal.folder / "folder").mkdir()
    terminal.run("get", "x", "-o", "folder")
    assert Path("folder/x.npy").exists()


# Writing --------------------------------------------------------------------------------------------------


def test_put_files(terminal: Terminal) -> None:
    np.save("x.npy", GRID)
    np.savez("one.npz", only=GRID)
    np.savez("two.npz", a=GRID, b=GRID)
    assert (
        terminal.run("put", "x.npy", "a", "--attr", "units=K", "--dims", "t,y,x").stdout
        == "stored a  (24, 6, 5) int32\n"
    )
    handle = terminal.store.open("a")
    assert (dict(handle.attrs), handle.dims) == ({"units": "K"}, ("t", "y", "x"))
    terminal.run("put", "x.npy", "exp/")
    terminal.run("put", "one.npz", "c")
    assert "has 2 arrays" in terminal.refusal("put", "two.npz", "d")
    assert [each["key"] for each in terminal.json("put", "two.npz", "d/")] == ["d/a", "d/b"]
    with h5py.File("one.h5", "w") as file:
        file.attrs["title"] = "of the file"
        file["only"] = GRID
        file["only"].attrs["units"] = "m"
    terminal.run("put", "one.h5", "h", "--attr", "level=3")
    assert dict(terminal.store.open("h").attrs) == {"units": "m", "level": 3}
    terminal.run("export", "d", "two.zarr")
    assert "has 2 arrays" in terminal.refusal("put", "two.zarr", "z")
    terminal.run("get", "a", "-o", "one.zarr")
    terminal.run("put", "one.zarr", "z", "--engine", "storage")
    for key in ("a", "exp/x", "c", "d/a", "d/b", "h", "z"):
        np.testing.assert_array_equal(terminal.store[key], GRID)
    assert "KeyExistsError" in (refused := terminal.refusal("put", "x.npy", "a"))
    assert "--force" in refused
    terminal.run("put", "x.npy", "a", "--force", "--engine", "storage", "-q")
    assert terminal.store.open("a").engine == "storage"


def test_put_streams_and_text(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorage.cli import streams

    monkeypatch.setattr(streams, "BLOCK_BYTES", 300)
    for name, array in {
        "c": GRID,
        "f": np.asfortranarray(GRID),
        "scalar": np.float32(3),
        "none": GRID[:0],
    }.items():
        np.save("x.npy", array)
        content = Path("x.npy").read_bytes()
        terminal.run("put", "-", name, stdin=content)
        np.testing.assert_array_equal(terminal.store[name], array)
    terminal.run("put", "-", "table", "--format", "csv", "--dtype", "int16", stdin="1,2\n3,4\n")
    assert (terminal.store["table"].dtype, terminal.store["table"].tolist()) == (
        np.dtype("i2"),
        [[1, 2], [3, 4]],
    )
    terminal.run("append", "-", "table", "--format", "csv", "--dtype", "int16", stdin="5,6\n")
    assert terminal.store["table"].tolist()[-1] == [5, 6]
    np.save("x.npy", GRID)
    content = Path("x.npy").read_bytes()
    assert "too early" in terminal.refusal("put", "-", "short", stdin=content[:-1])
    assert "is no .npy" in terminal.refusal("put", "-", "short", stdin=b"1,2\n")
    assert "no rows of float64" in terminal.refusal("put", "-", "short", "--format", "csv", stdin="a,b\n")
    np.save("x.npy", np.array([{}], object))
    assert "objects of Python" in terminal.refusal("put", "-", "short", stdin=Path("x.npy").read_bytes())
    assert "short" not in terminal.store


def test_put_a_folder(terminal: Terminal) -> None:
    (terminal.folder / "in/sub").mkdir(parents=True)
    np.save("in/a.npy", GRID)
    np.savez("in/sub/two.npz", p=GRID, q=GRID)
    Path("in/notes.txt").write_text("not stored")
    terminal.run("put", "in", "results")
    assert terminal.store.keys() == ["results/a", "results/sub/two/p", "results/sub/two/q"]
    # All of it, or nothing.
    terminal.store.clear()
    Path("in/sub/z.npy").write_text("no array")
    assert "CorruptTensorError" in (refused := terminal.refusal("put", "in", "results"))
    assert "pickle" not in refused
    assert terminal.store.keys() == []
    (terminal.folder / "empty").mkdir()
    assert "for a single array" in terminal.refusal("put", "empty", "x", "--dims", "t", status=2)
    assert "has no file" in terminal.refusal("put", "empty", "x", status=3)
    assert "no file" in terminal.refusal("put", "nowhere.npy", "x", status=3)


def test_append_and_create(terminal: Terminal) -> None:
    np.save("rows.npy", GRID[:2])
    assert "KeyNotFoundError" in terminal.refusal("append", "rows.npy", "x", status=3)
    terminal.run("append", "rows.npy", "x", "--create")
    terminal.run("append", "rows.npy", "x")
    np.testing.assert_array_equal(terminal.store["x"], np.concatenate([GRID[:2]] * 2))
    made = terminal.json("create", "sim", "--shape", "1000000,512", "--dtype", "f4", "--fill-value", "2.5")
    assert (made[0]["shape"], made[0]["dtype"]) == ([1000000, 512], "float32")
    assert terminal.store["sim", 999_999, 5] == 2.5
    for options, says in (
        (["--shape", "3x4"], "is no shape"),
        (["--shape", "3", "--dtype", "floaty"], "floaty"),
        (["--shape", "3", "--dtype", "i4", "--fill-value", "red"], "DTypeError"),
    ):
        done = terminal.run("create", "y", *options, status=2 if "shape" in says else 1)
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_cp_mv_rm(terminal: Terminal) -> None:
    store = terminal.store
    store.update({key: [1.0] for key in ("a/x", "a/y", "b")})
    assert terminal.json("cp", "a/", "c/") == [{"from": "a/x", "to": "c/x"}, {"from": "a/y", "to": "c/y"}]
    terminal.run("cp", "b", "c/")
    assert "would rename c/x to d/x" in terminal.run("mv", "c/", "d/", "--dry-run").stdout
    terminal.run("mv", "c/", "d/")
    assert store.keys() == ["a/x", "a/y", "b", "d/b", "d/x", "d/y"]
    assert "KeyExistsError" in terminal.refusal("mv", "b", "a/x")
    terminal.run("mv", "b", "a/x", "--force")
    assert "KeyExistsError" in terminal.refusal("cp", "a/x", "a/y")
    assert "a group is copied" in terminal.refusal("cp", "a/", "e", status=2)
    assert "replaces nothing" in terminal.refusal("mv", "a/", "d/", "--force", status=2)

    assert terminal.json("rm", "**/x", "-n") == {"deleted": [], "would_delete": ["a/x", "d/x"]}
    asked = terminal.run("rm", "**/x", stdin="n\n", status=1)
    assert "Delete these 2 arrays?" in asked.stderr
    assert len(store) == 5
    terminal.run("rm", "**/x", stdin="y\n")
    assert store.keys() == ["a/y", "d/b", "d/y"]
    for nothing in ("", "/"):
        assert "all arrays" in terminal.refusal("rm", "-r", nothing, "--yes", status=2)
    assert "is a group" in terminal.refusal("rm", "d", "--yes", status=2)
    assert "is a group" in terminal.refusal("rm", "d/", "--yes", status=2)
    # One name that is not there: nothing is deleted.
    assert "KeyNotFoundError" in terminal.refusal("rm", "a/y", "nothing", "--yes", status=3)
    assert terminal.json("rm", "-r", "d", "a/y", "--yes")["deleted"] == ["d/b", "d/y", "a/y"]
    assert store.keys() == []


def test_shares(terminal: Terminal) -> None:
    terminal.store["exp/x"] = [1]
    assert "--everybody" in terminal.refusal("share", "exp/x", status=2)
    (share,) = terminal.json("share", "exp/x", "ann@lab.org", "--write", "--until", "7d")
    assert (share["key"], share["reader"], share["write"]) == ("exp/x", "ann@lab.org", True)
    assert share["expires_at"] > "2026"
    assert "is no time" in terminal.refusal("share", "exp/x", "ann@lab.org", "--until", "soon", status=2)
    assert {share["key"] for share in terminal.json("share", "exp/", "--everybody")} >= {"exp/"}
    assert len(terminal.json("shares")) == 2
    assert "read, write" in terminal.run("shares", "exp/x").stdout
    terminal.run("unshare", "exp/x", stdin="n\n", status=1)
    assert [share["key"] for share in terminal.json("unshare", "exp/x", "--yes")] == ["exp/"]
    assert "nobody any more" in terminal.run("unshare", "exp/", "--yes").stdout
    assert "KeyNotFoundError" in terminal.refusal("share", "nothing", "--everybody", status=3)


def test_import_and_export(terminal: Terminal) -> None:
    terminal.store.write("exp/x", GRID, attrs={"units": "K"})
    terminal.run("export", "exp", "exp.h5")
    assert terminal.json("import", "exp.h5", "back/") == ["back/x"]
    assert terminal.store.open("back/x").attrs["units"] == "K"
    assert "--force" in terminal.refusal("export", "exp", "exp.h5")
    warned = terminal.run("export", "/", "all.npz")
    assert re.fullmatch(r"Warning: .*attributes.*\n", warned.stderr)
    assert "no file" in terminal.refusal("import", "none.h5", status=3)


# Drawing --------------------------------------------------------------------------------------------------


def test_show(terminal: Terminal) -> None:
    y, x = np.mgrid[-2:2:40j, -2:2:60j]
    picture = np.exp(-(x**2) - y**2).astype("f4")
    picture[0, 0] = np.nan
    terminal.store["p"] = np.stack([picture, picture])
    terminal.store["rgb"] = np.full((4, 6, 3), (255, 0, 128), "u1")
    terminal.store.write_ragged("words", ["cat"])
    colour = {"NO_COLOR": None, "FORCE_COLOR": "1", "COLORTERM": "truecolor"}
    lines = terminal.run("show", "p[0]", "--width", 30, **colour).stdout.splitlines()
    assert lines[0].startswith("p  (40, 60) float32  from 0.000")
    assert len(lines) == 11
    assert all(line.count("▀") == 30 for line in lines[1:])
    assert "\x1b[38;2;" in lines[1]
    assert "\x1b[38;5;" in terminal.run("show", "p[0]", **{**colour, "COLORTERM": None}).stdout
    assert "255;0;128" in terminal.run("show", "rgb", **colour).stdout
    row = terminal.run("show", "p[0, 20]", "--width", 25, **colour).stdout.splitlines()
    assert (len(row), {len(line) for line in row[1:]}) == (13, {25})
    assert set("".join(row[1:])) <= {chr(0x2800 + n) for n in range(256)}
    # Without colours, numbers.
    assert "\x1b" not in (plain := terminal.run("show", "p[0]").stdout)
    assert "nan" in plain
    assert terminal.json("show", "p[0]")["max"] == pytest.approx(float(np.nanmax(picture)))
    assert "which is no picture" in terminal.refusal("show", "p", "-o", "p.png")
    terminal.store["all gaps"] = [np.nan]
    assert terminal.run("show", "all gaps").stdout == "all gaps  (1,) float64\n[nan]\n"
    terminal.store["one"] = 1.5
    # Nothing can be selected from it.
    assert "[0]" not in terminal.refusal("show", "one", "-o", "p.png")
    assert "cat" in terminal.run("show", "words", **colour).stdout


def test_show_writes_pictures(terminal: Terminal) -> None:
    terminal.store["p"] = np.arange(24.0).reshape(4, 6)
    terminal.run("show", "p", "-o", "p.png")
    assert terminal.run("show", "p", "-o", "quiet.png", "--quiet").output == ""
    with Image.open("p.png") as image:
        assert (image.size, image.mode) == ((6, 4), "RGB")
        assert image.getpixel((0, 0)) == (68, 1, 84)
        assert image.getpixel((5, 3)) == (253, 231, 37)
    assert "--force" in terminal.refusal("show", "p", "-o", "p.png")
    terminal.run("show", "p[0]", "-o", "line.png")
    with Image.open("line.png") as image:
        assert len(image.getcolors()) == 2
    assert "not .png" in terminal.refusal("show", "p", "-o", "p.jpg", status=2)


def test_show_without_pillow(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.store["p"] = np.ones((2, 2))
    # A module that cannot be found, as where it is not installed.
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert "pip install pillow" in terminal.refusal("show", "p", "-o", "p.png")


def test_show_fetches_little_of_much(terminal: Terminal) -> None:
    terminal.store.create("huge", (10**6, 10**6), "f4", fill_value=1)
    shown = terminal.run("show", "huge[5]").stdout
    assert shown.startswith("huge  (1000000,) float32")


# The rest -------------------------------------------------------------------------------------------------


def test_profiles(terminal: Terminal, project: Project, user: User) -> None:
    away: dict[str, str | None] = dict.fromkeys(("SUPABASE_URL", "SUPABASE_KEY"))
    assert "`tensorage link URL KEY`" in terminal.refusal("ls", **away)
    assert "--profile lab" in terminal.refusal("whoami", "--profile", "lab", **away)
    terminal.run("link", project.url, project.key, "--profile", "lab")
    assert terminal.json("whoami", "--profile", "lab", **away)["id"] == user.id
    assert terminal.json("whoami", TENSORAGE_PROFILE="lab", **away)["id"] == user.id
    # The password beside another project's URL is that project's.
    elsewhere = {"SUPABASE_URL": "https://other.example", "SUPABASE_KEY": "key"}
    assert "no email is configured" in terminal.refusal("whoami", "--profile", "lab", **elsewhere)
    assert "no name of a profile" in terminal.refusal("ls", "--profile", "../x", **away)

    asked = terminal.run("link", project.url, project.key, "--email", user.email, stdin=f"{user.password}\n")
    assert user.password not in asked.output
    nobody = {**away, "USER_EMAIL": None, "USER_PASSWORD": None}
    assert terminal.json("whoami", **nobody)["id"] == user.id
    wrong = terminal.run("link", project.url, project.key, "--email", user.email, stdin="wrong\n", status=4)
    assert "AuthenticationError" in wrong.stderr
    assert terminal.json("whoami", **nobody)["id"] == user.id


def test_completion(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.store.update({key: [1] for key in ("exp/run1/a", "exp/run2/b", "extra")})
    for name, value in terminal.environment.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    command = main.get_command(click.Context(main), "ls")
    assert command is not None
    context = click.Context(command)

    def completed(begin: str) -> list[str]:
        return [item.value for item in keys_below(context, command.params[0], begin)]

    assert completed("ex") == ["exp/", "extra"]
    assert completed("exp/") == ["exp/run1/", "exp/run2/"]
    # The only way on is gone to its end: a shell ends the word there.
    assert completed("exp/run1") == ["exp/run1/a"]
    assert completed("nothing") == []
    monkeypatch.setenv("USER_PASSWORD", "wrong")
    assert completed("ex") == []
    script = terminal.run("completion", "bash").stdout
    assert script.splitlines()[1] == 'eval "$(_TENSORAGE_COMPLETE=bash_source tensorage)"'


def test_tables_in_colour(terminal: Terminal) -> None:
    pytest.importorskip("rich", reason="the extra cli is not installed")
    terminal.store["[bold]x"] = GRID
    colour = {"NO_COLOR": None, "FORCE_COLOR": "1"}
    shown = terminal.run("ls", "-l", **colour).stdout
    assert "\x1b[" in shown
    # A key is a text, and no markup of rich.
    assert "[bold]x" in shown
    assert "\x1b[" not in terminal.run("ls", "-l").stdout


def test_groups_without_a_command_show_their_help(terminal: Terminal) -> None:
    for group in ([], ["quota"], ["local"]):
        done = terminal.run(*group, status=2)
        assert "Commands:" in done.output or "Look:" in done.output
        assert not done.output.startswith("Error")


def test_the_word_for_no_command(terminal: Terminal) -> None:
    assert "Did you mean 'share'?" in terminal.refusal("shre", status=2)
    assert json.loads(terminal.run("usage", "--json").stdout)["arrays"] == 0
