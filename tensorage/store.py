"""The mapping of keys to arrays."""

from __future__ import annotations

import contextlib
import keyword
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.dask import is_dask, store_dask
from tensorage.adapters.labelled import append_labelled, is_labelled, labels_of, unwrap
from tensorage.backend.arrays import Arrays
from tensorage.backend.transfer import Project, Transfer
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.model.declaration import ArrayOptions
from tensorage.model.engine_choice import check_engine
from tensorage.model.values import as_attrs, split_key
from tensorage.signin.state import LAST_LOGOUT_TIMEOUT_S
from tensorage.tensor import Tensor
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import AuditRecord, Dataset, Engine, EngineChoice, Share, Usage

if TYPE_CHECKING:
    from datetime import datetime

    import zarr.abc.store

    from tensorage.background.writer import BackgroundWriter

__all__ = ["Backend", "HeldLogin", "TensorStore"]


class Backend(Project, Protocol):
    """The part of a session that a store needs."""

    email: str | None

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
        Elements of a block, or of a chunk of Storage, in new arrays. By default about 1 MiB of them.
    allow_overwrite
        Let ``store[key] = array`` replace a stored array.
    owner
        E-mail address, or id of the account, of somebody whose arrays these are, as far as they are shared with the
        session's user. By default, they are this user's own.

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
    _login: HeldLogin = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_engine(self.engine)
        self._login = HeldLogin(self.backend)

    @property
    def arrays(self) -> Arrays:
        """Arrays of the store, as handles work with them."""
        return Arrays(self._login, quiet=self.quiet, owner=self.owner)

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
        name, selection = split_key(key)
        return self.open(name).read(... if selection is None else selection)

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array, ``store[key] = array``, or assign to a selection, ``store[key, i, j, ...] = value``.

        Either is done as a whole, or not at all. A selection is assigned to as numpy does it.

        Raises
        ------
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.
        DTypeError, QuotaExceededError, InvalidInputError
            Nothing has changed.
        """
        name, selection = split_key(key)
        if selection is not None:
            self.open(name)[selection] = value
            return
        self.write(name, value)

    def __delitem__(self, key: str) -> None:
        """Delete an array of this user."""
        self.arrays.remove(key)

    def __contains__(self, key: object) -> bool:
        """Tell whether the store has the key, by one request, however many keys there are."""
        if not isinstance(key, str):
            return False
        try:
            self.arrays.open(key)
        except KeyNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return self.arrays.iterate_keys()

    def __len__(self) -> int:
        return self.arrays.count_keys()

    def keys(self, prefix: str = "") -> list[str]:  # type: ignore[override] # a list shows itself, as this API always gave
        """Return every key of the store that begins with `prefix`, sorted by code point."""
        return list(self.arrays.iterate_keys(prefix))

    def clear(self) -> None:
        """Delete all arrays of this user, in one transaction."""
        self.arrays.remove_all("")

    # Others -----------------------------------------------------------------------------------------------

    def shared_by(self, who: str) -> TensorStore:
        """Return the store of somebody else's arrays, as far as they are shared with this user. Sends no request.

        It can be read, and appended and assigned to where the share lets this user write. Nothing can be stored,
        deleted or renamed in it. `copy` copies from it to this user's own arrays.

        Parameters
        ----------
        who
            E-mail address of the owner, or the id of the owner's account: `Share.owner_id`.

        Examples
        --------
        .. code-block:: python

            store.shared_by("owner@lab.org")["era5", 10:20, :, 3]
        """
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
            whether there is one. By default, every signed-in user of the project.
        write
            Let them append, assign, and set attributes, too. Elements that they write count against the owner's quota.
        expires_at
            Time, with its zone, at which the share ends.

        Returns
        -------
        list
            Shares that let others use the key now.

        Raises
        ------
        KeyNotFoundError
            If this user has no array under the key, or none below the prefix.
        InvalidInputError
            If an address is none or this user's own, or `expires_at` is in the past. Nothing has changed.
        PermissionDeniedError
            If the store is somebody else's.

        Examples
        --------
        .. code-block:: python

            store.share("era5", "reader@lab.org")
            store.share("exp/", ["a@lab.org", "b@lab.org"], write=True, expires_at=datetime.now(UTC) +
            timedelta(days=7))
        """
        return self.arrays.sharing(f"sharing {key!r}").share(key, who, write=write, expires_at=expires_at)

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
        return self.arrays.sharing(f"ending shares of {key!r}").unshare(key, who)

    def shares(self, key: str | None = None) -> list[Share]:
        """Return the shares that let others use a key, those of its prefixes included, or all shares of this user."""
        return self.arrays.sharing("listing the shares").shares(key)

    def usage(self) -> Usage:
        """Return what this user has stored and may store, by one request."""
        return self.arrays.sharing("asking for the usage").usage()

    def audit(self, key: str | None = None) -> list[AuditRecord]:
        """Return the records of who did what to this user's arrays, the latest first.

        The project keeps them for 90 days, or as long as it is set to.

        Parameters
        ----------
        key
            Key of one array, by default of all.
        """
        return list(self.arrays.sharing("reading the records of changes").audit(key))

    def catalogue(
        self, prefix: str = "", glob: str | None = None, where: Mapping[str, Any] | None = None
    ) -> list[Dataset]:
        """Return the entries of arrays, sorted by key, by one request for each 1,000 of them.

        Parameters
        ----------
        prefix
            Beginning of the keys.
        glob
            Pattern of the keys: ``*`` stands for any characters but ``/``, ``**`` for any characters, ``?`` for one
            character but ``/``.
        where
            Attributes that the arrays have, such as ``{"units": "K"}``. An index finds them.

        Examples
        --------
        .. code-block:: python

            for entry in store.catalogue("exp/", where={"units": "K"}):
                print(entry.key, entry.shape, entry.dtype, entry.nbytes, entry.stored_bytes)
        """
        return list(self.arrays.entries(prefix, glob, None if where is None else as_attrs(where)))

    def remove_all(self, prefix: str) -> int:
        """Delete all arrays whose keys begin with `prefix`, in one transaction, and return their number."""
        return self.arrays.remove_all(prefix)

    def rename_all(self, prefix: str, new_prefix: str) -> int:
        """Put `new_prefix` in place of `prefix` in all keys that begin with it, in one transaction.

        Shares of the arrays go with them. So do shares of prefixes that begin with `prefix`, unless there are other
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
            If a new key is taken. Nothing has changed.
        """
        return self.arrays.rename_all(prefix, new_prefix)

    # More than a mapping --------------------------------------------------------------------------------

    def open(self, key: str, owner: str | None = None) -> Tensor:
        """Return a lazy handle on an array of the store, or on one that somebody shares.

        Parameters
        ----------
        owner
            E-mail address, or id of the account, of somebody else whose array is meant.
        """
        arrays = self.arrays if owner is None else self.arrays.shared_by(owner)
        return Tensor(arrays, arrays.open(key))

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
            name, dims, coordinates and attributes. With `shape` and `dtype`, an iterable of blocks of consecutive rows,
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
            object, which is made of whole chunks. ``shards=False`` makes an object of each chunk. By default about
            1 MiB and 8 MiB.
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
        blocks, how = unwrap(key, blocks, how)
        # An array has both. Blocks need both, since no block tells the whole shape.
        if shape is None and dtype is None:
            return Tensor(self.arrays, self.write_declared(key, cast("npt.ArrayLike", blocks), **how))
        if is_dask(blocks):
            raise InvalidInputError(
                f"storing {key!r}: an array of dask has a shape and a dtype of its own, leave out shape= and dtype="
            )
        if shape is None or dtype is None:
            raise InvalidInputError(
                f"storing {key!r} from blocks: give both, shape={shape} and dtype={dtype}, or none for an array"
            )
        rows = [blocks] if isinstance(blocks, np.ndarray) else cast("Iterable[npt.ArrayLike]", blocks)
        return Tensor(self.arrays, self.arrays.write_blocks(key, rows, shape, dtype, **how))

    def write_declared(self, key: str, value: npt.ArrayLike, **how: Any) -> Dataset:
        """Store an array of numpy or of dask, with the options of `tensorage.backend.arrays.Arrays.write`."""
        if is_dask(value):
            return store_dask(self.arrays, key, cast("Any", value), **how)
        return self.arrays.write(key, value, **how)

    def append(self, key: str, data: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis of an array: all at once, or not at all.

        The labels of a DataArray of xarray are added to the coordinates after the rows, in a step of its own. In
        between, and after rows without labels, coordinates are shorter than their axis. `Tensor.to_xarray` leaves such
        coordinates out, with a warning.

        Parameters
        ----------
        data
            Rows of the array's shape, any number of them, whose dtype fits the array's dtype without loss. A DataArray
            has to have the dims and coordinates that are stored.

        Raises
        ------
        InvalidInputError, DTypeError
            If the rows do not fit the array. Nothing was appended.
        ChangedError
            If the rows of a DataArray were appended, but not their labels, since somebody changed the array meanwhile.
        """
        if is_labelled(data):
            append_labelled(self.arrays, key, cast("Any", data).data, labels_of(key, data))
            return
        # An append to the database needs no entry, so that a small one takes a single request. A store of the other
        # engine opens the array first: the database would need all of the rows only to say that it keeps none.
        known = self.arrays.open(key) if self.engine == "storage" else None
        self.arrays.append(key, data, known=known)

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
        source = self.open(key)
        made = source.on_latest(lambda now: self.arrays.copy(now, new_key, engine=engine, **options))
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
        return self.arrays.zarr_store(self.arrays.open(key), as_group=as_group)

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
            key,
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

    def rename(self, key: str, new_key: str) -> None:
        """Give an array of this user another key.

        Raises
        ------
        KeyExistsError
            If `new_key` is taken and the store does not allow to overwrite.
        """
        self.arrays.rename(key, new_key, overwrite=self.allow_overwrite)

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks of an array of this user, and return the number of blocks saved.

        Appends merge blocks at the end of an array by themselves. Readers do not notice.
        """
        return self.arrays.compact(key)

    def background(self, *, max_in_flight: int = 8, max_bytes: int = 256 * 1024 * 1024) -> BackgroundWriter:
        """Return a writer for a loop that does not wait. Threads store the arrays, with the settings of this store.

        Parameters
        ----------
        max_in_flight, max_bytes
            Most operations, and most bytes of their arrays, that are waiting or under way before a call waits.

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

        return BackgroundWriter(replace(self, quiet=True), max_in_flight=max_in_flight, max_bytes=max_bytes)

    def __getattr__(self, name: str) -> Tensor:
        """Open an array by attribute: ``store.weather`` is ``store.open("weather")``."""
        # Python and notebooks look for methods that begin with an underscore, which are no keys.
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        try:
            return self.open(name)
        except KeyNotFoundError as error:
            raise AttributeError(f"the store has neither an attribute nor an array {name!r}") from error

    def __dask_tokenize__(self) -> str:
        # Arrays of the store change, so dask must not take two results of it for the same. The token is new each time.
        return uuid.uuid4().hex

    def __dir__(self) -> list[str]:
        names = {key for key in self if key.isidentifier() and not keyword.iskeyword(key)}
        return sorted(names.union(super().__dir__()))

    def __repr__(self) -> str:
        whose = self.backend.email if self.owner is None else f"{self.owner}, for {self.backend.email},"
        return f"<TensorStore of {whose} at {self.backend.backend_url}>"


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
