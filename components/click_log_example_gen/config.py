"""What the component passes to its driver and its executor."""

import dataclasses
import json

from google.protobuf import wrappers_pb2
from tfx.proto import example_gen_pb2

from mlet_tf import __version__
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.files import list_files
from mlet_tf.features.ingestion import IngestConfig
from mlet_tf.storage import join


def to_proto(config: IngestConfig, code_version: str = "") -> example_gen_pb2.CustomConfig:
    """Packs the values for TFX, with the versions of library and code, so that an update misses the cache."""
    version = f"{__version__} {code_version}"
    values = {**dataclasses.asdict(config), "schema": config.schema.to_dict(), "version": version}
    proto = example_gen_pb2.CustomConfig()
    proto.custom_config.Pack(wrappers_pb2.StringValue(value=json.dumps(values, sort_keys=True)))
    return proto


def from_proto(proto: example_gen_pb2.CustomConfig) -> IngestConfig:
    """Unpacks what `to_proto` packed."""
    text = wrappers_pb2.StringValue()
    proto.custom_config.Unpack(text)
    values = json.loads(text.value)
    del values["version"]
    return IngestConfig(**{**values, "schema": ClickLogSchema.from_dict(values["schema"])})


def input_files(base: str, pattern: str) -> list[str]:
    """Lists the files of one input split.

    Raises:
        InputError: There are none.
    """
    return list_files(join(base, pattern) if base != "." else pattern)
