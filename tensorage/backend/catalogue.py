"""The catalogue: the entries of all arrays, whichever engine keeps the elements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tensorage.backend.staging import final_operation, finish_write, new_operation, sweep
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.faults import error_of
from tensorage.backend.wire.http import TooMuchError
from tensorage.errors import InvalidInputError, KeyExistsError, KeyNotFoundError
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.model.coords import check_room, rename_dims
from tensorage.model.values import as_attrs, as_dims, check_key, check_prefix
from tensorage.types import COORDS_ATTRIBUTE, Dataset, Usage
from tensorage.wording import quote

__all__ = ["Catalogue", "FirstPage", "Found"]

#: Most keys in one answer. Hosted Supabase returns no more rows.
KEYS_PER_PAGE = 1000


class Found(NamedTuple):
    """An array that was looked at.

    Parameters
    ----------
    entry
        Entry of the array.
    elements
        Bytes of the elements in C order. None if they did not come along.
    records
        Records of all shards of an array of Storage, as ``tensorage_shards`` answers with them. None if they did not
        come along.
    """

    entry: Dataset
    elements: memoryview | None = None
    records: bytes | None = None


class FirstPage(NamedTuple):
    """First arrays of a store.

    Parameters
    ----------
    is_all
        False if there are more.
    usage
        Usage of the owner, who alone is told.
    """

    entries: list[Dataset]
    is_all: bool
    usage: Usage | None


class Catalogue:
    """Entries of the arrays of one owner.

    Parameters
    ----------
    transfer
        Carries the requests.
    owner
        Address, or id of the account, of somebody whose arrays are meant, as far as they are shared with this user.
        None for this user's own arrays.
    """

    def __init__(self, transfer: Transfer, owner: str | None = None) -> None:
        self._transfer = transfer
        self._owner = owner

    @property
    def _whose(self) -> dict[str, str]:
        return {} if self._owner is None else {"owner": self._owner}

    def _ask_owner(self, asked: str) -> str:
        return asked if self._owner is None else f"{asked} of {self._owner}"

    def iterate_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key that begins with `prefix`, sorted by code point, fetching them page by page."""
        check_prefix(prefix)
        after = ""
        while True:
            arguments = {"prefix": prefix, "after": after, "max_rows": KEYS_PER_PAGE, **self._whose}
            page: list[str] = self._transfer.call(
                "tensorage_list", arguments, self._ask_owner("listing the keys")
            )
            yield from page
            # A page that is not full is the last one: a listing of few keys takes one request.
            if len(page) < KEYS_PER_PAGE:
                return
            # Pages begin behind a key and not at a number: keys that come or go meanwhile shift no page.
            after = page[-1]

    def first_keys(self, prefix: str, most: int) -> list[str]:
        """Return the first keys that begin with `prefix`, at most 1,000 of them, by one request."""
        arguments = {"prefix": prefix, "after": "", "max_rows": min(most, KEYS_PER_PAGE), **self._whose}
        keys: list[str] = self._transfer.call(
            "tensorage_list", arguments, self._ask_owner("listing the keys")
        )
        return keys

    def first_page(self, prefix: str = "") -> FirstPage:
        """Return the first entries of arrays whose keys begin with `prefix`, by one request.

        There are up to 1,000 of them, or as many as have 8 MiB of attributes.
        """
        arguments = {"prefix": prefix, **self._whose}
        page = self._transfer.call(
            "tensorage_catalogue", arguments, self._ask_owner("looking at the catalogue")
        )
        used = page.get("usage")
        return FirstPage(
            [Dataset.from_json(row) for row in page["entries"]],
            page["after"] is None,
            None if used is None else Usage(**used),
        )

    def count_keys(self, prefix: str = "") -> int:
        arguments = {"prefix": prefix, **self._whose}
        return int(self._transfer.call("tensorage_count", arguments, self._ask_owner("counting the keys")))

    def entries(
        self, prefix: str = "", glob: str | None = None, attrs: Mapping[str, Any] | None = None
    ) -> Iterator[Dataset]:
        """Yield the entries of arrays whose keys begin with `prefix` and fit `glob`, and that have all of `attrs`."""
        check_prefix(prefix)
        if glob is not None and not isinstance(glob, str):
            raise InvalidInputError(f"a pattern of keys is a string, not {quote(glob)}")
        arguments: dict[str, Any] = {"prefix": prefix, "glob": glob, "attrs": attrs, **self._whose}
        after: str | None = ""
        while after is not None:
            page = self._transfer.call(
                "tensorage_catalogue",
                {**arguments, "after": after},
                self._ask_owner("looking at the catalogue"),
            )
            yield from map(Dataset.from_json, page["entries"])
            after = page["after"]

    def open(self, key: str) -> Dataset:
        """Return the entry of an array."""
        _check_asked_for(key)
        return self._fetch_entry(
            "tensorage_open", {"key": key, **self._whose}, self._ask_owner(f"opening {key!r}")
        )

    def look(self, keys: Sequence[str] | None, below: str | None = None) -> list[Found]:
        """Return arrays as they are at one moment: their entries, and the elements of those that come along.

        Parameters
        ----------
        keys
            Keys of the arrays, at most 10,000.
        below
            Key of an array, which need not be there: that array and all below it, in place of `keys`.

        Returns
        -------
        list
            Entry of each array, with the elements that came along. Arrays below a key are sorted by key.

        Raises
        ------
        KeyNotFoundError
            If one of `keys` has no array.
        InvalidInputError, BackendUnavailableError
            If the answer was too much for the backend, or took it too long, and there is more than one key.
        """
        for key in keys or ():
            _check_asked_for(key)
        arguments = {"keys": keys, "below": below, "max_bytes": MAX_REQUEST_BYTES, **self._whose}
        only = keys[0] if keys is not None and len(keys) == 1 else below
        asked = self._ask_owner(f"reading {quote(keys) if only is None else repr(only)}")
        try:
            answer = self._transfer.read("tensorage_read_many", arguments, asked)
        except TooMuchError as error:
            if keys is None or len(keys) != 1:
                raise error_of(error.fault, asked) from error
            # The elements come in smaller requests.
            return [Found(self.open(keys[0]))]
        # The answer is the length of some JSON, the JSON, and the bytes that it tells of, one array behind the other.
        at = 4 + int.from_bytes(answer[:4], "big")
        found: list[Found] = []
        for row in json.loads(answer[4:at]):
            self._transfer.learn_version(row["entry"].get("schema"))
            entry = Dataset.from_json(row["entry"])
            elements, records = row.get("elements"), row.get("records")
            end = at + (elements or records or 0)
            # Elements are copied once more on their way.
            come_along = None if elements is None else memoryview(answer)[at:end]
            found.append(Found(entry, come_along, None if records is None else answer[at:end]))
            at = end
        return found

    def dataset(self, data_id: int) -> Dataset:
        """Return this user's entry with an id, also of an array that is still being written."""
        return self._fetch_entry("tensorage_dataset", {"data_id": data_id}, f"opening dataset {data_id}")

    def annotate(
        self,
        dataset: Dataset,
        *,
        attrs: Mapping[str, Any] | None = None,
        removed: Sequence[str] = (),
        replace: bool = False,
    ) -> Dataset:
        """Set `attrs` and delete the attributes named in `removed`; with `replace`, delete all others, too."""
        plain = as_attrs(attrs or {})
        gone = [name for name in removed if name != COORDS_ATTRIBUTE]
        if replace and dataset.coords is not None:
            # Coordinates are kept among the attributes, and have to stay as they are now, which this caller may not
            # know. Other attributes are therefore removed by name.
            gone, replace = [name for name in dataset.attrs if name not in plain], False
        return self._annotate(dataset, attrs=plain, removed=gone, replace=replace)

    def name_axes(self, dataset: Dataset, dims: Sequence[str] | None) -> Dataset:
        """Name the axes, or take their names away. Coordinates follow the axes that they run along."""
        names = as_dims(dims, dataset.ndim)
        coords = rename_dims(dataset, names)
        attrs = {} if coords is None else {COORDS_ATTRIBUTE: coords}
        return self._annotate(dataset, attrs=attrs, dims=names, set_dims=True)

    def label(self, dataset: Dataset, coords: Mapping[str, Any] | None) -> Dataset:
        """Replace the coordinates, or remove them."""
        if coords is None:
            return self._annotate(dataset, removed=[COORDS_ATTRIBUTE])
        check_room(dataset.key, dataset.attrs, coords)
        return self._annotate(dataset, attrs={COORDS_ATTRIBUTE: coords})

    def rename(self, key: str, new_key: str, *, overwrite: bool) -> Dataset:
        check_key(new_key)
        arguments = {"key": key, "new_key": new_key, "overwrite": overwrite, "operation": new_operation()}
        answer = self._transfer.call("tensorage_rename", arguments, f"renaming {key!r} to {new_key!r}")
        return finish_write(self._transfer, answer)

    def remove(self, key: str) -> None:
        arguments = {"key": key, "operation": final_operation()}
        sweep(self._transfer, self._transfer.call("tensorage_remove", arguments, f"deleting {key!r}"))

    def remove_all(self, prefix: str) -> int:
        """Delete all arrays whose keys begin with `prefix`, in one transaction. Return their number."""
        check_prefix(prefix)
        arguments = {"prefix": prefix, "operation": new_operation()}
        answer = self._transfer.call(
            "tensorage_remove_all", arguments, f"deleting the arrays below {prefix!r}"
        )
        sweep(self._transfer, answer)
        return int(answer["keys"])

    def rename_all(self, prefix: str, new_prefix: str) -> int:
        """Put another prefix in place of `prefix` in all keys that begin with it, in one transaction."""
        check_prefix(prefix)
        check_prefix(new_prefix)
        arguments = {"prefix": prefix, "new_prefix": new_prefix, "operation": new_operation()}
        asked = f"renaming the arrays below {prefix!r} to {new_prefix!r}"
        try:
            return int(self._transfer.call("tensorage_rename_all", arguments, asked)["keys"])
        except KeyExistsError as error:
            # It overwrites nothing, whatever the store allows.
            raise KeyExistsError(
                f"{asked}: new keys are taken. Choose another prefix, or delete or rename the arrays that have them. "
                "Nothing has changed."
            ) from error

    def _annotate(self, dataset: Dataset, **changes: Any) -> Dataset:
        arguments = {"data_id": dataset.id, **changes}
        return self._fetch_entry("tensorage_annotate", arguments, f"describing {dataset.key!r}")

    def _fetch_entry(self, function: str, arguments: Mapping[str, Any], asked: str) -> Dataset:
        row = self._transfer.call(function, arguments, asked)
        self._transfer.learn_version(row.get("schema"))
        return Dataset.from_json(row)


def _check_asked_for(key: str) -> None:
    """Raise as for an array that is not there if a key is none."""
    try:
        check_key(key)
    except InvalidInputError as error:
        raise KeyNotFoundError(f"opening {quote(key)}: there is no such array, because {error}") from error
