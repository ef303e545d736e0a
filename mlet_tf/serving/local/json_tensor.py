"""REST bodies to tensors and examples, and answers back to JSON, by TF Serving's rules."""

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.json_text import (
    Members,
    Writer,
    decimal,
    is_integer,
    is_number,
    parse,
    quote_value,
    quoted,
    type_name,
)
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.local.tensors import Tensor

_INTEGER_RANGES = {
    types_pb2.DT_INT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_UINT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT16: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT32: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}
_FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)
_WRITABLE = {*_INTEGER_RANGES, *_FLOATS, types_pb2.DT_BOOL, types_pb2.DT_STRING}


@dataclass(frozen=True)
class PredictBody:
    """What a predict request's body says."""

    signature_name: str
    inputs: dict[str, Tensor]
    by_row: bool


# --- requests ---------------------------------------------------------------------------------------------


def parse_object(body: bytes) -> Members:
    """Parses a body that must be one JSON object."""
    document = parse(body)
    if not isinstance(document, Members):
        raise _format_error(document, "Is not object")
    return document


def signature_name(document: Members) -> str:
    """The body's signature name; empty where it gives none."""
    name = document.find("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {quote_value(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def predict_body(body: bytes, input_types: Callable[[str], Mapping[str, int]]) -> PredictBody:
    """Reads the body of a predict request.

    Args:
        body: the bytes received.
        input_types: given a signature's name, its inputs' names and types.
    """
    document = parse_object(body)
    name = signature_name(document)
    types = input_types(name)
    if not types:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    by_row, by_column = document.has("instances"), document.has("inputs")
    if by_row and by_column:
        raise _format_error(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if by_row:
        instances = document.find("instances")
        if not isinstance(instances, list) or isinstance(instances, Members):
            raise _format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise _format_error(document, "No values in 'instances' array")
        return PredictBody(name, _from_instances(instances, types), by_row=True)
    if by_column:
        return PredictBody(name, _from_inputs(document.find("inputs"), types), by_row=False)
    raise invalid("Missing 'inputs' or 'instances' key")


def examples_body(body: bytes) -> tuple[str, input_pb2.Input]:
    """Reads the body of a classify or regress request: the signature's name and the examples."""
    document = parse_object(body)
    name = signature_name(document)
    found = input_pb2.Input()
    with_context = document.has("context")
    if with_context:
        _fill_example(document.find("context"), found.example_list_with_context.context)
        found.example_list_with_context.context.SetInParent()
    if not document.has("examples"):
        raise _format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document.find("examples")
    if not isinstance(examples, list) or isinstance(examples, Members):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target = found.example_list_with_context if with_context else found.example_list
    for example in examples:
        _fill_example(example, target.examples.add())
    return name, found


def _format_error(value: Any, words: str) -> StatusError:
    return invalid(f"JSON Value: {quote_value(value)} {words}")


def _type_error(value: Any, dtype: int) -> StatusError:
    return invalid(
        f"JSON Value: {quote_value(value)} Type: {type_name(value)} "
        f"is not of expected type: {tensors.type_name(dtype)}"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, Members)


def _is_base64(value: Any) -> bool:
    return (
        isinstance(value, Members)
        and len(value) == 1
        and value[0][0] == "b64"
        and isinstance(value[0][1], str)
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, Members) and not _is_base64(value)


@dataclass
class _Batch:
    """The values of one input, gathered over the instances, which must be of one shape."""

    dtype: int
    values: list = field(default_factory=list)
    size: int | None = None
    shape: tuple[int, ...] = ()

    def add(self, item: Any) -> None:
        shape = _shape(item)
        before = len(self.values)
        _flatten(item, shape, 0, self.dtype, self.values)
        size = len(self.values) - before
        if self.size is None:
            self.size, self.shape = size, shape
        elif size != self.size:
            raise invalid(f"Expecting tensor size: {self.size} but got: {size}")
        elif shape != self.shape:
            raise invalid(f"Expecting shape {_shape_text(self.shape)} but got: {_shape_text(shape)}")

    def tensor(self, *leading: int) -> Tensor:
        shape = (*leading, *self.shape)
        # A key that a row repeats leaves more values than the shape has; the first ones count.
        array = tensors.builder(self.dtype)(self.values[: math.prod(shape)])
        return Tensor(self.dtype, array.reshape(shape))


def _from_instances(instances: list, types: Mapping[str, int]) -> dict[str, Tensor]:
    if len(types) > 1 and not isinstance(instances[0], Members):
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    batches: dict[str, _Batch] = {}
    named = _is_named(instances[0])
    wanted = set(types)
    for number, element in enumerate(instances):
        if named != _is_named(element):
            expected = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected[0]} but got {expected[1]} at item {number} of input list")
        if named:
            _add_named(element, number, types, batches)
            if {_c_string(key) for key, _ in element} != wanted:
                raise invalid(
                    f"Failed to process element: {number} of 'instances' list. JSON object: "
                    f"{quote_value(element)} keys must be equal to: {','.join(sorted(wanted))}"
                )
        else:
            try:
                _add(element, next(iter(types)), types, batches)
            except StatusError as error:
                raise invalid(
                    f"Failed to process element: {number} of 'instances' list. Error: {error}"
                ) from None
    return {name: batch.tensor(len(instances)) for name, batch in batches.items()}


def _add_named(element: Members, number: int, types: Mapping[str, int], batches: dict[str, _Batch]) -> None:
    for key, value in element:
        name = _c_string(key)
        try:
            _add(value, name, types, batches)
        except StatusError as error:
            raise invalid(
                f"Failed to process element: {number} key: {name} of 'instances' list. Error: {error}"
            ) from None


def _add(value: Any, name: str, types: Mapping[str, int], batches: dict[str, _Batch]) -> None:
    if name not in types:
        raise invalid(f"JSON object: does not have named input: {name}")
    batches.setdefault(name, _Batch(types[name])).add(value)


def _from_inputs(value: Any, types: Mapping[str, int]) -> dict[str, Tensor]:
    if not _is_named(value):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        value = Members([(next(iter(types)), value)])
    found = {}
    for name, dtype in types.items():
        if not value.has(name):
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        batch = _Batch(dtype)
        batch.add(value.find(name))
        found[name] = batch.tensor()
    return found


def _shape(value: Any) -> tuple[int, ...]:
    """The shape that the first elements imply."""
    sizes = []
    while _is_array(value):
        sizes.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(sizes)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _flatten(value: Any, shape: tuple[int, ...], level: int, dtype: int, values: list) -> None:
    if not _is_array(value):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {quote_value(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        values.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    if level == len(shape) - 1 and _all_plain(value, dtype):
        values += value
        return
    for item in value:
        _flatten(item, shape, level + 1, dtype, values)


def _all_plain(items: list, dtype: int) -> bool:
    """Whether all items can be taken as they are; one look at their types instead of one test for each."""
    kinds = set(map(type, items))
    if dtype in _FLOATS:
        return kinds <= {float, int}
    if dtype in _INTEGER_RANGES and kinds == {int}:
        low, high = _INTEGER_RANGES[dtype]
        return low <= min(items) and max(items) <= high
    return False


def _element(value: Any, dtype: int) -> Any:
    if isinstance(value, Members):
        if dtype != types_pb2.DT_STRING:
            raise _type_error(value, dtype)
        return _decode_base64(value)
    if dtype not in _WRITABLE:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {quote_value(value)} to type: {tensors.type_name(dtype)}",
        )
    if dtype in _FLOATS:
        fits = is_number(value)
    elif dtype == types_pb2.DT_STRING:
        fits = isinstance(value, str)
    elif dtype == types_pb2.DT_BOOL:
        fits = isinstance(value, bool)
    else:
        fits = is_integer(value, *_INTEGER_RANGES[dtype])
    if not fits:
        raise _type_error(value, dtype)
    return _encode(value) if dtype == types_pb2.DT_STRING else value


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode_base64(value: Members) -> bytes:
    if not _is_base64(value):
        raise _format_error(value, "not formatted correctly for base64 data")
    # White space is skipped and padding is optional, but what padding there is must be whole.
    text = _encode("".join(value[0][1].split()))
    try:
        padded = text if text.endswith(b"=") else text + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _c_string(name: str) -> str:
    """A key as the real server reads it: up to a zero byte."""
    return name.partition("\0")[0]


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, Members):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    for key, content in value:
        name = _c_string(key)
        feature = feature_pb2.Feature()
        for item in content if _is_array(content) else [content]:
            _add_to_feature(item, name, feature)
        example.features.feature[name].CopyFrom(feature)


def _add_to_feature(value: Any, name: str, feature: feature_pb2.Feature) -> None:
    if value is None or _is_array(value) or _is_named(value):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    is_whole = isinstance(value, int) and -(2**63) <= value < 2**64
    kind = "int64_list" if is_whole else "float_list" if is_number(value) else "bytes_list"
    if feature.WhichOneof("kind") not in (None, kind):
        expected = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {expected}")
    if kind == "bytes_list":
        feature.bytes_list.value.append(_encode(value) if isinstance(value, str) else _decode_base64(value))
    elif kind == "float_list":
        with np.errstate(over="ignore"):
            feature.float_list.value.append(float(np.float32(value)))
    elif value >= 2**63:
        raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    else:
        feature.int64_list.value.append(int(value))


# --- answers ----------------------------------------------------------------------------------------------


def predict_answer(outputs: Mapping[str, Tensor], *, by_row: bool) -> str:
    """The body that answers a predict request."""
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    for output in outputs.values():
        if output.dtype not in _WRITABLE:
            raise invalid(f"Failed to write JSON value for tensor type: {tensors.type_name(output.dtype)}")
    return _answer_by_row(outputs) if by_row else _answer_by_column(outputs)


def _answer_by_row(outputs: Mapping[str, Tensor]) -> str:
    rows = -1
    for name, output in outputs.items():
        if not output.array.shape:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (-1, len(output.array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(output.array)} expecting: {rows}"
            )
        rows = len(output.array)
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("predictions"))
    writer.open("[")
    columns = {name: (_texts(name, output), output.array.shape) for name, output in outputs.items()}
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
        _write_tensor(writer, _texts(name, output), output.array.shape)
    if len(outputs) > 1:
        writer.close()
    writer.close()
    return writer.text()


