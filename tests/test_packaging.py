"""The wheel, as somebody gets it who has never seen the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

#: Modules that `import tensorage` must not load: most programs that import it wait for nothing else so long.
HEAVY = {
    "asyncpg",
    "click",
    "httpx",
    "keyring",
    "numcodecs",
    "postgrest",
    "pydantic",
    "starlette",
    "storage3",
    "supabase",
    "tensorage.embedded",
    "urllib3",
    "uvicorn",
    "zarr",
}

STORE_AND_READ = """
import json, sys
import numpy as np
import tensorage

data_dir = sys.argv[1]
array = np.arange(2 * 3 * 5, dtype="<i2").reshape(2, 3, 5)
tensorage.local(data_dir)()["packed"] = array
back = tensorage.local(data_dir)()["packed", 1:, 2]
print(json.dumps({
    "package": tensorage.__file__,
    "equal": bool(np.array_equal(back, array[1:, 2])) and back.dtype == array.dtype,
}))
"""


STORE_IN_STORAGE = """
import sys, tensorage
store = tensorage.TensorStore(tensorage.local(sys.argv[1]), engine="storage")
try:
    store["objects"] = [1, 2]
except tensorage.InvalidInputError as error:
    print(error)
assert "objects" not in store
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, with nothing of ours on its import path."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SUPABASE", "TENSORAGE"))
    }
    environment["TENSORAGE_ENDS_WITH"] = str(os.getpid())
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that this is complete too."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def needed(requirements: list[str], extras: set[str], found: set[str]) -> Iterator[Distribution]:
    """Yield the installed distributions that meet the requirements, with all that those need in their turn."""
    for requirement in map(Requirement, requirements):
        key = str((requirement.name, sorted(requirement.extras)))
        marker = requirement.marker
        if key in found or not (marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras))):
            continue
        found.add(key)
        installed = distribution(requirement.name)
        yield installed
        yield from needed(installed.requires or [], requirement.extras, found)


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has the wheel with its extra, and nothing else.

    It shares the files of what the wheel needs with the environment of the tests: to install them anew takes longer
    than all else here. pip looks whether all is there that the wheel asks for, and can get nothing from elsewhere.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    requirements = [
        line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")
    ]
    for installed in needed(requirements, {"local"}, set()):
        for name in {path.parts[0] for path in installed.files or [] if path.parts[0] != ".."}:
            link = packages / name
            if name != "__pycache__" and not link.exists():
                link.symlink_to(Path(str(installed.locate_file(name))).resolve())
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    run(*pip, "--no-index", f"{wheel}[local]", cwd=folder.parent)
    return folder


@pytest.mark.timeout(600)
def test_the_wheel_contains_the_migrations_and_the_type_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist()}
    migrations = sorted((ROOT / "supabase" / "migrations").glob("*.sql"))
    assert migrations
    for path in migrations:
        assert shipped[f"tensorage/_sql/{path.name}"] == path.read_bytes()
    assert "tensorage/py.typed" in shipped
    assert any(name.endswith("licenses/LICENSE") for name in shipped)
    assert not [name for name in shipped if name.startswith(("tests", "docs", "examples", "benchmarks"))]


@pytest.mark.timeout(600)
def test_the_installed_wheel_stores_and_reads_an_array(venv: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    command = venv / "bin" / "tensorage"
    try:
        output = run(venv / "bin" / "python", "-I", "-c", STORE_AND_READ, data_dir, cwd=tmp_path)
        # It compares the project with files that the wheel brings.
        examined = run(command, "doctor", "--local", "--data-dir", data_dir, cwd=tmp_path)
    finally:
        run(command, "local", "stop", "--data-dir", data_dir, cwd=tmp_path)
    assert "no findings" in examined
    said = json.loads(output.splitlines()[-1])
    assert Path(said["package"]).is_relative_to(venv)
    assert said["equal"] is True


@pytest.mark.timeout(600)
def test_the_storage_engine_says_which_extra_it_needs(venv: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    try:
        output = run(venv / "bin" / "python", "-I", "-c", STORE_IN_STORAGE, data_dir, cwd=tmp_path)
    finally:
        run(venv / "bin" / "tensorage", "local", "stop", "--data-dir", data_dir, cwd=tmp_path)
    assert "pip install 'tensorage[storage]>=0.2'" in output


@pytest.mark.timeout(600)
def test_the_installed_command_prints_the_migrations(venv: Path, tmp_path: Path) -> None:
    sql = run(venv / "bin" / "tensorage", "migrations", "--sql", cwd=tmp_path)
    for path in (ROOT / "supabase" / "migrations").glob("*.sql"):
        assert path.read_text().strip() in sql


def test_import_is_light(tmp_path: Path) -> None:
    script = "import json, sys, tensorage; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(run(sys.executable, "-c", script, cwd=tmp_path)))
    assert "tensorage" in loaded
    assert not loaded & HEAVY
