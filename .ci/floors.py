"""Prints pip constraints that hold each dependency at the oldest version pyproject.toml allows.

The floor ``2.16`` becomes ``== 2.16.*``: the last correction of that version, as somebody who has not
upgraded for long would have it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def floors(requirements: list[str]) -> Iterator[str]:
    """One constraint for each requirement, which must name a floor.

    Raises
    ------
    ValueError
        A requirement without ``>=``: then nobody knows what the oldest version is.
    """
    for requirement in map(Requirement, requirements):
        versions = [s.version for s in requirement.specifier if s.operator == ">="]
        if len(versions) != 1:
            raise ValueError(f"{requirement} in {PROJECT.name} names no floor; write it as 'name >= version'")
        yield f"{requirement.name} == {versions[0]}.*"


def main() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"].values()
    for line in floors([*project["dependencies"], *chain.from_iterable(extras)]):
        print(line)


if __name__ == "__main__":
    main()
