"""What several test modules need and no fixture gives."""

import tensorflow as tf

ROWS = 3000


def raw_columns(rows):
    """Rows of texts as the inputs of `predict_raw`."""
    return {name: tf.constant([row[name] for row in rows]) for name in rows[0]}
