"""Files by plain HTTP, from a process of their own: ``python -m benchmarks.peers.files FOLDER`` prints its address.

Ranges and ``HEAD`` are answered, so that clients of S3 find a bucket in a folder, too. They can list nothing.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder for the time of a block, and give its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.files", str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    app = Starlette(routes=[Mount("/", StaticFiles(directory=sys.argv[1]))])
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
