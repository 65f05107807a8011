"""The names of the package, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tensorage


@pytest.mark.parametrize("name", dir(tensorage))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(tensorage, name) is not None


def test_all_is_sorted_and_shown() -> None:
    assert sorted(tensorage.__all__) == tensorage.__all__
    assert dir(tensorage) == sorted([*tensorage.__all__, "zip"])


def test_a_star_import_leaves_the_builtins() -> None:
    names: dict[str, object] = {}
    exec("from tensorage import *", names)
    assert "zip" not in names


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tensorage.nothing


def test_the_server_does_not_load_the_client() -> None:
    code = (
        "import sys, tensorage.embedded.server, tensorage.embedded.gateway\n"
        "names = [m for m in sys.modules if m.split('.')[0] in {'tensorage', 'numpy', 'supabase'}]\n"
        "print(*[m for m in names if not m.startswith('tensorage.embedded')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Both sides have the errors: those of the embedded backend are TensorageErrors, as all of them are.
    shared = {"tensorage.private_files", "tensorage.errors", "tensorage.migrations", "tensorage.wording"}
    assert set(done.stdout.split()) == {"tensorage"} | shared
