"""A fresh project, with which the doctor compares.

The bodies of functions come from the migrations themselves. Rights, policies, triggers and row-level security are in
``expected.json``, as ``tensorage_doctor()`` answers in a fresh project. A test compares the file with a fresh project
on each version of PostgreSQL.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorage.migrations import migration_files

__all__ = ["EXPECTED_FILE", "PARTS", "Expected", "bodies_in", "load_expected"]

EXPECTED_FILE = Path(__file__).with_name("expected.json")

#: Parts of the answer of ``tensorage_doctor()`` that the file keeps.
PARTS = ("row_security", "policies", "triggers", "rights")

_FUNCTION = re.compile(r"^create or replace function ([\w.]+)\(.*?\$\$(.*?)\$\$;", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Expected:
    """Parts of a fresh project.

    Parameters
    ----------
    row_security
        By the name of a table, "on".
    policies
        By table and name, the command, the roles and a digest of the conditions.
    triggers
        By table and name, "on".
    rights
        Role, privilege and thing, as SQL has them.
    bodies
        By the name of a function, the MD5 of its body.
    """

    row_security: Mapping[str, str]
    policies: Mapping[tuple[str, str], str]
    triggers: Mapping[tuple[str, str], str]
    rights: frozenset[tuple[str, str, str]]
    bodies: Mapping[str, str]

    @classmethod
    def from_json(cls, parts: Mapping[str, Any], bodies: Mapping[str, str]) -> Expected:
        """Read the parts of an answer of ``tensorage_doctor()``."""
        return cls(
            dict(parts["row_security"]),
            {(table, name): text for table, name, text in parts["policies"]},
            {(table, name): text for table, name, text in parts["triggers"]},
            frozenset((role, privilege, thing) for role, privilege, thing in parts["rights"]),
            bodies,
        )


def load_expected() -> Expected:
    """Read the files of this release."""
    parts = json.loads(EXPECTED_FILE.read_text("utf-8"))
    return Expected.from_json(
        parts, bodies_in("\n".join(file.read_text("utf-8") for file in migration_files()))
    )


def bodies_in(sql: str) -> dict[str, str]:
    """Return the MD5 of the body of each function that SQL defines.

    Examples
    --------
    >>> bodies_in("create or replace function public.one() returns int language sql as $$ select 1 $$;")
    {'public.one': '6ebceba1516d1b8c52d508dc3039fc26'}
    """
    # For comparison alone: whoever may replace a function may also replace tensorage_doctor(), which leaves the line
    # ends of Windows out of account, too.
    return {
        name: hashlib.md5(body.replace("\r", "").encode(), usedforsecurity=False).hexdigest()
        for name, body in _FUNCTION.findall(sql)
    }
