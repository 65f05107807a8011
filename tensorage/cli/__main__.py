"""``python -m tensorage.cli``, which is ``tensorage``."""

from __future__ import annotations

from tensorage.cli import main

if __name__ == "__main__":
    main(prog_name="tensorage")
