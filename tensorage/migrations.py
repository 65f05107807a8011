"""Files with the SQL of the schema: one folder, read by the embedded backend, the command line and the docs."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

#: Folder of the copy inside an installed wheel, and that of the original in a checkout, beside the package.
_FOLDERS = (_PACKAGE / "_sql", _PACKAGE.parent / "supabase" / "migrations")


def migration_files() -> list[Path]:
    """List the SQL files of the schema, in the order in which they are applied.

    Returns
    -------
    list of Path
        Files named as the Supabase CLI names migrations, ``YYYYMMDDHHMMSS_name.sql``: sorting is ordering.

    Raises
    ------
    FileNotFoundError
        If the installation has no such folder.
    """
    for folder in _FOLDERS:
        if folder.is_dir():
            return sorted(folder.glob("*.sql"))
    places = " or ".join(str(folder) for folder in _FOLDERS)
    raise FileNotFoundError(f"tensorage's SQL migrations are not in {places}: reinstall tensorage")
