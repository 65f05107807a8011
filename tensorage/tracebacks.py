"""Tracebacks that end at the public method which the caller used.

A wrong key or a bad index is the caller's to mend: the frames below the public method say nothing about it, and in a
notebook they fill pages. Errors that mean a mistake of this library keep all of their frames.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tensorage.errors import TensorageError

__all__ = ["FULL_VARIABLE", "end_tracebacks_here"]

#: Set to anything, this variable of the environment keeps all frames.
FULL_VARIABLE = "TENSORAGE_FULL_TRACEBACKS"

#: Errors about what the caller asked for. Numpy's own are among them: selections are refused as numpy refuses them.
_ASKED_WRONGLY = (TensorageError, IndexError)

#: Special methods that callers use by operators and functions.
_OPERATORS = frozenset(
    {"__array__", "__contains__", "__delitem__", "__getitem__", "__getitems__", "__len__", "__setitem__"}
)

#: Special method that loops call for each row.
_IN_LOOPS = "__getitem__"

C = TypeVar("C", bound=type)


def end_tracebacks_here(cls: C) -> C:
    """Decorate a class so that tracebacks of its callers' errors end at its public methods.

    Python shows the causes of such an error as text, without frames of their own.
    """
    for name, method in list(vars(cls).items()):
        is_public = not name.startswith("_") or name in _OPERATORS
        if is_public and inspect.isfunction(method) and not inspect.isgeneratorfunction(method):
            setattr(cls, name, _item_ending_here(method) if name == _IN_LOOPS else _ending_here(method))
    return cls


def _ending_here(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        # IPython leaves out frames that have this variable.
        __tracebackhide__ = True
        # An error that the caller is handling becomes the context of ours, and is the caller's to show.
        handled = sys.exception()
        try:
            return method(*args, **kwargs)
        except _ASKED_WRONGLY as error:
            if FULL_VARIABLE not in os.environ:
                _cut(error, handled)
            raise

    return call


def _item_ending_here(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Do as `_ending_here` for a method of one argument: any arguments at all take as long as a row that is given."""

    @functools.wraps(method)
    def call(self: Any, item: Any) -> Any:
        __tracebackhide__ = True
        handled = sys.exception()
        try:
            return method(self, item)
        except _ASKED_WRONGLY as error:
            if FULL_VARIABLE not in os.environ:
                _cut(error, handled)
            raise

    return call


def _cut(error: BaseException, handled: BaseException | None) -> None:
    """Remove the frames below the method from a traceback, and all frames from those of the error's causes."""
    here = error.__traceback__
    if here is not None and here.tb_next is not None:
        here.tb_next.tb_next = None
    for cause in _causes(error, handled):
        cause.__traceback__ = None


def _causes(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield the causes of an error, down to the error that was being handled when the method was called."""
    seen = {id(error), id(handled)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
