"""Fixtures of every test: a project with users of its own, and a way to its PostgreSQL round the client.

The project is an embedded backend that is started for the tests, or the Supabase that ``SUPABASE_URL`` and
``SUPABASE_KEY`` name. There, the tests that need the embedded server itself are skipped, and those that need
SQL too unless ``DB_URL`` says where PostgreSQL is.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clusters
import hypothesis
import psycopg
import pytest
import servers
import workers
from _pytest.pathlib import ImportMode, import_path
from postgres_versions import VERSIONS
from project import CONFIGURATION_VARIABLES, ELSEWHERE, IS_ELSEWHERE, Project, User
from proxy import Exchange, Proxy

from tensorage import BackendSession, TensorStore
from tensorage.embedded import control
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE
from tensorage.embedded.postgres import Cluster
from tensorage.types import Engine

# Every server that a test starts, in whatever process, ends with this one, also when this one is killed.
os.environ[ENDS_WITH_VARIABLE] = str(os.getpid())

# A run in the background of a shell ignores Ctrl-C, and so would every process that it starts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test keeps a login in the developer's own keyring, in whatever process.
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"

# The time of an example says nothing where several processes share the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand the tests to several processes by the parts that `distribution` knows."""
    from distribution import Scheduling

    # In the order in which they are collected.
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Load the test files in another order in each process of a run, without collections of garbage.

    pytest rewrites the assertions of a file when it is first loaded, and keeps what it made. In a fresh clone each
    process rewrites its part of the files so, and finds what the others made of theirs.
    """
    # Nearly everything that is made until the tests begin stays: to look for the rest takes an eighth of that time.
    gc.disable()
    root = Path(__file__).parent
    if "PYTEST_XDIST_WORKER" not in os.environ or [Path(arg).resolve() for arg in session.config.args] != [
        root
    ]:
        return
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    for path in sorted(root.rglob("test_*.py"))[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]:
        loaded = set(sys.modules)
        try:
            import_path(
                path,
                mode=ImportMode.importlib,
                root=session.config.rootpath,
                consider_namespace_packages=session.config.getini("consider_namespace_packages"),
            )
        except Exception:  # noqa: BLE001 - pytest loads the file again, and tells of it
            for name in set(sys.modules) - loaded:
                if getattr(sys.modules[name], "__file__", None) == str(path):
                    del sys.modules[name]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Load nothing but the files with tests that are marked `alone` if these are all that is asked for."""
    if config.option.markexpr != "alone" or collection_path.suffix != ".py":
        return None
    return "mark.alone" not in collection_path.read_text("utf-8") or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        from distribution import order

        order(items)


def pytest_collection_finish() -> None:
    # The garbage collector need not look again at some hundred thousand objects that stay until the end.
    gc.collect()
    gc.freeze()
    gc.enable()


#: Numbers of the tests that this process has begun.
_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _without_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the environment nor what the developer's own `link_to` saved decides what a test talks to."""
    for name in (*CONFIGURATION_VARIABLES, "DB_URL"):
        monkeypatch.delenv(name, raising=False)
    # In a folder that nobody makes before something is saved there: `tmp_path` makes and removes one for each test.
    saved = tmp_path_factory.getbasetemp() / "configurations" / str(next(_NUMBERS))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(saved))


@pytest.fixture(scope="session", autouse=True)
def _template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One for all processes of a run: where there are several, each has a folder in that of the run."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    servers.set_template(base / "template")
    clusters.set_templates(base / "clusters")


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A running backend, shared by all tests: make users and keys of your own in it."""
    if IS_ELSEWHERE:
        pytest.skip("SUPABASE_URL names another Supabase, and this test needs the embedded server")
    data_dir = tmp_path_factory.mktemp("backend")
    # Started as users start it: some tests look at its process.
    yield control.start(servers.make(data_dir), postgres_bin=servers.PROGRAMS)
    control.stop(data_dir)


@pytest.fixture(params=VERSIONS, scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A bare PostgreSQL of each major version: leave its database `postgres` without anything of ours."""
    with clusters.running(request.param, tmp_path_factory.mktemp(f"postgres{request.param}")) as cluster:
        yield cluster


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Straight to the project's PostgreSQL, past every policy; every statement commits."""
    if IS_ELSEWHERE and not ELSEWHERE["DB_URL"]:
        pytest.skip("SUPABASE_URL names another Supabase, and no DB_URL says where its PostgreSQL is")
    url = ELSEWHERE["DB_URL"] if IS_ELSEWHERE else request.getfixturevalue("backend").superuser_url
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def project(request: pytest.FixtureRequest) -> Project:
    """The project that the client's tests work with."""
    if IS_ELSEWHERE:
        return Project(ELSEWHERE["SUPABASE_URL"], ELSEWHERE["SUPABASE_KEY"])
    running: control.Running = request.getfixturevalue("backend")
    return Project(running.api_url, running.anon_key)


