"""The notebooks of `examples/` run, and show the text that is stored with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import notebooks
import pytest
import servers

from tensorage.embedded import control


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """That of somebody with an embedded backend of their own, which all notebooks share."""
    data_dir = tmp_path_factory.mktemp("data") / "data"
    servers.start(data_dir)
    yield notebooks.environment_of(data_dir, tmp_path_factory.mktemp("home"))
    control.stop(data_dir)


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_runs_and_shows_what_is_stored(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    stored = notebooks.read(name)
    shown = notebooks.shown_text(stored)
    assert shown, "it is stored with its outputs"
    assert notebooks.shown_text(notebooks.execute(notebooks.read(name), environment, tmp_path)) == shown


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_what_is_stored_of_a_notebook_tells_nothing_of_the_machine(name: str) -> None:
    text = (notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    outputs = json.dumps([cell.get("outputs", []) for cell in json.loads(text)["cells"]])
    for secret in (
        r"/(root|home|tmp|work|Users)/",
        r"eyJ[\w-]+\.",
        "sb_secret",
        "sb_publishable",
        "Traceback",
        "Warning",
    ):
        assert not re.search(secret, outputs), secret
    # The one port stands for any.
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", outputs)) <= {"54321"}
    assert "<script" not in outputs
    assert not re.search(r"(src|href)='(?!data:)", outputs), "nothing is fetched"


def test_there_are_notebooks() -> None:
    assert len(notebooks.NAMES) == 5
