"""The system's keyring, through the library ``keyring``, which is loaded when it is first needed.

Keyrings that keep nothing, or keep it in a plain file, do not count: the library itself recommends none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensorage.errors import ConfigurationError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

__all__ = ["forget_secret", "has_keyring", "load_secret", "save_secret"]

_OR_FILE = "Unlock it, or run `tensorage login --keep-in file`, which keeps the login in a file of yours"


def has_keyring() -> bool:
    """Tell whether there is a keyring here that is worth its name."""
    return _find() is not None


def save_secret(url: str, account: str, secret: str) -> None:
    """Keep a secret of an account of a project, in place of the one that is kept.

    Raises
    ------
    ConfigurationError
        If there is no keyring, or it refuses. The message says which error it was, and quotes nothing.
    """
    keyring = _require()
    try:
        keyring.set_password(_service(url), account, secret)
    except Exception as error:  # noqa: BLE001 - keyrings raise errors of their own libraries
        raise _keyring_error("takes no login", error) from None


def load_secret(url: str, account: str) -> str:
    """Return a secret.

    Raises
    ------
    ConfigurationError
        If there is no keyring, it refuses, or it has no such secret.
    """
    keyring = _require()
    try:
        secret = keyring.get_password(_service(url), account)
    except Exception as error:  # noqa: BLE001 - keyrings raise errors of their own libraries
        raise _keyring_error("does not give the kept login", error) from None
    if secret is None:
        raise ConfigurationError(
            f"the system's keyring has no login of {account} at {url} any more: run `tensorage login` again"
        )
    return secret


def forget_secret(url: str, account: str) -> None:
    """Delete a secret, if the keyring has it."""
    keyring = _require()
    try:
        if keyring.get_password(_service(url), account) is not None:
            keyring.delete_password(_service(url), account)
    except Exception as error:  # noqa: BLE001 - keyrings raise errors of their own libraries
        raise _keyring_error("does not forget the kept login", error) from None


def _service(url: str) -> str:
    """Return the name under which the keyring keeps secrets: one for each project."""
    return f"tensorage {url}"


def _find() -> KeyringBackend | None:
    try:
        import keyring.core
    except ModuleNotFoundError as error:
        if error.name != "keyring":
            raise
        return None
    found = keyring.core.get_keyring()
    return found if keyring.core.recommended(found) else None


def _require() -> KeyringBackend:
    found = _find()
    if found is None:
        raise ConfigurationError(
            "the login is kept in the system's keyring, and there is none here (in jobs without a desktop there "
            "usually is none; the library is the extra `keyring`). Run `tensorage login --keep-in file`, which keeps "
            "the login in a file of yours"
        )
    return found


def _keyring_error(what: str, error: Exception) -> ConfigurationError:
    # The name alone, and no cause: a message may quote the secret.
    return ConfigurationError(f"the system's keyring {what} ({type(error).__name__}). {_OR_FILE}")
