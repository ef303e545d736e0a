"""Ingestion: a raw click log into shards of tf.Examples and counts of its values, a chunk at a time."""

from mlet_tf.features.ingestion.config import EVAL, TRAIN, IngestConfig
from mlet_tf.features.ingestion.ingest import ingest
from mlet_tf.features.ingestion.report import count_rows, read_ingest_report, value_counts

__all__ = ["EVAL", "TRAIN", "IngestConfig", "count_rows", "ingest", "read_ingest_report", "value_counts"]
