"""`tensorage quota set` and `tensorage quota show`, with the service key of a project."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
import servers
import workers
from click.testing import CliRunner, Result
from project import Project, User

from tensorage import quotas
from tensorage.cli import main
from tensorage.config import Configuration
from tensorage.embedded import control
from tensorage.errors import InvalidInputError, QuotaExceededError


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend apart: a default quota holds for every user."""
    data_dir: Path = tmp_path_factory.mktemp("quotas")
    yield servers.start(data_dir)
    control.stop(data_dir)


@pytest.fixture(scope="module")
def project(backend: control.Running) -> Project:
    return Project(backend.api_url, backend.anon_key)


@pytest.fixture(scope="module")
def user(project: Project) -> User:
    return project.register()


@pytest.fixture(autouse=True)
def _no_quota(backend: control.Running) -> Iterator[None]:
    yield
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        connection.execute("delete from tensorage.quotas")
        connection.execute(
            "update tensorage.settings set default_quota_bytes = null, default_quota_arrays = null"
        )


def quota(backend: control.Running, *arguments: str, **environment: str | None) -> Result:
    """Call the command with the service key in the environment, or with other settings."""
    settings = {
        "SUPABASE_URL": backend.api_url,
        "SUPABASE_KEY": backend.anon_key,
        "SUPABASE_SERVICE_ROLE_KEY": backend.service_role_key,
        **environment,
    }
    done = CliRunner().invoke(main, ["quota", *arguments], env=settings, catch_exceptions=False)
    assert backend.service_role_key not in done.output
    return done


def refusal_of(done: Result, status: int = 1) -> str:
    """The words of a refusal: one line on the standard error."""
    assert done.exit_code == status
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def shown(backend: control.Running, *who: str) -> Any:
    done = quota(backend, "show", *who, "--json")
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_the_default_and_one_users_quota(backend: control.Running, user: User) -> None:
    done = quota(backend, "set", "--bytes", "10GB", "--arrays", "1000")
    assert (done.exit_code, done.stdout) == (0, "default: at most 10000000000 bytes, at most 1000 arrays\n")
    # The limit that is not given stays.
    assert (
        quota(backend, "set", "--bytes", "none").stdout
        == "default: any number of bytes, at most 1000 arrays\n"
    )
    assert shown(backend)["default"] == {"bytes": None, "arrays": 1000}

    for who in (user.email, user.email.upper(), user.id):
        done = quota(backend, "set", who, "--bytes", "1.5GiB")
        assert done.stdout == f"{who}: at most 1610612736 bytes, the default number of arrays\n"
        done = quota(backend, "set", who, "--arrays", "7")
        assert done.stdout == f"{who}: at most 1610612736 bytes, at most 7 arrays\n"
        (one,) = shown(backend, who)["users"]
        assert (one["user_id"], one["address"]) == (user.id, user.email)
        assert one["own"] == {"bytes": 1610612736, "arrays": 7}
        done = quota(backend, "set", who, "--bytes", "none", "--arrays", "none")
        assert done.stdout == f"{who}: the default number of bytes, the default number of arrays\n"
    assert shown(backend)["default"] == {"bytes": None, "arrays": 1000}


def test_a_quota_holds_and_usage_is_shown(backend: control.Running, project: Project, user: User) -> None:
    with workers.store_of(project, user) as store:
        store["a"] = np.zeros(1000, "u1")
        usage = store.usage()
        (one,) = shown(backend, user.email)["users"]
        assert (one["arrays"], one["bytes"], one["file_bytes"]) == (1, usage.bytes, 0)
        assert quota(backend, "set", user.email, "--bytes", str(usage.bytes + 100)).exit_code == 0
        with pytest.raises(QuotaExceededError):
            store["b"] = np.zeros(10_000, "u1")
        assert quota(backend, "set", user.email, "--bytes", "none", "--arrays", "1").exit_code == 0
        with pytest.raises(QuotaExceededError):
            store["b"] = np.zeros(10, "u1")
        assert quota(backend, "set", user.email, "--arrays", "2").exit_code == 0
        store["b"] = np.zeros(10_000, "u1")
        lines = quota(backend, "show").stdout.splitlines()
        assert lines[0] == "default: any number of bytes, any number of arrays"
        (line,) = [line for line in lines if user.email in line]
        stored = store.usage().bytes
        assert 10_000 < stored < 20_000
        assert re.fullmatch(rf" *{stored / 1000:.3g} kB +- +2 +2\* +{re.escape(user.email)}", line)
        store.clear()


