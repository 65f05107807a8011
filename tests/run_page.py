"""Runs the Python of pages, each in a process that has loaded already what takes long.

A line of standard input is a job, in JSON: the pages, the environment, the folder and the file for the output. A line
of standard output is the exit status of a job. Pages of one job run in one process, one after the other. A page may be
a program, which gets the job's arguments.

All blocks of a page share one namespace and run in order, as a reader would paste them. In a ``pycon``
block each printed result must be what the page says; a ``python`` block must not raise. A traceback
points to the line of the page.
"""

from __future__ import annotations

import doctest
import functools
import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

#: Modules that all pages load.
_COMMON = (
    "numpy",
    "zarr",
    "supabase",
    "httpcore",
    "anyio",
    "urllib3",
    "filelock",
    "tensorage.auth",
    "tensorage.session",
    "tensorage.store",
    "tensorage.tensor",
    "tensorage.signin.sdk",
    "tensorage.embedded.control",
    "tensorage.backend.zarr.zarr_engine",
)

#: Modules that take longer to load than most pages take to run. Modules that a page names are loaded for it once.
HEAVY = ("dask.array", "distributed", "sklearn.datasets", "torch.utils.data", "xarray")


def blocks(page: Path, *languages: str) -> list[Token]:
    """The fenced code blocks of a page in one of the languages."""
    return [token for token in _fences(page) if token.info in languages]


@functools.cache
def _fences(page: Path) -> list[Token]:
    return [token for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) if token.type == "fence"]


def code_of(page: Path) -> str:
    """All Python of a page."""
    if page.suffix == ".py":
        return page.read_text(encoding="utf-8")
    return "".join(block.content for block in blocks(page, "python", "pycon"))


def run(page: Path) -> int:
    """Number of examples of a page that print something else than the page says."""
    if page.suffix == ".py":
        runpy.run_path(os.fspath(page), run_name="__main__")
        return 0
    namespace: dict[str, Any] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for block in blocks(page, "python", "pycon"):
        assert block.map is not None, "a fence has lines"
        line = block.map[0] + 1
        if block.info == "python":
            exec(compile("\n" * line + block.content, page, "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(block.content, namespace, page.name, str(page), line)
        runner.run(test, clear_globs=False)
        # doctest runs its examples on a copy of the names.
        namespace.update(test.globs)
    return runner.summarize(verbose=False).failed


def main() -> None:
    for name in _COMMON:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        pages = [Path(page) for page in job["pages"]]
        code = "".join(map(code_of, pages))
        for name in HEAVY:
            if name.split(".", maxsplit=1)[0] in code:
                importlib.import_module(name)
        # Collections in a page, and the last one at its end, need not look at what was there before.
        gc.collect()
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            os.chdir(job["folder"])
            os.environ.clear()
            os.environ.update(job["environment"])
            output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for standard in (1, 2):
                os.dup2(output, standard)
            sys.argv[1:] = job["arguments"]
            # It ends as any program does.
            sys.exit(1 if sum(run(page) for page in pages) else 0)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
