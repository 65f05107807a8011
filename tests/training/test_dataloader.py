"""PyTorch's DataLoader over stored arrays: its workers, what they ask for, and how they live through many tokens."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from processes import preloading
from project import Project
from proxy import Proxy

import tensorage
from tensorage import AuthenticationError, BackendSession, TensorStore
from tensorage.embedded import control
from tensorage.types import Engine

SAMPLES, BATCH = 64, 8
LABELS = np.arange(SAMPLES)
IMAGES = np.repeat(LABELS.astype("f4")[:, None], 16, axis=1).reshape(SAMPLES, 4, 4)

#: The way in which processes begin, and whether the same ones serve all epochs. Processes of a fork server unpickle
#: what they work with, as spawned ones do, and need not load PyTorch.
WORKERS = [("fork", False), ("fork", True), ("forkserver", False), ("forkserver", True)]


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> Iterator[None]:
    """A fork server that has loaded PyTorch, too."""
    with preloading("torch.utils.data"):
        yield


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend whose tokens live for two seconds."""
    data_dir = tmp_path_factory.mktemp("short")
    yield servers.start(data_dir, jwt_lifetime_s=2)
    control.stop(data_dir)


@pytest.fixture
def proxy(short: control.Running) -> Iterator[Proxy]:
    proxy = Proxy(short.api_url)
    yield proxy
    proxy.close()


@pytest.fixture
def session(short: control.Running, proxy: Proxy) -> Iterator[BackendSession]:
    """Its requests are counted, also those of other processes."""
    user = Project(short.api_url, short.anon_key).register()
    session = Project(proxy.url, short.anon_key).session(user)
    session.login_by_mail()
    yield session
    session.logout()


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> TensorStore:
    store = TensorStore(session, quiet=True, engine=engine)
    # A chunk is a sample, so that a batch of Storage is as many requests as samples.
    chunks = (1, 4, 4) if engine == "storage" else None
    store.write("images", IMAGES, chunks=chunks, shards=(SAMPLES, 4, 4) if chunks else None)
    store["labels"] = LABELS
    return store


@pytest.fixture
def logins(short: control.Running, session: BackendSession) -> Callable[[], int]:
    user_id = session.user_id

    def count() -> int:
        with psycopg.connect(short.superuser_url, autocommit=True) as database:
            row = database.execute(
                "select count(*) from auth.sessions where user_id = %s", [user_id]
            ).fetchone()
        assert row is not None
        return int(row[0])

    return count


def loader(dataset: Any, method: str | None = None, persistent: bool = False, **more: Any) -> Any:
    # The import takes seconds, also in a process that only collects these tests.
    import torch.utils.data

    if method is not None:
        more = {"num_workers": 2, "persistent_workers": persistent} | more
    return torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, shuffle=True, multiprocessing_context=method, **more
    )


def check_epoch(batches: Any) -> None:
    """Each sample once, and each as it was stored."""
    import torch

    seen: list[int] = []
    for images in batches:
        assert images.dtype == torch.float32
        assert images.shape[1:] == (4, 4)
        assert (images == images[:, :1, :1]).all()
        seen += images[:, 0, 0].int().tolist()
    assert sorted(seen) == LABELS.tolist()


def test_without_workers(store: TensorStore) -> None:
    check_epoch(loader(store.open("images")))


@pytest.mark.parametrize(("method", "persistent"), WORKERS)
def test_a_batch_is_one_request(
    store: TensorStore, proxy: Proxy, method: str, persistent: bool, engine: Engine, logins: Callable[[], int]
) -> None:
    batches = loader(store.open("images"), method, persistent)
    epochs = 2
    with proxy.counted() as exchanges:
        for _ in range(epochs):
            check_epoch(batches)
        del batches
    kinds = Counter(exchange.kind for exchange in exchanges)
    per_epoch = SAMPLES // BATCH
    if engine == "database":
        assert kinds.pop("read") == epochs * per_epoch
    else:
        # One request asks the catalogue, however many samples there are; the others fetch their bytes.
        assert kinds.pop("shards") == epochs * per_epoch
        assert kinds.pop("download") >= epochs * per_epoch
    # Each process looks once whether it fits the project.
    assert set(kinds) <= {"version"}
    assert kinds["version"] <= 2 * (1 if persistent else epochs)
    assert logins() == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_samples_of_several_arrays(store: TensorStore, proxy: Proxy, method: str, engine: Engine) -> None:
    import torch

    samples = tensorage.zip(store.open("images"), store.open("labels"))
    seen: list[int] = []
    with proxy.counted() as exchanges:
        # A spawned process loads all anew: what one shows, a second one would show for seconds more.
        workers = 1 if method == "spawn" else 2
        for images, labels in loader(samples, method, num_workers=workers):
            assert labels.dtype == torch.int64
            assert (images[:, 0, 0].int() == labels).all()
            seen += labels.tolist()
    assert sorted(seen) == LABELS.tolist()
    if engine == "database":
        kinds = Counter(exchange.kind for exchange in exchanges)
        assert kinds["read"] == 2 * SAMPLES // BATCH


@pytest.mark.parametrize(("method", "persistent"), [("fork", False), ("forkserver", True)])
def test_training_goes_on_when_tokens_expire(
    store: TensorStore, session: BackendSession, logins: Callable[[], int], method: str, persistent: bool
) -> None:
    """Every sample once an epoch, through the ends of three tokens."""
    batches = loader(store.open("images"), method, persistent)
    tokens, epochs = {session.token}, 0
    while len(tokens) < 4:
        check_epoch(batches)
        epochs += 1
        time.sleep(0.6)
        tokens.add(session.token)
    assert epochs >= 3
    assert logins() == 1


@pytest.mark.parametrize("engine", ["database"])
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_one_epoch_that_is_longer_than_a_token_lives(
    store: TensorStore, session: BackendSession, method: str, logins: Callable[[], int]
) -> None:
    """The parent asks for nothing meanwhile: its workers have it renew the token."""
    before = session.login.session.access_token  # type: ignore[union-attr]

    def slowly() -> Iterator[Any]:
        for images in loader(store.open("images"), method, prefetch_factor=1):
            yield images
            time.sleep(0.4)

    check_epoch(slowly())
    assert session.login.session.access_token != before  # type: ignore[union-attr]
    assert logins() == 1


@pytest.mark.parametrize("engine", ["database"])
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_login_that_is_gone(store: TensorStore, session: BackendSession, method: str) -> None:
    with running(store, method) as batches:
        next(batches)
        session.logout()
        time.sleep(2)
        with pytest.raises(AuthenticationError, match="logged out"):
            list(batches)


def test_an_error_of_a_worker_reaches_the_loop(store: TensorStore) -> None:
    with running(store, "fork") as batches:
        next(batches)
        del store["images"]
        with pytest.raises(KeyError, match="images"):
            list(batches)


@contextlib.contextmanager
def running(store: TensorStore, method: str) -> Iterator[Any]:
    """An epoch that fails. PyTorch waits for five seconds for each worker then, whatever the error: here for less."""
    import torch.utils.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
        batches = iter(loader(store.open("images"), method, prefetch_factor=1))
        yield batches
        del batches
        gc.collect()
