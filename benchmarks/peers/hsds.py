"""HSDS, the HDF Group's multi-user array server, on loopback, and h5pyd, its client.

The server is installed in a virtual environment of its own, which ``make bench`` makes. Its nodes are started as the
command ``hsds`` starts them, but on free ports, and are stopped by their process ids. The advantages and disadvantages
of this configuration are in docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5pyd
import numpy as np
import numpy.typing as npt

VENV = Path(__file__).parents[2] / ".venv-hsds"

#: The best of 1, 2 and 4 on two cores: see the case `hsds_nodes`.
DATA_NODES = 2

#: Rows of the images in one chunk (0.999 MiB of float32, tensorage's own block), and in one request.
CHUNK_ROWS = 334
SLAB_ROWS = 8 * CHUNK_ROWS

#: Room for everything in the nodes' caches, and for more requests at once than a batch makes of a data node.
SETTINGS = {
    "CHUNK_MEM_CACHE_SIZE": "512m",
    "MAX_TASK_COUNT": "1000",
    "MAX_PENDING_WRITE_REQUESTS": "100",
    "LOG_LEVEL": "ERROR",
}

_USER, _PASSWORD, _BUCKET = "bench", "bench-password", "bench"
_START_S = 60.0
_STOP_S = 10.0


class Hsds:
    """A client of the server at `endpoint`, with one open file."""

    def __init__(self, endpoint: str, storage: Path) -> None:
        self.endpoint = endpoint
        self._storage = storage
        self._numbers = itertools.count()
        h5pyd.Folder("/home/", mode="x", owner=_USER, **self._access).close()
        self._small = self.open("/home/small.h5", "w")
        self.is_written = False
        self._file: Any = None
        self._images: Any = None

    @property
    def _access(self) -> dict[str, str]:
        return {"endpoint": self.endpoint, "username": _USER, "password": _PASSWORD, "bucket": _BUCKET}

    def open(self, domain: str, mode: str) -> Any:
        return h5pyd.File(domain, mode, **self._access)

    def write_images(self, images: npt.NDArray[np.float32]) -> None:
        """Write a new file with one dataset, slab by slab. h5pyd sends assigned elements when the file is flushed."""
        with self.open("/home/images.h5", "w") as file:
            chunks = (CHUNK_ROWS, *images.shape[1:])
            dataset = file.create_dataset("images", images.shape, dtype=images.dtype, chunks=chunks)
            for at in range(0, len(images), SLAB_ROWS):
                dataset[at : at + SLAB_ROWS] = images[at : at + SLAB_ROWS]
                file.flush()
        self.is_written = True

    def settle(self) -> None:
        """Wait until the server has written everything to its disk, which it does after it has answered."""
        before = -1
        while (now := _bytes_in(self._storage)) != before:
            before = now
            time.sleep(1.5)

    @property
    def images(self) -> Any:
        """The written dataset, on a connection that stays open."""
        if self._images is None:
            self._file = self.open("/home/images.h5", "r")
            self._images = self._file["images"]
        return self._images

    def forget(self) -> None:
        """Open the file anew the next time it is read."""
        if self._images is not None:
            self._file.close()
            self._images = None

    def read_images(self, out: npt.NDArray[np.float32]) -> None:
        """Read the whole dataset slab by slab, which takes half as long as ``dataset[...]``."""
        images = self.images
        for at in range(0, len(out), SLAB_ROWS):
            out[at : at + SLAB_ROWS] = images[at : at + SLAB_ROWS]

    def batch(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return rows in any order. The server wants increasing indices, so rows are put back in order here."""
        if len(indices) == 1:
            return np.asarray(self.images[int(indices[0])])[np.newaxis]
        rows, back = np.unique(indices, return_inverse=True)
        return np.asarray(self.images[rows.tolist(), :, :])[back]

    def write_small(self, numbers: npt.NDArray[np.float64]) -> None:
        """Write a new dataset."""
        self._small.create_dataset(f"small{next(self._numbers)}", data=numbers)
        self._small.flush()

    def growing(self, row: npt.NDArray[np.float64]) -> Any:
        """Make a dataset to append rows to."""
        size = (0, *row.shape)
        dataset = self._small.create_dataset("growing", size, maxshape=(None, *row.shape), dtype=row.dtype)
        self._small.flush()
        return dataset

    def append(self, growing: Any, row: npt.NDArray[np.float64]) -> None:
        length = growing.shape[0]
        growing.resize(length + 1, axis=0)
        growing[length] = row
        self._small.flush()

    def first_byte_settings(self) -> dict[str, str]:
        return {**self._access, "domain": "/home/images.h5"}


@contextmanager
def running(data_nodes: int = DATA_NODES) -> Iterator[Hsds]:
    """Run a server with one service node and `data_nodes` data nodes, in a temporary folder."""
    command = VENV / "bin" / "hsds-node"
    if not command.exists():
        raise FileNotFoundError(f"{command} is missing: `make bench` installs HSDS there")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsds-bench-")))
        storage = folder / "data"
        (storage / _BUCKET).mkdir(parents=True)
        service, *data = [f"http://127.0.0.1:{port}" for port in _free_ports(1 + data_nodes)]
        common = ["--standalone", f"--hsds_endpoint={service}", f"--root_dir={storage}"]
        common += [f"--dn_urls={','.join(sorted(data))}"]
        nodes = [["--node_type=dn", f"--node_number={number}"] for number in range(data_nodes)]
        user = [f"--hs_username={_USER}", f"--admin_user={_USER}", f"--hs_password={_PASSWORD}"]
        nodes.append(["--node_type=sn", f"--sn_url={service}", "--password_file=", *user])
        log = stack.enter_context((folder / "log").open("wb"))
        for arguments in nodes:
            process = subprocess.Popen(
                [command, *arguments, *common],
                cwd=folder,
                env={**os.environ, **SETTINGS},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_stop, process)
        for node in (*data, service):
            _wait_until_ready(node, folder / "log")
        yield Hsds(service, storage)


def _free_ports(count: int) -> Sequence[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _wait_until_ready(node: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{node}/info", timeout=5) as answer:
            if json.load(answer)["node"]["state"] == "READY":
                return
        time.sleep(0.1)
    raise TimeoutError(f"HSDS is not ready after {_START_S} s; its log ends: {log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
