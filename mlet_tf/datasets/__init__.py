"""Click logs: schemas, columnar reading, synthetic logs with a known teacher.

`reading` and `synthetic` need pyarrow and are imported by name; the schemas below need nothing heavy.
"""

from mlet_tf.datasets.schema import AVAZU, CRITEO, ClickLogSchema, TimeColumn, load_schema

__all__ = ["AVAZU", "CRITEO", "ClickLogSchema", "TimeColumn", "load_schema"]
