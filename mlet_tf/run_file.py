"""The file that every finished run leaves in its output folder."""

import json
from pathlib import Path
from typing import Any

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
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(run, dict) or not isinstance(run.get("artifacts"), dict):
        raise InputError(f"{path}: expected what `mlet-tf run` writes, found no 'artifacts' in it")
    return run
