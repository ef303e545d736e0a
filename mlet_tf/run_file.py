"""The file that every finished run leaves in its output folder."""

import json
from pathlib import Path
from typing import Any

from mlet_tf import strict_json
from mlet_tf.errors import InputError

RUN_FILE = "run.json"


def read_run_file(folder: Path) -> dict[str, Any]:
    """Reads `run.json`.

    Args:
        folder: Output folder of a run.

    Raises:
        InputError: There is no such file, or no run wrote it.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise InputError(f"{folder}: expected the output folder of a run, found no {RUN_FILE} in it")
    try:
        run = strict_json.read(path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(run, dict) or not isinstance(run.get("artifacts"), dict):
        raise InputError(f"{path}: expected what `mlet-tf run` writes, found no 'artifacts' in it")
    return run
