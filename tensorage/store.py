"""The mapping of keys to arrays."""

from __future__ import annotations

import keyword
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.dask import is_dask, store_dask
from tensorage.adapters.labelled import append_labelled, is_labelled, labels_of, unwrapped
from tensorage.backend.arrays import Arrays
from tensorage.backend.transfer import Project, Transfer
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.model.declaration import ArrayOptions
from tensorage.model.engine_choice import check_engine
from tensorage.model.values import split_key
from tensorage.tensor import Tensor
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Dataset, Engine, EngineChoice

if TYPE_CHECKING:
    import zarr.abc.store

    from tensorage.background.writer import BackgroundWriter

__all__ = ["Backend", "HeldLogin", "TensorStore"]


class Backend(Project, Protocol):
    """A session, as far as a store needs one."""

    email: str | None

    def hold(self) -> None:
        """Keep the user logged in until `release`."""
        ...

    def release(self) -> None:
        """Let the user be logged out, unless others hold the login."""
        ...


class HeldLogin:
    """Access to a project for as long as this object lives: it holds the session's login.

    Handles and whatever is made of them keep it, so that they work after their store is gone.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.hold()
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
    """The arrays of a user, by key. Keys that other users share are there for reading.

    Logs in when made, and holds the login for as long as it lives.

    Parameters
    ----------
    backend
        The session whose user it works as.
    quiet
        Never show a progress bar.
    engine
        Where new arrays are kept: ``"database"``, as rows; ``"storage"``, as Zarr objects; or ``"auto"``, wherever it
        is better for each. What is there is found and read wherever it is.
    chunk_size
        Elements per stored block, or per chunk of Storage, of new arrays; about 1 MiB of them by default.
    allow_overwrite
        Let ``store[key] = array`` replace an array that is there.

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
    _login: HeldLogin = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_engine(self.engine)
        self._login = HeldLogin(self.backend)

    @property
    def arrays(self) -> Arrays:
        """The user's arrays, by the interface that handles work with."""
        return Arrays(self._login, quiet=self.quiet)

    # The mapping --------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[Any, ...]) -> Any:
        """``store[key]``, a whole array, or ``store[key, i, j, ...]``, what numpy gives for ``array[i, j, ...]``.

        Raises
        ------
        KeyNotFoundError
            If there is no array under the key that this user may see.
        IndexError
            As numpy's.
        """
        name, selection = split_key(key)
        return self.open(name).read(... if selection is None else selection)

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array, ``store[key] = array``, or assign to a part of one, ``store[key, i, j, ...] = value``.

        Either is there as a whole, or not at all. A part is assigned to as numpy does it.

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
        """True if this user can open the key: one request, however many keys there are."""
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
        """Every key that this user can open and that begins with `prefix`, sorted by code point."""
        return list(self.arrays.iterate_keys(prefix))

    # More than a mapping --------------------------------------------------------------------------------

    def open(self, key: str, owner: str | None = None) -> Tensor:
        """A lazy handle on an array, of this user or else of one that shares it.

        Parameters
        ----------
        owner
            E-mail address of the user whose array is meant, where several share one under the key.
        """
        return Tensor(self.arrays, self.arrays.open(key, owner), owner)

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
        """Store an array with all that belongs to it, also one that never exists whole.

        Parameters
        ----------
        blocks
            The array, which may be one of dask: its blocks are stored by the workers that compute them. Or one of
            xarray, which keeps its name, dims, coordinates and attributes. Or, with `shape` and `dtype`, an iterable of
            blocks of consecutive rows, any number in each: no more of them are in memory than are under way.
        shape
            Of the whole array.
        dtype
            Of the stored array; each block's has to fit it without loss.
        attrs
            Attributes: whatever JSON can hold. In place of those of an array of xarray.
        dims
            Names of the axes. In place of those of an array of xarray, whose coordinates go with the axes.
        is_shared
            Let every signed-in user of the project read it.
        engine
            Where it is kept, by default what the store says.
        chunks, shards
            With engine ``"storage"``: extents of what is compressed and read as one, and of an object, which is made of
            whole chunks; ``shards=False`` makes an object of each chunk. About 1 MiB and 8 MiB by default.
        codecs
            With engine ``"storage"``: the codecs of a chunk, as the JSON of Zarr's metadata or as objects of
            ``zarr.codecs``.

        Raises
        ------
        IncompleteTensorError
            If the blocks do not fill the shape. Nothing is stored.
        InvalidInputError, DTypeError
            If a block is of another shape or dtype. Nothing is stored.
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
        blocks, how = unwrapped(key, blocks, how)
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
        """Store an array of numpy or of dask, with options as `tensorage.backend.arrays.Arrays.write` takes them."""
        if is_dask(value):
            return store_dask(self.arrays, key, cast("Any", value), **how)
        return self.arrays.write(key, value, **how)

    def append(self, key: str, data: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis of an array: all at once, or not at all.

        Of a DataArray of xarray, the labels along the first axis are added to the coordinates, too: after the rows, in
        a step of its own. Whoever looks in between sees coordinates that are shorter than their axis, as they are after
        rows without labels were appended: `Tensor.to_xarray` leaves them out, with a warning.

        Parameters
        ----------
        data
            Of the array's shape but for the first axis, and of a dtype that fits its own without loss. A DataArray has
            to have the dims and coordinates that are stored.

        Raises
        ------
        InvalidInputError, DTypeError
            If it does not fit. Nothing was appended.
        ChangedError
            If a DataArray's rows were appended, and their labels were not, as others changed the array in between.
        """
        if is_labelled(data):
            append_labelled(self.arrays, key, cast("Any", data).data, labels_of(key, data))
            return
        # The database is asked without looking first: for a small append, that is the only request. To say that the
        # array is in Storage, it would be sent all of the rows.
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
        """Store an array again under another key, with its attributes, dims and coordinates: of this engine or another.

        It is never in memory as a whole. The array may be somebody else's, who shares it; the copy is this user's, and
        shared with nobody.

        Parameters
        ----------
        engine
            Of the copy, by default that of the array.
        chunks, shards, codecs
            As for `write`. Between arrays of Storage that have the same of each, objects are copied by the server.

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
        return Tensor(self.arrays, made)

    def zarr_store(self, key: str, *, as_group: str | None = None) -> zarr.abc.store.Store:
        """An array of Storage as it is now, as a read-only store of the package ``zarr``, for xarray and dask, too.

        What is read of it is fetched then, and nothing else. Once elements of the array have changed, reading raises
        `ChangedError`: make another store.

        Parameters
        ----------
        as_group
            By default the array is the root of the store. With a name, the root is a group in which the array has this
            name, as xarray wants it.

        Raises
        ------
        InvalidInputError
            If the array is kept by the database: `copy` makes one of Storage from it.

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
        for others. An array of Zarr v2 is decoded and encoded anew, in parts.

        Parameters
        ----------
        source
            An array of zarr, or whatever zarr opens: a path, a URL, a store.
        attrs, dims
            In place of the source's.

        Raises
        ------
        InvalidInputError, DTypeError
            If the source is no array of Zarr, or none that can be stored.
        CorruptTensorError
            If one of its objects is damaged. Nothing is stored.
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
            If that is taken and the store does not allow to overwrite.
        """
        self.arrays.rename(key, new_key, overwrite=self.allow_overwrite)

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks of an array of this user: how many blocks fewer it then has.

        Appending does so by itself at the end of an array. Readers do not notice.
        """
        return self.arrays.compact(key)

    def background(self, *, max_in_flight: int = 8, max_bytes: int = 256 * 1024 * 1024) -> BackgroundWriter:
        """Write from a loop that does not wait: what is given is stored by threads, with this store's settings.

        Parameters
        ----------
        max_in_flight, max_bytes
            Operations, and bytes of their arrays, that may be waiting or under way: then the next call waits.

        Examples
        --------
        .. code-block:: python

            with store.background() as bg:
                for step in range(1000):
                    weights = train(weights)
                    bg[f"run/3/weights/{step}"] = weights
        """
        from tensorage.background.writer import BackgroundWriter

        return BackgroundWriter(replace(self, quiet=True), max_in_flight=max_in_flight, max_bytes=max_bytes)

    def share(self, key: str) -> None:
        """Let every signed-in user of the project read an array of this user."""
        self.arrays.share(key, True)

    def unshare(self, key: str) -> None:
        """Let only this user read it again."""
        self.arrays.share(key, False)

    def __getattr__(self, name: str) -> Tensor:
        """``store.weather`` is ``store.open("weather")``."""
        # Python and notebooks look for methods of their own, which are no keys.
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        try:
            return self.open(name)
        except KeyNotFoundError as error:
            raise AttributeError(f"the store has neither an attribute nor an array {name!r}") from error

    def __dask_tokenize__(self) -> str:
        # Another one each time: what is made of the store now is not what was made of it before, as its arrays change.
        return uuid.uuid4().hex

    def __dir__(self) -> list[str]:
        names = {key for key in self if key.isidentifier() and not keyword.iskeyword(key)}
        return sorted(names.union(super().__dir__()))

    def __repr__(self) -> str:
        return f"<TensorStore of {self.backend.email} at {self.backend.backend_url}>"


def _release(backend: Backend) -> None:
    backend.release()