@pytest.fixture(scope="module")
def user(project: Project) -> User:
    """One user for all tests of a file: to sign up and in takes longer than most of them do."""
    return project.register()


@pytest.fixture(scope="module")
def login(project: Project, user: User) -> Iterator[BackendSession]:
    """A session that is logged in as the file's user for as long as its tests run."""
    with workers.store_of(project, user) as store:
        yield store.backend


@pytest.fixture(scope="module")
def _has_arrays(request: pytest.FixtureRequest, login: BackendSession) -> Iterator[Callable[[], bool]]:
    """True if the file's user may have arrays or leftovers: PostgreSQL says so without the requests of a list."""
    if IS_ELSEWHERE:
        yield lambda: True
        return
    running: control.Running = request.getfixturevalue("backend")
    user_id = login.user_id
    with psycopg.connect(running.superuser_url, autocommit=True) as connection:

        def has_arrays() -> bool:
            asked = (
                "select exists (select from public.datasets where user_id = %(user)s) or exists ("
                "select from storage.objects where bucket_id = 'tensors' and name ~ ('^' || %(user)s || '/[0-9]+/'))"
            )
            try:
                return connection.execute(asked, {"user": user_id}).fetchone() != (False,)
            except psycopg.OperationalError:
                # A test has started the server anew.
                return True

        yield has_arrays


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """The file's user has no arrays when a test begins, by whatever session the last one stored some."""
    used = set(request.fixturenames)
    is_shared = "login" in used or ("user" in used and "new_user" not in used)
    login: BackendSession | None = request.getfixturevalue("login") if is_shared else None
    has_arrays: Callable[[], bool] | None = request.getfixturevalue("_has_arrays") if is_shared else None
    yield
    if login is not None and has_arrays is not None:
        # Leftovers would be requests of the next test. Leftovers that another session is just deleting are passed by.
        for _ in range(1 if IS_ELSEWHERE else 10):
            if not has_arrays():
                break
            # In one request, however many they are.
            login().clear()
            login.transfer.afterwards.wait(30)


@pytest.fixture
def session(login: BackendSession) -> BackendSession:
    """The session of the file's user."""
    return login


@pytest.fixture(params=["database", "storage"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of new arrays. Tests of what users see take each in turn, since users see no difference."""
    kept: Engine = request.param
    return kept


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> TensorStore:
    """The user's store, once for each engine: for tests of what users see."""
    return TensorStore(session, quiet=True, engine=engine)


@pytest.fixture
def rows(session: BackendSession) -> TensorStore:
    """A store whose new arrays are blocks: for tests of how the database keeps them."""
    return TensorStore(session, quiet=True, engine="database")


@pytest.fixture(scope="module")
def proxy(project: Project) -> Iterator[Proxy]:
    """A proxy to the project."""
    proxy = Proxy(project.url)
    yield proxy
    proxy.close()


@pytest.fixture
def watched(project: Project, user: User) -> Iterator[tuple[TensorStore, list[Exchange]]]:
    """A store of the file's user, and the requests that it makes."""
    seen: list[Exchange] = []

    def note(exchange: Exchange) -> bool:
        seen.append(exchange)
        return False

    proxy = Proxy(project.url, note)
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        yield store, seen
    proxy.close()


@pytest.fixture
def logins(database: psycopg.Connection[tuple[Any, ...]], user: User) -> Callable[[], int]:
    """Number of the user's logins that the server knows of."""

    def count() -> int:
        row = database.execute("select count(*) from auth.sessions where user_id = %s", [user.id]).fetchone()
        assert row is not None
        return int(row[0])

    return count


@pytest.fixture
def new_user(project: Project) -> User:
    """A user of this test's own: nothing is stored, nobody is logged in."""
    return project.register()


@pytest.fixture
def new_session(project: Project, new_user: User) -> Iterator[BackendSession]:
    """A session that is logged in as the new user."""
    with workers.store_of(project, new_user) as store:
        yield store.backend
