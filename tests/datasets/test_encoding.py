"""Examples put together from columns are what TensorFlow understands."""

import pyarrow as pa
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.datasets.encoding import encode_examples, list_records

INTEGERS = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 300)
BYTES = st.none() | st.binary(max_size=40) | st.sampled_from([127, 128, 16_384]).map(lambda n: b"x" * n)
ROWS = st.lists(st.tuples(INTEGERS, INTEGERS, BYTES, BYTES), max_size=20)


@settings(max_examples=100)
@given(ROWS, st.text(min_size=1, max_size=200))
def test_examples_parse_back_to_the_columns(rows, name):
    names = ["i", name + "2", "b", "ü" + name]
    kinds = [pa.int64(), pa.int64(), pa.binary(), pa.binary()]
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)]
    encoded = list_records(encode_examples(pa.Table.from_arrays(arrays, names)))
    assert len(encoded) == len(rows)
    for row, message in zip(rows, encoded, strict=True):
        features = tf.train.Example.FromString(message).features.feature
        lists = [
            features[n].int64_list if i < 2 else features[n].bytes_list
            for i, n in enumerate(names)
            if n in features
        ]
        assert [list(values.value) for values in lists] == [[value] for value in row if value is not None]


def test_tensorflow_parses_the_batch():
    table = pa.table(
        {"label": [0, 1], "I1": pa.array([None, -7], pa.int64()), "C1": pa.array([b"ab", None], pa.binary())}
    )
    parsed = tf.io.parse_example(
        encode_examples(table).to_numpy(zero_copy_only=False),
        {
            "label": tf.io.FixedLenFeature([], tf.int64),
            "I1": tf.io.FixedLenFeature([], tf.int64, 99),
            "C1": tf.io.FixedLenFeature([], tf.string, b"none"),
        },
    )
    assert parsed["label"].numpy().tolist() == [0, 1]
    assert parsed["I1"].numpy().tolist() == [99, -7]
    assert parsed["C1"].numpy().tolist() == [b"ab", b"none"]
