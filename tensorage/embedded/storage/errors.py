"""Errors in Storage's JSON and words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

import asyncpg

from tensorage.embedded.database import UnreachableError

#: Errors of asyncpg when PostgreSQL is away or was lost. OSError is missing: in Storage it is an error of the disk.
CONNECTION_ERRORS = (
    UnreachableError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

#: Status of an error while PostgreSQL is away or lost.
UNAVAILABLE: Final = 503

#: SQLSTATEs that mean different things to different requests.
UNIQUE: Final = "23505"
FOREIGN_KEY: Final = "23503"

#: Errors of the operating system when nothing more can be written.
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StorageError(Exception):
    """An error in Storage's JSON.

    Parameters
    ----------
    status
        The true status, a text in the answer's JSON.
    error, message, code
        Fields of the answer's JSON.
    http_status
        Status of the HTTP answer: 400 for nearly every error, as in Supabase Storage.
    """

    def __init__(self, status: int, error: str, message: str, code: str, *, http_status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.code = code
        self.http_status = http_status

    @property
    def fields(self) -> dict[str, str]:
        return {
            "statusCode": str(self.status),
            "error": self.error,
            "message": self.message,
            "code": self.code,
        }


def invalid_request(message: str, error: str = "Error") -> StorageError:
    return StorageError(400, error, message, "InvalidRequest")


def access_denied(message: str = "new row violates row-level security policy") -> StorageError:
    return StorageError(403, "Unauthorized", message, "AccessDenied")


def no_such_bucket() -> StorageError:
    return StorageError(404, "Bucket not found", "Bucket not found", "NoSuchBucket")


def no_such_key() -> StorageError:
    return StorageError(404, "not_found", "Object not found", "NoSuchKey")


def bucket_already_exists() -> StorageError:
    return _already_exists("BucketAlreadyExists")


def key_already_exists() -> StorageError:
    return _already_exists("KeyAlreadyExists")


def _already_exists(code: str) -> StorageError:
    return StorageError(409, "Duplicate", "The resource already exists", code)


def bucket_not_empty() -> StorageError:
    message = "The bucket you tried to delete is not empty"
    return StorageError(409, "ResourceNotEmpty", message, "ResourceNotEmpty")


def invalid_key(name: str) -> StorageError:
    return StorageError(400, "InvalidKey", f"Invalid key: {name}", "InvalidKey")


def invalid_bucket_name() -> StorageError:
    return StorageError(400, "Invalid Input", "Bucket name invalid", "InvalidBucketName")


def invalid_mime_type(mime_type: str) -> StorageError:
    message = f"mime type {mime_type} is not supported"
    return StorageError(415, "invalid_mime_type", message, "InvalidMimeType")


def too_large(message: str = "The object exceeded the maximum allowed size") -> StorageError:
    return StorageError(413, "Payload too large", message, "EntityTooLarge")


def invalid_range() -> StorageError:
    return StorageError(416, "invalid_range", "invalid range provided", "InvalidRange", http_status=416)


def invalid_jwt(message: str) -> StorageError:
    return StorageError(400, "InvalidJWT", message, "InvalidJWT")


def invalid_signature(message: str) -> StorageError:
    return StorageError(400, "InvalidSignature", message, "InvalidSignature")


def tus_refusal(status: int, message: str) -> StorageError:
    """Return the refusal of a request of the TUS protocol."""
    return StorageError(status, "TusError", message, "TusError", http_status=status)


def upload_taken_over() -> StorageError:
    return tus_refusal(409, "Another request goes on with this upload")


def not_implemented(message: str) -> StorageError:
    """Return the refusal of a feature that Supabase Storage has and this server lacks."""
    return StorageError(501, "NotImplemented", message, "NotImplemented", http_status=501)


def internal(message: str) -> StorageError:
    return StorageError(500, "Internal", message, "InternalError", http_status=500)


def lost_content(bucket: str, name: str) -> StorageError:
    # Not a 404: a reader would take the object for missing, and put fill values in place of data that exists.
    return internal(f"The content of {bucket}/{name} is missing or damaged in the data folder")


def from_os(error: OSError) -> StorageError:
    """Return the answer to an error of the disk."""
    if error.errno in _FULL_DISK:
        return disk_full(os.strerror(error.errno or errno.ENOSPC))
    return internal("The data folder cannot be read or written, please check the server's log")


def from_postgres(error: asyncpg.PostgresError) -> StorageError:
    """Return the answer to an error of PostgreSQL."""
    sqlstate, message = error.sqlstate or "XX000", error.message or str(error)
    if sqlstate in _BY_SQLSTATE:
        return _BY_SQLSTATE[sqlstate]()
    if sqlstate == "42501":
        return access_denied(_strip_table(message))
    if sqlstate == "22023" and message.startswith("role "):
        return access_denied(message)  # the token's role does not exist
    if sqlstate.startswith("22"):
        return invalid_request(message)
    return StorageError(500, "DatabaseError", message, "DatabaseError", http_status=500)


def disk_full(reason: str = "No space left on device") -> StorageError:
    message = f"The disk that holds the data folder takes no more: {reason}"
    return StorageError(507, "InsufficientStorage", message, "DiskFull", http_status=507)


def unavailable() -> StorageError:
    message = "The connection to the database was lost"
    return StorageError(UNAVAILABLE, "DatabaseError", message, "DatabaseError", http_status=UNAVAILABLE)


def _strip_table(message: str) -> str:
    """Return PostgreSQL's message without the table's name at its end, as in Supabase Storage."""
    return message.partition(" for table ")[0] if "row-level security" in message else message


#: Answers to errors of PostgreSQL by SQLSTATE, for transactions that give them no special meaning.
_BY_SQLSTATE: Final[Mapping[str, Callable[[], StorageError]]] = {
    UNIQUE: lambda: _already_exists("ResourceAlreadyExists"),
    FOREIGN_KEY: no_such_bucket,
    "53100": disk_full,
    "55P03": lambda: StorageError(423, "Conflict", "The resource is locked", "ResourceLocked"),
    "57014": lambda: StorageError(544, "DatabaseTimeout", "The database took too long", "DatabaseTimeout"),
    # Shutting down, crashed, starting. PostgreSQL may have committed before.
    "57P01": unavailable,
    "57P02": unavailable,
    "57P03": unavailable,
}
