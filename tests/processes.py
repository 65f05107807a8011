"""Processes that begin with all modules loaded: what a new one loads takes it longer than its work.

They are forked from a process that has done nothing but to load the modules. A test of how a process begins starts
one by another method.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: The modules that processes of tensorage load.
PRELOADED = [
    "numpy",
    "zarr",
    "numcodecs",
    "urllib3",
    "httpcore",
    "supabase",
    "tensorage.session",
    "tensorage.backend.zarr.zarr_engine",
    "tensorage.signin.sdk",
    "workers",
]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED)


@contextmanager
def preloading(*modules: str) -> Iterator[None]:
    """Fork the processes of the block from a process of its own, which has loaded more modules."""
    server = multiprocessing.forkserver.ForkServer()
    server.set_forkserver_preload([*PRELOADED, *modules])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing.forkserver, "connect_to_new_process", server.connect_to_new_process)
        yield
