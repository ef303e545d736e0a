"""The layout, read from the syntax trees of all modules: imports in functions count like any others."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mlet_tf.pipeline.code_version import imports

REPOSITORY = Path(__file__).parents[1]
FOLDERS = {"mlet_tf": "mlet_tf", "pipeline": "mlet_tf.pipeline", "components": "mlet_tf.components"}

# Who may import whom: a layer knows itself and what stands below.
LAYERS = ("mlet_tf.pipeline", "mlet_tf.components", "mlet_tf")
MAX_LINES = 400


def modules() -> dict[str, Path]:
    """Source files by dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def imports_of(module: str) -> frozenset[str]:
    """Modules of this library that a module imports; a name out of a module stands for that module."""
    names = imports(MODULES[module].read_text())
    return frozenset(name if name in MODULES else name.rpartition(".")[0] for name in names)


def layer_of(module: str) -> int:
    """0 for the highest layer."""
    return next(i for i, layer in enumerate(LAYERS) if f"{module}.".startswith(f"{layer}."))


def cycles() -> Iterator[list[str]]:
    """Strongly connected components of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports_of(module) & MODULES.keys()):
            if other not in index:
                yield from visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            first = stack.index(module)
            found, stack[first:] = stack[first:], []
            if len(found) > 1:
                yield sorted(found)

    for module in MODULES:
        if module not in index:
            yield from visit(module)


def test_no_import_goes_up():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports_of(module)
        if layer_of(other) < layer_of(module)
    ]
    assert not wrong


def test_no_modules_import_each_other():
    assert not list(cycles())


def test_private_modules_are_used_by_their_own_folder_alone():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports_of(module)
        if any(part.startswith("_") for part in other.split("."))
        if MODULES[other].parent != MODULES[module].parent
    ]
    assert not wrong


def test_no_file_is_long():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert not {module: count for module, count in lines.items() if count > MAX_LINES}


def test_all_imports_of_this_library_exist():
    """A misspelt import in a function would fail only when it is reached."""
    unknown = {module: imports_of(module) - MODULES.keys() for module in MODULES}
    assert not {module: names for module, names in unknown.items() if names}
