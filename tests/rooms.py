"""The modules of the package as a graph: which module imports which, and which uses private names of another."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["circles_in", "imports_of", "modules_below", "private_uses"]

#: Public names with an underscore: of named tuples, of Python itself, and of notebooks.
_PUBLIC = frozenset(
    {
        "_replace",
        "_exit",
        "_getframe",
        "_current_frames",
        "_repr_html_",
        "_repr_png_",
        "_ipython_key_completions_",
    }
)

#: Names of other packages that our tests look at: zarr's store in memory, and the workers of PyTorch.
_OF_OTHERS = frozenset({"_store_dict", "_utils"})


def modules_below(package: Path) -> dict[str, Path]:
    """Return the file of each module of a package, by the module's full name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return the modules that each module imports: anywhere in it, also for annotations, and inside of functions.

    Importing a name from a package counts as an import of the module in which the name is, if that is a module, and of
    the package otherwise.
    """
    return {name: set(_targets(name, path, modules)) - {name} for name, path in modules.items()}


def circles_in(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or by way of others (Tarjan's algorithm).

    >>> circles_in({"a": {"b"}, "b": {"a"}, "c": {"a"}})
    [['a', 'b']]
    """
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in numbers:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], numbers[target])
        if lowest[module] == numbers[module]:
            at = stack.index(module)
            group = sorted(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for module in graph:
        if module not in numbers:
            visit(module)
    return found


def private_uses(path: Path) -> Iterator[str]:
    """Yield the places where a file uses a private name that it does not define."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own = set(_definitions(nodes))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorage":
            for alias in node.names:
                if _is_private(alias.name):
                    yield f"{path}:{node.lineno}: {node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                # Inherited: a base class means such names for the classes that are made from it.
                continue
            yield f"{path}:{node.lineno}: {ast.unparse(node)}"


def _targets(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert not node.level, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in modules:
                    yield submodule
                elif node.module in modules:
                    yield node.module


def _definitions(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield every name that the nodes of a module give to a function, a class, a variable or an attribute."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Names of slots, and of attributes that are set by name.
            yield node.value


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC | _OF_OTHERS
