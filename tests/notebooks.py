"""The notebooks of `examples/`: executed, as they were shown, and written anew by `python tests/notebooks.py`.

Each is executed by a kernel of its own, on an embedded backend that nobody else uses. Ports differ from run to run, and
are written as one.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tensorage.embedded import control
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE

__all__ = ["FOLDER", "NAMES", "environment_of", "execute", "read", "shown_text"]

FOLDER = Path(__file__).resolve().parents[1] / "examples"

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))

#: Seconds for one cell. The slowest takes a few.
TIMEOUT_S = 120

#: Written in place of the port of a server.
_PORT = re.compile(r"(127\.0\.0\.1|localhost):\d+")


def read(name: str) -> Any:
    """A notebook as it is stored."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def environment_of(data_dir: Path, home: Path) -> dict[str, str]:
    """The environment of somebody who has an embedded backend in a folder, and nothing else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPABASE", "USER_", "TENSORAGE"))}
    return {
        **kept,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "TENSORAGE_DATA_DIR": str(data_dir),
        ENDS_WITH_VARIABLE: os.environ.get(ENDS_WITH_VARIABLE, str(os.getpid())),
        # A frozen module is one that a debugger cannot step into, of which it warns on stderr.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def execute(notebook: Any, environment: dict[str, str], folder: Path) -> Any:
    """The notebook with the outputs of a fresh run. Raises if a cell does."""
    with tempfile.TemporaryDirectory(prefix="kernel") as sockets:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT_S,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        # By sockets in a folder: of ports that are free when they are chosen, another process may take one.
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        client.execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
            for output in cell.outputs:
                _use_one_port(output)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _is_bar(output: Any) -> bool:
    """True if it is a progress bar, which a slow machine shows, and which takes itself away again."""
    return output.get("name") == "stderr" and output["text"].endswith("\r") and "\n" not in output["text"]


def _use_one_port(output: Any) -> None:
    for holder, name in [
        (output, "text"),
        *((output.get("data", {}), kind) for kind in output.get("data", {})),
    ]:
        if isinstance(holder.get(name), str) and not name.startswith("image/"):
            holder[name] = _PORT.sub(r"\1:54321", holder[name])


def shown_text(notebook: Any) -> list[tuple[str, str]]:
    """The text of each output, with the code before it. Pictures and HTML have a text, too."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            shown.append((cell.source, text))
    return shown


def main(names: list[str]) -> None:
    """Execute notebooks, by default all, and store them with their outputs."""
    with tempfile.TemporaryDirectory(prefix="notebooks") as temporary:
        folder = Path(temporary)
        environment = environment_of(folder / "data", folder)
        try:
            for name in names or NAMES:
                executed = execute(read(name), environment, folder)
                nbformat.write(executed, FOLDER / f"{name}.ipynb")
                print(f"executed {name}", flush=True)
        finally:
            control.stop(folder / "data")


if __name__ == "__main__":
    main(sys.argv[1:])
