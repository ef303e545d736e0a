"""tf.Examples of raw rows: their columns, and the model inputs made from them."""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.features.names import MODEL_INPUTS

# From raw sparse columns `[B, 1]` to the outputs of `preprocessing_fn`.
Transform = Callable[[Mapping[str, tf.SparseTensor]], Mapping[str, tf.Tensor]]


def raw_feature_spec(schema: ClickLogSchema, with_label: bool = False) -> dict[str, tf.io.VarLenFeature]:
    """Parsing specification of the raw columns in a tf.Example: int64 or string, at most one value."""
    integers = {*schema.integers, schema.label, *([schema.time.name] if schema.time else [])}
    names = (*schema.raw_features, *([schema.label] if with_label else []))
    return {name: tf.io.VarLenFeature(tf.int64 if name in integers else tf.string) for name in names}


def model_inputs(
    serialized: Sequence[bytes] | tf.Tensor, schema: ClickLogSchema, transform: Transform
) -> dict[str, tf.Tensor]:
    """Model inputs for serialised tf.Examples `[B]`."""
    outputs = transform(tf.io.parse_example(serialized, raw_feature_spec(schema)))
    return {name: outputs[name] for name in MODEL_INPUTS}


def example_files(patterns: Sequence[str]) -> list[str]:
    """Files of tf.Example shards, sorted.

    Raises:
        InputError: No file matches.
    """
    files = sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))
    if not files:
        raise InputError(f"no examples match {', '.join(patterns)}")
    return files