def test_all_users_are_shown_page_by_page(
    backend: control.Running, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        connection.execute("insert into auth.users (id) select gen_random_uuid() from generate_series(1, 25)")
        ids = [str(i) for (i,) in connection.execute("select id from auth.users order by id")]
    for page in (1000, 10, len(ids), 1):
        monkeypatch.setattr(quotas, "PAGE", page)
        assert [one["user_id"] for one in shown(backend)["users"]] == ids
    monkeypatch.setattr(quotas, "PAGE", 10)
    text = quota(backend, "show").stdout.splitlines()
    # An account without a confirmed address is called by its id.
    assert len(text) == len(ids) + 2
    assert sum(one in "\n".join(text) for one in ids) == len(ids) - 1
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        connection.execute("delete from auth.users where email is null")


def test_the_embedded_backend_of_this_machine(backend: control.Running) -> None:
    where = ("--local", "--data-dir", str(backend.data_dir))
    done = CliRunner().invoke(main, ["quota", "set", "--arrays", "5", *where])
    assert done.stdout == "default: any number of bytes, at most 5 arrays\n"
    done = CliRunner().invoke(main, ["quota", "show", *where])
    assert done.stdout.startswith("default: any number of bytes, at most 5 arrays\n")


@pytest.mark.parametrize(
    "arguments", [["set", "--bytes", "1GB"], ["show"], ["set", "a@b.c", "--arrays", "1"]]
)
def test_without_the_service_key(backend: control.Running, user: User, arguments: list[str]) -> None:
    """A login is not enough, and neither is a key of another kind."""
    login = {"USER_EMAIL": user.email, "USER_PASSWORD": user.password}
    refused = refusal_of(quota(backend, *arguments, SUPABASE_SERVICE_ROLE_KEY=None, **login))
    assert refused.startswith("Error: ConfigurationError: quotas are set and seen with the service key")
    assert "a login is not enough" in refused
    assert "SUPABASE_SERVICE_ROLE_KEY" in refused

    refused = refusal_of(quota(backend, *arguments, SUPABASE_SERVICE_ROLE_KEY=backend.anon_key))
    assert "the one that was given is a legacy anon key" in refused
    refused = refusal_of(
        quota(backend, *arguments, SUPABASE_SERVICE_ROLE_KEY="sb_secret_of_another_project"), 4
    )
    assert refused.startswith("Error: AuthenticationError: ")
    assert "Invalid API key" in refused


def test_a_signed_in_user_is_refused_by_the_project(
    backend: control.Running, project: Project, user: User
) -> None:
    """The token of a login in place of the service key: the database decides, and says so in clear words."""
    with workers.store_of(project, user) as store:
        token = store.backend.token
        headers = {"apikey": backend.anon_key, "Authorization": f"Bearer {token}"}
        for function, arguments in (
            ("tensorage_set_quota", {"who": user.email, "max_bytes": 10**12, "max_arrays": None}),
            ("tensorage_set_quota", {"who": None, "max_bytes": 10**12, "max_arrays": None}),
            ("tensorage_quotas", {}),
            ("tensorage_quotas", {"who": user.email}),
        ):
            answer = httpx.post(f"{backend.api_url}/rest/v1/rpc/{function}", headers=headers, json=arguments)
            assert (answer.status_code, answer.json()["code"]) == (403, "42501"), answer.text
        # With the user's requests, as the client makes them.
        with pytest.raises(
            PermissionError, match=r"setting the default quota: .*service key.*A login is not enough"
        ):
            quotas.Quotas(store.backend.transfer).set(None, 1, 1)
        assert store.usage().quota_bytes is None
    assert shown(backend)["default"] == {"bytes": None, "arrays": None}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["set", "nobody@example.com", "--bytes", "1"], "'nobody@example.com' names 0 accounts"),
        (["set", str(uuid.UUID(int=0)), "--bytes", "1", "--arrays", "1"], "names 0 accounts"),
        (
            ["show", "nobody@example.com"],
            "asking for the quota of nobody@example.com: 'nobody@example.com' names 0",
        ),
        (["set", "--bytes", "10 apples"], "'10 apples' is no limit: give 500MB, 10GiB"),
        (["set", "--bytes", "-1"], "'-1' is no limit"),
        (["set", "--bytes", "10EB"], "'10EB' is no limit"),
        (["set", "--bytes", "9999999TB"], "more than a quota can be"),
        (["set", "--arrays", "1k"], "'1k' is no limit: give a number, or none"),
        (["set", "--arrays", "1.5"], "'1.5' is no limit: give a number, or none"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    backend: control.Running, arguments: list[str], says: str
) -> None:
    before = shown(backend)
    refused = refusal_of(quota(backend, *arguments))
    assert refused.startswith("Error: InvalidInputError: ")
    assert says in refused
    assert shown(backend) == before


def test_wrong_usage(backend: control.Running) -> None:
    for arguments, says in (
        (["set"], "give --bytes, --arrays or both"),
        (["show", "--data-dir", "x"], "--data-dir is of the embedded backend: give --local, too"),
        (["show", "--local", "--url", "x"], "leave --url, --key and --service-key out"),
    ):
        done = quota(backend, *arguments)
        assert done.exit_code == 2
        assert says in done.stderr


def test_a_backend_that_is_away_or_does_not_run(backend: control.Running, tmp_path: Path) -> None:
    refused = refusal_of(quota(backend, "show", SUPABASE_URL="http://127.0.0.1:9"), 5)
    assert refused.startswith("Error: BackendUnavailableError: ")
    refused = refusal_of(
        CliRunner().invoke(main, ["quota", "show", "--local", "--data-dir", str(tmp_path / "none")])
    )
    assert "tensorage local start" in refused


def test_the_key_is_shown_by_no_repr(backend: control.Running) -> None:
    configuration = Configuration(backend.api_url, service_key=backend.service_role_key)
    with quotas.Quotas.open(configuration) as opened:
        for thing in (configuration, vars(opened)):
            assert backend.service_role_key not in repr(thing)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("1234", 1234), ("7B", 7), ("500MB", 500_000_000), ("10GiB", 10 * 2**30),
        (" 1.5 tb ", 1_500_000_000_000), ("1KiB", 1024), ("0.5kib", 512), ("2pib", 2**51), ("None", None),
    ],
)  # fmt: skip
def test_sizes(text: str, nbytes: int | None) -> None:
    assert quotas.parse_limit(text, is_size=True) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GB", "1..5GB", "1,5GB", "1e9", "0x10", "\N{ARABIC-INDIC DIGIT ONE}GB", "10 G", "nan", "inf"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is no limit"):
        quotas.parse_limit(text, is_size=True)
