"""``python -m tensorage.embedded``: the server, in the foreground of whoever starts it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tensorage.embedded.folder import EmbeddedError
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE, find_companion
from tensorage.embedded.server import DEFAULT_JWT_LIFETIME_S, Options, run


def main() -> int:
    """Serve until SIGTERM or SIGINT. Print nothing but the reason of a failure."""
    parser = argparse.ArgumentParser(prog="python -m tensorage.embedded", description=__doc__)
    parser.add_argument("--data-dir", help="data folder (default: the user's own)")
    parser.add_argument("--port", type=int, help="port of the API (default: the last one, or any)")
    parser.add_argument("--jwt-lifetime", type=int, default=DEFAULT_JWT_LIFETIME_S, metavar="SECONDS")
    parser.add_argument(
        "--postgres-bin", type=Path, metavar="DIR", help="programs of another PostgreSQL (default: our own)"
    )
    parser.add_argument(
        "--ends-with",
        type=int,
        metavar="PID",
        help=f"process with which the server ends, even if that is killed (default: {ENDS_WITH_VARIABLE}, or none)",
    )
    parser.add_argument(
        "--began-at",
        type=float,
        metavar="SECONDS",
        help="when that process began, to tell it from a later one of the same pid",
    )
    arguments = parser.parse_args()
    try:
        # Pids are used again: without the time, the server could end with a later process of the same pid.
        ends_with = find_companion(arguments.ends_with)
        if ends_with is not None and arguments.began_at is not None:
            ends_with = replace(ends_with, create_time=arguments.began_at)
        run(
            Options(
                arguments.data_dir,
                arguments.port,
                arguments.jwt_lifetime,
                bin_dir=arguments.postgres_bin,
                ends_with=ends_with,
            )
        )
    except EmbeddedError as error:
        print(error, file=sys.stderr)  # noqa: T201  (`control.start` reads it from there)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
