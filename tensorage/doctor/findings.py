"""Judgement of a project by its answers. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from tensorage.backend.wire.faults import HOW_TO_MIGRATE, flaw_of_version
from tensorage.config import ENVIRONMENT, SERVICE_KEY_VARIABLE
from tensorage.doctor.answers import Answer, Inside, Reply, Sight, Silence
from tensorage.doctor.expected import PARTS, Expected
from tensorage.doctor.report import Report

__all__ = ["judge"]

#: Largest difference between two clocks. A share that ends at a time of this machine ends too early or too late by it.
MAX_SKEW_S = 5.0

#: Shortest time-out of a statement. Hosted Supabase allows 8 s, which the client makes its requests for.
MIN_TIMEOUT_MS = 5000

#: Largest object that the client makes.
MAX_OBJECT_BYTES = 8 * 1024 * 1024

OLDEST_POSTGRES = 15
OLDEST_REST = 12

_APPLY_AGAIN = f"Apply the migrations again, on top of themselves: {HOW_TO_MIGRATE}"

_RECOUNT = "select tensorage.recount(id) from auth.users;"

_GIVE_SERVICE_KEY = f"give the service key ({SERVICE_KEY_VARIABLE}, or --service-key)"

#: Beginning of the version that the Auth of the embedded backend tells.
_EMBEDDED = "tensorage-"

_CONFIRM_ADDRESSES = (
    "Let Auth confirm addresses (dashboard, Authentication, Sign In / Providers, Email: Confirm email), or turn "
    "sign-up off."
)

_EMBEDDED_ADDRESSES = (
    "The embedded backend sends no mail, and its sign-up is always open. Sign up with the readers' addresses before "
    "you share with them. If other users of this machine are not to be trusted, take a Supabase, hosted or your own."
)

#: Codes with which REST says that it has no such function or table.
_UNKNOWN = frozenset({"PGRST202", "PGRST205", "42P01", "42883"})

#: Code of PostgreSQL without the schema of the inner parts.
_NO_SCHEMA = "3F000"


def judge(sight: Sight, expected: Expected) -> Report:
    """Judge a project.

    Parameters
    ----------
    sight
        Answers of the project.
    expected
        A fresh project.
    """
    report = Report(sight.url)
    _judge_keys(report, sight)
    if not _is_reached(report, sight):
        report.unseen["everything else"] = "it is asked for once the project answers"
        return report
    _judge_sign_up(report, sight)
    _judge_clock(report, sight)
    _judge_rest(report, sight)
    _judge_anybody(report, sight)
    _judge_storage(report, sight)
    _judge_login(report, sight)
    _judge_inside(report, sight, expected)
    return report


# Keys, and the way to the project ------------------------------------------------------------------------


def _judge_keys(report: Report, sight: Sight) -> None:
    variable = ENVIRONMENT["backend_key"]
    if sight.key is None:
        report.error(
            "no-key",
            variable,
            "no key of the project is given",
            f"Set {variable} to the publishable key of the project (dashboard, Project Settings, API Keys).",
        )
    else:
        report.facts["key"] = sight.key.kind
        if sight.key.passes_policies:
            report.error(
                "key-is-secret",
                variable,
                f"the key of users is a {sight.key.kind} key: whoever has it passes by every policy",
                f"Put the publishable key into {variable}. If users had this one, make a new one in the dashboard and "
                "delete it.",
            )
    if sight.service_key is not None and not sight.service_key.passes_policies:
        report.error(
            "no-service-key",
            SERVICE_KEY_VARIABLE,
            f"the key that was given as the service key is of another kind: {sight.service_key.kind}",
            "Give the secret key of the project (sb_secret_..., or the legacy key service_role), or none.",
        )


def _is_reached(report: Report, sight: Sight) -> bool:
    """Judge the first request, on which all others depend."""
    first = sight.settings
    assert first is not None
    if isinstance(first, Silence):
        report.error(
            "unreachable",
            sight.url,
            f"nobody answers: {first.reason}",
            f"Check the URL ({ENVIRONMENT['backend_url']}) and the network. The dashboard wakes up a hosted project "
            "that is paused; `tensorage local start` starts the embedded backend.",
        )
        return False
    if first.status in {401, 403}:
        if sight.key is not None:
            report.error("key-refused", ENVIRONMENT["backend_key"], *_why_refused(first, sight))
        # Somebody answers, and the service key may still be taken.
        return True
    if not first.is_good or not isinstance(first.body, dict) or "external" not in first.body:
        report.error(
            "no-project",
            sight.url,
            f"this is not what Supabase's Auth answers ({first})",
            "Give the URL of the project without a path: https://YOUR-PROJECT-REF.supabase.co. If it is right, Auth "
            "fails: look at its log.",
        )
        return False
    health = sight.health
    version = (
        health.body.get("version") if isinstance(health, Reply) and isinstance(health.body, dict) else None
    )
    report.facts["Auth"] = str(version or "answers")
    return True


def _why_refused(refusal: Reply, sight: Sight) -> tuple[str, str]:
    key = sight.key
    assert key is not None
    host = (urlsplit(sight.url).hostname or "").partition(".")
    message = f"the project refuses the key ({refusal.message})"
    if key.project is not None and host[2] == "supabase.co" and key.project != host[0]:
        message += f": it is one of the project {key.project}"
    elif key.expires_at is not None and key.expires_at < refusal.came_at:
        message += ": it has expired"
    return message, (
        "Take the publishable key of this project (dashboard, Project Settings, API Keys). For the embedded backend, "
        "`tensorage local status -o env` prints it."
    )


def _judge_sign_up(report: Report, sight: Sight) -> None:
    settings = _content(sight.settings)
    if not isinstance(settings, dict):
        report.unseen["sign-up"] = "Auth tells it only with a key that it takes"
    elif settings.get("disable_signup"):
        report.facts["sign-up"] = "closed: a share with everybody reaches the accounts that you have made"
    else:
        confirmed = (
            "an address needs no confirmation"
            if settings.get("mailer_autoconfirm")
            else "addresses are confirmed by mail"
        )
        report.facts["sign-up"] = (
            f"open ({confirmed}): a share with everybody reaches anybody who has the publishable key "
            "and makes an account"
        )


def _judge_shares(report: Report, sight: Sight, inside: Mapping[str, Any]) -> None:
    settings = _content(sight.settings)
    if not isinstance(settings, dict) or settings.get("disable_signup"):
        return
    if inside["shares_with_everybody"]:
        report.warn(
            "open-to-anybody",
            "sign-up",
            "arrays are shared with everybody, and sign-up is open: anybody who has the publishable key reads them "
            "after making an account",
            "Turn sign-up off (dashboard, Authentication, Sign In / Providers: Allow new users to sign up), or name "
            "the readers: store.unshare(key), then store.share(key, [addresses]).",
        )
    if inside["shares_with_addresses"] and settings.get("mailer_autoconfirm"):
        report.warn(
            "unproved-addresses",
            "sign-up",
            "arrays are shared with addresses, and whoever signs up with an address need not prove that it is theirs",
            _EMBEDDED_ADDRESSES if report.facts.get("Auth", "").startswith(_EMBEDDED) else _CONFIRM_ADDRESSES,
        )


def _judge_clock(report: Report, sight: Sight) -> None:
    """Compare the clock of the project's front with the one of this machine."""
    skews = []
    for answer in (sight.settings, sight.health, *sight.rest, sight.storage):
        if isinstance(answer, Reply) and (date := _date_of(answer)) is not None:
            # The header has whole seconds.
            skews.append(_apart(date, date + 1.0, answer))
    if not skews:
        report.unseen["clock"] = "no answer has a header Date"
        return
    # The best of them: an answer may come from a cache, with the date of an earlier one.
    _judge_skew(report, "clock-skew", "clock", "the clock of the server", min(skews, key=abs))


