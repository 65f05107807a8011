"""Scripts that are measured in a fresh interpreter. Each reads its settings from standard input, as a JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def run(probe: str, settings: Mapping[str, Any]) -> Any:
    """Run a probe, and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.probes.{probe}"],
        input=json.dumps(settings),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
