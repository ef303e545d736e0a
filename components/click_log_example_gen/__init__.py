"""Raw click logs into sharded tf.Examples, a column at a time."""

from mlet_tf.components.click_log_example_gen.component import ClickLogExampleGen
from mlet_tf.components.click_log_example_gen.report import count_rows, read_ingest_report, value_counts

__all__ = ["ClickLogExampleGen", "count_rows", "read_ingest_report", "value_counts"]
