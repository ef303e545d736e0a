"""SavedModels that TensorFlow Serving answers raw click-log rows with.

Every exported model has four signatures; B is the number of rows.

| signature | inputs | outputs |
|---|---|---|
| `serving_default` | `examples` string `[B]`, serialised tf.Examples of raw columns | `ctr` float32 `[B]` |
| `predict_raw` | each raw column by name, string `[B]`, as the log writes it; empty is missing | `ctr` float32 `[B]` |
| `classify` | `inputs` string `[B]`, serialised tf.Examples | `classes` string `[B, 2]`, `scores` float32 `[B, 2]` |
| `regress` | `inputs` string `[B]`, serialised tf.Examples | `outputs` float32 `[B]` |

A column may be absent from a tf.Example, but not from `predict_raw`: TF Serving has no optional inputs over REST.
"""

import keyword
import os
import re
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.values import WHOLE, WHOLE_REWRITE
from mlet_tf.features.examples import Transform, raw_feature_spec
from mlet_tf.features.names import MODEL_INPUTS
from mlet_tf.features.times import iso_seconds
from mlet_tf.storage import join

SIGNATURES = ("serving_default", "predict_raw", "classify", "regress")

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# The two forms in a Model artifact.
KERAS_MODEL = "Format-Keras/model.keras"
SERVING_MODEL = "Format-Serving"


def raw_arguments(schema: ClickLogSchema) -> dict[str, str]:
    """Argument of `predict_raw` in Python, as of `tf.saved_model.load`, for each raw column.

    TensorFlow Serving knows all columns by their own names. In Python they are names of arguments, which TensorFlow
    compares case-insensitively; if a column cannot be one, all are named `column_0`, `column_1`, ...
    """
    names = schema.raw_features
    plain = all(
        _PLAIN_NAME.fullmatch(name) and not keyword.iskeyword(name) and name != "self" for name in names
    )
    if plain and len({name.lower() for name in names}) == len(names):
        return {name: name for name in names}
    return {name: f"column_{number}" for number, name in enumerate(names)}


