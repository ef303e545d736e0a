"""What the component passes to its executor."""

import dataclasses
import json
import os
from typing import Any, Literal

from google.protobuf import wrappers_pb2
from tfx.proto import example_gen_pb2

from mlet_tf._version import __version__
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.files import list_files
from mlet_tf.errors import InputError

TRAIN, EVAL = "train", "eval"
METHODS = ("hash", "time", "files")


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """How a raw log becomes examples.

    Args:
        schema: Columns of the log.
        method: `"hash"` draws rows for `eval` at random by their place in the log, `"time"` takes the later
            rows, `"files"` takes the rows of given files.
        eval_share: Share of `eval`, for `hash` and for `time` without a `cut`.
        cut: For `time`: first value of the time column that belongs to `eval`.
        seed: Seed of the hash.
        max_reject_share: The run fails when a larger share of the rows is malformed.
        chunk_bytes: About how much of a file is read by one worker at a time.
    """

    schema: ClickLogSchema
    method: Literal["hash", "time", "files"] = "hash"
    eval_share: float = 0.2
    cut: int | None = None
    seed: int = 0
    max_reject_share: float = 0.001
    chunk_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        """Checks the values; see the class."""
        if self.method not in METHODS:
            raise InputError(f"`method` should be one of {', '.join(METHODS)}. Received: {self.method!r}")
        if self.method == "time" and self.schema.time is None:
            raise InputError(
                f"A split by time should have a time column. Schema {self.schema.name!r} has none"
            )
        if not 0 < self.eval_share < 1:
            raise InputError(f"`eval_share` should be between 0 and 1. Received: {self.eval_share}")
        if self.cut is not None and self.method != "time":
            raise InputError(
                f"`cut` should be given for method 'time' only. Received: method {self.method!r}"
            )
        if not 0 <= self.max_reject_share <= 1:
            raise InputError(f"`max_reject_share` should be from 0 to 1. Received: {self.max_reject_share}")
        if self.chunk_bytes < 1:
            raise InputError(f"`chunk_bytes` should be at least 1. Received: {self.chunk_bytes}")

    def to_proto(self) -> example_gen_pb2.CustomConfig:
        """Packs the values for TFX; the library's version is with them, so that an update misses the cache."""
        values = {**dataclasses.asdict(self), "schema": self.schema.to_dict(), "version": __version__}
        proto = example_gen_pb2.CustomConfig()
        proto.custom_config.Pack(wrappers_pb2.StringValue(value=json.dumps(values, sort_keys=True)))
        return proto

    @classmethod
    def from_proto(cls, proto: example_gen_pb2.CustomConfig) -> "IngestConfig":
        """Unpacks what `to_proto` packed."""
        text = wrappers_pb2.StringValue()
        proto.custom_config.Unpack(text)
        values: dict[str, Any] = json.loads(text.value)
        del values["version"]
        return cls(**{**values, "schema": ClickLogSchema.from_dict(values["schema"])})


def input_files(base: str, pattern: str) -> list[str]:
    """Lists the files of one input split.

    Raises:
        InputError: There are none.
    """
    return list_files(os.path.join(base, pattern) if base != "." else pattern)  # noqa: PTH118 (may be remote)
