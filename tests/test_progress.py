"""The bar of long transfers, as a terminal shows it."""

from __future__ import annotations

import os
import subprocess
import sys
import termios

SCRIPT = """
import time
from tensorage.backend.wire.progress import progress
with progress(8_000_000, "weather", quiet={quiet}) as advance:
    for _ in range(4):
        time.sleep({pause})
        advance(2_000_000)
"""


def shown_in_a_terminal(pause: float, quiet: bool) -> str:
    """Everything that the script prints on a terminal."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 100))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(pause=pause, quiet=quiet)], stdout=its, stderr=its, stdin=its
    )
    os.close(its)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass  # Linux reports so that the other end of a pseudo-terminal has been closed.
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def test_a_long_transfer_shows_bytes_rate_and_what_remains() -> None:
    shown = shown_in_a_terminal(0.5, quiet=False)
    assert "weather" in shown
    assert "5.72M/7.63M" in shown
    assert "B/s" in shown
    assert "%" in shown


def test_a_short_transfer_flashes_none() -> None:
    assert shown_in_a_terminal(0.01, quiet=False) == ""


def test_quiet_shows_none() -> None:
    assert shown_in_a_terminal(0.5, quiet=True) == ""


def test_a_log_file_gets_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(pause=0.4, quiet=False)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == done.stdout == ""