def _judge_skew(report: Report, code: str, about: str, clock: str, skew_s: float) -> None:
    if abs(skew_s) <= MAX_SKEW_S:
        report.facts[about] = f"within {MAX_SKEW_S:g} s of this machine's"
        return
    report.error(
        code,
        about,
        f"{clock} is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's: shares end too "
        "early or too late by that, and tokens may be refused",
        "Let both keep their time by NTP (`timedatectl set-ntp true` on Linux). A hosted project's clock is right.",
    )


def _date_of(reply: Reply) -> float | None:
    try:
        return parsedate_to_datetime(reply.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None


def _apart(first: float, last: float, reply: Reply) -> float:
    """Return by how much the time of an answer, in a span, lies outside of the span in which the answer was made."""
    if first > reply.came_at:
        return first - reply.came_at
    return min(0.0, last - reply.sent_at)


# The APIs, as anybody sees them ---------------------------------------------------------------------------


def _judge_rest(report: Report, sight: Sight) -> None:
    for answer in sight.rest:
        if isinstance(answer, Silence) or answer.status >= 500:
            report.error(
                "rest-fails",
                "REST",
                f"REST does not serve ({_words(answer)})",
                "Look at the log of PostgREST, and whether PostgreSQL runs. A hosted project's dashboard shows both.",
            )
            return
    version = next(filter(None, map(_rest_version, sight.rest)), None)
    auth = report.facts.get("Auth", "")
    if version is not None:
        report.facts["REST"] = f"PostgREST {version}"
        found = re.match(r"\d+", version)
        if found is not None and int(found[0]) < OLDEST_REST:
            report.error(
                "rest-too-old",
                "REST",
                f"PostgREST {version} does not send arrays as bytes",
                f"Upgrade PostgREST to {OLDEST_REST} or newer: on a hosted project, upgrade the project (dashboard, "
                "Project Settings, Infrastructure).",
            )
    elif auth.startswith(_EMBEDDED):
        report.facts["REST"] = f"of the embedded backend, {auth}"
    else:
        report.unseen["version of REST"] = (
            "its answers do not tell it"
            if sight.service_key is not None
            else f"its answers do not tell it without the service key: {_GIVE_SERVICE_KEY}"
        )


def _rest_version(answer: Answer) -> str | None:
    """Return the version that PostgREST's header ``Server``, or its description of the API, tells."""
    assert isinstance(answer, Reply)
    found = re.match(r"postgrest/(\d[\w.]*)", answer.headers.get("server", ""), re.IGNORECASE)
    if found is not None:
        return found[1]
    info = answer.body.get("info") if isinstance(answer.body, dict) else None
    return str(info["version"]).split(" ")[0] if isinstance(info, dict) and "version" in info else None


def _judge_anybody(report: Report, sight: Sight) -> None:
    """Judge what the key alone opens: it should open nothing. A key for administrators opens everything."""
    if sight.key is not None and sight.key.passes_policies:
        return
    version = sight.version_to_anybody
    if isinstance(version, Reply) and version.is_good:
        report.error(
            "anybody-may-call",
            "public.tensorage_version",
            "the key alone, without a login, may call functions of tensorage",
            _APPLY_AGAIN,
        )
    elif isinstance(version, Reply) and version.code in _UNKNOWN:
        report.error(*_no_migrations(version))
    for table, answer in sight.tables_to_anybody.items():
        if isinstance(answer, Reply) and answer.is_good:
            report.error(
                "anybody-may-read",
                f"public.{table}",
                "the key alone, without a login, may read the table",
                f"Run in the SQL editor: revoke all on table public.{table} from public, anon; ({_APPLY_AGAIN})",
            )


def _no_migrations(reply: Reply) -> tuple[str, str, str, str]:
    remedy = (
        f"Apply the migrations: {HOW_TO_MIGRATE}. If that was done a moment ago, run in the SQL editor: "
        "notify pgrst, 'reload schema';"
    )
    message = f"the project does not have the functions of tensorage ({reply.message})"
    return "no-migrations", "schema", message, remedy


def _judge_storage(report: Report, sight: Sight) -> None:
    for answer in (sight.storage, sight.listing):
        if answer is not None and (isinstance(answer, Silence) or answer.status >= 500):
            report.error(
                "storage-fails",
                "Storage",
                f"Storage does not serve ({_words(answer)})",
                'Look at the log of Storage. Arrays of the engine "database" do not need it.',
            )
            return
    if isinstance(sight.listing, Reply) and not sight.listing.is_good:
        report.error(
            "storage-refuses",
            "Storage",
            f"Storage refuses to list the user's own folder ({sight.listing})",
            "Check that Storage has the JWT secret of Auth. " + _APPLY_AGAIN,
        )
    elif sight.listing is not None:
        report.facts["Storage"] = "lists the user's folder"
    elif sight.storage is not None:
        report.facts["Storage"] = "answers"


# From within ------------------------------------------------------------------------------------------------


def _judge_login(report: Report, sight: Sight) -> None:
    if sight.login_error is not None:
        report.error(
            "login-refused",
            "login",
            sight.login_error,
            f"Check {ENVIRONMENT['email']} and {ENVIRONMENT['password']}. An address may have to be confirmed first.",
        )
    elif sight.login_outage is not None:
        report.error(
            "auth-fails",
            "login",
            sight.login_outage,
            "Wait a minute, and try again: Auth limits how often one address may log in. Else look at the log of Auth.",
        )
    elif sight.no_login is not None:
        report.unseen["the project as a user sees it"] = sight.no_login
    else:
        report.facts["login"] = "works"


def _judge_inside(report: Report, sight: Sight, expected: Expected) -> None:
    """Judge the answers from inside of the database: the user's, or else those for the service key."""
    known = {finding.code for finding in report.findings}
    is_judged = False
    for inside in sight.inside:
        if isinstance(inside.doctor, Silence) or inside.doctor.status >= 500:
            if "rest-fails" not in known:
                report.error(
                    "rest-fails",
                    "REST",
                    f"REST does not answer {inside.caller} ({_words(inside.doctor)})",
                    "Look at the logs of PostgREST and PostgreSQL.",
                )
        elif not inside.doctor.is_good:
            _judge_refusal(report, inside)
        elif not is_judged:
            # Once, by the first good answer: all callers are told of the same database.
            _judge_schema(report, sight, expected, inside.doctor)
            is_judged = True
    if not is_judged and not any(
        finding.code in {"no-migrations", "schema-version"} for finding in report.findings
    ):
        report.unseen["the database from within"] = (
            f"log in ({ENVIRONMENT['email']}, {ENVIRONMENT['password']}), or {_GIVE_SERVICE_KEY}: without one of them, "
            "versions, rights, policies, row-level security, time-outs and the bucket are not seen"
        )


def _judge_refusal(report: Report, inside: Inside) -> None:
    reply = inside.doctor
    assert isinstance(reply, Reply)
    if reply.code == _NO_SCHEMA:
        # The user and the service key get the same answer.
        if any(finding.code == "schema-version" for finding in report.findings):
            return
        report.error(
            "schema-version",
            "schema",
            f"only a part of the SQL of tensorage is there: {reply.message}",
            "Restore the database from a backup: columns of the tables have gone with that schema. Without one, remove "
            'what is left, arrays included (the page "Troubleshooting" of the documentation has the SQL), and apply '
            f"the migrations: {HOW_TO_MIGRATE}",
        )
    elif reply.code in _UNKNOWN:
        version = inside.version
        is_known = any(finding.code == "no-migrations" for finding in report.findings)
        if isinstance(version, Reply) and version.is_good:
            flaw = flaw_of_version(version.body)
            report.error(
                "schema-version",
                "schema",
                *(
                    flaw
                    or ("the project has an unfinished schema: tensorage_doctor() is missing", _APPLY_AGAIN)
                ),
            )
        elif not is_known:
            report.error(*_no_migrations(reply))
    elif inside.caller == "the service key":
        report.error(
            "service-key-refused",
            SERVICE_KEY_VARIABLE,
            f"the project refuses the service key ({reply})",
            "Take the secret key of this project (dashboard, Project Settings, API Keys), or give none.",
        )
    else:
        report.error(
            "user-refused",
            "login",
            f"a user who has logged in is refused ({reply})",
            f"Check that REST has the JWT secret of Auth. {_APPLY_AGAIN}",
        )


#: Parts of the answer of ``tensorage_doctor()``.
_ANSWERED = frozenset(
    {
        *PARTS,
        "bucket",
        "clock",
        "extensions",
        "functions",
        "knows_versioning",
        "open_storage_policies",
        "postgres_number",
        "postgres_version",
        "role",
        "schema_version",
        "shares_with_addresses",
        "shares_with_everybody",
        "statement_timeout_ms",
        "statement_timeouts",
    }
)


def _judge_schema(report: Report, sight: Sight, expected: Expected, reply: Reply) -> None:
    inside = reply.body if isinstance(reply.body, dict) else {}
    flaw = flaw_of_version(inside.get("schema_version"))
    if flaw is not None and "schema_version" in inside:
        # Nothing else can be judged: another version has other functions, and other answers.
        report.error("schema-version", "schema", *flaw)
        return
    if not inside.keys() >= _ANSWERED:
        report.error(
            "function-changed",
            "public.tensorage_doctor",
            "the function is not that of the migrations: its answer lacks "
            + ", ".join(sorted(_ANSWERED - inside.keys())),
            _APPLY_AGAIN,
        )
        return
    _judge_postgres(report, inside, reply)
    _judge_timeout(report, inside)
    _judge_bucket(report, inside)
    _judge_shares(report, sight, inside)
    report.facts["schema"] = f"version {inside['schema_version']}"
    found = Expected.from_json(inside, {})
    before = len(report.findings)
    _compare_tables(report, found.row_security, expected.row_security)
    _compare_policies(report, found.policies, expected.policies)
    _compare_triggers(report, found.triggers, expected.triggers)
    _compare_rights(report, found.rights, expected.rights)
    _compare_functions(report, inside["functions"], expected.bodies)
    if len(report.findings) == before:
        report.facts["rights"] = (
            f"row-level security on {len(found.row_security)} tables, {len(found.policies)} policies, "
            f"{len(found.triggers)} triggers, {len(found.rights)} grants and {len(inside['functions'])} functions "
            "are those of the migrations"
        )
    if inside["open_storage_policies"]:
        report.warn(
            "open-storage-policy",
            "storage.objects",
            f"{inside['open_storage_policies']} policies of others on storage.objects look at no bucket: they may let "
            "their users into the bucket tensors, too",
            "Add `bucket_id = '...'` to their conditions (dashboard, Storage, Policies).",
        )


def _judge_postgres(report: Report, inside: Mapping[str, Any], reply: Reply) -> None:
    report.facts["PostgreSQL"] = str(inside["postgres_version"])
    if inside["postgres_number"] // 10000 < OLDEST_POSTGRES:
        report.error(
            "postgres-too-old",
            "PostgreSQL",
            f"version {inside['postgres_version']} is too old",
            f"Upgrade it to {OLDEST_POSTGRES} or newer.",
        )
    extensions = inside["extensions"] or {}
    report.facts["extensions"] = ", ".join(
        f"{name} {version}" for name, version in sorted(extensions.items())
    )
    if "pg_graphql" in extensions:
        report.facts["extensions"] += " (GraphQL shows the tables by the same rights and policies)"
    clock = float(inside["clock"])
    _judge_skew(
        report,
        "database-clock-skew",
        "clock of the database",
        "the clock of PostgreSQL",
        _apart(clock, clock, reply),
    )


def _judge_timeout(report: Report, inside: Mapping[str, Any]) -> None:
    """Judge the time-out of users: the one of this request, or if it was not a user's, the settings of the roles."""
    settings = inside["statement_timeouts"]
    if inside["role"] == "authenticated":
        timeout_ms = int(inside["statement_timeout_ms"])
    else:
        # PostgREST applies the settings of the role that it connects as, and over them those of the user's role.
        text = settings.get("authenticated") or settings.get("authenticator")
        if text is None or (milliseconds := _milliseconds(text)) is None:
            report.unseen["statement time-out"] = (
                "the roles have none of their own: log in, to see the one of users"
            )
            return
        timeout_ms = milliseconds
    remedy = (
        "Run in the SQL editor: alter role authenticated set statement_timeout = '8s'; notify pgrst, 'reload config'; "
        "hosted projects have 8 s."
    )
    if timeout_ms == 0:
        report.warn(
            "no-timeout",
            "statement time-out",
            "statements of users may take any time: one of them may hold a connection of REST for hours",
            remedy,
        )
    elif timeout_ms < MIN_TIMEOUT_MS:
        report.error(
            "timeout-too-short",
            "statement time-out",
            f"a statement of a user may take {timeout_ms / 1000:g} s: large requests fail, and are repeated in "
            "pieces",
            remedy,
        )
    else:
        report.facts["statement time-out"] = f"{timeout_ms / 1000:g} s for users"


_UNITS_MS = {"": 1, "us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def _milliseconds(setting: str) -> int | None:
    """Read a time of PostgreSQL's settings.

    >>> _milliseconds("8s")
    8000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", setting)
    if found is None or found[2] not in _UNITS_MS:
        return None
    return round(float(found[1]) * _UNITS_MS[found[2]])


def _judge_bucket(report: Report, inside: Mapping[str, Any]) -> None:
    bucket = inside["bucket"]
    if bucket is None:
        report.error(
            "bucket-missing",
            "bucket tensors",
            'there is no bucket "tensors": no array can be kept in Storage, and no file',
            _APPLY_AGAIN,
        )
        return
    before = len(report.findings)
    if bucket["public"]:
        report.error(
            "bucket-public",
            "bucket tensors",
            "the bucket is public: whoever knows the name of an object reads it, without a login",
            "Run in the SQL editor: update storage.buckets set public = false where id = 'tensors';",
        )
    limit, types = bucket["file_size_limit"], bucket["allowed_mime_types"]
    if limit is not None and int(limit) < MAX_OBJECT_BYTES:
        report.error(
            "bucket-size-limit",
            "bucket tensors",
            f"the bucket takes no object of more than {limit} bytes",
            "Run in the SQL editor: update storage.buckets set file_size_limit = null where id = 'tensors';",
        )
    if types:
        report.error(
            "bucket-types",
            "bucket tensors",
            f"the bucket takes only content of some types: {', '.join(map(str, types))}",
            "Run in the SQL editor: update storage.buckets set allowed_mime_types = null where id = 'tensors';",
        )
    _judge_versioning(report, inside)
    if len(report.findings) == before:
        report.facts["bucket tensors"] = "is there, and private"


def _judge_versioning(report: Report, inside: Mapping[str, Any]) -> None:
    """Judge Storage's versions of objects, which are a column of its table of buckets since releases of 2026."""
    status = str((inside["bucket"] or {}).get("versioning") or "")
    remedy = (
        "Suspend it (dashboard, Storage, the bucket's settings), and delete the versions that are not current. "
        "Nothing is lost by that: tensorage writes over no object of an array."
    )
    if status.upper() == "ENABLED":
        report.error(
            "versioning-on",
            "bucket tensors",
            "Storage keeps old versions of objects: what is deleted takes room and is paid for",
            remedy,
        )
    elif status.upper() == "SUSPENDED":
        report.warn(
            "versioning-suspended",
            "bucket tensors",
            "versions of objects were kept before, and those may still take room",
            remedy,
        )
    elif inside["knows_versioning"]:
        report.facts["object versioning"] = "off"
    else:
        report.facts["object versioning"] = "this release of Storage has none"
    if not report.facts.get("Auth", "").startswith(_EMBEDDED):
        report.unseen["versions behind Storage"] = (
            "Storage does not tell whether the S3 service behind it keeps versions by itself. Supabase's does not; "
            "look at your own"
        )


# A fresh project to compare with -----------------------------------------------------------------------------


def _compare_tables(report: Report, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for table in sorted(expected):
        state = found.get(table)
        if state is None:
            report.error("table-missing", table, "the table is missing", _APPLY_AGAIN)
        elif state == "off":
            report.error(
                "rls-off",
                table,
                "row-level security is off: whoever has a right to the table sees the rows of all users",
                f"Run in the SQL editor: alter table {table} enable row level security;",
            )
        elif state == "forced" and expected[table] != "forced":
            report.warn(
                "rls-forced",
                table,
                "row-level security also holds for the table's owner, as whom the functions run",
                f"Run in the SQL editor: alter table {table} no force row level security;",
            )
    for table in sorted(found.keys() - expected.keys()):
        report.warn(
            "table-unknown",
            table,
            "the table is of no migration of this release",
            "Keep tables of your own in a schema of your own.",
        )


def _compare_policies(
    report: Report, found: Mapping[tuple[str, str], str], expected: Mapping[tuple[str, str], str]
) -> None:
    for table, name in sorted(expected):
        text = found.get((table, name))
        if text is None:
            report.error("policy-missing", table, f'the policy "{name}" is missing', _APPLY_AGAIN)
        elif text != expected[table, name]:
            report.error(
                "policy-changed", table, f'the policy "{name}" is not that of the migrations', _APPLY_AGAIN
            )
    for table, name in sorted(found.keys() - expected.keys()):
        report.error(
            "policy-unknown",
            table,
            f'the policy "{name}" is of no migration of this release, and may let anybody in',
            f"Run in the SQL editor: drop policy {_quote(name)} on {table};",
        )


def _compare_triggers(
    report: Report, found: Mapping[tuple[str, str], str], expected: Mapping[tuple[str, str], str]
) -> None:
    for table, name in sorted(expected):
        state = found.get((table, name))
        if state is None:
            report.error(
                "trigger-missing",
                table,
                f"the trigger {name} is missing: quotas count wrong",
                f"{_APPLY_AGAIN}. Then run in the SQL editor: {_RECOUNT}",
            )
        elif state != expected[table, name]:
            report.error(
                "trigger-disabled",
                table,
                f"the trigger {name} is disabled, or not for all: quotas count wrong",
                f"Run in the SQL editor: alter table {table} enable trigger {name}; {_RECOUNT}",
            )


def _compare_rights(
    report: Report, found: frozenset[tuple[str, str, str]], expected: frozenset[tuple[str, str, str]]
) -> None:
    for role, privilege, thing in sorted(expected - found):
        report.error("right-missing", thing, f"{role} lacks the right {privilege}", _APPLY_AGAIN)
    for role, privilege, thing in sorted(found - expected):
        # Older projects give this role every right on all that is made; it passes by every policy anyway.
        if role != "service_role":
            report.error(
                "right-too-many",
                thing,
                f"{role} has the right {privilege}, which no migration gives",
                f"Run in the SQL editor: revoke {privilege} on {thing} from {role};",
            )


def _compare_functions(
    report: Report, found: Iterable[tuple[str, str, str]], expected: Mapping[str, str]
) -> None:
    by_name: dict[str, list[tuple[str, str]]] = {}
    for name, signature, body in found:
        by_name.setdefault(name, []).append((signature, body))
    for name in sorted(expected):
        bodies = by_name.get(name, [])
        if not bodies:
            report.error("function-missing", name, "the function is missing", _APPLY_AGAIN)
        elif all(body != expected[name] for _, body in bodies):
            report.error("function-changed", name, "the function is not that of the migrations", _APPLY_AGAIN)
    for name, versions in sorted(by_name.items()):
        for signature, body in versions:
            # One function that has another body than ours was found above already.
            if name not in expected or (len(versions) > 1 and body != expected[name]):
                report.error(
                    "function-unknown",
                    signature,
                    "the function is of no migration of this release",
                    f"Run in the SQL editor: drop function {signature};",
                )


def _quote(name: str) -> str:
    """Quote an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def _content(answer: Answer | None) -> Any:
    return answer.body if isinstance(answer, Reply) and answer.is_good else None


def _words(answer: Answer) -> str:
    return answer.reason if isinstance(answer, Silence) else str(answer)
