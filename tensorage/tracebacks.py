"""Tracebacks that end at the public method which the caller used.

A wrong key or a bad index is the caller's to mend: the frames below the public method say nothing about it, and in a
notebook they fill pages. Public functions, properties and loops end tracebacks as methods do. Errors that mean a
mistake of this library keep all of their frames.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar, cast

from tensorage.errors import TensorageError

__all__ = ["FULL_VARIABLE", "end_tracebacks_here"]

#: Set to anything, this variable of the environment keeps all frames.
FULL_VARIABLE = "TENSORAGE_FULL_TRACEBACKS"

#: Errors about what the caller asked for, and errors that are raised from them. Numpy's own are among them: selections
#: are refused as numpy refuses them.
_ASKED_WRONGLY = (TensorageError, IndexError)

#: Special methods that callers use by operators, functions and statements.
_OPERATORS = frozenset(
    {
        "__array__",
        "__call__",
        "__contains__",
        "__delitem__",
        "__dlpack__",
        "__dlpack_device__",
        "__enter__",
        "__exit__",
        "__getattr__",
        "__getitem__",
        "__getitems__",
        "__init__",
        "__iter__",
        "__len__",
        "__reduce__",
        "__reversed__",
        "__setitem__",
    }
)

#: Special method that loops call for each row.
_IN_LOOPS = "__getitem__"

T = TypeVar("T", bound=Callable[..., Any])


def end_tracebacks_here(public: T) -> T:
    """Decorate a class or a function so that tracebacks of its callers' errors end at its public methods, or at it.

    Tracebacks of errors in a loop over a generator function end at it, too. Python shows the causes of such an error as
    text, without frames of their own.
    """
    if not inspect.isclass(public):
        return cast("T", _ending_here(public))
    for name, member in list(vars(public).items()):
        if name.startswith("_") and name not in _OPERATORS:
            continue
        if isinstance(member, property):
            setattr(public, name, _property_ending_here(member))
        elif inspect.isfunction(member):
            setattr(public, name, _item_ending_here(member) if name == _IN_LOOPS else _ending_here(member))
    return public


def _ending_here(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(method):
        return _loop_ending_here(method)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        # IPython leaves out frames that have this variable.
        __tracebackhide__ = True
        # An error that the caller is handling becomes the context of ours, and is the caller's to show.
        handled = sys.exception()
        try:
            return method(*args, **kwargs)
        except Exception as error:
            _end(error, handled)
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
        except Exception as error:
            _end(error, handled)
            raise

    return call


def _property_ending_here(member: property) -> property:
    getter = member.fget
    assert getter is not None, "public properties can be read"

    # Without a choice of arguments, as for items: a shape is looked at more often than anything else.
    @functools.wraps(getter)
    def get(self: Any) -> Any:
        __tracebackhide__ = True
        handled = sys.exception()
        try:
            return getter(self)
        except Exception as error:
            _end(error, handled)
            raise

    setter = None if member.fset is None else _ending_here(member.fset)
    return property(get, setter, member.fdel, member.__doc__)


def _loop_ending_here(method: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        __tracebackhide__ = True
        handled = sys.exception()
        try:
            return (yield from method(*args, **kwargs))
        except Exception as error:
            _end(error, handled)
            raise

    return call


def _end(error: Exception, handled: BaseException | None) -> None:
    """End the traceback of an error at the method, if the error is the caller's."""
    # Protocols of Python ask for its own kinds of errors, which are raised from ours: for a name that no array has.
    is_of_caller = isinstance(error, _ASKED_WRONGLY) or isinstance(error.__cause__, TensorageError)
    if is_of_caller and FULL_VARIABLE not in os.environ:
        _cut(error, handled)


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
