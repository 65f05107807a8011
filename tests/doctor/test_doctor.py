"""`tensorage doctor` on a project that is broken in one way at a time: each is found, and cured by its remedy."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
import servers
import workers
from click.testing import CliRunner
from doctor.conftest import Patient
from project import Project
from proxy import Proxy
from run_page import blocks

from tensorage import quotas
from tensorage.backend.wire.header import SCHEMA_VERSION
from tensorage.cli import main
from tensorage.config import Configuration
from tensorage.doctor import expected, findings, report
from tensorage.doctor.answers import Reply, Sight
from tensorage.doctor.expected import bodies_in, load_expected
from tensorage.doctor.looking import look_at
from tensorage.embedded import control
from tensorage.migrations import migration_files
from tensorage.signin import keys

ROOT = Path(__file__).parents[2]
UNINSTALL = blocks(ROOT / "docs" / "troubleshooting.md", "postgresql")[0].content

_VERSION = "create or replace function public.tensorage_version() returns int language sql as 'select {}'"

RELOAD = "notify pgrst, 'reload schema';"
BUCKET = "bucket tensors"

#: A break, the codes of all its findings, and the thing that the first of them is about.
BREAKS = {
    "row-level security off": (
        "alter table public.tensors disable row level security", ["rls-off"], "public.tensors",
    ),
    "row-level security of an inner table off": (
        "alter table tensorage.shares disable row level security", ["rls-off"], "tensorage.shares",
    ),
    "policy dropped": (
        'drop policy "own and shared datasets are visible" on public.datasets', ["policy-missing"], "public.datasets",
    ),
    "policy of objects dropped": (
        'drop policy "tensorage: add objects" on storage.objects', ["policy-missing"], "storage.objects",
    ),
    "policy changed": (
        'alter policy "blocks of own and shared datasets are visible" on public.tensors using (true)',
        ["policy-changed"], "public.tensors",
    ),
    "policy for all, too": (
        'alter policy "shards of own and shared datasets are visible" on public.shards to public',
        ["policy-changed"], "public.shards",
    ),
    "policy added": (
        'create policy "let ""all"" in" on public.tensors for select to authenticated using (true)',
        ["policy-unknown"], "public.tensors",
    ),
    "grant to anon": (
        "grant select on public.datasets to anon", ["right-too-many", "anybody-may-read"], "table public.datasets",
    ),
    "grant of a column to anon": (
        "grant select (tensor) on public.tensors to anon", ["right-too-many"], "table public.tensors",
    ),
    "grant of a sequence": (
        "grant usage on sequence public.datasets_id_seq to authenticated",
        ["right-too-many"], "sequence public.datasets_id_seq",
    ),
    "grant of the inner schema": (
        "grant usage on schema tensorage to anon", ["right-too-many"], "schema tensorage",
    ),
    "users may write": (
        "grant insert on public.tensors to authenticated", ["right-too-many"], "table public.tensors",
    ),
    "function for anon": (
        "grant execute on function public.tensorage_sweep() to anon",
        ["right-too-many"], "function public.tensorage_sweep()",
    ),
    "function for all": (
        "grant execute on function tensorage.my_readers() to public",
        ["right-too-many"], "function tensorage.my_readers()",
    ),
    "quotas for users": (
        "grant execute on function public.tensorage_set_quota(text, bigint, bigint) to authenticated",
        ["right-too-many"], "function public.tensorage_set_quota(text,bigint,bigint)",
    ),
    "version for anon": (
        "grant execute on function public.tensorage_version() to anon",
        ["anybody-may-call", "right-too-many"], "public.tensorage_version",
    ),
    "right taken": (
        "revoke select on public.tensors from authenticated", ["right-missing"], "table public.tensors",
    ),
    "trigger dropped": (
        "drop trigger tensorage_count on public.tensors", ["trigger-missing"], "public.tensors",
    ),
    "trigger disabled": (
        "alter table public.shards disable trigger tensorage_count", ["trigger-disabled"], "public.shards",
    ),
    "function changed": (
        """create or replace function tensorage.my_readers() returns text[]
           language sql stable set search_path = pg_catalog, pg_temp as $$ select array['', 'all'] $$""",
        ["function-changed"], "tensorage.my_readers",
    ),
    "doctor's function changed": (
        f"""create or replace function public.tensorage_doctor() returns json
           language sql security definer set search_path = pg_catalog, pg_temp
           as $$ select json_build_object('schema_version', {SCHEMA_VERSION}) $$""",
        ["function-changed"], "public.tensorage_doctor",
    ),
    "function dropped": (
        "drop function public.tensorage_sweep()", ["function-missing", "right-missing"], "public.tensorage_sweep",
    ),
    "function of another version": (
        "create function public.tensorage_open(key text) returns int language sql as 'select 1'",
        ["function-unknown", "right-too-many"], "public.tensorage_open(text)",
    ),
    "bucket public": (
        "update storage.buckets set public = true where id = 'tensors'", ["bucket-public"], BUCKET,
    ),
    "bucket deleted": ("delete from storage.buckets where id = 'tensors'", ["bucket-missing"], BUCKET),
    "bucket of small objects": (
        "update storage.buckets set file_size_limit = 1048576 where id = 'tensors'", ["bucket-size-limit"], BUCKET,
    ),
    "bucket of pictures": (
        "update storage.buckets set allowed_mime_types = '{image/*}' where id = 'tensors'", ["bucket-types"], BUCKET,
    ),
    "unfinished schema": ("drop function public.tensorage_doctor()", ["schema-version"], "schema"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _is_healthy_again(patient: Patient) -> Iterator[None]:
    """Each test begins with a healthy project, and leaves one."""
    yield
    patient.examine_until(lambda seen: seen.report["findings"] == [])


def test_a_healthy_project_has_no_finding(patient: Patient) -> None:
    service = patient.running.service_role_key
    for environment in ({}, {"SUPABASE_SERVICE_ROLE_KEY": service}, {"USER_EMAIL": None}):
        seen = patient.examine(**environment)
        assert seen.status == 0
        assert seen.report["findings"] == []
    # Without login and service key, it says what it does not see.
    assert "row-level security" in seen.report["unseen"]["the database from within"]
    no_login = "no login is configured: set USER_EMAIL, or run `tensorage login` once"
    assert seen.report["unseen"]["the project as a user sees it"] == no_login
    assert {"schema", "rights", "PostgreSQL"}.isdisjoint(seen.report["facts"])

    (data_dir,) = [str(patient.running.data_dir)]
    seen = patient.examine("--local", "--data-dir", data_dir, SUPABASE_URL=None, SUPABASE_KEY=None)
    assert seen.report["findings"] == []
    assert seen.report["facts"]["schema"] == f"version {SCHEMA_VERSION}"
    assert seen.report["facts"]["statement time-out"] == "8 s for users"


def test_the_form_of_the_json(patient: Patient) -> None:
    report = patient.examine().report
    assert list(report) == ["format", "url", "healthy", "findings", "facts", "unseen"]
    assert (report["format"], report["url"], report["healthy"]) == (1, patient.running.api_url, True)
    assert all(isinstance(text, str) for part in ("facts", "unseen") for text in report[part].values())
    assert set(report["facts"]) == {
        "key", "Auth", "sign-up", "clock", "REST", "Storage", "login", "PostgreSQL", "extensions",
        "clock of the database", "statement time-out", "object versioning", "bucket tensors", "schema", "rights",
    }  # fmt: skip
    patient.execute("alter table public.tensors disable row level security")
    (finding,) = patient.examine().report["findings"]
    assert list(finding) == ["level", "code", "about", "message", "remedy"]
    patient.cure(finding["remedy"])


def test_the_text(patient: Patient) -> None:
    def examine() -> tuple[int, str]:
        done = CliRunner().invoke(main, ["doctor"], env=patient.environment(), catch_exceptions=False)
        return done.exit_code, " ".join(done.output.split())

    status, text = examine()
    assert status == 0
    assert text.startswith(f"project {patient.running.api_url} ok key: legacy anon")
    assert "no findings, 0 not seen" in text
    patient.execute("alter table public.tensors disable row level security")
    status, text = examine()
    assert status == 1
    assert "ERROR public.tensors: row-level security is off" in text
    assert (
        "[rls-off] remedy Run in the SQL editor: alter table public.tensors enable row level security;"
        in text
    )
    assert text.endswith("1 error, 0 warnings, 0 not seen")
    patient.cure(text)


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found_and_the_remedy_cures_it(patient: Patient, name: str) -> None:
    sql, codes, about = BREAKS[name]
    patient.execute(f"{sql}; {RELOAD}" if "function" in sql else sql)
    seen = patient.examine_until(lambda seen: set(codes) <= set(seen.findings))
    assert set(seen.findings) == set(codes)
    assert seen.status == 1
    assert seen.the(codes[0], about)["level"] == "error"
    for finding in seen.report["findings"]:
        patient.cure(finding["remedy"])


def test_without_migrations(patient: Patient) -> None:
    patient.execute(f"{UNINSTALL} {RELOAD}")
    seen = patient.examine_until(lambda seen: "no-migrations" in seen.findings)
    assert set(seen.findings) == {"no-migrations"}
    # Seen without a login, too.
    assert set(patient.examine(USER_EMAIL=None).findings) == {"no-migrations"}
    patient.cure(seen.the("no-migrations", "schema")["remedy"])


def test_without_the_schema_of_the_inner_parts(patient: Patient) -> None:
    """The keys are good, whoever asks. They were once said to be refused."""
    service_key = patient.running.service_role_key
    patient.execute("drop schema tensorage cascade")
    for settings in (
        {},
        {"SUPABASE_SERVICE_ROLE_KEY": service_key},
        {"USER_EMAIL": None, "SUPABASE_SERVICE_ROLE_KEY": service_key},
    ):
        seen = patient.examine(**settings)
        assert set(seen.findings) == {"schema-version"}
        assert 'schema "tensorage" does not exist' in seen.the("schema-version", "schema")["message"]
    patient.execute(UNINSTALL)
    patient.cure(seen.the("schema-version", "schema")["remedy"])
    assert patient.examine().findings == {}


def test_an_older_schema(patient: Patient) -> None:
    """Schemas before the first release cannot be migrated, and the remedy leads to the SQL that removes them."""
    patient.execute(_VERSION.format(SCHEMA_VERSION - 1))
    seen = patient.examine()
    assert set(seen.findings) == {"schema-version"}
    assert seen.status == 1
    found = seen.the("schema-version", "schema")
    assert f"version {SCHEMA_VERSION - 1}, older than this client's {SCHEMA_VERSION}" in found["message"]
    assert 'remove that schema (the page "Troubleshooting"' in found["remedy"]
    patient.execute(UNINSTALL)
    patient.cure(found["remedy"])


def test_a_newer_schema(patient: Patient) -> None:
    patient.execute(_VERSION.format(SCHEMA_VERSION + 1))
    assert "pip install -U" in patient.examine().the("schema-version", "schema")["remedy"]
    patient.cure("Apply the migrations")


@pytest.mark.parametrize(
    ("timeout", "level", "code"), [("2s", "error", "timeout-too-short"), ("0", "warning", "no-timeout")]
)
def test_the_statement_timeout(patient: Patient, timeout: str, level: str, code: str) -> None:
    patient.execute(f"alter role authenticated set statement_timeout = '{timeout}'; {RELOAD}")
    seen = patient.examine_until(lambda seen: code in seen.findings)
    assert set(seen.findings) == {code}
    found = seen.the(code, "statement time-out")
    assert found["level"] == level
    # The settings of the roles say the same to the service key.
    service = patient.running.service_role_key
    assert set(patient.examine("--service-key", service, USER_EMAIL=None).findings) == {code}
    # A hosted project's owner may change this setting.
    patient.cure(found["remedy"], as_superuser=True)


def test_object_versioning(patient: Patient) -> None:
    """Storage has the column since its releases of 2026, and lets nobody go back to DISABLED."""
    assert patient.examine().report["facts"]["object versioning"] == "this release of Storage has none"
    patient.execute(
        "alter table storage.buckets add column versioning_status text not null default 'DISABLED'"
    )
    assert patient.examine().report["facts"]["object versioning"] == "off"
    for status, level, code in (
        ("ENABLED", "error", "versioning-on"),
        ("SUSPENDED", "warning", "versioning-suspended"),
    ):
        patient.execute(f"update storage.buckets set versioning_status = '{status}'")
        seen = patient.examine()
        assert set(seen.findings) == {code}
        assert seen.the(code, BUCKET)["level"] == level
        assert "Suspend it" in seen.the(code, BUCKET)["remedy"]
    patient.execute("alter table storage.buckets drop column versioning_status")


def test_row_level_security_that_is_forced(patient: Patient) -> None:
    patient.execute("alter table public.datasets force row level security")
    seen = patient.examine()
    assert set(seen.findings) == {"rls-forced"}
    assert seen.status == 0
    patient.cure(seen.the("rls-forced", "public.datasets")["remedy"])


def test_policies_of_others_that_let_anybody_into_the_bucket(patient: Patient) -> None:
    patient.execute("create policy open on storage.objects for select to authenticated using (true)")
    seen = patient.examine()
    assert set(seen.findings) == {"open-storage-policy"}
    assert "bucket_id" in seen.the("open-storage-policy", "storage.objects")["remedy"]
    patient.execute("alter policy open on storage.objects using (bucket_id = 'pictures')")
    assert patient.examine().findings == {}
    patient.execute("drop policy open on storage.objects")


def test_a_table_of_somebody_else_among_ours(patient: Patient) -> None:
    patient.execute("create table tensorage.notes (id int)")
    seen = patient.examine()
    assert set(seen.findings) == {"table-unknown"}
    patient.execute("drop table tensorage.notes")


def test_a_table_that_is_missing(patient: Patient) -> None:
    patient.execute("alter table tensorage.stagings rename to other")
    seen = patient.examine()
    assert seen.the("table-missing", "tensorage.stagings")["level"] == "error"
    patient.execute("alter table tensorage.other rename to stagings")


def test_shares_and_open_sign_up(patient: Patient) -> None:
    project = Project(patient.running.api_url, patient.running.anon_key)
    with workers.store_of(project, patient.user) as store:
        store["a"] = np.arange(3)
        store.share("a")
        seen = patient.examine()
        assert set(seen.findings) == {"open-to-anybody"}
        assert seen.status == 0
        assert "store.unshare(key)" in seen.the("open-to-anybody", "sign-up")["remedy"]
        store.unshare("a")
        store.share("a", "reader@lab.org")
        seen = patient.examine()
        assert set(seen.findings) == {"unproved-addresses"}
        # The embedded backend has no dashboard.
        remedy = seen.the("unproved-addresses", "sign-up")["remedy"]
        assert "sends no mail" in remedy
        assert "dashboard" not in remedy
        del store["a"]


# Keys, logins and ways that do not lead there ---------------------------------------------------------------


def test_a_wrong_key(patient: Patient) -> None:
    seen = patient.examine(SUPABASE_KEY="sb_publishable_of_another_project")
    assert set(seen.findings) == {"key-refused"}
    assert "Invalid API key" in seen.the("key-refused", "SUPABASE_KEY")["message"]
    assert seen.report["facts"]["key"] == "publishable"


def test_no_key(patient: Patient) -> None:
    assert set(patient.examine(SUPABASE_KEY=None).findings) == {"no-key"}


def test_the_service_key_as_the_key_of_users(patient: Patient) -> None:
    seen = patient.examine(SUPABASE_KEY=patient.running.service_role_key)
    assert set(seen.findings) == {"key-is-secret"}
    assert "publishable" in seen.the("key-is-secret", "SUPABASE_KEY")["remedy"]


def test_a_service_key_that_is_none(patient: Patient) -> None:
    seen = patient.examine(SUPABASE_SERVICE_ROLE_KEY=patient.running.anon_key)
    assert set(seen.findings) == {"no-service-key", "service-key-refused"}
    seen = patient.examine(SUPABASE_SERVICE_ROLE_KEY="sb_secret_of_another_project")
    assert set(seen.findings) == {"service-key-refused"}
    assert "Invalid API key" in seen.the("service-key-refused", "SUPABASE_SERVICE_ROLE_KEY")["message"]


def test_a_wrong_password(patient: Patient) -> None:
    seen = patient.examine(USER_PASSWORD=secrets.token_urlsafe())
    assert set(seen.findings) == {"login-refused"}
    assert "Invalid login credentials" in seen.the("login-refused", "login")["message"]


def test_a_service_key_of_the_environment_is_not_sent_where_a_dotenv_says(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        f"SUPABASE_URL={patient.running.api_url}\nSUPABASE_KEY={patient.running.anon_key}\n"
    )
    monkeypatch.chdir(tmp_path)
    seen = patient.examine(
        SUPABASE_URL=None, SUPABASE_KEY=None, USER_EMAIL=None, USER_PASSWORD=None,
        SUPABASE_SERVICE_ROLE_KEY=patient.running.service_role_key,
    )  # fmt: skip
    assert seen.findings == {}
    assert "the database from within" in seen.report["unseen"]


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"role": "anon", "ref": "abcdefgh", "exp": 4e9}, "it is one of the project abcdefgh"),
        ({"role": "anon", "ref": "hgfedcba", "exp": 1e9}, "it has expired"),
        ({"role": "anon", "ref": "hgfedcba", "exp": 4e9}, None),
    ],
)
def test_a_hosted_project_that_refuses_a_key(claims: dict[str, Any], says: str | None) -> None:
    """No test can have a hosted project: the judge is given the answer of its gateway."""
    key = jwt.encode(
        claims, "the secret of the project, which nobody but the project knows", algorithm="HS256"
    )
    now = 1.8e9
    refusal = Reply(401, {}, {"message": "Invalid API key"}, now, now)
    sight = Sight("https://hgfedcba.supabase.co", keys.read_key(key), settings=refusal)
    (found,) = findings.judge(sight, load_expected()).findings
    assert found.code == "key-refused"
    assert found.message == "the project refuses the key (Invalid API key)" + (f": {says}" if says else "")


@pytest.mark.parametrize(
    ("key", "kind", "passes_policies"),
    [
        ("sb_publishable_1234_x", "publishable", False),
        ("sb_secret_1234_x", "secret", True),
        ("e30.eyJyb2xlIjoiYW5vbiJ9.c2ln", "legacy anon", False),
        ("e30.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2ln", "legacy service", True),
        ("e30.eyJyb2xlIjoiYXV0aGVudGljYXRlZCJ9.c2ln", "other", False),
        ("e30.!.c2ln", "other", False),
        ("e30.W10.c2ln", "other", False),
        ("a.b", "other", False),
    ],
)
def test_kinds_of_keys(key: str, kind: str, passes_policies: bool) -> None:
    read = keys.read_key(key)
    assert (read.kind, read.passes_policies) == (kind, passes_policies)
    assert key not in repr(read)


def test_no_project_is_configured() -> None:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ConfigurationError: no backend_url is configured: give --url")
    assert done.stderr.count("\n") == 1


def test_a_server_that_is_stopped(patient: Patient) -> None:
    data_dir = patient.running.data_dir
    control.stop(data_dir)
    seen = patient.examine()
    assert set(seen.findings) == {"unreachable"}
    assert "tensorage local start" in seen.the("unreachable", patient.running.api_url)["remedy"]
    assert "everything else" in seen.report["unseen"]
    assert servers.start(data_dir).api_url == patient.running.api_url


class _Website(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>It works!</html>")

    def log_message(self, *_: object) -> None: ...


def test_a_website_that_is_no_project(patient: Patient) -> None:
    with HTTPServer(("127.0.0.1", 0), _Website) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            seen = patient.examine(SUPABASE_URL=url)
        finally:
            server.shutdown()
            thread.join()
    assert set(seen.findings) == {"no-project"}
    assert "It works!" in seen.the("no-project", url)["message"]


@contextmanager
def passing(patient: Patient, **options: object) -> Iterator[str]:
    proxy = Proxy(patient.running.api_url, **options)  # type: ignore[arg-type]
    try:
        yield proxy.url
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("path", "code", "about"),
    [
        ("/rest/", "rest-fails", "REST"),
        ("/storage/", "storage-fails", "Storage"),
        ("/auth/v1/token", "auth-fails", "login"),
    ],
)
def test_a_part_of_the_project_that_is_down(patient: Patient, path: str, code: str, about: str) -> None:
    with passing(patient, loses_answer=lambda exchange: exchange.target.startswith(path)) as url:
        seen = patient.examine(SUPABASE_URL=url)
    assert set(seen.findings) == {code}
    assert "log" in seen.the(code, about)["remedy"]


def postpone(answer: bytes, seconds: float) -> bytes:
    """Rewrite the header Date of an answer."""

    def later(found: re.Match[bytes]) -> bytes:
        date = parsedate_to_datetime(found[1].decode()).timestamp() + seconds
        return f"date: {formatdate(date, usegmt=True)}".encode()

    changed, times = re.subn(rb"(?i)^date: ([^\r]+)", later, answer, count=1, flags=re.MULTILINE)
    assert times == 1
    return changed


@pytest.mark.parametrize(
    ("seconds", "says"), [(90, r"(8\d|90) s ahead of"), (-3600, r"3[56]\d\d s behind"), (2, None)]
)
def test_a_clock_that_is_wrong(patient: Patient, seconds: float, says: str | None) -> None:
    # The time in an answer of a busy server is some seconds old.
    with passing(patient, changes_answer=lambda answer: postpone(answer, seconds)) as url:
        seen = patient.examine(SUPABASE_URL=url)
    if says is None:
        assert seen.findings == {}
    else:
        assert set(seen.findings) == {"clock-skew"}
        found = seen.the("clock-skew", "clock")
        assert re.search(says, found["message"])
        assert "NTP" in found["remedy"]


@pytest.mark.parametrize(("header", "version"), [(b"postgrest/11.2.0", 11), (b"postgrest/13.0.4 (a)", 13)])
def test_the_version_of_rest(patient: Patient, header: bytes, version: int) -> None:
    with passing(
        patient, changes_answer=lambda answer: answer.replace(b"\r\n", b"\r\nServer: " + header + b"\r\n", 1)
    ) as url:
        seen = patient.examine(SUPABASE_URL=url)
    assert set(seen.findings) == ({"rest-too-old"} if version < 12 else set())
    assert f"PostgREST {version}" in seen.report["facts"]["REST"]


def test_a_database_that_is_wrong(patient: Patient) -> None:
    """Clock and version of a PostgreSQL that no test can set: answers of a real one are changed for the judge."""
    running = patient.running
    sight = look_at(Configuration(running.api_url, running.anon_key, service_key=running.service_role_key))
    (inside,) = sight.inside
    assert isinstance(inside.doctor, Reply)

    def judged(**changed: object) -> set[str]:
        doctor = dataclasses.replace(inside.doctor, body={**inside.doctor.body, **changed})
        other = dataclasses.replace(sight, inside=(dataclasses.replace(inside, doctor=doctor),))
        return {finding.code for finding in findings.judge(other, load_expected()).findings}

    assert judged() == set()
    assert judged(clock=inside.doctor.body["clock"] + 60) == {"database-clock-skew"}
    assert judged(postgres_number=140010) == {"postgres-too-old"}


# The function, and the project that it is compared with ------------------------------------------------------


def test_the_doctors_function_tells_nobody_else_and_no_secret(patient: Patient) -> None:
    running = patient.running
    url, anon = f"{running.api_url}/rest/v1/rpc/tensorage_doctor", {"apikey": running.anon_key}
    assert httpx.post(url, headers=anon, json={}).json()["code"] == "42501"
    project = Project(running.api_url, running.anon_key)
    with workers.store_of(project, patient.user) as store:
        store["a secret key"] = np.arange(3)
        store.share("a secret key", "reader@lab.org")
        headers = {**anon, "Authorization": f"Bearer {store.backend.token}"}
        answer = httpx.post(url, headers=headers, json={})
        assert answer.status_code == 200
        for secret in ("a secret key", "reader@lab.org", patient.user.email, patient.user.id):
            assert secret not in answer.text
        store.clear()
    gone = project.register()
    with workers.store_of(project, gone) as store:
        headers = {**anon, "Authorization": f"Bearer {store.backend.token}"}
        assert httpx.post(url, headers=headers, json={}).status_code == 200
        patient.execute(f"delete from auth.users where id = '{gone.id}'")
        assert httpx.post(url, headers=headers, json={}).json()["code"] == "42501"


def test_every_code_is_on_the_page() -> None:
    tree = ast.parse(Path(findings.__file__).read_text())
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    codes = {text for text in texts if re.fullmatch(r"[a-z]+(-[a-z]+)+|unreachable", text)} - {"sign-up"}
    assert {code for _, found, _ in BREAKS.values() for code in found} <= codes
    page = (ROOT / "docs" / "doctor.md").read_text().partition("## Findings")[2].partition("\n##")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", page, re.M)) == codes


@pytest.mark.parametrize("module", [expected, findings, keys, quotas, report])
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_bodies_of_functions_are_read_from_the_migrations() -> None:
    sql = "\n".join(file.read_text("utf-8") for file in migration_files())
    defined = re.findall(r"^create or replace function ([\w.]+)\(", sql, re.MULTILINE)
    assert sorted(bodies_in(sql)) == sorted(defined)
    # A script that was pasted from Windows has the same functions.
    assert bodies_in(sql.replace("\n", "\r\n")) == bodies_in(sql)
