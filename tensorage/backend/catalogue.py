"""The catalogue: the entries of all arrays, whichever engine keeps the elements."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorage.backend.staging import finish_write, new_operation, sweep
from tensorage.backend.transfer import Transfer
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.model.coords import check_room, rename_dims
from tensorage.model.values import as_attrs, as_dims, check_key
from tensorage.types import COORDS_ATTRIBUTE, Dataset

__all__ = ["Catalogue"]

#: Most keys in one answer. Hosted Supabase returns no more rows.
KEYS_PER_PAGE = 1000


class Catalogue:
    """Entries of the arrays that one user may see."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def iterate_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key that begins with `prefix`, sorted by code point, fetching them page by page."""
        after = ""
        while True:
            arguments = {"prefix": prefix, "after": after, "max_rows": KEYS_PER_PAGE}
            page: list[str] = self._transfer.call("tensorage_list", arguments, "listing the keys")
            yield from page
            if len(page) < KEYS_PER_PAGE:
                return
            after = page[-1]

    def count_keys(self) -> int:
        return int(self._transfer.call("tensorage_count", {}, "counting the keys"))

    def open(self, key: str, owner: str | None = None) -> Dataset:
        """Return the entry of this user's array, or else of an array that somebody shares."""
        try:
            check_key(key)
        except InvalidInputError as error:
            raise KeyNotFoundError(
                f"opening {reprlib.repr(key)}: there is no such array, because {error}"
            ) from error
        if owner is None:
            return self._fetch_entry("tensorage_open", {"key": key}, f"opening {key!r}")
        return self._fetch_entry(
            "tensorage_open", {"key": key, "owner": owner}, f"opening {key!r} of {owner}"
        )

    def dataset(self, data_id: int) -> Dataset:
        """Return this user's entry with an id, also of an array that is still being written."""
        return self._fetch_entry("tensorage_dataset", {"data_id": data_id}, f"opening dataset {data_id}")

    def share(self, key: str, is_shared: bool) -> Dataset:
        return self._fetch_entry("tensorage_share", {"key": key, "is_shared": is_shared}, f"sharing {key!r}")

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
        arguments = {"key": key, "operation": new_operation()}
        sweep(self._transfer, self._transfer.call("tensorage_remove", arguments, f"deleting {key!r}"))

    def _annotate(self, dataset: Dataset, **changes: Any) -> Dataset:
        arguments = {"data_id": dataset.id, **changes}
        return self._fetch_entry("tensorage_annotate", arguments, f"describing {dataset.key!r}")

    def _fetch_entry(self, function: str, arguments: Mapping[str, Any], asked: str) -> Dataset:
        return Dataset.from_json(self._transfer.call(function, arguments, asked))
