"""What an array's owner declares or stores does not decide how much memory its reader takes."""

from __future__ import annotations

import json
import subprocess
import sys

import bombs

MIB = 1024 * 1024


def test_nothing_is_inflated_beyond_its_chunk() -> None:
    # In a process of its own, whose peak of memory is that of the decoding.
    done = subprocess.run(
        [sys.executable, bombs.__file__], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert reports.keys() == bombs.BOMBS.keys()
    for name, report in reports.items():
        assert report["object_bytes"] < MIB, name
        assert report["taken_bytes"] < 8 * MIB, (name, report)
        assert any(number in report["error"] for number in ("10", "128", str(report["object_bytes"]))), (
            name,
            report,
        )
