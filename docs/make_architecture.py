"""Draws docs/architecture.svg: the folders, and the arrows between them, from the imports in the source.

    python docs/make_architecture.py

A test compares the arrows in the picture with the imports, so run this after a change of either. A new folder needs
a place in `PLACES`.
"""

import json
import re
import textwrap
from functools import cache
from html import unescape
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from mlet_tf.pipeline.code_version import imports

REPOSITORY = Path(__file__).parents[1]
PICTURE = Path(__file__).with_name("architecture.svg")
PACKAGES = {"mlet_tf": "mlet_tf", "pipeline": "mlet_tf.pipeline", "components": "mlet_tf.components"}

# What stands in a box: its centre, its width, and what the folder is for.
PLACES = {
    "pipeline/cli": ((9.9, 10.65), 3.0, "the mlet-tf command"),
    "pipeline": ((4.6, 10.65), 3.0, "the TFX graph and its runners"),
    "components": ((4.9, 8.95), 9.1, ""),
    "mlet_tf/experiments": ((9.9, 7.5), 3.0, "sweeps, statistics, plots"),
    "mlet_tf/compression": ((4.6, 7.6), 2.4, "columns, bits, rows"),
    "mlet_tf/report": ((7.35, 7.6), 1.8, "page of a run"),
    "mlet_tf/training": ((5.7, 6.6), 3.0, "build, fit, resume, export"),
    "mlet_tf/evaluation": ((3.2, 6.6), 1.94, "metrics by slice"),
    "mlet_tf/export": ((4.95, 5.5), 2.4, "SavedModel, signatures"),
    "mlet_tf/distributed": ((8.0, 5.5), 2.8, "tables over processes"),
    "mlet_tf/models": ((5.7, 4.4), 2.2, "DLRM"),
    "mlet_tf/optimizers": ((8.0, 3.3), 2.4, "sparse, row-wise"),
    "mlet_tf/replace": ((10.6, 3.3), 2.4, "collapse.py, quantize.py"),
    "mlet_tf/features": ((3.9, 3.3), 3.0, "preprocessing, vocabularies"),
    "mlet_tf/config": ((4.2, 2.2), 2.4, "keys with their ranges"),
    "mlet_tf/datasets": ((3.0, 1.1), 3.4, "schemas, reading, synthetic logs"),
    "mlet_tf/layers": ((7.4, 1.1), 3.0, "MLETEmbedding, collection"),
    "mlet_tf/embeddings": ((10.6, 2.2), 2.4, "plans, served forms"),
    "mlet_tf/serving": ((1.3, 5.5), 2.2, "client, push, server"),
    "mlet_tf": ((5.95, -0.1), 11.2, ""),
}
# Files at the top of the library that stand on its folders and so have boxes of their own.
BOXES_OF_FILES = {
    "collapse": "mlet_tf/replace",
    "quantize": "mlet_tf/replace",
    "replace": "mlet_tf/replace",
    "export": "mlet_tf/export",
    "evaluation": "mlet_tf/evaluation",
    "report": "mlet_tf/report",
}
BANDS = {
    "pipeline": (10.1, 11.2, "#e9e2f5"),
    "components": (8.35, 9.8, "#dcebf7"),
    "mlet_tf": (-0.7, 8.05, "#e6f2e3"),
}
HEIGHT, WIDE_HEIGHT = 0.72, {"components": 0.74, "mlet_tf": 0.94}
EDGE_COLOURS = {"pipeline": "#6b4fa0", "components": "#2b6ca3", "mlet_tf": "#3d7a36"}


def modules() -> dict[str, Path]:
    """Source files by dotted name."""
    found = {}
    for folder, package in PACKAGES.items():
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


def box_of(module: str) -> str | None:
    """The box that a module is drawn in; None for the top of the library, which only names what users import."""
    top, *folders, name = MODULES[module].relative_to(REPOSITORY).with_suffix("").parts
    if top == "components":
        return "components"
    if folders:
        return f"{top}/{folders[0]}"
    return (
        None
        if (top, name) == ("mlet_tf", "__init__")
        else BOXES_OF_FILES.get(name, top)
        if top == "mlet_tf"
        else top
    )


def edges() -> set[tuple[str, str]]:
    """Which box imports from which."""
    pairs = {
        (box_of(module), box_of(other)) for module in MODULES for other in imports_of(module) & MODULES.keys()
    }
    return {(one, other) for one, other in pairs if one and other and one != other}


def drawn_edges() -> list[list[str]]:
    """The edges less those that a chain of others implies."""
    found = edges()

    def reachable(box: str) -> set[str]:
        below = {other for one, other in found if one == box}
        return below | {deep for other in below for deep in reachable(other)}

    implied = {(one, deep) for one, other in found for deep in reachable(other)}
    return sorted([one, other] for one, other in found - implied)


