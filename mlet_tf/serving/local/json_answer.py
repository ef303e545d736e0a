"""Tensors and results to the bodies of REST answers, by TF Serving's rules."""

import base64
from collections.abc import Iterator, Mapping

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2, regression_pb2

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.json_print import Writer, decimal, quoted
from mlet_tf.serving.local.json_request import SCALAR_TYPES
from mlet_tf.serving.local.status import invalid
from mlet_tf.serving.local.tensors import FLOATS, Tensor


def predict_answer(outputs: Mapping[str, Tensor], *, by_row: bool) -> str:
    """The body that answers a predict request."""
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    for output in outputs.values():
        if output.dtype not in SCALAR_TYPES:
            raise invalid(f"Failed to write JSON value for tensor type: {tensors.type_name(output.dtype)}")
    return _answer_by_row(outputs) if by_row else _answer_by_column(outputs)


def _answer_by_row(outputs: Mapping[str, Tensor]) -> str:
    rows = -1
    for name, output in outputs.items():
        if not output.shape:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (-1, output.shape[0]):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {output.shape[0]} expecting: {rows}"
            )
        rows = output.shape[0]
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("predictions"))
    writer.open("[")
    columns = {name: (_texts(name, output), output.shape) for name, output in outputs.items()}
    for _ in range(rows):
        if len(columns) > 1:
            writer.open("{")
        writer.single_line = True
        for name, (texts, shape) in columns.items():
            if len(columns) > 1:
                writer.raw(quoted(name))
            _write_tensor(writer, texts, shape[1:])
        writer.single_line = False
        if len(columns) > 1:
            writer.close()
    writer.close()
    writer.close()
    return writer.text()


def _answer_by_column(outputs: Mapping[str, Tensor]) -> str:
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("outputs"))
    if len(outputs) > 1:
        writer.open("{")
    for name, output in outputs.items():
        if len(outputs) > 1:
            writer.raw(quoted(name))
        _write_tensor(writer, _texts(name, output), output.shape)
    if len(outputs) > 1:
        writer.close()
    writer.close()
    return writer.text()


class _Base64(str):
    """The base64 of bytes, which `_write_tensor` marks as such."""

    __slots__ = ()


def _texts(name: str, output: Tensor) -> Iterator[str]:
    """The values as JSON texts; those of bytes without their marks."""
    values = output.values
    if output.dtype in FLOATS:
        kind = np.float32 if output.dtype == types_pb2.DT_FLOAT else np.float64
        return (decimal(value, kind) for value in values.tolist())
    if output.dtype == types_pb2.DT_STRING:
        if name.endswith("_bytes"):
            return (_Base64(base64.b64encode(value).decode()) for value in values)
        return (quoted(value.decode("utf-8", "surrogateescape")) for value in values)
    if output.dtype == types_pb2.DT_BOOL:
        return ("true" if value else "false" for value in values)
    return (str(value) for value in values.tolist())


def _write_tensor(writer: Writer, texts: Iterator[str], shape: tuple[int, ...]) -> None:
    if shape:
        writer.open("[")
        for _ in range(shape[0]):
            _write_tensor(writer, texts, shape[1:])
        writer.close()
        return
    text = next(texts)
    if isinstance(text, _Base64):
        writer.open("{")
        writer.raw(quoted("b64"))
        writer.raw(quoted(text))
        writer.close()
    else:
        writer.raw(text)


def classify_answer(result: classification_pb2.ClassificationResult) -> str:
    """The body that answers a classify request."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("results"))
    writer.open("[")
    for row in result.classifications:
        writer.single_line = True
        writer.open("[")
        for item in row.classes:
            writer.open("[")
            writer.raw(quoted(item.label))
            writer.raw(decimal(item.score))
            writer.close()
        writer.close()
        writer.single_line = False
    writer.close()
    writer.close()
    return writer.text()


def regress_answer(result: regression_pb2.RegressionResult) -> str:
    """The body that answers a regress request."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("results"))
    writer.single_line = True
    writer.open("[")
    for row in result.regressions:
        writer.raw(decimal(row.value))
    writer.close()
    writer.close()
    return writer.text()


def error_answer(message: str) -> str:
    """The body of an error."""
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("error"))
    writer.raw(quoted(message))
    writer.close()
    return writer.text()
