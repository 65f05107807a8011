"""The mapping of keys to arrays."""

from __future__ import annotations

import contextlib
import keyword
import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.dask import is_dask, store_dask
from tensorage.adapters.labelled import append_labelled, is_dataset, is_labelled, labels_of, unwrap
from tensorage.backend.arrays import Arrays
from tensorage.backend.glances import FreshKeys
from tensorage.backend.restarts import RESTART_FOR_S
from tensorage.backend.transfer import Project, Transfer
from tensorage.errors import InvalidInputError, KeyExistsError, KeyNotFoundError
from tensorage.interchange.entries import take_in
from tensorage.interchange.objects import entry_of_object, is_object, with_options
from tensorage.model.declaration import ArrayOptions
from tensorage.model.engine_choice import check_engine
from tensorage.model.tree import Tree
from tensorage.model.values import as_array, as_attrs, check_key, check_owner, check_prefix, split_key
from tensorage.signin.state import LAST_LOGOUT_TIMEOUT_S
from tensorage.tensor import Tensor
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import AuditRecord, Dataset, Engine, EngineChoice, Share, Usage
from tensorage.wording import quote, quote_of, sentences

if TYPE_CHECKING:
    from datetime import datetime

    import xarray as xr
    import zarr.abc.store

    from tensorage.background.writer import BackgroundWriter
    from tensorage.interchange.storing import Storing
    from tensorage.transactions.transaction import Transaction

__all__ = ["Backend", "HeldLogin", "TensorStore"]


class Backend(Project, Protocol):
    """The part of a session that a store needs."""

    email: str | None

    @property
    def is_logged_in(self) -> bool:
        """True if a request would need no login first."""
        ...

    def hold(self) -> None:
        """Keep the user logged in until `release`."""
        ...

    def release(self) -> None:
        """Let the user be logged out, unless others hold the login."""
        ...