class ServingModule(tf.Module):
    """A model, its preprocessing and the signatures around both.

    It tracks the model's variables but not the Keras object: saving would trace that with inputs of
    the wrong type.

    Args:
        model: takes `{"dense_features": [B, D], "sparse_features": [B, F]}`, gives the CTR `[B]`.
        schema: columns of the log.
        transform: the preprocessing graph: raw sparse columns to the model's inputs.
    """

    def __init__(self, model: keras.Model, schema: ClickLogSchema, transform: Transform) -> None:
        super().__init__(name="ctr")
        self._schema = schema
        self._transform = transform
        self._model_variables = [variable.value for variable in model.variables]
        spec = {
            name: tf.SparseTensorSpec([None, None], f.dtype) for name, f in raw_feature_spec(schema).items()
        }

        # One function for all signatures: it is traced, stored and optimised once.
        @tf.function(input_signature=[spec], autograph=False)
        def ctr(columns: Mapping[str, tf.SparseTensor]) -> tf.Tensor:
            inputs = transform(columns)
            predicted = model({name: inputs[name] for name in MODEL_INPUTS}, training=False)
            return tf.cast(tf.reshape(predicted, [-1]), tf.float32)

        self._ctr = ctr

    def ctr_of_examples(self, examples: tf.Tensor) -> tf.Tensor:
        """The CTR, float32 `[B]`, of serialised tf.Examples, string `[B]`."""
        return self._ctr(tf.io.parse_example(examples, raw_feature_spec(self._schema)))

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Concrete functions by signature name."""
        text = tf.TensorSpec([None], tf.string)
        arguments = raw_arguments(self._schema)

        @tf.function(autograph=False)
        def serving_default(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"ctr": self.ctr_of_examples(examples)}

        @tf.function(autograph=False)
        def predict_raw(**columns: tf.Tensor) -> dict[str, tf.Tensor]:
            parsed = {name: self._parse(name, columns[argument]) for name, argument in arguments.items()}
            return {"ctr": self._ctr(parsed)}

        @tf.function(autograph=False)
        def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            ctr = self.ctr_of_examples(inputs)
            classes = tf.tile(tf.constant([["0", "1"]]), [tf.shape(ctr)[0], 1])
            return {"classes": classes, "scores": tf.stack([1 - ctr, ctr], axis=1)}

        @tf.function(autograph=False)
        def regress(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"outputs": self.ctr_of_examples(inputs)}

        columns = {name: tf.TensorSpec([None], tf.string, name=name) for name in arguments.values()}
        return {
            "serving_default": serving_default.get_concrete_function(examples=text),
            "predict_raw": predict_raw.get_concrete_function(**columns),
            "classify": classify.get_concrete_function(inputs=text),
            "regress": regress.get_concrete_function(inputs=text),
        }

    def _parse(self, name: str, texts: tf.Tensor) -> tf.SparseTensor:
        """A column of texts, as the log writes them, as the sparse column that tf.Examples give."""
        time = self._schema.time
        marks = self._schema.missing_marks
        texts = tf.strings.regex_replace(texts, WHOLE, WHOLE_REWRITE)
        present = tf.reduce_all([tf.not_equal(texts, mark) for mark in marks], axis=0)
        rows = tf.where(present)
        values = tf.boolean_mask(texts, present)
        if time is not None and name == time.name and time.format == "iso8601":
            values = iso_seconds(values)
        elif raw_feature_spec(self._schema)[name].dtype == tf.int64:
            values = tf.strings.to_number(values, tf.int64)
        indices = tf.pad(rows, [[0, 0], [0, 1]])
        return tf.SparseTensor(indices, values, tf.stack([tf.size(texts, tf.int64), 1]))


def export_model(model: keras.Model, schema: ClickLogSchema, transform: Transform, path: str | Path) -> None:
    """Writes a SavedModel with the signatures of this module.

    Args:
        model: takes `{"dense_features": [B, D], "sparse_features": [B, F]}`, gives the CTR `[B]`.
        schema: columns of the log.
        transform: the preprocessing graph: raw sparse columns to the model's inputs. If it is a trackable, its tables
            and variables are saved with the model.
        path: folder to write.
    """
    module = ServingModule(model, schema, transform)
    tf.saved_model.save(module, str(path), signatures=module.signatures())
    _name_raw_columns(f"{path}/saved_model.pb", raw_arguments(schema))


def _name_raw_columns(path: str, arguments: Mapping[str, str]) -> None:
    """Gives the inputs of `predict_raw` the columns' names, which may be any text in the file that a server reads."""
    if all(name == argument for name, argument in arguments.items()):
        return
    with tf.io.gfile.GFile(path, "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    inputs = saved.meta_graphs[0].signature_def["predict_raw"].inputs
    tensors = {name: inputs[argument].SerializeToString() for name, argument in arguments.items()}
    inputs.clear()
    for name, tensor in tensors.items():
        inputs[name].ParseFromString(tensor)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(saved.SerializeToString(deterministic=True))


def save_model(model: keras.Model, schema: ClickLogSchema, transform: Transform, folder: str) -> None:
    """Writes a model in both of its forms: the Keras file and the SavedModel.

    Args:
        model: See `ServingModule`.
        schema: See `ServingModule`.
        transform: See `export_model`.
        folder: Folder to write, such as the URI of a Model artifact.
    """
    path = join(folder, KERAS_MODEL)
    tf.io.gfile.makedirs(os.path.dirname(path))  # noqa: PTH120 (may be remote)
    model.save(path)
    export_model(model, schema, transform, join(folder, SERVING_MODEL))


def load_keras_model(folder: str) -> keras.Model:
    """The Keras model that `save_model` wrote below a folder."""
    # Keras finds only imported classes, and a component in a new process has not imported any model.
    import mlet_tf.models  # noqa: F401

    return keras.models.load_model(join(folder, KERAS_MODEL))
