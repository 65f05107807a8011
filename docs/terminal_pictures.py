"""Draw the terminals of the landing page: commands that run on an embedded backend of their own, and their output.

python docs/terminal_pictures.py
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import tensorage
from tensorage.embedded import control

PICTURES = Path(__file__).parent / "_static"
COLUMNS = 84

SESSIONS = {
    "terminal-look": ["tensorage tree", "tensorage ls -l era5", "tensorage find '**/loss' --where rate=0.1"],
    "terminal-show": ["tensorage show 'era5/t2m[0]'", "tensorage show exp/run1/loss"],
    "terminal-share": [
        "tensorage put scores.npy exp/run1/scores",
        "tensorage get 'exp/run1/scores[2:4]' -o - --format csv",
        "tensorage share exp/ ben@lab.org --until 7d",
        "tensorage info exp/run1/scores",
    ],
}

#: rich's own, with a darker ground. The window is dark on light and on dark pages.
THEME = TerminalTheme(
    (24, 26, 31), (217, 220, 227),
    [(60, 64, 72), (224, 108, 117), (152, 195, 121), (229, 192, 123), (97, 175, 239), (198, 120, 221),
     (86, 182, 194), (217, 220, 227)],
    [(110, 115, 125), (240, 133, 141), (175, 215, 146), (240, 208, 148), (130, 195, 250), (215, 150, 235),
     (115, 205, 215), (255, 255, 255)],
)  # fmt: skip

#: rich's, without the font from the network and without the buttons of a window.
FORMAT = """<svg class="terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect width="{width}" height="{height}" rx="8" fill="#181a1f"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def store_something(session: tensorage.BackendSession, folder: Path) -> None:
    store = tensorage.TensorStore(session, quiet=True)
    lat, lon = np.linspace(90, -90, 26)[:, None], np.linspace(0, 4 * np.pi, 56)
    days = [290 - 55 * np.sin(np.radians(lat)) ** 2 + 9 * np.cos(lon + day / 3) for day in range(24)]
    store.write("era5/t2m", np.array(days, "f4"), attrs={"units": "K"}, dims=("day", "lat", "lon"))
    store["era5/orography"] = np.zeros((26, 56), "i2")
    steps = np.arange(200)
    for run, rate in (("run1", 0.1), ("run2", 0.5)):
        loss = np.exp(-rate * steps / 5) + 0.05 * np.sin(steps / 9)
        store.write(f"exp/{run}/loss", loss.astype("f4"), attrs={"rate": rate})
        store[f"exp/{run}/weights"] = np.zeros((784, 10), "f4")
    store.write_ragged("texts", ["a short one", "another, which is longer"])
    np.save(folder / "scores.npy", np.array([[0, 0.71], [1, 0.83], [2, 0.9], [3, 0.92]]))


def draw(name: str, lines: list[str], folder: Path, environment: dict[str, str]) -> None:
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(Text.assemble(("$ ", "bold green"), (line, "bold")))
        # The program of this Python, whatever the PATH says.
        command = [sys.executable, "-W", "error", "-m", *shlex.split(line)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)  # noqa: S603
        console.print(Text.from_ansi((done.stdout + done.stderr).decode().rstrip("\n")), soft_wrap=False)
        # Behind the last one, too: the window ends close below its last line.
        console.print()
    picture = console.export_svg(title="", theme=THEME, code_format=FORMAT, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(picture, "utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        session = tensorage.local(folder / "backend", "ann@lab.org", "only for pictures", keep_running=False)
        store_something(session, folder)
        environment = {
            **os.environ,
            "SUPABASE_URL": str(session.backend_url), "SUPABASE_KEY": str(session.backend_key),
            "USER_EMAIL": "ann@lab.org", "USER_PASSWORD": "only for pictures",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS),
        }  # fmt: skip
        for name, lines in SESSIONS.items():
            draw(name, lines, folder, environment)
        session.logout()
        control.stop(folder / "backend")


if __name__ == "__main__":
    main()