class HeldLogin:
    """Access to a project, which holds the session's login for as long as this object lives.

    Handles, and all that is made of them, keep this object, and therefore work after their store is gone.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.hold()
        # At the end of the interpreter, the login ends by itself.
        weakref.finalize(self, _release, backend).atexit = False

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldLogin, (self.backend,)

    @property
    def backend_url(self) -> str | None:
        return self.backend.backend_url

    @property
    def user_id(self) -> str:
        return self.backend.user_id

    @property
    def transfer(self) -> Transfer:
        return self.backend.transfer


@end_tracebacks_here
@dataclass(eq=False)
class TensorStore(MutableMapping[str, Any]):
    """The arrays of one user, by key.

    A store knows its own user's arrays and no others, whatever others share. `shared_by` gives a store of somebody
    else's arrays.

    A store logs in when it is made, and holds the login for as long as it lives.

    Parameters
    ----------
    backend
        Session whose user the store works as.
    quiet
        Never show a progress bar.
    engine
        Engine of new arrays: ``"database"`` keeps them as rows, ``"storage"`` as Zarr objects, and ``"auto"`` chooses
        for each array. Stored arrays are found and read whichever engine keeps them.
    chunk_size
        Elements of a block, or of a chunk of Storage, in new arrays. By default about 1 MiB of them make a block, and a
        chunk has as many rows as make 24 KiB once they are encoded.
    allow_overwrite
        Let ``store[key] = array`` replace a stored array.
    owner
        E-mail address, or id of the account, of somebody whose arrays these are, as far as they are shared with the
        session's user. By default, they are this user's own.
    prefix
        Beginning of the keys of a group, with a ``/`` at its end: see `group`.

    Examples
    --------
    .. code-block:: python

        store = tensorage.login("me@example.org", "password")
        store["weather"] = array
        store["weather", 10:20, ..., 3]
        store.weather[10:20]
    """

    backend: Backend
    quiet: bool = False
    engine: EngineChoice = "database"
    chunk_size: int | None = None
    allow_overwrite: bool = False
    owner: str | None = None
    prefix: str = ""
    _login: HeldLogin = field(init=False, repr=False)
    _fresh_keys: FreshKeys = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_engine(self.engine)
        if self.prefix:
            check_key(self.prefix)
        if self.owner is not None:
            check_owner(self.owner)
        # Behind the checks: nobody logs in for a store that is refused.
        self._login = HeldLogin(self.backend)
        self._fresh_keys = FreshKeys(self.arrays, self.prefix)

    @property
    def arrays(self) -> Arrays:
        """Arrays of the store's owner, as handles work with them: by whole keys, also in a group."""
        # Made anew each time: `quiet` and the rest may be set on a store.
        return Arrays(self._login, quiet=self.quiet, owner=self.owner)

    def full_key(self, key: str) -> str:
        """Return the whole key of an array: in a group, with the group's prefix before it."""
        return self.prefix + key if self.prefix and isinstance(key, str) else key

    def _full_prefix(self, prefix: str) -> str:
        check_prefix(prefix)
        return self.prefix + prefix

    # The mapping --------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[Any, ...]) -> Any:
        """Read a whole array, ``store[key]``, or a selection of one, ``store[key, i, j, ...]``.

        Raises
        ------
        KeyNotFoundError
            If there is no array under the key that this user may see.
        IndexError
            If the selection does not fit the shape, as numpy raises it.
        """
        with self._suggesting(key):
            return self._read(key)

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array, ``store[key] = array``, or assign to a selection, ``store[key, i, j, ...] = value``.

        Either is done as a whole, or not at all. A selection is assigned to as numpy does it.

        Datasets of h5py and arrays of zarr and xarray keep their attributes, dims and labels. A Dataset of xarray is
        stored as a group, in one transaction: its variables have keys below ``key/``, and an empty array under the
        key itself has the rest. `open_dataset` gives it back. Blocks of dask in it are stored before the rest, by
        dask's workers.

        Raises
        ------
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.
        DTypeError, QuotaExceededError, InvalidInputError
            Nothing has changed.
        """
        name, selection = split_key(key)
        if selection is not None:
            self.arrays.assign_to_key(self.full_key(name), selection, value)
            return
        if is_dataset(value):
            self._storing().write_dataset(self.full_key(name), cast("Any", value))
            return
        self.write(name, value)

    def __delitem__(self, key: str) -> None:
        """Delete an array of this user."""
        with self._suggesting(key):
            self.arrays.remove(self.full_key(key))

    def __contains__(self, key: object) -> bool:
        """Tell whether the store has the key, by one request, however many keys there are."""
        return isinstance(key, str) and self.arrays.find(self.full_key(key)) is not None

    def _read(self, key: str | tuple[Any, ...]) -> Any:
        name, selection = split_key(key)
        return self.arrays.read_key(self.full_key(name), ... if selection is None else selection)

    def get(self, key: str | tuple[Any, ...], default: Any = None) -> Any:
        """Return an array or a selection of one, or `default` if the store has no array under the key.

        Examples
        --------
        .. code-block:: python

            weights = store.get("weights")
        """
        # Without the request for keys like this one, which an error is worth.
        try:
            return self._read(key)
        except KeyNotFoundError:
            return default

    def __iter__(self) -> Iterator[str]:
        return self._iterate_keys("")

    def __len__(self) -> int:
        return self.arrays.count_keys(self.prefix)

    def keys(self, prefix: str = "") -> list[str]:  # type: ignore[override] # a list shows itself, as this API always gave
        """Return every key of the store that begins with `prefix`, sorted by code point."""
        return list(self._iterate_keys(prefix))

    @end_tracebacks_here
    def _iterate_keys(self, prefix: str) -> Iterator[str]:
        for key in self.arrays.iterate_keys(self._full_prefix(prefix)):
            yield key[len(self.prefix) :]

    def clear(self) -> None:
        """Delete all arrays of this user, or of the group, in one transaction."""
        self.arrays.remove_all(self.prefix)

    def update(self, *arrays: Any, **named: npt.ArrayLike) -> None:
        """Store several arrays in one transaction: all of them, or none.

        Parameters
        ----------
        arrays
            A mapping of keys to arrays, or an iterable of pairs, as for `dict.update`.
        named
            Arrays by keys that are names.

        Raises
        ------
        KeyExistsError
            If a key is taken and the store does not allow to overwrite. Nothing has changed.
        """
        with self.transaction() as tx:
            for key, array in dict(*arrays, **named).items():
                tx[key] = array

    # Together -----------------------------------------------------------------------------------------------

    def group(self, name: str) -> TensorStore:
        """Return the store of all arrays below a name, whose keys are relative to it. Sends no request.

        Parameters
        ----------
        name
            Beginning of the keys, without a ``/`` at its end: ``"exp/run1"`` for all keys that begin with
            ``"exp/run1/"``.

        Examples
        --------
        .. code-block:: python

            run = store.group("exp/run1")
            run["loss"] = losses            # store["exp/run1/loss"]
            run.keys()
        """
        name = name.rstrip("/")
        check_key(name)
        return replace(self, prefix=self.full_key(f"{name}/"))

    def tree(self, prefix: str = "") -> Tree:
        """Return the keys that begin with `prefix` as a tree, which prints itself, by one request for 1,000 arrays.

        Examples
        --------
        .. code-block:: python

            print(store.tree("exp/"))
        """
        entries = self.arrays.entries(self._full_prefix(prefix))
        return Tree.of(
            (entry.key[len(self.prefix) :], f"{entry.shape} {entry.ragged or entry.dtype}")
            for entry in entries
        )

    def transaction(self) -> Transaction:
        """Return a transaction, in which several changes are made at once, or none of them.

        Returns
        -------
        tensorage.transactions.transaction.Transaction
            To be used in a ``with`` statement, at whose end the changes are made.

        Examples
        --------
        .. code-block:: python

            with store.transaction() as tx:
                tx["x"] = x
                tx.append("y", rows)
                tx["w", 3] = 0
                del tx["old"]
        """
        from tensorage.transactions.recorder import Recorder
        from tensorage.transactions.transaction import RecordingBackend, Transaction

        recorder = Recorder(self._login.transfer)
        backend = RecordingBackend(self._login, recorder, self.backend.email)
        # The recording store holds no login. This one does, and lives as long as the transaction.
        return Transaction(recorder, replace(self, backend=backend, quiet=True), held_by=self)

    def read_many(self, keys: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Read whole arrays as they are at one moment: all from before a change by others, or all from after it.

        Small arrays of the database come together: one request for 8 MiB of them.

        Parameters
        ----------
        keys
            Keys of at most 10,000 arrays.

        Raises
        ------
        KeyNotFoundError
            If one of the keys has no array. Nothing is read then.
        """
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return {}
        found = self.arrays.read_many([self.full_key(key) for key in wanted])
        return {key: array for key, (_, array) in zip(wanted, found, strict=True)}

    def save(self, key: str, state: Any) -> None:
        """Store nested dicts, lists and tuples of arrays, tensors, numbers, text and None in one transaction.

        The array under the key itself is empty, and has the nesting in its attributes. The others have keys below it.

        Parameters
        ----------
        state
            State of a model or of an optimizer, such as ``model.state_dict()``.

        Raises
        ------
        KeyExistsError
            If something is saved there and the store does not allow to overwrite. With it, the new state replaces the
            old one as a whole.
        InvalidInputError, DTypeError
            If something in the state cannot be stored. The message says where it is. Nothing has changed.

        Examples
        --------
        .. code-block:: python

            store.save("ckpt/17", {"model": model.state_dict(), "step": 17})
            model.load_state_dict(store.load("ckpt/17")["model"])
        """
        from tensorage.model.state import STATE_ATTRIBUTE, take_apart

        nesting, arrays = take_apart(state, key)
        # Listed here, since a transaction shows nothing. Arrays that the new state lacks go in the same step.
        old = set(self.keys(f"{key}/")) if self.allow_overwrite else set()
        with self.transaction() as tx:
            tx.write(key, np.zeros(0, np.uint8), attrs={STATE_ATTRIBUTE: nesting})
            for name, array in arrays.items():
                tx[f"{key}/{name}"] = array
                old.discard(f"{key}/{name}")
            for name in sorted(old):
                del tx[name]

    def load(self, key: str) -> Any:
        """Return what `save` has stored, with the same nesting, as it was at one moment.

        Tensors of torch come back as such where torch is installed, and all other arrays as arrays of numpy. Small
        arrays of the database come together: one request for 8 MiB of them.

        Raises
        ------
        KeyNotFoundError
            If nothing was saved under the key.
        """
        from tensorage.model.state import STATE_ATTRIBUTE, put_together

        full = self.full_key(key)
        found = self.arrays.read_many(None, below=full)
        if not found or found[0][0].key != full or STATE_ATTRIBUTE not in found[0][0].attrs:
            raise KeyNotFoundError(
                f"loading {quote_of(key, self.owner)}: nothing was saved there by store.save({quote(key)}, state)"
            )
        arrays = {entry.key[len(full) + 1 :]: array for entry, array in found[1:]}
        return put_together(found[0][0].attrs[STATE_ATTRIBUTE], arrays, key)

    # Others -----------------------------------------------------------------------------------------------

    def shared_by(self, who: str) -> TensorStore:
        """Return the store of somebody else's arrays, as far as they are shared with this user. Sends no request.

        It can be read, and appended and assigned to where the share lets this user write. Nothing can be stored,
        deleted or renamed in it. `copy` copies from it to this user's own arrays.

        Parameters
        ----------
        who
            E-mail address of the owner, or the id of the owner's account: `Share.owner_id`.

        Raises
        ------
        InvalidInputError
            If `who` is neither an address nor an id.

        Examples
        --------
        .. code-block:: python

            store.shared_by("owner@lab.org")["era5", 10:20, :, 3]
        """
        check_owner(who)
        return replace(self, owner=who)

    def shared_with_me(self) -> list[Share]:
        """Return the shares that others have given this user, or every signed-in user of the project."""
        return self.arrays.own().sharing("listing what others share").shared_with_me()

    def share(
        self,
        key: str,
        who: str | Sequence[str] | None = None,
        *,
        write: bool = False,
        expires_at: datetime | None = None,
    ) -> list[Share]:
        """Let others use an array of this user, or all below a prefix. The next request of theirs is let through.

        Parameters
        ----------
        key
            Key of an array. With a ``/`` at its end, a prefix: all arrays and files below it are shared, also those
            that come later.
        who
            E-mail address, or several. It counts for the account that has confirmed it, now or later. Nobody is told
            whether there is one. There are no patterns of addresses. By default, every signed-in user of the project.
        write
            Let them append, assign, and set attributes, too. Elements that they write count against the owner's quota.
            A share that is there already changes to what is said now: without `write`, it is for reading only again.
        expires_at
            Time, with its zone, at which the share ends. By default it does not end.

        Returns
        -------
        list
            Shares that let others use the key now.

        Raises
        ------
        KeyNotFoundError
            If this user has no array under the key, or none below the prefix.
        InvalidInputError
            If an address is none or this user's own, `write` is no truth value, or `expires_at` is in the past or has
            no zone. Nothing has changed.
        PermissionDeniedError
            If the store is somebody else's.

        Examples
        --------
        .. code-block:: python

            store.share("era5", "reader@lab.org")
            store.share("exp/", ["a@lab.org", "b@lab.org"], write=True, expires_at=datetime.now(UTC) +
            timedelta(days=7))
        """
        return self.arrays.sharing(f"sharing {quote(key)}").share(
            self.full_key(key), who, write=write, expires_at=expires_at
        )

    def unshare(self, key: str, who: str | Sequence[str] | None = None) -> list[Share]:
        """End shares of a key or prefix. The next request of those who used it is refused.

        Parameters
        ----------
        who
            Addresses whose shares end. By default, all shares of exactly this key or prefix end.

        Returns
        -------
        list
            Shares that still let others use the key, such as those of a prefix.

        Raises
        ------
        InvalidInputError
            If the key is not shared so. The message names the prefix that is, if there is one. Nothing has changed.
        """
        return self.arrays.sharing(f"ending shares of {quote(key)}").unshare(self.full_key(key), who)

    def shares(self, key: str | None = None) -> list[Share]:
        """Return the shares that let others use a key, those of its prefixes included, or all shares of this user."""
        return self.arrays.sharing("listing the shares").shares(self._full_key_or_all(key))

    def usage(self) -> Usage:
        """Return what this user has stored and may store, by one request.

        Leftovers count until they are swept. This waits for the session to sweep its own, up to 10 seconds.
        """
        return self.arrays.sharing("asking for the usage").usage()

    def audit(self, key: str | None = None) -> list[AuditRecord]:
        """Return the records of who did what to this user's arrays, the latest first.

        The project keeps them for 90 days, or as long as it is set to.

        Parameters
        ----------
        key
            Key of one array, by default of all.
        """
        return list(self.arrays.sharing("reading the records of changes").audit(self._full_key_or_all(key)))

    def catalogue(
        self, prefix: str = "", glob: str | None = None, where: Mapping[str, Any] | None = None
    ) -> list[Dataset]:
        """Return the entries of arrays, sorted by key, by one request for each 1,000 of them.

        Parameters
        ----------
        prefix
            Beginning of the keys.
        glob
            Pattern of whole keys: ``*`` stands for any characters but ``/``, ``**`` for any characters, ``?`` for one
            character but ``/``.
        where
            Attributes that the arrays have, all of them, such as ``{"units": "K"}``. An index finds them. A list or a
            dict stands for those that contain it: ``{"tags": ["raw"]}`` finds an array with the tags raw and daily.

        Examples
        --------
        .. code-block:: python

            for entry in store.catalogue("exp/", where={"units": "K"}):
                print(entry.key, entry.shape, entry.dtype, entry.nbytes, entry.stored_bytes)
        """
        # Patterns are of whole keys for the database, and of the group's keys for the caller.
        glob = None if glob is None else self.full_key(glob)
        return list(
            self.arrays.entries(self._full_prefix(prefix), glob, None if where is None else as_attrs(where))
        )

    def _full_key_or_all(self, key: str | None) -> str | None:
        """Return the whole key, or the prefix of the group, of which None stands for all."""
        return self.full_key(key) if key is not None else self.prefix or None

    def remove_all(self, prefix: str) -> int:
        """Delete all arrays whose keys begin with `prefix`, in one transaction, and return their number.

        Raises
        ------
        InvalidInputError
            If the prefix is empty. `clear` deletes all arrays.
        """
        if prefix == "":
            raise InvalidInputError(
                "deleting the arrays below '': every key begins so. To delete all arrays, call clear()"
            )
        return self.arrays.remove_all(self._full_prefix(prefix))

    def rename_all(self, prefix: str, new_prefix: str) -> int:
        """Put `new_prefix` in place of `prefix` in all keys that begin with it, in one transaction.

        Shares of the arrays go with them. Shares of prefixes that begin with `prefix` go, too, unless there are other
        arrays or files below their new names.

        Returns
        -------
        int
            Number of arrays that were renamed.

        Raises
        ------
        KeyNotFoundError
            If no key begins with `prefix`.
        KeyExistsError
            If a new key is taken, whether or not the store allows to overwrite. Nothing has changed.
        """
        return self.arrays.rename_all(self._full_prefix(prefix), self._full_prefix(new_prefix))

    # More than a mapping --------------------------------------------------------------------------------

    def open(self, key: str, owner: str | None = None) -> Tensor:
        """Return a lazy handle on an array of the store, or on one that somebody shares.

        Parameters
        ----------
        owner
            E-mail address, or id of the account, of somebody else whose array is meant.
        """
        if owner is not None:
            arrays = self.arrays.shared_by(owner)
            return Tensor(arrays, arrays.open(self.full_key(key)))
        with self._suggesting(key):
            return Tensor(self.arrays, self.arrays.open(self.full_key(key)))

    def write(
        self,
        key: str,
        blocks: npt.ArrayLike | Iterable[npt.ArrayLike],
        *,
        shape: Sequence[int] | None = None,
        dtype: npt.DTypeLike | None = None,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        is_shared: bool = False,
        engine: EngineChoice | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
    ) -> Tensor:
        """Store an array with attributes, names of axes and a layout, also an array that never exists whole.

        Parameters
        ----------
        blocks
            The array. Blocks of a dask array are stored by the workers that compute them. An array of xarray keeps its
            name, dims, coordinates and attributes. Datasets of h5py and arrays of zarr keep what they have of these,
            and large ones are read in blocks. With `shape` and `dtype`, an iterable of blocks of consecutive rows,
            any number of rows in each: memory holds only blocks under way.
        shape
            Shape of the whole array.
        dtype
            Dtype of the stored array. The dtype of each block has to fit it without loss.
        attrs
            Attributes, whatever JSON can hold, in place of those of an array of xarray.
        dims
            Names of the axes, in place of those of an array of xarray, whose coordinates follow the axes.
        is_shared
            Let every signed-in user of the project read the array.
        engine
            Engine of the array, by default that of the store.
        chunks, shards
            With engine ``"storage"``: the shape of a chunk, which is compressed and read as one, and the shape of an
            object, which is made of whole chunks. ``shards=False`` makes an object of each chunk. By default a chunk
            has as many rows as make 24 KiB once they are encoded, or one row, or 1 MiB of one, and an object 8 MiB.
        codecs
            With engine ``"storage"``: codecs of a chunk, as the JSON of Zarr's metadata or as objects of
            ``zarr.codecs``.

        Raises
        ------
        IncompleteTensorError
            If the blocks do not fill the shape. Nothing is stored.
        InvalidInputError, DTypeError
            If a block has another shape or dtype. Nothing is stored.
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.

        Examples
        --------
        .. code-block:: python

            months = (read_month(path) for path in paths)          # each (31, 721, 1440), say
            store.write("era5", months, shape=(372, 721, 1440), dtype="float32", dims=("time", "lat", "lon"))
        """
        how: dict[str, Any] = {
            "chunk_size": self.chunk_size, "is_shared": is_shared, "attrs": attrs, "dims": dims,
            "overwrite": self.allow_overwrite, "engine": self.engine if engine is None else engine, "chunks": chunks,
            "shards": shards, "codecs": codecs,
        }  # fmt: skip
        key = self.full_key(key)
        entry = entry_of_object(key, blocks) if shape is None and dtype is None else None
        if entry is not None:
            entry = with_options(entry, attrs, dims)
            # The entry has these now.
            del how["attrs"], how["dims"]
            return Tensor(self.arrays, take_in(self.arrays, entry, key, **how))
        blocks, how = unwrap(key, blocks, how)
        # An array has both. Blocks need both, since no block tells the whole shape.
        if shape is None and dtype is None:
            return Tensor(self.arrays, self._write_declared(key, cast("npt.ArrayLike", blocks), **how))
        if is_dask(blocks):
            raise InvalidInputError(
                f"storing {quote(key)}: an array of dask has a shape and a dtype of its own, leave out shape= and "
                "dtype="
            )
        if shape is None or dtype is None:
            raise InvalidInputError(
                f"storing {quote(key)} from blocks: give both, shape={shape} and dtype={dtype}, or none for an array"
            )
        rows = [blocks] if isinstance(blocks, np.ndarray) else cast("Iterable[npt.ArrayLike]", blocks)
        return Tensor(self.arrays, self.arrays.write_blocks(key, rows, shape, dtype, **how))

    def create(
        self,
        key: str,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = "float64",
        *,
        fill_value: Any = 0,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        is_shared: bool = False,
        engine: EngineChoice | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
    ) -> Tensor:
        """Make an array that is there at once, takes no room, and reads as `fill_value` until it is assigned to.

        Any process assigns any region: readers see each assignment whole or not at all, and writers of different blocks
        or objects do not wait for each other. Assignments take room, in whole blocks or objects.

        Parameters
        ----------
        shape
            Shape of the array, of any size: the request is a single one. A number stands for a single axis.
        dtype
            Dtype of the elements.
        fill_value
            Element that stands for those never written. 0 fits any dtype: it is the empty text, and False.
        attrs, dims, is_shared, engine, chunks, shards, codecs
            The same as for `write`.

        Raises
        ------
        InvalidInputError, DTypeError
            If the shape or the dtype is none, or the fill value is no element of the dtype.
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.

        Examples
        --------
        .. code-block:: python

            store.create("sim", shape=(1_000_000, 512), dtype="f4")
            # In each of many processes, for rows of its own:
            store.open("sim")[first : first + len(states)] = states
        """
        axes = shape if isinstance(shape, Iterable) else (shape,)
        made = self.arrays.create(
            self.full_key(key), axes, dtype, fill_value=fill_value, chunk_size=self.chunk_size, is_shared=is_shared,
            attrs=attrs, dims=dims, overwrite=self.allow_overwrite, engine=self.engine if engine is None else engine,
            chunks=chunks, shards=shards, codecs=codecs,
        )  # fmt: skip
        return Tensor(self.arrays, made)

    def write_ragged(
        self,
        key: str,
        samples: Iterable[Any],
        dtype: npt.DTypeLike | None = None,
        *,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        is_shared: bool = False,
        engine: EngineChoice | None = None,
    ) -> Tensor:
        """Store samples of any length: texts, bytes, lists of tokens, or arrays that differ in their first axis.

        Parameters
        ----------
        samples
            Any iterable, also one that never exists whole, such as a generator: memory holds what is under way. All
            samples are `str`, or all `bytes`, or all arrays that have all axes but the first in common. A sample has
            at most 256 MiB.
        dtype
            Dtype of samples that are arrays, by default that of the first sample with elements. ``str`` and ``bytes``
            say that samples are such.
        attrs
            Attributes, whatever JSON can hold.
        dims
            Name of the one axis, along which the samples are.
        is_shared
            Let every signed-in user of the project read the array.
        engine
            Engine of the array, by default that of the store: ``"auto"`` is the database. Storage keeps chunks of
            about 1 MiB of samples, which are read as wholes.

        Returns
        -------
        Tensor
            Handle of shape ``(n,)``. ``handle[i]`` is a sample, and ``handle[[7, 3, 9]]`` a list of samples, in one
            request.

        Raises
        ------
        InvalidInputError, DTypeError
            If a sample has another trailing shape or dtype, or a text is none. The message says which. Nothing is
            stored.
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.

        Examples
        --------
        .. code-block:: python

            texts = store.write_ragged("texts", (line.rstrip() for line in open("corpus.txt")))
            texts[[7, 3, 9]]                                        # a list of str
            store.write_ragged("tokens", [[5, 2], [1, 1, 8]], dtype="int32")
            store.write_ragged("audio", clips)                      # each of shape (n, 2)
        """
        options: ArrayOptions = {
            "chunk_size": self.chunk_size, "attrs": attrs, "dims": dims, "overwrite": self.allow_overwrite,
        }  # fmt: skip
        made = self.arrays.write_ragged(
            self.full_key(key), samples, dtype, engine=engine or self.engine, is_shared=is_shared, **options
        )
        return Tensor(self.arrays, made)

    def write_declared(self, key: str, value: npt.ArrayLike, **how: Any) -> Dataset:
        """Store an array of numpy or of dask, with the options of `tensorage.backend.arrays.Arrays.write`."""
        return self._write_declared(self.full_key(key), value, **how)

    def _write_declared(self, key: str, value: npt.ArrayLike, **how: Any) -> Dataset:
        if is_dask(value):
            return store_dask(self.arrays, key, cast("Any", value), **how)
        return self.arrays.write(key, value, **how)

    def _storing(self, **options: Any) -> Storing:
        """Return what stores Datasets and files with the settings of this store."""
        from tensorage.interchange.storing import Storing
        from tensorage.transactions.transaction import RecordingBackend

        said = {
            "chunk_size": self.chunk_size, "overwrite": self.allow_overwrite, "engine": self.engine, **options,
        }  # fmt: skip
        if not isinstance(self.backend, RecordingBackend):
            return Storing(self.arrays, said, self.arrays, self._begin)
        # The store of a transaction sees nothing: the catalogue is looked at past it.
        return Storing(self.arrays, said, replace(self.arrays, project=self.backend.project), None)

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Arrays]:
        with self.transaction() as tx:
            yield tx.arrays

    # Files -------------------------------------------------------------------------------------------------

    def import_file(
        self,
        path: str | os.PathLike[str],
        prefix: str = "",
        *,
        skip: Sequence[str] = (),
        engine: EngineChoice | None = None,
        is_shared: bool = False,
    ) -> list[str]:
        """Store all arrays of a file, with their attributes, dims and coordinates, in one transaction.

        Others see all of the file's arrays, or none, however large they are. Large arrays are read and sent in blocks
        of about 32 MiB, and those of a ``.npz`` one at a time, so that the file may be larger than memory. It has to
        be taken in within a day: the project gives up what is sent and not committed by then.

        Parameters
        ----------
        path
            File or folder. Its suffix says the format: ``.npy``, ``.npz``, ``.h5`` or ``.hdf5``, ``.nc``, or ``.zarr``.
        prefix
            Beginning of the keys. The rest are the names in the file, with groups before a ``/``. A single array,
            such as that of a ``.npy``, is named after the file. Attributes of a group are kept by an empty array under
            the name of the group. The file's own are kept if the prefix ends with a ``/``.
        skip
            Names in the file of arrays and groups to leave out.
        engine
            Engine of the arrays, by default that of the store. With ``"storage"``, objects of Zarr v3 are taken over
            as they are.
        is_shared
            Let every signed-in user of the project read the arrays.

        Returns
        -------
        list
            Keys of the new arrays, sorted.

        Warns
        -----
        UserWarning
            If attributes have no place in a store, or an axis has a largest length. The warning names them.

        Raises
        ------
        InvalidInputError
            If there is no such file, its format is unknown, a package for it is not installed, or something in it, such
            as a link, has no place in a store. Nothing is stored.
        DTypeError
            If an array cannot be stored, such as one of text of any length. Nothing is stored.
        CorruptTensorError
            If the file is damaged, or of another format. Nothing is stored.
        KeyExistsError
            If a key is taken and the store does not allow to overwrite. Nothing is stored.

        Examples
        --------
        .. code-block:: python

            store.import_file("run.h5", "exp/run/")
            store.import_file("era5.nc", "era5/")
            store.open_dataset("era5")
        """
        options = {"is_shared": is_shared} if engine is None else {"is_shared": is_shared, "engine": engine}
        keys = self._storing(**options).import_file(Path(path), self._full_prefix(prefix), skip)
        return [key[len(self.prefix) :] or key for key in keys]

    def export(self, key: str, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write an array, or all arrays of a group, as a file.

        The file is written under a temporary name in its folder, and gets its own name at the end. After an error,
        nothing is left of it. Each array is read in blocks, and is of one version. If it changes meanwhile,
        `ChangedError` is raised.

        Parameters
        ----------
        key
            Key of an array, or name of a group. With a ``/`` at its end, it is a group. ``""`` stands for all arrays of
            the store.
        path
            File or folder. Its suffix says the format: ``.npy`` for one array, ``.npz``, ``.h5`` or ``.hdf5``, ``.nc``,
            or ``.zarr``. Coordinates are arrays of their own in the file.
        overwrite
            Replace a file or folder that is there.

        Warns
        -----
        UserWarning
            If attributes, dims or coordinates have no place in the format. The warning names them.

        Raises
        ------
        KeyNotFoundError
            If there is neither such an array nor such a group.
        InvalidInputError
            If the file is there and `overwrite` is false, the format is unknown, a package for it is not installed, or
            it has no place for the names of the arrays. A file that was there is left as it was.
        DTypeError
            If the format has no place for a dtype.

        Examples
        --------
        .. code-block:: python

            store.export("exp/run", "run.h5")
            store.export("era5", "era5.nc", overwrite=True)
        """
        from tensorage.interchange.writing import export

        check_prefix(key)
        export(self.arrays.quietly(), self.full_key(key), Path(path), overwrite=overwrite)

    def open_dataset(self, key: str, *, drop_variables: str | Sequence[str] = ()) -> xr.Dataset:
        """Open a group as a lazy Dataset of xarray: one that was stored as such, or any arrays with keys below a name.

        A Dataset comes back equal to the one that was stored. In any other group, each array directly below the name is
        a variable. One that has the name of its only axis is a coordinate. Elements are read when they are used, of
        the versions that were opened.

        Parameters
        ----------
        key
            Name of the group: the key under which a Dataset was stored, or the prefix of keys without its last ``/``.
        drop_variables
            Names of variables and coordinates to leave out.

        Raises
        ------
        KeyNotFoundError
            If there is no such group.
        InvalidInputError
            If arrays do not fit together, or xarray is not installed.
        IncompleteTensorError
            If variables of a stored Dataset are missing.

        Examples
        --------
        .. code-block:: python

            store["era5"] = dataset
            store.open_dataset("era5").t2m.sel(time="2020-01-02").load()
        """
        from tensorage.interchange.datasets import open_group

        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables)
        check_key(key)
        return open_group(self.arrays, self.full_key(key).rstrip("/"), dropped)

    def append(self, key: str, data: Any, *, create: bool = False) -> None:
        """Add rows at the end of the first axis of an array: all at once, or not at all.

        The labels of a DataArray of xarray are added to the coordinates after the rows, in a step of its own. In
        between, and after rows without labels, coordinates are shorter than their axis. `Tensor.to_xarray` leaves such
        coordinates out, with a warning.

        Parameters
        ----------
        data
            Rows of the array's shape, any number of them, whose dtype fits the array's dtype without loss. In a list,
            only the values have to. A DataArray has to have the dims and coordinates that are stored. Lists of tuples
            become records. For a ragged array, any iterable of samples.
        create
            Store the rows as a new array, with the settings of this store, if there is none under the key. If several
            writers do so at the same time, one makes the array, and the rows of all others follow.

        Raises
        ------
        KeyNotFoundError
            If there is no array under the key, and `create` is false.
        InvalidInputError, DTypeError
            If the rows do not fit the array. Nothing was appended.
        ChangedError
            If the rows of a DataArray were appended, but not their labels, since somebody changed the array meanwhile.
        """
        if not create:
            try:
                self._append(self.full_key(key), data)
            except KeyNotFoundError as error:
                # Nobody makes arrays for others.
                if self.arrays.owner is not None:
                    raise
                raise KeyNotFoundError(
                    f"appending to {quote(key)}: there is no such array. list(store) shows what there is, and "
                    f"store.append({quote(key)}, rows, create=True) stores the rows as a new one"
                ) from error
            return
        self.arrays.check_own(f"appending to {quote(key)} with create=True")
        self._append_or_create(key, data)

    def _append_or_create(self, key: str, data: npt.ArrayLike) -> None:
        # An array that somebody else makes meanwhile must not be replaced, whatever this store allows.
        careful = replace(self, allow_overwrite=False)
        until = time.monotonic() + RESTART_FOR_S
        while True:
            try:
                self._append(self.full_key(key), data)
            except KeyNotFoundError:
                rows = data if is_labelled(data) or is_dask(data) or is_object(data) else as_array(data)
                if not np.ndim(cast("Any", rows)):
                    raise InvalidInputError(
                        f"appending to {quote(key)}: a single value has no rows; append [value]"
                    ) from None
                try:
                    careful.write(key, rows)
                # Somebody else has made the array meanwhile, or made it and deleted it again.
                except KeyExistsError:
                    if time.monotonic() > until:
                        raise
                    continue
            return

    def _append(self, key: str, data: npt.ArrayLike) -> None:
        if is_labelled(data):
            append_labelled(self.arrays, key, cast("Any", data).data, labels_of(key, data))
            return
        self.arrays.append(key, data, likely="storage" if self.engine == "storage" else "database")

    def copy(
        self,
        key: str,
        new_key: str,
        *,
        engine: EngineChoice | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
    ) -> Tensor:
        """Copy an array to another key, with its attributes, dims and coordinates, and perhaps to another engine.

        The array is never in memory as a whole. In a store of `shared_by`, it is somebody else's. The copy belongs to
        this user, and is not shared.

        Parameters
        ----------
        engine
            Engine of the copy, by default that of the array.
        chunks, shards, codecs
            Layout of the copy: see `write`. Without these, objects of Storage are copied by the server.

        Raises
        ------
        KeyExistsError
            If `new_key` is taken and the store does not allow to overwrite.
        """
        options: ArrayOptions = {
            "chunk_size": self.chunk_size, "chunks": chunks, "shards": shards, "codecs": codecs,
            "overwrite": self.allow_overwrite,
        }  # fmt: skip
        source, new_key = self.open(key), self.full_key(new_key)
        made = source.on_latest(lambda now: self.arrays.copy(now, new_key, engine=engine, **options))
        # The copy is this user's, also if the source is somebody else's.
        return Tensor(self.arrays.own(), made)

    def zarr_store(self, key: str, *, as_group: str | None = None) -> zarr.abc.store.Store:
        """Return the present version of an array of Storage as a read-only store of ``zarr``, also for xarray and dask.

        Only chunks that are read are fetched. Once elements of the array have changed, reading raises `ChangedError`:
        make another store then.

        Parameters
        ----------
        as_group
            Name of the array in a group that is the root of the store, as xarray wants it. By default the array itself
            is the root.

        Raises
        ------
        InvalidInputError
            If the array is kept by the database: `copy` copies it to Storage.

        Examples
        --------
        .. code-block:: python

            zarr.open_array(store.zarr_store("t2m"), mode="r")
            dask.array.from_zarr(store.zarr_store("t2m"))
            xarray.open_zarr(store.zarr_store("t2m", as_group="t2m"))["t2m"]
        """
        return self.arrays.zarr_store(self.arrays.open(self.full_key(key)), as_group=as_group)

    def import_zarr(
        self,
        key: str,
        source: Any,
        *,
        engine: Engine = "storage",
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        is_shared: bool = False,
    ) -> Tensor:
        """Store an array of Zarr that somebody else wrote, with its attributes and the names of its dimensions.

        Objects of Zarr v3 are uploaded as they are, without being decoded, unless `chunks`, `shards` or `codecs` ask
        for another layout. An array of Zarr v2 is decoded and encoded anew, shard by shard.

        Parameters
        ----------
        source
            Array of zarr, or anything that zarr opens: a path, a URL, a store.
        attrs, dims
            Attributes and names of the axes that replace those of the source.

        Raises
        ------
        InvalidInputError, DTypeError
            If the source is no array of Zarr, or cannot be stored.
        CorruptTensorError
            If an object of the source is damaged. Nothing is stored.
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.
        """
        stored = self.arrays.import_zarr(
            self.full_key(key),
            source,
            engine=engine,
            chunks=chunks,
            shards=shards,
            codecs=codecs,
            attrs=attrs,
            dims=dims,
            is_shared=is_shared,
            overwrite=self.allow_overwrite,
        )
        return Tensor(self.arrays, stored)

    def rename(self, key: str, new_key: str, *, overwrite: bool = False) -> None:
        """Give an array of this user another key.

        Parameters
        ----------
        overwrite
            Replace an array that is under `new_key`. The setting `allow_overwrite` of the store does not count here.

        Raises
        ------
        KeyNotFoundError
            If there is no array under `key`.
        KeyExistsError
            If `new_key` is taken, and `overwrite` is false. Nothing has changed.
        """
        try:
            with self._suggesting(key):
                self.arrays.rename(self.full_key(key), self.full_key(new_key), overwrite=overwrite)
        except KeyExistsError as error:
            raise KeyExistsError(
                f"renaming {quote(key)} to {quote(new_key)}: that key is taken, and nothing has changed. Choose "
                f"another key, or replace the array there: store.rename({quote(key)}, {quote(new_key)}, overwrite=True)"
            ) from error

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks of an array of this user, and return the number of blocks saved.

        Appends merge blocks at the end of an array by themselves. Readers do not notice.
        """
        return self.arrays.compact(self.full_key(key))

    def background(
        self,
        *,
        max_in_flight: int = 8,
        max_bytes: int = 256 * 1024 * 1024,
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int | None = None,
    ) -> BackgroundWriter:
        """Return a writer for a loop that does not wait. Threads store the arrays, with the settings of this store.

        Parameters
        ----------
        max_in_flight, max_bytes
            Most operations, and most bytes of their arrays, that are waiting or under way before a call waits.
        spool
            Folder in which arrays wait, in place of memory. Nothing that a call has taken is lost then, even if the
            process or the machine ends: the next writer with this folder sends the rest, or ``tensorage sync``.
        spool_bytes
            Most bytes of the folder; by default, as many as the disk has. A write that does not fit raises
            `SpoolFullError`.

        Examples
        --------
        .. code-block:: python

            with store.background() as bg:
                for step in range(1000):
                    weights = train(weights)
                    bg[f"run/3/weights/{step}"] = weights
        """
        # The writer has a store of its own, since a bar would cross the output of the loop.
        from tensorage.background.writer import BackgroundWriter

        return BackgroundWriter(
            replace(self, quiet=True),
            max_in_flight=max_in_flight,
            max_bytes=max_bytes,
            spool=spool,
            spool_bytes=spool_bytes,
        )

    def __getattr__(self, name: str) -> Tensor:
        """Open an array by attribute: ``store.weather`` is ``store.open("weather")``."""
        # Python and notebooks look for methods that begin with an underscore, which are no keys.
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        try:
            return self.open(name)
        except KeyNotFoundError as error:
            raise AttributeError(f"the store has neither an attribute nor an array {quote(name)}") from error

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field of the store. No array can be stored so.

        Raises
        ------
        AttributeError
            If the store has no such field.
        """
        # An attribute that nobody reads back from the project would look like a stored array.
        if name not in self.__dataclass_fields__:
            raise AttributeError(
                f"a store has no field {quote(name)} to set, and nothing was stored: store[{quote(name)}] = array "
                f"stores an array, store[{quote(name)}, 10:20] = values assigns to a part of one"
            )
        super().__setattr__(name, value)

    def __dask_tokenize__(self) -> str:
        # Arrays of the store change, so dask must not take two results of it for the same. The token is new each time.
        return uuid.uuid4().hex

    def __dir__(self) -> list[str]:
        names = {key for key in self._keys_at_hand() if key.isidentifier() and not keyword.iskeyword(key)}
        return sorted(names.union(super().__dir__()))

    def _ipython_key_completions_(self) -> list[str]:
        return self._keys_at_hand()

    def _keys_at_hand(self) -> list[str]:
        """Return the first 1,000 keys, by one request in some seconds. Never raises, and logs nobody in."""
        return self._fresh_keys() if self.backend.is_logged_in else []

    @contextlib.contextmanager
    def _suggesting(self, key: Any) -> Iterator[None]:
        """Name keys that are like one which the store does not have."""
        try:
            yield
        except KeyNotFoundError as error:
            from tensorage.adapters.notebook import suggestion

            name = key[0] if isinstance(key, tuple) and key else key
            # The same error with more words: its type, its cause and its traceback stay.
            error.args = (sentences(str(error), suggestion(name, self._keys_at_hand())),)
            raise

    def __repr__(self) -> str:
        whose = self.backend.email if self.owner is None else f"{self.owner}, for {self.backend.email},"
        group = f"{self.prefix!r} " if self.prefix else ""
        return f"<TensorStore {group}of {whose} at {self.backend.backend_url}>"

    def _repr_html_(self) -> str:
        from tensorage.adapters.notebook import html_of_store

        words = repr(self).removeprefix("<TensorStore ").removesuffix(">")
        is_logged_in = self.backend.is_logged_in
        return html_of_store(self.arrays, self.prefix, words, is_logged_in=is_logged_in)


def _release(backend: Backend) -> None:
    """End the hold of a store that is gone, in a thread of its own.

    Garbage is collected in any thread, also in one that holds a lock of the login, or that serves the logout's request:
    the caller waits for no longer than an exit would.
    """
    thread = threading.Thread(target=backend.release, name="tensorage-release", daemon=True)
    # No thread starts while the interpreter ends: the login then expires by itself.
    with contextlib.suppress(RuntimeError):
        thread.start()
        thread.join(LAST_LOGOUT_TIMEOUT_S)
