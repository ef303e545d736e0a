"""Click logs: schemas, columnar reading, synthetic logs with a known teacher."""
