"""REST bodies to tensors and examples, by TF Serving's rules."""

import base64
import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import input_pb2

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.json_parse import (
    Json,
    Members,
    is_array,
    is_integer,
    is_number,
    parse,
    type_name,
)
from mlet_tf.serving.local.json_print import quote_value
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.local.tensors import FLOATS, Tensor

_INTEGER_RANGES = {
    types_pb2.DT_INT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_UINT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT16: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT32: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}
SCALAR_TYPES = {*_INTEGER_RANGES, *FLOATS, types_pb2.DT_BOOL, types_pb2.DT_STRING}
_WHITE_SPACE = b" \t\n\v\f\r"
_BASE64 = re.compile(rb"([A-Za-z0-9+/]*)([=.]*)")


@dataclass(frozen=True)
class PredictBody:
    """What a predict request's body says.

    Attributes:
        signature_name: empty for the default one.
        inputs: by name; None for one that has too many dimensions.
        by_row: whether it came as `instances`, and the answer is to be `predictions`.
    """

    signature_name: str
    inputs: dict[str, Tensor | None]
    by_row: bool


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

    Raises:
        StatusError: if the body is malformed, or does not fit to the signature.
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
        if not is_array(instances):
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
    if not is_array(examples):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target = found.example_list_with_context if with_context else found.example_list
    for example in examples:
        _fill_example(example, target.examples.add())
    return name, found


def _format_error(value: Json, words: str) -> StatusError:
    return invalid(f"JSON Value: {quote_value(value)} {words}")


def _type_error(value: Json, dtype: int) -> StatusError:
    return invalid(
        f"JSON Value: {quote_value(value)} Type: {type_name(value)} "
        f"is not of expected type: {tensors.type_name(dtype)}"
    )


def _is_base64(value: Json) -> TypeGuard[Members]:
    return (
        isinstance(value, Members)
        and len(value) == 1
        and value[0][0] == "b64"
        and isinstance(value[0][1], str)
    )


def _is_named(value: Json) -> TypeGuard[Members]:
    return isinstance(value, Members) and not _is_base64(value)


@dataclass
class _Batch:
    """The values of one input, gathered over the instances, which must be of one shape."""

    dtype: int
    values: list = field(default_factory=list)
    size: int | None = None
    shape: tuple[int, ...] = ()

    def add(self, item: Json) -> None:
        shape = _shape(item)
        before = len(self.values)
        _flatten(item, shape, self.dtype, self.values)
        size = len(self.values) - before
        if self.size is None:
            self.size, self.shape = size, shape
        elif size != self.size:
            raise invalid(f"Expecting tensor size: {self.size} but got: {size}")
        elif shape != self.shape:
            raise invalid(
                f"Expecting shape {tensors.shape_text(self.shape)} but got: {tensors.shape_text(shape)}"
            )

    def tensor(self, *leading: int) -> Tensor | None:
        """The tensor; None where it has more dimensions than TensorFlow takes."""
        shape = (*leading, *self.shape)
        if len(shape) > tensors.MAX_DIMENSIONS:
            return None
        # A key that a row repeats leaves more values than the shape has; the first ones count.
        return Tensor(self.dtype, tensors.builder(self.dtype)(self.values[: math.prod(shape)]), shape)


def _from_instances(instances: list, types: Mapping[str, int]) -> dict[str, Tensor | None]:
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


def _add(value: Json, name: str, types: Mapping[str, int], batches: dict[str, _Batch]) -> None:
    if name not in types:
        raise invalid(f"JSON object: does not have named input: {name}")
    batches.setdefault(name, _Batch(types[name])).add(value)


def _from_inputs(value: Json, types: Mapping[str, int]) -> dict[str, Tensor | None]:
    if _is_named(value):
        columns = value
    elif len(types) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required "
            "as per tensorinfo_map"
        )
    else:
        columns = Members([(next(iter(types)), value)])
    found = {}
    for name, dtype in types.items():
        if not columns.has(name):
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        batch = _Batch(dtype)
        batch.add(columns.find(name))
        found[name] = batch.tensor()
    return found


def _shape(value: Json) -> tuple[int, ...]:
    """The shape that the first elements imply."""
    sizes = []
    while is_array(value):
        sizes.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(sizes)


