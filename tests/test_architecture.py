"""The layout, read from the syntax trees of all modules: imports in functions count like any others."""

import re
from collections.abc import Iterator
from pathlib import Path

import make_architecture
from make_architecture import MODULES, imports_of

# Who may import whom: a layer knows itself and what stands below.
LAYERS = ("mlet_tf.pipeline", "mlet_tf.components", "mlet_tf")
MAX_LINES = 400
REPOSITORY = Path(__file__).parents[1]


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


def test_the_picture_in_the_docs_shows_the_imports():
    """Where it is stale: `python docs/make_architecture.py`."""
    assert make_architecture.contents_of_picture() == make_architecture.contents()


def test_all_files_that_the_docs_link_to_exist():
    pages = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "components").rglob("*.md"),
    ]
    for page in pages:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == [], page
