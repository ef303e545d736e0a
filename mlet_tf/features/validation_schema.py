"""The tensorflow-metadata schema of a click log, for `ClickLogSchemaGen`."""

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from mlet_tf.config import ValidationConfig
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import raw_feature_spec


def schema_proto(schema: ClickLogSchema, validation: ValidationConfig) -> schema_pb2.Schema:
    """What StatisticsGen's numbers are checked against.

    Args:
        schema: Columns of the log.
        validation: Bounds on missing values and drift.

    Returns:
        A schema with a feature a column: its type, at most one value a row, and how many rows must have it.
    """
    proto = schema_pb2.Schema()
    for name, spec in raw_feature_spec(schema, with_label=True).items():
        feature = proto.feature.add(name=name)
        feature.type = schema_pb2.INT if spec.dtype.is_integer else schema_pb2.BYTES
        feature.value_count.max = 1
        missing = 0.0 if name == schema.label else validation.max_missing_share.get(name)
        if missing is not None:
            feature.presence.min_fraction = 1 - missing
        if missing != 1:
            feature.presence.min_count = 1
        if name == schema.label:
            feature.int_domain.min, feature.int_domain.max = 0, 1
        if name in validation.max_drift:
            feature.drift_comparator.infinity_norm.threshold = validation.max_drift[name]
    return proto


def schema_text(schema: ClickLogSchema, validation: ValidationConfig) -> str:
    """`schema_proto` as a text protobuf."""
    return text_format.MessageToString(schema_proto(schema, validation))
