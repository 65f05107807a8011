"""The modules of the package as a graph: which module imports which, and which uses private names of another."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["circles_in", "imports_of", "modules_below", "private_names", "private_uses"]

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

#: Names of other packages: zarr's store in memory, the workers of PyTorch, the processes of dask, the end of Python's
#: thread pools, and the file that urllib3 reads an answer from.
_OF_OTHERS = frozenset({"_forkserver_preload_set", "_fp", "_shutdown", "_store_dict", "_utils"})

#: Functions that take the name of an attribute as text, or the path of one.
_BY_NAME = frozenset(
    {"attrgetter", "delattr", "getattr", "hasattr", "methodcaller", "object", "patch", "setattr"}
)

#: Functions and attributes that give a dictionary of attributes, and its methods that take a name.
_DICTIONARIES = frozenset({"__dict__", "vars"})
_LOOK_UPS = frozenset({"get", "pop", "setdefault"})


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
    """Yield the places where a file uses a private name that it does not define, also by the name as text."""
    for line, name in private_names(path.read_text()):
        yield f"{path}:{line}: {name}"


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines and the names of uses of private names that a module does not define.

    >>> list(private_names("import a\\na._b\\nsetattr(a, '_c', 1)\\npatch('a.b._d')\\na.__dict__['_e']"))
    [(2, 'a._b'), (3, '_c'), (4, 'a.b._d'), (5, '_e')]

    Names that the module gives to attributes of its own are no such uses:

    >>> list(private_names("class A:\\n    __slots__ = ('_a',)\\n\\ngetattr(b, '_a')\\nvars(b).get('_c')"))
    [(5, '_c')]
    """
    nodes = list(ast.walk(ast.parse(source)))
    own = set(_definitions(nodes))
    for node in nodes:
        for text in _names_as_text(node):
            *path, name = text.split(".")
            # A path begins with a module, and the name is that of its definition.
            if _is_private(name) and (path or name not in own):
                yield node.lineno, text
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorage":
            for alias in node.names:
                if _is_private(alias.name):
                    yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                # Inherited: a base class means such names for the classes that are made from it.
                continue
            yield node.lineno, ast.unparse(node)


def _names_as_text(node: ast.AST) -> Iterator[str]:
    """Yield the texts that a call or a look-up uses as the names of attributes."""
    arguments: list[ast.expr] = []
    if isinstance(node, ast.Subscript) and _name_of(node.value) in _DICTIONARIES:
        arguments = [node.slice]
    elif isinstance(node, ast.Call):
        function = node.func
        is_look_up = (
            isinstance(function, ast.Attribute)
            and function.attr in _LOOK_UPS
            and _name_of(function.value) in _DICTIONARIES
        )
        if is_look_up or _name_of(function) in _BY_NAME:
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    for argument in arguments:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def _name_of(node: ast.expr) -> str:
    """Return the last part of the name of a variable, an attribute, or the function of a call."""
    if isinstance(node, ast.Call):
        return _name_of(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


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
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _slots(node)
        elif isinstance(node, ast.Call) and _sets_own(node):
            yield from _texts_in(node.args[1])


def _sets_own(call: ast.Call) -> bool:
    """Tell whether a call sets an attribute of `self` by name, as for frozen objects."""
    is_setting = _name_of(call.func) in ("setattr", "__setattr__") and len(call.args) > 1
    return is_setting and _name_of(call.args[0]) in ("self", "cls")


def _slots(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if node.value is not None and any(_name_of(target) == "__slots__" for target in targets):
        yield from _texts_in(node.value)


def _texts_in(node: ast.expr) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC | _OF_OTHERS
