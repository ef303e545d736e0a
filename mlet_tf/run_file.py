"""The file that every finished run leaves in its output folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlet_tf import strict_json
from mlet_tf.errors import InputError

RUN_FILE = "run.json"
# What every run writes: paths, and groups of values.
_PATHS = (
    "evaluation",
    "collapse_report",
    "collapsed_model",
    "uncollapsed_model",
    "history",
    "examples",
    "transform_graph",
)
_GROUPS = ("rows", "seconds", "metrics", "table_bytes", "quantization")


def read_run_file(folder: Path) -> dict[str, Any]:
    """Reads `run.json`.

    Args:
        folder: Output folder of a run.

    Raises:
        InputError: There is no such file, or it lacks something that a run writes.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise InputError(f"{folder}: expected the output folder of a run, found no {RUN_FILE} in it")
    try:
        run = strict_json.read(path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if lacking := next(_lacking(run), None):
        raise InputError(f"{path}: expected what `mlet-tf run` writes, found no {lacking!r} in it")
    return run


def _lacking(run: Any) -> Iterator[str]:
    """Dotted keys that a run writes and the document does not have, or with a value of another type."""
    for group in ("artifacts", *_GROUPS):
        if not isinstance(run, dict) or not isinstance(run.get(group), dict):
            yield group
    for name in _PATHS:
        if not isinstance(run["artifacts"].get(name), str):
            yield f"artifacts.{name}"
