"""Keys as a tree that prints itself. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Tree"]


@dataclass(eq=False)
class Tree:
    """Arrays and groups below a key, by the parts of their keys between slashes.

    Parameters
    ----------
    note
        Description of the array under this very key, None if there is none.
    branches
        Everything below, by the next part of the key, sorted as the keys are.

    Examples
    --------
    .. code-block:: python

        tree = store.tree()
        print(tree)
        list(tree.branches["exp"].branches)
    """

    note: str | None = None
    branches: dict[str, Tree] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Iterable[tuple[str, str]]) -> Tree:
        """Make the tree of arrays: of their keys, each with a description."""
        root = cls()
        for key, note in arrays:
            here = root
            for part in key.split("/"):
                here = here.branches.setdefault(part, cls())
            here.note = note
        return root

    def __len__(self) -> int:
        """Return the number of arrays."""
        # Keys may have more parts than Python has calls within each other.
        count, left = 0, [self]
        while left:
            here = left.pop()
            count += here.note is not None
            left += here.branches.values()
        return count

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # Only notebooks need it.
        from tensorage.display.tables import tree

        return tree(self)

    def _lines(self) -> Iterator[str]:
        last = len(self.branches) - 1
        for number, (name, branch) in enumerate(self.branches.items()):
            fork, rail = ("└── ", "    ") if number == last else ("├── ", "│   ")
            slash = "/" if branch.branches else ""
            yield f"{fork}{name}{slash}" + ("" if branch.note is None else f"  {branch.note}")
            for line in branch._lines():
                yield rail + line
