"""``tensorage migrations apply``: on an embedded backend's PostgreSQL, and on one without anything."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cli.conftest import Terminal
from clusters import dsn
from postgres_versions import VERSIONS
from psycopg import sql

from tensorage.backend.wire.header import FIRST_RELEASED_SCHEMA, SCHEMA_VERSION
from tensorage.cli import applying
from tensorage.cli.failures import UNREACHABLE, Failure
from tensorage.embedded import control
from tensorage.embedded.postgres import Cluster
from tensorage.migrations import migration_files

PASSWORD = "s3cret/pw"

#: The files themselves are tried on each version, by tests/test_migrations.py.
NEWEST = VERSIONS[-1:]

Connection = psycopg.Connection[tuple[Any, ...]]


def apply(terminal: Terminal, url: str, *more: str, status: int = 0) -> str:
    done = terminal.run("migrations", "apply", *more, status=status, SUPABASE_DB_URL=url)
    for said in (done.stdout, done.stderr):
        for secret in (PASSWORD, "s3cret", "of this test", "of%20this"):
            assert secret not in said
    if status:
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    return done.stderr if status else done.stdout


@pytest.mark.parametrize("cluster", NEWEST, indirect=True)
def test_on_a_project_without_them(terminal: Terminal, cluster: Cluster) -> None:
    url = dsn(cluster, "postgres")
    with psycopg.connect(url, autocommit=True) as owner:
        try:
            before = objects(owner)
            assert "nothing has changed" in apply(terminal, url, "--dry-run")
            assert objects(owner) == before
            assert "it had none before" in apply(terminal, url)
            assert owner.execute("select public.tensorage_version()").fetchone() == (SCHEMA_VERSION,)
            made = len(objects(owner))
            # The CLI of Supabase would complain in an application's own project of migrations that it does not know.
            assert owner.execute("select to_regnamespace('supabase_migrations')").fetchone() == (None,)

            again = json.loads(apply(terminal, url, "--json"))
            names = [file.name for file in migration_files()]
            assert again == {
                "files": names, "before": SCHEMA_VERSION, "version": SCHEMA_VERSION, "applied": True,
            }  # fmt: skip
            assert len(objects(owner)) == made
        finally:
            _remove(owner)


@pytest.mark.parametrize("cluster", NEWEST, indirect=True)
def test_what_is_refused_is_left_alone(terminal: Terminal, cluster: Cluster) -> None:
    url = dsn(cluster, "postgres")
    with psycopg.connect(url, autocommit=True) as owner:
        try:
            owner.execute("create table public.datasets (id int)")
            assert "tensorage 0.1.7" in apply(terminal, url, status=1)
            owner.execute("drop table public.datasets")

            apply(terminal, url)
            for version, says in (
                (SCHEMA_VERSION + 1, "newer than.*later release|pip install -U"),
                (FIRST_RELEASED_SCHEMA - 1, "never released"),
            ):
                owner.execute(
                    sql.SQL(
                        "create or replace function public.tensorage_version() returns int language sql as 'select {}'"
                    ).format(sql.Literal(version))
                )
                before = objects(owner)
                said = apply(terminal, url, status=1)
                assert any(words in said for words in says.split("|")), said
                assert "othing has been changed" in said
                assert objects(owner) == before
        finally:
            _remove(owner)


@pytest.mark.parametrize("cluster", NEWEST, indirect=True)
def test_several_at_once(
    terminal: Terminal, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = dsn(cluster, "postgres")

    def apply_here(_: int) -> applying.Applied:
        return applying.apply(applying.DatabaseUrl.parse(url), migration_files(), dry_run=False)

    with psycopg.connect(url, autocommit=True) as owner:
        try:
            with ThreadPoolExecutor(3) as pool:
                done = list(pool.map(apply_here, range(3)))
            assert sorted(one.before or 0 for one in done) == [0, SCHEMA_VERSION, SCHEMA_VERSION]

            # A migration that waits for a table keeps its readers waiting, but not as long as a reading transaction.
            monkeypatch.setattr(applying, "LOCK_TIMEOUT", "set local lock_timeout = '20ms'")
            with owner.transaction():
                owner.execute("select from public.datasets")
                assert "when it has ended" in apply(terminal, url, status=1)

            # It may be lost at the end, too, when nobody knows the outcome.
            (ends := tmp_path / "ends.sql").write_text("select pg_terminate_backend(pg_backend_pid())")
            with pytest.raises(Failure, match="either all of the migrations were applied, or none") as lost:
                applying.apply(applying.DatabaseUrl.parse(url), [ends], dry_run=False)
            assert lost.value.exit_code == UNREACHABLE
        finally:
            _remove(owner)


@pytest.fixture
def visitor(backend: control.Running) -> Iterator[str]:
    """The URL of a role that may log in to the embedded backend's PostgreSQL, and nothing else."""
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        create = sql.SQL("create role visitor login password {}").format(sql.Literal(PASSWORD))
        connection.execute(create)
        yield psycopg.conninfo.make_conninfo(backend.db_url, user="visitor", password=PASSWORD)
        connection.execute("drop role visitor")


