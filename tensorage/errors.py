"""Every error that the package raises on purpose.

.. code-block:: text

    TensorageError
    ├── KeyNotFoundError            (KeyError)          no such array, for this user
    ├── KeyExistsError              (ValueError)        the key is taken
    ├── InvalidInputError           (ValueError)        a key, shape or argument that makes no sense
    │   └── IncompleteTensorError   (ValueError)        elements are missing
    │       └── CorruptTensorError                      stored bytes are not those that were written
    ├── DTypeError                  (TypeError)         a dtype that cannot be stored
    ├── AuthenticationError         (RuntimeError)      not logged in, and cannot be
    │   └── ConfigurationError                          no URL, key, e-mail or password known
    ├── PermissionDeniedError       (PermissionError)   logged in, and not allowed
    ├── QuotaExceededError          (OSError)           no room for so many bytes
    ├── SchemaError                 (RuntimeError)      the project lacks the migrations, or has others
    ├── ChangedError                (RuntimeError)      somebody changed the array meanwhile
    ├── CacheError                  (OSError)           the folder of a local cache cannot be used
    ├── SpoolError                  (OSError)           the folder of a spool cannot be used
    │   ├── SpoolFullError                              no room for one more write in it
    │   └── SpoolDamagedError                           a write in it is not as it was given
    ├── ClosedError                 (ValueError)        a background writer that takes nothing any more
    ├── TooLargeError               (MemoryError)       more elements than there is memory for
    └── BackendUnavailableError     (ConnectionError)   unreachable, overloaded, or broken

The backend's own error, where there is one, is chained as ``__cause__``.
"""

from __future__ import annotations

from tensorage.wording import cut

__all__ = [
    "AuthenticationError",
    "BackendUnavailableError",
    "CacheError",
    "ChangedError",
    "ClosedError",
    "ConfigurationError",
    "CorruptTensorError",
    "DTypeError",
    "IncompleteTensorError",
    "InvalidInputError",
    "KeyExistsError",
    "KeyNotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "SchemaError",
    "SpoolDamagedError",
    "SpoolError",
    "SpoolFullError",
    "TensorageError",
    "TooLargeError",
]


#: Most characters of a message. Values are cut where they are quoted: this is for those that nobody thought of.
MAX_MESSAGE = 4000


class TensorageError(Exception):
    """Root of the package's errors."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message, OSError the pair of its arguments.
        return cut(" ".join(str(part) for part in self.args), MAX_MESSAGE)


class KeyNotFoundError(TensorageError, KeyError):
    """There is no array under the key that this user may see."""


class KeyExistsError(TensorageError, ValueError):
    """The caller has an array under the key already."""


class InvalidInputError(TensorageError, ValueError):
    """A key, shape or argument that makes no sense; nothing was written."""


class IncompleteTensorError(InvalidInputError):
    """Elements that should be there are not: none are returned, and nothing is made visible."""


class CorruptTensorError(IncompleteTensorError):
    """The stored bytes of an array are damaged: a checksum is wrong, or they cannot be decoded."""


class DTypeError(TensorageError, TypeError):
    """Arrays of this dtype cannot be stored."""


class AuthenticationError(TensorageError, RuntimeError):
    """Nobody is logged in, and logging in failed or is not possible."""


class ConfigurationError(AuthenticationError):
    """The project's URL or key, or the user's e-mail or password, are not known."""


class PermissionDeniedError(TensorageError, PermissionError):
    """The user is logged in and may not do this."""


class QuotaExceededError(TensorageError, OSError):
    """The owner's quota has no room for so many bytes, or for one more array."""


class SchemaError(TensorageError, RuntimeError):
    """The project lacks tensorage's migrations, or has those of another version."""


class ChangedError(TensorageError, RuntimeError):
    """The array was overwritten, removed or aborted by somebody else while it was used."""


class CacheError(TensorageError, OSError):
    """The folder of a local cache cannot be used: it is full, not writable, or holds other files than a cache's."""


class SpoolError(TensorageError, OSError):
    """The folder of a spool cannot be used: it is another project's or user's, or writes in it cannot go on."""


class SpoolFullError(SpoolError):
    """The folder of a spool, or its disk, has no room for one more write. That write was not taken."""


class SpoolDamagedError(SpoolError):
    """A write that waits in a spool is not as it was given. It is not sent, and neither is what comes after it."""


class ClosedError(TensorageError, ValueError):
    """The background writer has been closed, or belongs to another process: nothing was written."""


def missing_package(what: str, error: ModuleNotFoundError, extra: str) -> InvalidInputError:
    """Return the error that says which extra to install, for something that needs a package of it."""
    return InvalidInputError(f"{what} need the package {error.name!r}: pip install 'tensorage[{extra}]>=0.2'")


# MemoryError comes first: it makes its instances in a way of its own, which pickle relies on.
class TooLargeError(MemoryError, TensorageError):
    """More elements were asked for than this machine has memory for. Nothing was fetched."""


class BackendUnavailableError(TensorageError, ConnectionError):
    """The backend cannot be reached, is overloaded, or answers nonsense."""
