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


class TableBytes(TypedDict):
    """Bytes of a model's embeddings: of rows, of what turns ids into rows, and of the vocabulary files."""

    rows: int
    addresses: int
    vocabulary: int


class Compression(TypedDict):
    """The budget, and what the compression made of the collapsed model; AUCs on rows that chose nothing."""

    budget: dict[str, float]
    bytes_before: TableBytes
    bytes_after: TableBytes
    auc_before: float | None
    auc_after: float | None
    fine_tuned: bool


class BaselineResults(TypedDict):
    """The direct float32 table of as many bytes as the compressed model may have, and what it reached."""

    output_dim: int
    bytes: int
    allowed_bytes: int
    auc: float | None
    logloss: float | None


class Results(TypedDict):
    """What the artifacts of a run say; `docs/run_json.md` describes the keys."""

    rows: dict[str, int]
    seconds: dict[str, float]
    metrics: dict[str, dict[str, float | None]]
    table_bytes: dict[str, int]
    max_abs_difference: float
    max_abs_ctr_difference: float
    quantization: Quantization
    compression: Compression | None
    baseline: BaselineResults | None
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