def test_somebody_without_rights(terminal: Terminal, visitor: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(visitor)
    address = f"{parts['host']}:{parts['port']}/{parts['dbname']}"
    escaped = PASSWORD.replace("/", "%2F")
    assert "role `postgres`" in apply(terminal, f"postgresql://visitor:{escaped}@{address}", status=4)
    said = apply(terminal, f"postgresql://visitor:{escaped}x@{address}", status=4)
    assert "refuses the login" in said
    assert "not those of an account" in said


def test_elsewhere_the_connection_is_encrypted(terminal: Terminal, backend: control.Running) -> None:
    """The backend's PostgreSQL has no TLS. Its address is written so that it does not look like this machine."""
    away = backend.db_url.replace("@127.0.0.1:", "@127.1:")
    assert away != backend.db_url
    said = apply(terminal, away, "--dry-run", status=5)
    assert "SSL" in said
    assert "?sslmode=disable" in said
    assert "can be applied" in apply(terminal, f"{away}?sslmode=disable", "--dry-run")


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("https://example.supabase.co", 2, "begins with postgresql://"),
        (f"postgres:{PASSWORD}@127.0.0.1/postgres", 2, "USER:PASSWORD@HOST"),
        # The password is not escaped: parsed, parts of it are a host, a port or a path.
        (f"postgresql://postgres:{PASSWORD}@127.0.0.1:5432/postgres", 2, "%2F"),
        ("postgresql://postgres:s3cret#pw@127.0.0.1:5432/postgres", 2, "%2F"),
        ("postgresql://postgres:pw@s3cret/pw@127.0.0.1:5432/postgres", 2, "%2F"),
        # Errors about a URL that cannot be parsed quote it.
        ("postgresql://postgres:s3cret[pw@127.0.0.1:5432/postgres", 2, "%5B"),
        ("postgresql://postgres:s3cret\uff1apw@127.0.0.1:5432/postgres", 2, "USER:PASSWORD@HOST"),
        ("postgresql://127.0.0.1/postgres", 2, "USER:PASSWORD@HOST"),
        ("postgresql://postgres:s3cret@127.0.0.1:1/postgres", 5, "cannot be reached"),
        ("", 2, "no database is named"),
    ],
)
def test_urls_that_lead_nowhere(terminal: Terminal, url: str, status: int, says: str) -> None:
    assert says in apply(terminal, url, status=status)


@pytest.mark.parametrize("place", ["user:{}@", "?password={}", "PGPASSWORD"])
def test_what_is_no_postgresql(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """It asks for the password in clear, quotes it, and breaks the protocol."""
    if place == "PGPASSWORD":
        monkeypatch.setenv(place, PASSWORD)
    login = place.format("s3cret%2Fpw")
    user, query = (login, "") if "@" in login else ("user@", login if "?" in login else "")
    more = "&sslmode=disable" if query else "?sslmode=disable"

    def answer(listener: socket.socket, answers: list[bytes]) -> None:
        for end in answers:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"R" + struct.pack("!ii", 8, 3))
                said = client.recv(4096)[5:-1]
                fields = b"SFATAL\0C28000\0Mno user with " + said + b"\0\0"
                client.sendall(end or b"E" + struct.pack("!i", len(fields) + 4) + fields)

    broken = b"R" + struct.pack("!i", 3) + b"no"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer, args=[listener, [b"", broken]])
        server.start()
        url = f"postgresql://{user}127.0.0.1:{listener.getsockname()[1]}/postgres{query}{more}"
        assert "no user with ***" in apply(terminal, url, status=4)
        assert "cannot be reached" in apply(terminal, url, status=5)
        server.join()
    assert "s3cret" not in repr(applying.DatabaseUrl.parse(url))


def test_options_that_do_not_fit(terminal: Terminal, tmp_path: Path) -> None:
    del tmp_path
    assert "belong to" in terminal.refusal("migrations", "--dry-run", status=2)
    assert "one of them" in terminal.refusal("migrations", "apply", "--sql", status=2)


def objects(owner: Connection) -> list[tuple[Any, ...]]:
    """Rows of the catalogue that the migrations make or replace, with the transaction that made each."""
    return owner.execute(
        "select oid, xmin::text from pg_class union all select oid, xmin::text from pg_proc "
        "union all select oid, xmin::text from pg_policy union all select oid, xmin::text from pg_namespace order by 1"
    ).fetchall()


def _remove(owner: Connection) -> None:
    from test_migrations import UNINSTALL

    owner.execute(UNINSTALL.encode())
