"""Click logs: schemas, columnar reading, synthetic logs with a known teacher.

`reading` and `synthetic` need pyarrow and are imported when asked for; the schemas need nothing heavy.
"""

import importlib
from typing import Any

from mlet_tf.datasets.presets import AVAZU, CRITEO, load_schema
from mlet_tf.datasets.schema import ClickLogSchema, TimeColumn

_LAZY = {
    "read_log": "reading",
    "write_log": "synthetic",
    "Teacher": "synthetic",
    "TeacherReport": "synthetic",
}

__all__ = [
    "AVAZU",
    "CRITEO",
    "ClickLogSchema",
    "Teacher",
    "TeacherReport",
    "TimeColumn",
    "load_schema",
    "read_log",
    "write_log",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