def common_files() -> list[str]:
    """Files at the top of the library that stand on no folder of it."""
    return sorted(
        name.removeprefix("mlet_tf.")
        for name in MODULES
        if box_of(name) == "mlet_tf" and not name.removeprefix("mlet_tf.").startswith("_")
    )


def components() -> list[str]:
    """The components, a folder each."""
    return sorted(path.parent.name for path in (REPOSITORY / "components").glob("*/component.py"))


def contents() -> dict[str, list]:
    """All that the picture takes from the source."""
    return {"arrows": drawn_edges(), "components": components(), "files": common_files()}


def contents_of_picture() -> dict[str, list]:
    """What the picture that is there was drawn from."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", PICTURE.read_text(), re.DOTALL)
    return json.loads(unescape(found.group(1)))


def draw() -> plt.Figure:
    """Draws the picture."""
    figure, axes = plt.subplots(figsize=(10.4, 10.4))
    axes.set(xlim=(-0.1, 12.0), ylim=(-0.8, 11.3))
    axes.axis("off")
    for name, (low, high, colour) in BANDS.items():
        axes.add_patch(_rounded(0, low, 11.9, high - low, facecolor=colour, edgecolor="none"))
        axes.text(0.18, high - 0.16, f"{name}/", va="top", size=13, weight="bold", color=EDGE_COLOURS[name])
    for name in PLACES:
        _draw_box(axes, name)
    for one, other in drawn_edges():
        axes.add_patch(_arrow(one, other))
    return figure


def _draw_box(axes: plt.Axes, name: str) -> None:
    (x, y), width, text = PLACES[name]
    top, _, folder = name.partition("/")
    height = WIDE_HEIGHT.get(name, HEIGHT)
    style = {"facecolor": "white", "edgecolor": EDGE_COLOURS[top]}
    axes.add_patch(_rounded(x - width / 2, y - height / 2, width, height, **style))
    small = {"ha": "center", "size": 9, "color": "#333333"}
    if name == "components":  # The band has its name.
        axes.text(x, y, _in_two_lines(components()), va="center", **small)
        return
    title = f"{folder}.py" if name in BOXES_OF_FILES.values() else folder or name
    if name == "mlet_tf":
        title, text = "files that all use", _in_two_lines(common_files())
    line = y + height / 2 - 0.36  # Between the title and what is below it.
    axes.text(x, line + 0.07, title, ha="center", va="bottom", size=11, weight="bold")
    axes.text(x, line, text, va="top", **small)


def _in_two_lines(names: list[str]) -> str:
    text = ", ".join(names)
    wrapped = (textwrap.wrap(text, width) for width in range(len(text) // 2, len(text) + 1))
    return "\n".join(next(lines for lines in wrapped if len(lines) <= 2))


def _rounded(x: float, y: float, width: float, height: float, **style: str) -> FancyBboxPatch:
    return FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", linewidth=1.3, **style
    )


def _arrow(one: str, other: str) -> FancyArrowPatch:
    """From the edge of a box to the edge of another, straight down where one stands over the other."""
    (x, y), width, _ = PLACES[one]
    (to_x, to_y), to_width, _ = PLACES[other]
    low = max(x - width / 2, to_x - to_width / 2) + 0.3
    high = min(x + width / 2, to_x + to_width / 2) - 0.3
    bottom, top = y - WIDE_HEIGHT.get(one, HEIGHT) / 2, to_y + WIDE_HEIGHT.get(other, HEIGHT) / 2
    if y == to_y:
        side = 1 if to_x > x else -1
        start, end = (x + side * width / 2, y), (to_x - side * to_width / 2, y)
    elif low <= high:
        middle = min(max((x + to_x) / 2, low), high)
        start, end = (middle, bottom), (middle, top)
    else:
        shift = 0.3 if to_x > x else -0.3
        start, end = (x + width * shift, bottom), (to_x - to_width * shift, top)
    style = {"mutation_scale": 13, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.4, "color": "#555555"}
    return FancyArrowPatch(start, end, arrowstyle="-|>", **style)


def main() -> None:
    missing = {box_of(module) for module in MODULES} - PLACES.keys() - {None}
    if missing:
        raise SystemExit(f"PLACES has no place for {', '.join(sorted(missing))}")
    # The same file for the same source: no date, no random ids. Text is drawn as outlines, which need no font.
    mpl.rcParams |= {"svg.hashsalt": "mlet-tf", "font.family": "DejaVu Sans"}
    description = json.dumps(contents())
    figure = draw()
    figure.savefig(
        PICTURE, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None, "Description": description}
    )


if __name__ == "__main__":
    main()
