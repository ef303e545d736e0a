"""The file that every finished run leaves in its output folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, cast

from mlet_tf import strict_json
from mlet_tf.errors import InputError
from mlet_tf.types import JsonObject

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


class Quantization(TypedDict):
    """Dtype of the served tables, and by how much it changed rows and CTRs."""

    table_dtype: str
    max_abs_difference: float
    max_abs_ctr_difference: float


class Results(TypedDict):
    """What the artifacts of a run say; `docs/run_json.md` describes the keys."""

    rows: dict[str, int]
    seconds: dict[str, float]
    metrics: dict[str, dict[str, float | None]]
    table_bytes: dict[str, int]
    max_abs_difference: float
    max_abs_ctr_difference: float
    quantization: Quantization
    blessed: bool
    gate_failures: list[str]
    gate_checks: list[JsonObject]
    pushed: str | None
    artifacts: dict[str, str]


class Run(Results):
    """The content of `run.json`."""

    name: str
    output: str
    fingerprint: str


def read_run_file(folder: Path) -> Run:
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
    return cast("Run", run)


def _lacking(run: object) -> Iterator[str]:
    """Dotted keys that a run writes and the document does not have, or with a value of another type."""
    if not isinstance(run, dict):
        run = {}
    for group in ("artifacts", *_GROUPS):
        if not isinstance(run.get(group), dict):
            yield group
    for name in _PATHS:
        if not isinstance(run["artifacts"].get(name), str):
            yield f"artifacts.{name}"
