"""Quotas of a project's users, as the project's administrator sets and sees them: with the service key.

A user sees the own quota by `TensorStore.usage`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from tensorage.backend.transfer import Transfer
from tensorage.config import SERVICE_KEY_VARIABLE, Configuration, check_key, check_url, require
from tensorage.errors import ConfigurationError, InvalidInputError, PermissionDeniedError
from tensorage.signin.keys import ServiceKey, read_key
from tensorage.wording import quote

__all__ = ["KEEP", "Keep", "Quota", "Quotas", "UserQuota", "format_size", "parse_limit"]

#: Accounts in one answer.
PAGE = 1000

#: PostgreSQL keeps a quota in a bigint.
MAX_LIMIT = 2**63 - 1


class Keep:
    """The type of `KEEP`."""


#: Stands for a limit that stays as it is. None is no limit.
KEEP: Final = Keep()


@dataclass(frozen=True)
class Quota:
    """Limits. None is no limit of one's own.

    Parameters
    ----------
    bytes, arrays
        The most that may be stored.
    """

    bytes: int | None
    arrays: int | None


@dataclass(frozen=True)
class UserQuota:
    """Quota and usage of one account.

    Parameters
    ----------
    user_id, address
        Id of the account, and its address if that is confirmed.
    arrays, bytes, file_bytes
        Amounts that are stored and reserved. `bytes` includes those of files.
    own
        Limits of this account alone. A limit that is None is the default one.
    """

    user_id: str
    address: str | None
    arrays: int
    bytes: int
    file_bytes: int
    own: Quota

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Quotas:
    """Quotas of one project. Use `open` to make it.

    Parameters
    ----------
    transfer
        Requests with the service key.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    @classmethod
    @contextmanager
    def open(cls, configuration: Configuration) -> Iterator[Quotas]:
        """Reach a project with the service key.

        Raises
        ------
        ConfigurationError
            If no URL or no service key is configured, or the key is of another kind.
        """
        url = check_url(require("backend_url", configuration.backend_url, configuration.held_back)).rstrip(
            "/"
        )
        transfer = Transfer(url, ServiceKey(_service_key(configuration)))
        try:
            yield cls(transfer)
        finally:
            transfer.close()

    def default(self) -> Quota:
        """Return the limits of every user who has none of their own."""
        return self._page("asking for the default quota", max_rows=0)[0]

    def users(self, who: str | None = None) -> Iterator[UserQuota]:
        """Yield quota and usage of all accounts in the order of their ids, or of one.

        Parameters
        ----------
        who
            Address of an account, which is confirmed, or its id.

        Raises
        ------
        InvalidInputError
            If no account is called that.
        """
        asked = "asking for quotas" if who is None else f"asking for the quota of {who}"
        after: str | None = None
        while True:
            _, page = self._page(asked, who, after)
            yield from page
            if who is not None or len(page) < PAGE:
                return
            after = page[-1].user_id

    def set(self, who: str | None, max_bytes: int | Keep | None, max_arrays: int | Keep | None) -> Quota:
        """Set the limits of one account, or of every user who has none of their own.

        Parameters
        ----------
        who
            Address or id of the account. None for the default.
        max_bytes, max_arrays
            Limits. None takes a limit away, `KEEP` leaves it as it is.

        Returns
        -------
        Quota
            Limits that hold now.

        Raises
        ------
        InvalidInputError
            If no account is called that. Nothing has changed.
        """
        asked = "setting the default quota" if who is None else f"setting the quota of {who}"
        before = Quota(None, None)
        if isinstance(max_bytes, Keep) or isinstance(max_arrays, Keep):
            # The function sets both limits: the one that is to stay has to be sent, too.
            before = self.default() if who is None else next(self.users(who)).own
        quota = Quota(
            before.bytes if isinstance(max_bytes, Keep) else max_bytes,
            before.arrays if isinstance(max_arrays, Keep) else max_arrays,
        )
        arguments = {"who": who, "max_bytes": quota.bytes, "max_arrays": quota.arrays}
        answer = self._call("tensorage_set_quota", arguments, asked)
        return Quota(answer["max_bytes"], answer["max_arrays"])

    def _page(
        self, asked: str, who: str | None = None, after: str | None = None, max_rows: int = PAGE
    ) -> tuple[Quota, list[UserQuota]]:
        arguments = {"who": who, "max_rows": max_rows} | ({} if after is None else {"after": after})
        answer = self._call("tensorage_quotas", arguments, asked)
        users = [
            UserQuota(
                user["user_id"],
                user["address"],
                user["arrays"],
                int(user["bytes"]),
                int(user["file_bytes"]),
                Quota(user["own_bytes"], user["own_arrays"]),
            )
            for user in answer["users"]
        ]
        return Quota(answer["default_bytes"], answer["default_arrays"]), users

    def _call(self, function: str, arguments: dict[str, Any], asked: str) -> Any:
        try:
            return self._transfer.call(function, arguments, asked)
        except PermissionDeniedError as error:
            raise PermissionDeniedError(
                f"{asked}: the project refuses it to the key that was given. Give the service key (sb_secret_..., or "
                f"the legacy key service_role) in {SERVICE_KEY_VARIABLE}. A login is not enough."
            ) from error


def _service_key(configuration: Configuration) -> str:
    key = configuration.service_key
    if not key:
        reason = configuration.held_back.get("service_key")
        raise ConfigurationError(
            reason
            or f"quotas are set and seen with the service key of the project, and a login is not enough: set "
            f"{SERVICE_KEY_VARIABLE} in the environment, or give --service-key. store.usage() shows a user's own quota"
        )
    kind = read_key(check_key(key)).kind
    if kind in {"publishable", "legacy anon"}:
        raise ConfigurationError(
            f"quotas are set and seen with the service key, and the one that was given is a {kind} key: take the "
            "secret key of the project from its dashboard (Project Settings, API Keys)"
        )
    return key


# Sizes --------------------------------------------------------------------------------------------------

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
}

_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,15}))?\s*([a-z]*)", re.ASCII)


def parse_limit(text: str, *, is_size: bool) -> int | None:
    """Read a limit: ``none``, a number, or a size with a unit.

    Raises
    ------
    InvalidInputError
        If it is none of them, or more than a quota can be.

    Examples
    --------
    >>> parse_limit("500MB", is_size=True), parse_limit("1.5 GiB", is_size=True), parse_limit("none", is_size=True)
    (500000000, 1610612736, None)
    """
    words = text.strip().lower()
    if words == "none":
        return None
    found = _SIZE.fullmatch(words)
    unit = _UNITS.get(found[3]) if found is not None else None
    if found is None or unit is None or (not is_size and (found[2] is not None or found[3])):
        forms = "500MB, 10GiB, 1.5TB, a number of bytes, or none" if is_size else "a number, or none"
        raise InvalidInputError(f"{quote(text)} is no limit: give {forms}")
    decimals = found[2] or ""
    # By whole numbers: a float has no room for all bytes of a large quota.
    limit: int = int(found[1] + decimals) * unit // 10 ** len(decimals)
    if limit > MAX_LIMIT:
        raise InvalidInputError(
            f"{quote(text)} is more than a quota can be: give at most {MAX_LIMIT}, or none"
        )
    return limit


def format_size(nbytes: int) -> str:
    """Write a number of bytes for people.

    >>> format_size(999), format_size(12_345_678)
    ('999 B', '12.3 MB')
    """
    for unit, size in (("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