def _flatten(value: Json, shape: tuple[int, ...], dtype: int, values: list) -> None:
    """Adds the elements to `values`. Without recursion: lists may be nested deeper than Python's stack."""
    open_lists: list[Iterator] = [iter([value])]
    while open_lists:
        level = len(open_lists) - 1
        for item in open_lists[-1]:
            if not is_array(item):
                _check_level(item, level, shape)
                values.append(_element(item, dtype))
                continue
            _check_size(item, level, shape)
            if level == len(shape) - 1 and _all_plain(item, dtype):
                values += item
                continue
            open_lists.append(iter(item))
            break
        else:
            open_lists.pop()


def _check_level(item: Json, level: int, shape: tuple[int, ...]) -> None:
    if level != len(shape):
        raise invalid(
            f"JSON Value: {quote_value(item)} found at incorrect level: {level + 1} "
            f"in the JSON DOM. Expected at level: {len(shape)}"
        )


def _check_size(items: list, level: int, shape: tuple[int, ...]) -> None:
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(items) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(items)} at level: {level} "
            f"expected size: {shape[level]}"
        )


def _all_plain(items: list, dtype: int) -> bool:
    """Whether all items can be taken as they are; one look at their types instead of one test for each."""
    kinds = set(map(type, items))
    if dtype in FLOATS:
        return kinds <= {float, int}
    if dtype in _INTEGER_RANGES and kinds == {int}:
        low, high = _INTEGER_RANGES[dtype]
        return low <= min(items) and max(items) <= high
    return False


def _element(value: Json, dtype: int) -> Json | bytes:
    if isinstance(value, Members):
        if dtype != types_pb2.DT_STRING:
            raise _type_error(value, dtype)
        return _decode_base64(value)
    if dtype not in SCALAR_TYPES:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {quote_value(value)} to type: {tensors.type_name(dtype)}",
        )
    if dtype == types_pb2.DT_STRING and isinstance(value, str):
        return _encode(value)
    if dtype in FLOATS:
        fits = is_number(value)
    elif dtype == types_pb2.DT_STRING:
        fits = False
    elif dtype == types_pb2.DT_BOOL:
        fits = isinstance(value, bool)
    else:
        fits = is_integer(value, *_INTEGER_RANGES[dtype])
    if not fits:
        raise _type_error(value, dtype)
    return value


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode_base64(value: Members) -> bytes:
    if not _is_base64(value):
        raise _format_error(value, "not formatted correctly for base64 data")
    # White space is skipped. Padding may be left out, but not partly; dots count as padding.
    match = _BASE64.fullmatch(_encode(value[0][1]).translate(None, _WHITE_SPACE))
    if match is None:
        raise invalid("Unable to base64 decode")
    data, padding = match.groups()
    missing = -len(data) % 4
    if missing == 3 or len(padding) not in (0, missing):
        raise invalid("Unable to base64 decode")
    return base64.b64decode(data + b"=" * missing)


def _c_string(name: str) -> str:
    """A key as the real server reads it: up to a zero byte."""
    return name.partition("\0")[0]


def _fill_example(value: Json, example: example_pb2.Example) -> None:
    if not isinstance(value, Members):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    for key, content in value:
        name = _c_string(key)
        feature = feature_pb2.Feature()
        for item in content if is_array(content) else [content]:
            _add_to_feature(item, name, feature)
        # No column has a name that is not UTF-8.
        with contextlib.suppress(UnicodeEncodeError):
            example.features.feature[name].CopyFrom(feature)


def _add_to_feature(value: Json, name: str, feature: feature_pb2.Feature) -> None:
    if value is None or (isinstance(value, list) and not _is_base64(value)):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    is_whole = isinstance(value, int) and -(2**63) <= value < 2**64
    kind = "int64_list" if is_whole else "float_list" if is_number(value) else "bytes_list"
    if feature.WhichOneof("kind") not in (None, kind):
        expected = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {expected}")
    if isinstance(value, str | list):
        feature.bytes_list.value.append(_encode(value) if isinstance(value, str) else _decode_base64(value))
    elif not is_whole:
        with np.errstate(over="ignore"):
            feature.float_list.value.append(float(np.float32(value)))
    elif value >= 2**63:
        raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    else:
        feature.int64_list.value.append(int(value))
