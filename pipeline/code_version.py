"""The version of a node's code, for TFX's cache, which sees only arguments."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import mlet_tf

_FOLDERS = {
    package: Path(importlib.util.find_spec(package).submodule_search_locations[0])
    for package in ("mlet_tf.pipeline", "mlet_tf.components", "mlet_tf")
}


def code_version(*modules: str) -> str:
    """Hash of the source of modules and of everything they import from this library, directly or not.

    `mlet_tf/__init__.py` counts only through `__version__`: every module imports it, and it only re-exports names.

    Args:
        modules: Dotted names; a package stands for all of its modules.
    """
    digest = hashlib.sha256(mlet_tf.__version__.encode())
    for file in sorted(_needed(modules)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def source_of(module: str) -> Path | None:
    """The source file of a module or package of this library, or None."""
    package = next(package for package in _FOLDERS if f"{module}.".startswith(f"{package}."))
    place = _FOLDERS[package].joinpath(*module.removeprefix(package).strip(".").split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


def imports(source: str) -> set[str]:
    """What a source imports from this library, in functions too: dotted names of modules and of their members."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if f"{name}.".startswith("mlet_tf.")}


def _needed(modules: tuple[str, ...]) -> set[Path]:
    needed: set[Path] = set()
    waiting = [file for module in modules for file in _files(module)]
    while waiting:
        file = waiting.pop()
        if file not in needed:
            needed.add(file)
            waiting += _imported_files(file)
    return needed


def _files(module: str) -> Iterator[Path]:
    source = source_of(module)
    if source is None:
        raise ValueError(f"`modules` should be of this library. Received: {module}")
    yield from source.parent.rglob("*.py") if source.name == "__init__.py" else [source]


@functools.cache
def _imported_files(file: Path) -> tuple[Path, ...]:
    found = []
    for name in imports(file.read_text()) - {"mlet_tf"}:
        parent = name.rpartition(".")[0]
        # Importing a module runs the `__init__` of its package too.
        found += [source_of(package) for package in (name, parent) if package != "mlet_tf"]
    return tuple(source for source in found if source is not None)
