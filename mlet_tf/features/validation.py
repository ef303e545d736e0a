"""Validation of a click log: its tensorflow-metadata schema, and anomalies in its statistics."""

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from mlet_tf.config import ValidationConfig
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.features.examples import raw_feature_spec


def schema_proto(schema: ClickLogSchema, validation: ValidationConfig) -> schema_pb2.Schema:
    """The schema that statistics are checked against.

    Args:
        schema: Columns of the log.
        validation: Bounds on missing values and drift.

    Returns:
        A schema with a feature for each column: its type, at most one value per row, and how many rows must have it.
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


def drift_anomalies(
    evaluation: statistics_pb2.DatasetFeatureStatisticsList,
    train: statistics_pb2.DatasetFeatureStatisticsList,
    schema: schema_pb2.Schema,
) -> anomalies_pb2.Anomalies:
    """What differs between `eval` and `train`, in the columns whose schema has a drift comparator.

    Anomalies within a split are not checked here.
    """
    import tensorflow_data_validation as tfdv  # Slow to import, and not needed for the schema.

    drift = schema_pb2.Schema()
    for feature in schema.feature:
        drift.feature.add(name=feature.name, type=feature.type, drift_comparator=feature.drift_comparator)
    if not any(feature.HasField("drift_comparator") for feature in schema.feature):
        return anomalies_pb2.Anomalies()
    return tfdv.validate_statistics(evaluation, drift, previous_statistics=train)


def describe_anomalies(split: str, anomalies: anomalies_pb2.Anomalies) -> list[str]:
    """A line for each anomaly: split, column and what is wrong."""
    texts = [
        f"{split}, column {name}: {info.description}" for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        texts.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return texts
