"""Errors as one line on stderr, and the exit statuses that tell them apart."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import IO, Any

import click

from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    KeyNotFoundError,
    PermissionDeniedError,
    TensorageError,
)

__all__ = ["FAILED", "NOT_FOUND", "STATUSES", "WRONG_USAGE", "Failure", "one_line_errors", "shorten"]

FAILED = 1
WRONG_USAGE = 2
NOT_FOUND = 3
NOT_ALLOWED = 4
UNREACHABLE = 5
INTERRUPTED = 130

#: Meaning of each exit status, for the help and the documentation.
STATUSES = {
    0: "Done; also where the reader of a pipe wanted no more",
    1: "Anything that no other status says",
    2: "The command line makes no sense",
    3: "There is no such array, group, share or file",
    4: "The user may not do this, or the login is refused",
    5: "The project cannot be reached, or does not serve",
    130: "Ended by Ctrl-C",
}

#: A group that is called without a command shows its help. Older versions of click have no such error.
_HELP: tuple[type[click.UsageError], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])
)

#: Most characters of a message. Users and servers may have given any text, even a megabyte.
MAX_MESSAGE = 1000

#: Advice of the package, which is in words of Python, and the same in words of the shell.
_ADVICE = {
    "list(store) shows what there is, store.shared_with_me() what others share.":
        "`tensorage ls` shows what there is, `tensorage shares --with-me` what others share",
    "Choose another key, or use a store with allow_overwrite=True.": "Choose another key, or give --force",
    "overwrite=True replaces it": "--force replaces it",
}  # fmt: skip

#: The libraries of formats tell of a full disk in words of their own, with addresses and hidden names.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}

#: Errors by status, in the order in which they are looked at: several are classes of OSError, too.
_STATUS_OF: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    (ConfigurationError, FAILED),
    ((KeyNotFoundError, FileNotFoundError), NOT_FOUND),
    ((AuthenticationError, PermissionDeniedError, PermissionError), NOT_ALLOWED),
    (BackendUnavailableError, UNREACHABLE),
)


class Failure(click.ClickException):
    """An error of the command, told in one line.

    Parameters
    ----------
    status
        Exit status of the program.
    """

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(shorten(message))
        self.exit_code = status  # type: ignore[misc] # click looks at the instance


class Interrupted(click.ClickException):
    """The user has pressed Ctrl-C."""

    exit_code = INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted")

    def show(self, file: IO[Any] | None = None) -> None:
        # The terminal has printed ^C, and perhaps a bar, on the line.
        click.echo("\nInterrupted.", file=file, err=file is None)


def shorten(message: str) -> str:
    """Return a message as one line, without its middle if it is long."""
    # The status stands before the page of a gateway, and says enough.
    line = " ".join(re.sub(r"<(!doctype|html)\b.*", "(a page of HTML)", message, flags=re.I | re.S).split())
    if len(line) <= MAX_MESSAGE:
        return line
    half = MAX_MESSAGE // 2
    return f"{line[:half]} [...] {line[-half:]}"


def failure_of(error: BaseException) -> Failure | None:
    """Return the failure that tells of an error. None for an error that is a mistake of ours: it needs a traceback."""
    status = next((status for kinds, status in _STATUS_OF if isinstance(error, kinds)), FAILED)
    if isinstance(error, TensorageError):
        return Failure(f"{type(error).__name__}: {_in_words_of_shell(str(error))}", status)
    if isinstance(error, OSError) and error.errno in _FULL:
        return Failure(f"{os.strerror(error.errno or 0)}: make room, or write to another place", status)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        return Failure(f"{error.strerror or error}{where}", status)
    if isinstance(error, MemoryError):
        return Failure(f"there is not enough memory ({error}): take a part, as in KEY[:1000]")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("tensorage"):
        return Failure(
            f"this needs the package {error.name!r}, which is not installed: pip install {error.name}"
        )
    return _failure_of_backend(error)


def _in_words_of_shell(message: str) -> str:
    for said, instead in _ADVICE.items():
        message = message.replace(said, instead)
    return message


def _failure_of_backend(error: BaseException) -> Failure | None:
    # Not imported: the module is loaded if such an error can be raised.
    folder = sys.modules.get("tensorage.embedded.folder")
    if folder is not None and isinstance(error, folder.EmbeddedError):
        return Failure(str(error))
    return None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that users can do something about into one line, and warnings too."""
    _buffer_output()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        # The line is all there is of a warning: it does not end a command.
        warnings.simplefilter("default", UserWarning)
        try:
            yield
            # A pipe may break as late as here.
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            raise click.exceptions.Exit(0) from None
        except KeyboardInterrupt:
            raise Interrupted from None
        except click.UsageError as error:
            if isinstance(error, _HELP):
                raise
            where = error.ctx.command_path if error.ctx is not None else "tensorage"
            message = error.format_message()
            end = "" if message.endswith((".", "?")) else "."
            raise Failure(f"{message}{end} See {where} --help", WRONG_USAGE) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            _drop_what_cannot_be_written()
            raise failure from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {shorten(str(message))}", err=True)


def _buffer_output() -> None:
    """Let stdout write all that it is given: unbuffered, it writes what there is room for, and says nothing.

    ``PYTHONUNBUFFERED`` is set in most containers. Commands flush what they print.
    """
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        kept, encoding, errors = sys.stdout.fileno(), sys.stdout.encoding, sys.stdout.errors
        sys.stdout = open(kept, "w", encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115


def _drop_what_cannot_be_written() -> None:
    """Let the program end with the status of its error: Python ends with 120 if output is left that it cannot write."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Let the rest of the output go nowhere: Python flushes it at its end, and would complain then."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
