"""Progress bar for transfers that take long: bytes, rate and remaining time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Advance", "progress"]

#: Function that is told how many more bytes have arrived.
Advance = Callable[[int], object]

#: Seconds before a bar is shown. A short transfer shows none.
DELAY_S = 1.0


@contextmanager
def progress(total_bytes: int, what: str, *, quiet: bool) -> Iterator[Advance]:
    """Show a bar for a transfer of `total_bytes`, in terminals and notebooks, unless `quiet`.

    Parameters
    ----------
    what
        Label of the bar: the key of the array.
    """
    if quiet or not _somebody_watches():
        yield lambda _bytes: None
        return
    with _tqdm()(
        total=total_bytes, desc=what, unit="B", unit_scale=True, unit_divisor=1024, delay=DELAY_S, leave=False
    ) as bar:
        yield bar.update


def _tqdm() -> Any:
    """Return the bar of notebooks or that of terminals."""
    with warnings.catch_warnings():
        # Without ipywidgets, bars of a notebook are text, and tqdm says so on stderr: with a path, in each notebook.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm
    return tqdm


def _somebody_watches() -> bool:
    # The stderr of a notebook is no terminal, but shows bars all the same.
    in_notebook = "ipykernel" in sys.modules
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())
