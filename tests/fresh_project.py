"""The parts of a fresh project that the doctor compares with: `python tests/fresh_project.py` writes its file anew."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import clusters
import psycopg
from postgres_versions import VERSIONS

from tensorage.doctor.expected import EXPECTED_FILE, PARTS
from tensorage.migrations import migration_files

REMEDY = "run `python tests/fresh_project.py`, and look at what has changed in the file before you commit it"


def parts_of(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, Any]:
    """Ask a database for those parts, as the service key would."""
    with connection.transaction():
        connection.execute("""select set_config('request.jwt.claims', '{"role": "service_role"}', true)""")
        ((answer,),) = connection.execute("select public.tensorage_doctor()").fetchall()
    return {part: answer[part] for part in PARTS}


def apply_migrations(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    for file in migration_files():
        connection.execute(file.read_text("utf-8"))


def as_text(parts: dict[str, Any]) -> str:
    """JSON with a line for each entry, so that a change is one line of a diff."""
    texts = []
    for part, entries in parts.items():
        named = isinstance(entries, dict)
        lines = (
            [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()]
            if named
            else map(json.dumps, entries)
        )
        opening, closing = "{}" if named else "[]"
        texts.append(
            f'  "{part}": {opening}\n' + ",\n".join(f"    {line}" for line in lines) + f"\n  {closing}"
        )
    return "{\n" + ",\n".join(texts) + "\n}\n"


def main() -> None:
    # The folder of PostgreSQL belongs to another user if this one is root, who has to reach it.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with (
            clusters.running(VERSIONS[-1], Path(folder)) as cluster,
            psycopg.connect(clusters.dsn(cluster, "postgres"), autocommit=True) as connection,
        ):
            apply_migrations(connection)
            EXPECTED_FILE.write_text(as_text(parts_of(connection)))


if __name__ == "__main__":
    main()
