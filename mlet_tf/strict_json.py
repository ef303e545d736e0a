"""Valid JSON: Python writes `NaN` and `Infinity`, which the format does not have."""

import json
import math
from pathlib import Path
from typing import Any

from mlet_tf.storage import read_text, written_aside


def dumps(value: object, **options: Any) -> str:
    """`json.dumps` with null for each float that is not finite.

    Args:
        value: Dicts, lists, tuples and plain values.
        **options: Arguments of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def write(path: str | Path, value: object, indent: int | None = None) -> None:
    """Writes a file, local or remote, whole or not at all; see `dumps`."""
    with written_aside(path) as file:
        file.write((dumps(value, indent=indent) + "\n").encode())


def read(path: str | Path) -> Any:
    """Reads a file, local or remote.

    Raises:
        InputError: The file cannot be read or is not UTF-8.
        ValueError: It is not JSON.
    """
    return json.loads(read_text(path))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