_BASE64 = object()


def _texts(name: str, output: Tensor) -> Iterator[Any]:
    """The values as JSON texts; bytes as a pair that marks them for `_write_tensor`."""
    values = output.array.reshape(-1)
    if output.dtype in _FLOATS:
        kind = np.float32 if output.dtype == types_pb2.DT_FLOAT else np.float64
        return (decimal(value, kind) for value in values.tolist())
    if output.dtype == types_pb2.DT_STRING:
        if name.endswith("_bytes"):
            return ((_BASE64, base64.b64encode(value).decode()) for value in values)
        return (quoted(value.decode("utf-8", "surrogateescape")) for value in values)
    if output.dtype == types_pb2.DT_BOOL:
        return ("true" if value else "false" for value in values)
    return (str(value) for value in values.tolist())


def _write_tensor(writer: Writer, texts: Iterator[Any], shape: tuple[int, ...]) -> None:
    if shape:
        writer.open("[")
        for _ in range(shape[0]):
            _write_tensor(writer, texts, shape[1:])
        writer.close()
        return
    text = next(texts)
    if isinstance(text, str):
        writer.raw(text)
    else:
        writer.open("{")
        writer.raw(quoted("b64"))
        writer.raw(quoted(text[1]))
        writer.close()


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
    """The body that tells of an error."""
    writer = Writer()
    writer.open("{")
    writer.raw(quoted("error"))
    writer.raw(quoted(message))
    writer.close()
    return writer.text()
