"""Compression of a Keras model of anyone's, on rows in `.npz` files."""

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from mlet_tf.compression.compress import compress_model
from mlet_tf.compression.files import write_files
from mlet_tf.compression.judging import JudgedReport, judge
from mlet_tf.compression.reads import require_built
from mlet_tf.compression.rows import LabelledRows
from mlet_tf.compression.search import predict
from mlet_tf.errors import InputError
from mlet_tf.export import KERAS_MODEL
from mlet_tf.outputs import folder_aside
from mlet_tf.replace import is_graph
from mlet_tf.storage import open_binary, writing
from mlet_tf.types import Inputs

LABEL = "label"  # The array that is no input.

_BLOCK_ROWS = 32_768


def compress_keras_model(
    model: keras.Model,
    data: str,
    validation_data: str | None,
    output: Path,
    budget: Mapping[str, float],
    methods: Sequence[str],
    note: Callable[[str], None],
) -> JudgedReport:
    """Compresses a model and writes the result, whole or not at all.

    Args:
        model: See `compress_model`.
        data: Rows that the model was trained on, see `read_rows`.
        validation_data: Rows that it was not trained on: those at even positions choose, those at odd ones judge.
        output: Folder for the Keras file, the report and the plot; it must not exist.
        budget: See `compress_model`.
        methods: See `compress_model`.
        note: Called with a line about each step.

    Returns:
        The report.

    Raises:
        InputError: The rows are not of this model, the model cannot be compressed, the budget cannot be met, or the
            output cannot be written.
    """
    require_built(model)  # A call would build it.
    train = read_rows(data, model)
    choosing = judging = None
    if validation_data is not None:
        rows = read_rows(validation_data, model)
        choosing, judging = (rows.take(slice(first, None, 2)) for first in (0, 1))
    compression = compress_model(
        model,
        (train.inputs, train.label),
        budget,
        validation_data=choosing and (choosing.inputs, choosing.label),
        methods=methods,
        note=note,
    )
    judged = None
    if judging is not None:
        judged = judge(
            judging.label, *(predict(either, judging.inputs) for either in (model, compression.model))
        )
    report: JudgedReport = {**compression.report, "judged": judged}
    with folder_aside(output) as aside, writing(output):
        (aside / KERAS_MODEL).parent.mkdir()
        compression.model.save(aside / KERAS_MODEL)
        write_files(report, aside)
    return report


def read_rows(path: str, model: keras.Model) -> LabelledRows:
    """Reads rows from an `.npz` file.

    It has an array `label` of 0 and 1 and the inputs of the model, one row of each array a row of the log. They are
    named as the inputs of a functional model; the name of a single one does not matter. Other models are called with
    a single array as it is, and with several in a dict.

    Args:
        path: The file.
        model: The model that the rows are for.

    Raises:
        InputError: It is no such file, or its rows are not of this model.
    """
    arrays = _arrays(path)
    if LABEL not in arrays or len(arrays) < 2:
        raise InputError(
            f"{path}: expected an array '{LABEL}' and the inputs of the model. Received: {_names(arrays)}"
        )
    label = arrays.pop(LABEL)
    rows = LabelledRows.of((_inputs(path, arrays, model), label), path)
    try:
        for block in rows.blocks(_BLOCK_ROWS):
            model(block.inputs, training=False)
    except Exception as error:  # Layers raise what they like.
        raise InputError(
            f"{path}: expected rows that the model can be called with. Received: {_reason(error)}"
        ) from error
    return rows


def _reason(error: Exception) -> str:
    """The line of an error that says what is wrong, without what Keras and TensorFlow put around it."""
    text = re.sub(r"\x1b\[\d*m|\{\{.*?\}\} ?", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception encountered when calling ")]
    return next(iter(told or lines), type(error).__name__)


def _arrays(path: str) -> dict[str, np.ndarray]:
    with open_binary(path) as file:
        try:
            with np.load(file) as arrays:
                return dict(arrays)
        except (ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile):
            raise InputError(f"{path}: expected arrays of numbers in an .npz file") from None


def _inputs(path: str, arrays: Mapping[str, np.ndarray], model: keras.Model) -> Inputs:
    """The arrays in the structure that the model is called with."""
    if not is_graph(model) or isinstance(model, keras.Sequential):
        return next(iter(arrays.values())) if len(arrays) == 1 else dict(arrays)
    expected = [tensor.name for tensor in keras.tree.flatten(model.input)]
    if len(expected) == len(arrays) == 1:
        arrays = dict.fromkeys(expected, *arrays.values())
    if set(arrays) != set(expected):
        raise InputError(
            f"{path}: expected the inputs {', '.join(expected)} of model '{model.name}'. Received: {_names(arrays)}"
        )
    return keras.tree.map_structure(lambda tensor: arrays[tensor.name], model.input)


def _names(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(arrays) or "none"
