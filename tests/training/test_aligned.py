"""Samples of several arrays: fetched together, as numpy would give each."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import InvalidInputError, TensorStore
from tensorage.training.batches import AlignedTensors

X = np.arange(60, dtype="f4").reshape(20, 3)
Y = np.arange(20).astype("M8[s]")


@pytest.fixture
def samples(store: TensorStore) -> AlignedTensors:
    store["x"], store["y"] = X, Y
    return tensorage.zip(store.open("x"), store.open("y"))


def test_samples(samples: AlignedTensors) -> None:
    assert len(samples) == 20
    row, time = samples[-1]
    assert row.tolist() == X[-1].tolist()
    assert time == Y[-1]
    rows, times = samples[[3, 3, 1]]
    assert rows.tolist() == X[[3, 3, 1]].tolist()
    assert times.tolist() == Y[[3, 3, 1]].tolist()
    assert samples[5:7][1].tolist() == Y[5:7].tolist()
    assert [time for _, time in samples] == list(Y)
    assert [(row.tolist(), time) for row, time in samples.__getitems__([7, 2, 7])] == [
        (X[i].tolist(), Y[i]) for i in (7, 2, 7)
    ]
    assert repr(samples) == "<AlignedTensors of 'x', 'y', length 20>"
    with pytest.raises(IndexError):
        _ = samples[20]


def test_a_copy_in_another_process(samples: AlignedTensors) -> None:
    copied = pickle.loads(pickle.dumps(samples))
    assert copied[4][1] == Y[4]


def test_bad_input(store: TensorStore, samples: AlignedTensors) -> None:
    store["short"] = np.arange(3)
    store["scalar"] = 3
    with pytest.raises(InvalidInputError, match="'x' has 20, 'short' has 3"):
        tensorage.zip(store.open("x"), store.open("short"))
    with pytest.raises(InvalidInputError, match="'scalar' has no axes"):
        tensorage.zip(store.open("scalar"))
    with pytest.raises(InvalidInputError, match="at least one"):
        tensorage.zip()
    with pytest.raises(InvalidInputError, match="not from a str"):
        tensorage.zip("x")  # type: ignore[arg-type]


@pytest.fixture
def proxy(project: Project) -> Iterator[Proxy]:
    proxy = Proxy(project.url)
    yield proxy
    proxy.close()


def test_a_batch_is_one_request_an_array(
    project: Project, user: User, proxy: Proxy, session: tensorage.BackendSession
) -> None:
    own = TensorStore(session, quiet=True)
    own["x"], own["y"] = X, Y
    seen = Project(proxy.url, project.key).session(user)
    samples = tensorage.zip(seen().open("x"), seen().open("y"))
    with proxy.counted() as exchanges:
        samples.__getitems__([9, 1, 5, 19])
    assert [exchange.function for exchange in exchanges] == ["read", "read"]
    del own["x"], own["y"]
    seen.logout()
