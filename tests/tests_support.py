"""What several test modules need and no fixture gives."""

ROWS = 3000


def raw_columns(rows):
    """Rows of texts as the inputs of `predict_raw`."""
    import tensorflow as tf  # Not above: tests of the other Keras backends run where there is none.

    return {name: tf.constant([row[name] for row in rows]) for name in rows[0]}
