"""Shares of a user's arrays, the user's usage, and the records of who did what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from tensorage.backend.transfer import Transfer
from tensorage.errors import InvalidInputError
from tensorage.model.values import check_key, check_owner
from tensorage.types import AuditRecord, Share, Usage
from tensorage.wording import quote

__all__ = ["Sharing"]

#: Most rows in one answer. Hosted Supabase returns no more.
ROWS_PER_PAGE = 1000

#: Seconds in which a session sweeps what a change of usual size has left.
_SWEEPING_S = 10.0


class Sharing:
    """Permissions that a user gives and has, and what a user may see of their own account.

    Parameters
    ----------
    transfer
        Carries the requests.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def share(
        self, key: str, who: str | Sequence[str] | None, *, write: bool, expires_at: datetime | None
    ) -> list[Share]:
        """Let others use an array, or all below a prefix. Return the shares of the key."""
        check_key(key)
        readers = readers_of(who)
        _check_no_pattern(readers or [])
        if not isinstance(write, bool | np.bool_):
            # Any text is true, "no" as well.
            raise InvalidInputError(f"sharing {key!r}: write={quote(write)} is neither True nor False")
        if expires_at is not None and getattr(expires_at, "tzinfo", None) is None:
            raise InvalidInputError(
                f"sharing {key!r}: expires_at={quote(expires_at)} is no time of a known zone: give a datetime with "
                "tzinfo, such as datetime.now(timezone.utc) + timedelta(days=7)"
            )
        arguments = {
            "key": key,
            "readers": readers,
            "can_write": bool(write),
            "expires_at": None if expires_at is None else expires_at.isoformat(),
        }
        return _shares(self._transfer.call("tensorage_share", arguments, f"sharing {key!r}"))

    def unshare(self, key: str, who: str | Sequence[str] | None) -> list[Share]:
        """End shares of a key: those with `who`, or all of them. Return the shares that are left."""
        check_key(key)
        arguments = {"key": key, "readers": readers_of(who)}
        return _shares(self._transfer.call("tensorage_unshare", arguments, f"ending shares of {key!r}"))

    def shares(self, key: str | None = None) -> list[Share]:
        """Return the shares that let others use a key, or all that this user has given."""
        if key is not None:
            check_key(key)
        asked = "listing the shares" if key is None else f"listing the shares of {key!r}"
        return _shares(self._pages("tensorage_shares", {"key": key}, asked))

    def shared_with_me(self) -> list[Share]:
        """Return the shares that others have given this user, or every signed-in user."""
        return _shares(self._pages("tensorage_shared_with_me", {}, "listing what others share"))

    def id_of(self, owner: str, asked: str) -> str:
        """Return the id of the account of somebody who shares anything with this user."""
        check_owner(owner)
        return str(self._transfer.call("tensorage_sharer", {"who": owner}, asked))

    def usage(self) -> Usage:
        # A user who deletes, and looks at the quota next, expects the room.
        self._transfer.afterwards.wait(_SWEEPING_S)
        return Usage(**self._transfer.call("tensorage_usage", {}, "asking for the usage"))

    def audit(self, key: str | None) -> Iterator[AuditRecord]:
        """Yield records of this user's arrays, the latest first."""
        if key is not None:
            check_key(key)
        # Pages go back in time by the id of a record: records that are added meanwhile are not seen twice.
        arguments: dict[str, Any] = {"key": key, "before": None, "max_rows": ROWS_PER_PAGE}
        while True:
            page = self._transfer.call("tensorage_audit", arguments, "reading the records of changes")
            yield from map(AuditRecord.from_json, page)
            if len(page) < ROWS_PER_PAGE:
                return
            arguments["before"] = page[-1]["id"]

    def _pages(self, function: str, arguments: dict[str, Any], asked: str) -> Iterator[dict[str, Any]]:
        after = 0
        while True:
            page = self._transfer.call(
                function, {**arguments, "after": after, "max_rows": ROWS_PER_PAGE}, asked
            )
            yield from page
            if len(page) < ROWS_PER_PAGE:
                return
            after = page[-1]["id"]


def readers_of(who: str | Sequence[str] | None) -> list[str] | None:
    """Return the addresses of a share as a list. None stands for every signed-in user.

    Raises
    ------
    InvalidInputError
        If there is no address, or a value that is no text.
    """
    if who is None:
        return None
    given: object = who
    readers = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else []
    if not readers or not all(isinstance(reader, str) for reader in readers):
        raise InvalidInputError(
            f"{quote(who)} names nobody: give an e-mail address, a list of them, or nothing for every signed-in user"
        )
    return readers


def _check_no_pattern(readers: Sequence[str]) -> None:
    """Refuse a pattern, which would be taken for an address that nobody has."""
    for reader in readers:
        if "*" in reader:
            raise InvalidInputError(
                f"{quote(reader)} is a pattern, and a share is with an address: name each reader, or nobody to share "
                "with every signed-in user"
            )


def _shares(rows: Any) -> list[Share]:
    return [Share.from_json(row) for row in rows]
