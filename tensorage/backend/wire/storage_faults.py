"""Translation of Storage's error answers. No I/O.

Storage answers HTTP 400 to nearly everything, with the true status in the body, as text. Its resumable uploads answer
the true status, with plain words as the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tensorage.backend.wire.faults import BackendAnswerError, Fault, missing_schema
from tensorage.errors import (
    BackendUnavailableError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    TensorageError,
)
from tensorage.wording import sentences

__all__ = ["LoginFault", "StorageRefusal", "read_fault", "refusals_as_errors"]

_BY_STATUS: dict[int, tuple[type[TensorageError], str]] = {
    400: (InvalidInputError, ""),
    403: (PermissionDeniedError, "Files are kept in the user's own folder."),
    404: (KeyNotFoundError, "list_files() shows what there is."),
    409: (KeyExistsError, ""),
    413: (QuotaExceededError, "It is larger than the project allows."),
    415: (InvalidInputError, ""),
    507: (QuotaExceededError, "The backend's disk is full."),
}

#: Statuses that no repetition changes: not supported, and a full disk.
_LASTING = frozenset({501, 507})

#: Words of PostgreSQL when a policy refuses, not the token.
_POLICY_WORDS = ("row-level security", "permission denied")

#: Words of the database if the quota has no room for an object: the user's own, or that of an owner who shares the
#: array. Storage passes on words, but no code.
_OVER_QUOTA = re.compile(
    r"more bytes do not fit(?:: \d+ of \d+ bytes are in use|(?P<owner> into the quota of the owner))"
)


class StorageRefusal(Exception):  # noqa: N818 - an answer, which its caller may have expected
    """Storage refused a request for good. Never leaves the backend's modules."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class LoginFault(Fault):
    """Storage refused the token."""

    @property
    def is_expired_login(self) -> bool:
        return True


def read_fault(status: int, body: bytes, retry_after: str | None) -> Fault:
    """Read an error answer after which the request may be repeated, with another token or a moment later.

    Raises
    ------
    StorageRefusal
        If a repeated request would be answered alike.
    """
    fault = Fault.parse(status, body, retry_after)
    fault = replace(fault, status=_true_status(status, body))
    if _is_about_the_token(fault, body):
        return LoginFault(fault.status, fault.code, fault.message, retry_after_s=fault.retry_after_s)
    # A quota without room can look like a passing fault, but a repeated request would be refused again.
    if fault.is_passing and fault.status not in _LASTING and not _OVER_QUOTA.search(fault.message):
        return fault
    raise StorageRefusal(fault)


@contextmanager
def refusals_as_errors(asked: str) -> Iterator[None]:
    """Raise refusals in the block as errors of the package.

    Parameters
    ----------
    asked
        Wish of the user, for the message: ``downloading 'a.txt'``.
    """
    try:
        yield
    except StorageRefusal as refusal:
        raise _error_of(refusal.fault, asked) from BackendAnswerError(str(refusal.fault))


def is_missing_bucket(fault: Fault) -> bool:
    """Tell whether the bucket itself is missing."""
    return fault.code == "NoSuchBucket" or (fault.status == 404 and fault.message == "Bucket not found")


def _error_of(fault: Fault, asked: str) -> TensorageError:
    if is_missing_bucket(fault):
        return missing_schema(f"{asked}: there is no bucket of tensorage")
    if over_quota := _OVER_QUOTA.search(fault.message):
        advice = "Delete arrays or files, or ask the project's administrator for more room."
        if over_quota["owner"]:
            advice = "Ask the owner to make room."
        return QuotaExceededError(sentences(f"{asked}: {fault.said}", advice))
    kind, advice = _BY_STATUS.get(fault.status, (BackendUnavailableError, "Try again later."))
    return kind(sentences(f"{asked}: {fault.said}", advice))


def _true_status(status: int, body: bytes) -> int:
    try:
        answer = json.loads(body)
    except ValueError:
        return status
    said = str(answer.get("statusCode", "")) if isinstance(answer, dict) else ""
    return int(said) if said.isdecimal() and len(said) == 3 else status


def _is_about_the_token(fault: Fault, body: bytes) -> bool:
    if not body:
        # An answer to HEAD has no body that names the reason. The request was well formed, so it is the token.
        return fault.status in {400, 401, 403}
    return fault.status == 401 or (
        fault.status == 403 and not any(words in fault.message for words in _POLICY_WORDS)
    )
