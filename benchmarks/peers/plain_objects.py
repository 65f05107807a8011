"""The limit of the storage engine: the same objects as they are, without a catalogue, encoding or decoding.

The same user uploads and downloads objects by urllib3, the fastest client of Python for that, from as many threads as
tensorage has requests under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import urllib3

import tensorage

PARALLEL = 4
FOLDER = "plain"


class PlainObjects:
    """Objects of one user, in a folder of files.

    Parameters
    ----------
    blobs
        Content of the objects.
    """

    def __init__(self, session: tensorage.BackendSession, blobs: Sequence[bytes]) -> None:
        self.blobs = blobs
        self._root = f"{session.backend_url}/storage/v1/object"
        self._folder = f"tensors/{session.user_id}/{FOLDER}"
        self._headers = {"apikey": session.backend_key, "Authorization": f"Bearer {session.token}"}
        self._pool = urllib3.PoolManager(maxsize=PARALLEL)

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.blobs))

    def upload(self) -> None:
        """Store all objects, replacing those of the same names."""
        self._each(self._put)

    def download(self) -> list[bytes]:
        return self._each(self._get)

    def remove(self) -> None:
        for number in range(len(self.blobs)):
            self._pool.request("DELETE", f"{self._root}/{self._folder}/{number}", headers=self._headers)

    def _put(self, number: int) -> bytes:
        headers = {**self._headers, "x-upsert": "true", "Content-Type": "application/octet-stream"}
        url = f"{self._root}/{self._folder}/{number}"
        return self._answer(self._pool.request("POST", url, body=self.blobs[number], headers=headers))

    def _get(self, number: int) -> bytes:
        url = f"{self._root}/authenticated/{self._folder}/{number}"
        return self._answer(self._pool.request("GET", url, headers=self._headers))

    def _each(self, do: Callable[[int], bytes]) -> list[bytes]:
        with ThreadPoolExecutor(PARALLEL) as threads:
            return list(threads.map(do, range(len(self.blobs))))

    @staticmethod
    def _answer(response: urllib3.BaseHTTPResponse) -> bytes:
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.data[:200]!r}")
        return response.data
