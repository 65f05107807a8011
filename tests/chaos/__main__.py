"""Rounds of chaos from the command line: ``python -m chaos --rounds 1000``, with ``tests/`` on the path."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

import postgres_versions
from chaos.deliberate import FAULTS
from chaos.plan import draw_plan
from chaos.rounds import Arena
from chaos.table import Table

from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE


def main() -> int:
    """Run rounds and print the table. Fails if anything acknowledged is not there, or anything is there in part."""
    given = _parser().parse_args()
    bin_dir = None if given.postgres is None else postgres_versions.bin_dir(given.postgres)
    numbers = [given.round] if given.round is not None else range(given.rounds)
    # A shell has what it starts in the background ignore Ctrl-C, which is how the table is asked for before the end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The server ends with this process, also if it is killed.
    os.environ[ENDS_WITH_VARIABLE] = str(os.getpid())
    print(f"seed {given.seed}: the same choices again with --seed {given.seed}", flush=True)
    table, began = Table(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tensorage-chaos-") as folder,
        Arena(Path(folder) / "data", postgres_bin=bin_dir, fault=given.fault) as arena,
    ):
        try:
            for number in numbers:
                result = arena.run(draw_plan(given.seed, number))
                table.add(result)
                if result.problems or given.verbose:
                    print(result, flush=True)
                if result.problems:
                    print(f"  again: --seed {given.seed} --round {number}", flush=True)
                    if given.stop:
                        break
                elif table.rounds % 50 == 0:
                    print(
                        f"{table.rounds} rounds, {table.bad_rounds} bad, {time.monotonic() - began:.0f} s",
                        flush=True,
                    )
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    print(table)
    print(
        f"seed {given.seed}, PostgreSQL {given.postgres or 'as installed'}: {table.rounds} rounds, "
        f"{table.bad_rounds} of them bad, in {time.monotonic() - began:.0f} s"
    )
    return 1 if table.bad_rounds else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", default=secrets.token_hex(3), help="of all choices; by default, a new one")
    parser.add_argument("--round", type=int, help="this round of the seed alone")
    parser.add_argument("--postgres", type=int, choices=postgres_versions.VERSIONS, help="major version")
    parser.add_argument("--fault", choices=FAULTS, help="a mistake to be made on purpose, and found")
    parser.add_argument("--stop", action="store_true", help="at the first bad round")
    parser.add_argument("--verbose", action="store_true", help="print good rounds, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
