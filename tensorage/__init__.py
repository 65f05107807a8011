"""Numpy arrays of any size in a Supabase project, given back by numpy slicing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorage.auth import link_to, local, login, signup
    from tensorage.errors import (
        AuthenticationError,
        BackendUnavailableError,
        CacheError,
        ChangedError,
        ClosedError,
        ConfigurationError,
        CorruptTensorError,
        DTypeError,
        IncompleteTensorError,
        InvalidInputError,
        KeyExistsError,
        KeyNotFoundError,
        PermissionDeniedError,
        QuotaExceededError,
        SchemaError,
        SpoolDamagedError,
        SpoolError,
        SpoolFullError,
        TensorageError,
        TooLargeError,
    )
    from tensorage.session import BackendSession
    from tensorage.store import TensorStore
    from tensorage.tensor import Tensor
    from tensorage.training.batches import batches
    from tensorage.training.batches import zip as zip  # noqa: A004 - written tensorage.zip
    from tensorage.types import AuditRecord, Dataset, Share, Usage
    from tensorage.warnings import SecurityWarning

__version__ = "0.2.0"

__all__ = [
    "AuditRecord",
    "AuthenticationError",
    "BackendSession",
    "BackendUnavailableError",
    "CacheError",
    "ChangedError",
    "ClosedError",
    "ConfigurationError",
    "CorruptTensorError",
    "DTypeError",
    "Dataset",
    "IncompleteTensorError",
    "InvalidInputError",
    "KeyExistsError",
    "KeyNotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "SchemaError",
    "SecurityWarning",
    "Share",
    "SpoolDamagedError",
    "SpoolError",
    "SpoolFullError",
    "Tensor",
    "TensorStore",
    "TensorageError",
    "TooLargeError",
    "Usage",
    "__version__",
    "batches",
    "link_to",
    "local",
    "login",
    "signup",
]

#: Public names that ``from tensorage import *`` leaves out, since Python has builtins of the same names.
_NAMED_LIKE_BUILTINS = ["zip"]

#: Module of each public name, ``errors`` if it is not listed. Modules are loaded when first used: the embedded server
#: is a part of this package, and needs nothing of the client.
_HOMES = {
    "AuditRecord": "types",
    "BackendSession": "session",
    "Dataset": "types",
    "SecurityWarning": "warnings",
    "Share": "types",
    "Tensor": "tensor",
    "TensorStore": "store",
    "Usage": "types",
    "batches": "training.batches",
    "link_to": "auth",
    "local": "auth",
    "login": "auth",
    "signup": "auth",
    "zip": "training.batches",
}


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _NAMED_LIKE_BUILTINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"tensorage.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMED_LIKE_BUILTINS])
