"""Processes that begin with all modules loaded: what a new one loads takes it longer than its work.

They are forked from a process that has done nothing but to load the modules. A test of how a process begins starts
one by another method.
"""

from __future__ import annotations

import multiprocessing

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
