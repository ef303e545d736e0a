"""Records of finished trials in an append-only file of JSON lines."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlet_tf import strict_json
from mlet_tf.errors import InputError

_PENALTIES = {"table_l2": "train.tables.l2", "projection_l2": "train.projections.l2"}


class TrialStore:
    """An append-only file of records.

    All records of a trial are written in one system call, so a killed process leaves the trial complete or absent.
    A line cut off by a full disk is ignored.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the records by trial key, the trial's own record first."""
        return _newest(_lines(self.path.read_text())) if self.path.exists() else {}

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Adds the records of a trial."""
        text = "".join(strict_json.dumps(record) + "\n" for record in records)
        if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):
            text = "\n" + text
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Reads the records of a file; of a trial that was written again, the newest.

    Raises:
        InputError: If there is no such file, or no record in it.
    """
    try:
        trials = _newest(_lines(Path(path).read_text()))
    except OSError as error:
        raise InputError(f"results {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"results {path}: expected a JSON record a line, found no text") from None
    if not trials:
        raise InputError(f"results {path}: expected a JSON record a line, found none")
    return [record for records in trials.values() for record in records]


def _newest(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Records by trial; the record of a trial itself, which comes before those of its truncations, begins it anew."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("method") is None:
            trials[record["key"]] = []
        trials.setdefault(record["key"], []).append(record)
    return trials


def _lines(text: str) -> list[dict[str, Any]]:
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "key" in record:
            records.append(_renamed(record))
    return records


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Renames what older records call otherwise: the first initialisation and L2 penalties."""
    renamed = dict(record)
    if renamed.get("initialization") == "authors":
        renamed["initialization"] = "fixed_variance"
    penalties = {key: renamed.pop(name, 0.0) for name, key in _PENALTIES.items()}
    settings = renamed.get("settings", {}) | {key: value for key, value in penalties.items() if value}
    return renamed | ({"settings": settings} if settings else {})
