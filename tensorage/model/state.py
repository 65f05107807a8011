"""Nested state of models and optimizers, taken apart into arrays and JSON, and put together again. No I/O."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.errors import IncompleteTensorError, InvalidInputError
from tensorage.model.values import as_array
from tensorage.wording import quote

__all__ = ["STATE_ATTRIBUTE", "put_together", "take_apart"]

#: Attribute of the array under the key of a state, which has the nesting.
STATE_ATTRIBUTE = "tensorage.state"

#: Values that JSON keeps as they are. Floats are written in hexadecimal: jsonb has no -0.0, nan and inf.
_PLAIN = (str, bool, int, type(None))

Arrays = dict[str, npt.NDArray[Any]]


def take_apart(state: Any, key: str) -> tuple[dict[str, Any], Arrays]:
    """Return the nesting of a state, and its arrays by names that belong into keys below `key`.

    Raises
    ------
    InvalidInputError, DTypeError
        If something cannot be stored.
    """
    arrays: Arrays = {}
    try:
        return _take(state, (), arrays, key), arrays
    except RecursionError:
        raise InvalidInputError(
            f"saving {quote(key)}: it is nested too deeply, or contains itself. Save what it is made of."
        ) from None


def put_together(nesting: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], key: str) -> Any:
    """Return the state that was taken apart.

    Raises
    ------
    IncompleteTensorError
        If an array of it is missing.
    """
    ((kind, content),) = nesting.items()
    match kind:
        case "dict":
            return {_put_name(name): put_together(node, arrays, key) for name, node in content}
        case "list" | "tuple":
            parts = [put_together(node, arrays, key) for node in content]
            return parts if kind == "list" else tuple(parts)
        case "value" | "float":
            return content if kind == "value" else float.fromhex(content)
    return _put_array(kind, content, arrays, key)


def _put_array(kind: str, content: str, arrays: Mapping[str, npt.NDArray[Any]], key: str) -> Any:
    if content not in arrays:
        raise IncompleteTensorError(
            f"loading {quote(key)}: its array {quote(content)} is missing. It was deleted or renamed after it "
            "was saved."
        )
    array = arrays[content]
    if kind == "scalar":
        return array[()]
    return _as_tensor(array) if kind == "tensor" else array


def _take(value: Any, path: tuple[str, ...], arrays: Arrays, key: str) -> dict[str, Any]:
    match value:
        case float() if type(value) is float:
            return {"float": value.hex()}
        case Mapping():
            return {
                "dict": [
                    [_take_name(n, path, key), _take(v, (*path, str(n)), arrays, key)]
                    for n, v in value.items()
                ]
            }
        case list():
            return {"list": [_take(v, (*path, str(n)), arrays, key) for n, v in enumerate(value)]}
        case tuple() if type(value) is tuple:
            return {"tuple": [_take(v, (*path, str(n)), arrays, key) for n, v in enumerate(value)]}
        case _ if type(value) in _PLAIN:
            return {"value": value}
    if not hasattr(value, "__array__") and not hasattr(value, "__dlpack__"):
        raise InvalidInputError(
            f"saving {quote(key)}: {_name_of(path)} is a {type(value).__name__}, which is none of: dict, list, tuple, "
            "array, tensor, number, text, None. Save what it is made of."
        )
    name = _free_name(path, arrays)
    arrays[name] = as_array(value)
    kind = "tensor" if _is_tensor(value) else "scalar" if isinstance(value, np.generic) else "array"
    return {kind: name}


def _take_name(name: object, path: tuple[str, ...], key: str) -> Any:
    if type(name) is float:
        return {"float": name.hex()}
    if type(name) in _PLAIN:
        return name
    raise InvalidInputError(
        f"saving {quote(key)}: {_name_of(path)} has a name {quote(name)}, of type {type(name).__name__}: names "
        "are text, numbers or None"
    )


def _put_name(name: Any) -> Any:
    return float.fromhex(name["float"]) if isinstance(name, dict) else name


def _free_name(path: tuple[str, ...], arrays: Arrays) -> str:
    """Return a name for an array, which no other one has: names of the state may have slashes, or be empty."""
    name = "/".join(path) or "value"
    if name in arrays:
        name = next(free for n in range(2, len(arrays) + 3) if (free := f"{name}~{n}") not in arrays)
    return name


def _name_of(path: tuple[str, ...]) -> str:
    return "what is given" if not path else f"its part {quote('/'.join(path))}"


def _is_tensor(value: object) -> bool:
    # Importing torch takes long, and a tensor can only exist if somebody has imported it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_tensor(array: npt.NDArray[Any]) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        return array
    if array.dtype.name.startswith(("bfloat", "float8")):
        bits = torch.from_numpy(array.view(f"u{array.itemsize}").copy())
        return bits.view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)
