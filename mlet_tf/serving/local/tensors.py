"""TensorProto and numpy arrays, both ways, by the rules of TensorFlow's own conversion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

# The repeated field of a TensorProto that holds the values of each type.
_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
}
_HALVES = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
# Types that can be sent, but whose values are not read here; only a mismatch with the model is reported.
OPAQUE = (
    types_pb2.DT_COMPLEX64,
    types_pb2.DT_COMPLEX128,
    types_pb2.DT_QINT8,
    types_pb2.DT_QUINT8,
    types_pb2.DT_QINT16,
    types_pb2.DT_QUINT16,
    types_pb2.DT_QINT32,
    types_pb2.DT_FLOAT8_E5M2,
    types_pb2.DT_FLOAT8_E4M3FN,
    types_pb2.DT_INT4,
    types_pb2.DT_UINT4,
    types_pb2.DT_RESOURCE,
    types_pb2.DT_VARIANT,
)
FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)
MAX_DIMENSIONS = 254
_MAX_ELEMENTS = 2**40


@dataclass(frozen=True)
class Tensor:
    """Values, their shape and the TensorFlow type they stand for.

    Values and shape lie apart, since TensorFlow allows more dimensions than numpy.

    Attributes:
        dtype: the number of the TensorFlow type.
        values: array `[N]` of all values; empty for the types of `OPAQUE`.
        shape: the sizes of the dimensions, N in all.
    """

    dtype: int
    values: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def of(cls, dtype: int, array: np.ndarray) -> "Tensor":
        """A tensor of an array's values and shape."""
        return cls(dtype, array.reshape(-1), array.shape)

    @property
    def array(self) -> np.ndarray:
        """The values in their shape.

        Raises:
            ValueError: if numpy cannot have so many dimensions.
        """
        return self.values.reshape(self.shape)


def type_name(dtype: int) -> str:
    """What TensorFlow calls a type in error texts, such as `float`."""
    try:
        name = tf.as_dtype(dtype).name
    except TypeError:
        return f"unknown dtype enum ({dtype})" if dtype else "INVALID"
    return {"float32": "float", "float64": "double", "float16": "half"}.get(name, name)


def shape_text(shape: tuple[int, ...]) -> str:
    """What error texts call a shape, such as `[2,3]`."""
    return f"[{','.join(map(str, shape))}]"


def from_proto(proto: tensor_pb2.TensorProto) -> Tensor | None:
    """Reads a tensor; None where it is inconsistent or of a type that cannot be sent.

    A shape of unknown rank counts as the dimensions that it has, and so without any as a scalar.
    """
    field = _FIELDS.get(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = _count(shape)
    if count is not None and proto.dtype in OPAQUE:
        return Tensor(proto.dtype, np.empty(0, object), shape)
    if field is None or count is None:
        return None
    if count and proto.tensor_content:
        values = _from_content(proto.dtype, proto.tensor_content, count)
    else:
        values = _from_field(proto.dtype, getattr(proto, field), count)
    return None if values is None else Tensor(proto.dtype, values, shape)


def _count(shape: tuple[int, ...]) -> int | None:
    """The number of values; None for a shape that no tensor can have."""
    count = 1
    for size in shape:
        count *= size
        if size < 0 or count >= 2**63:  # Also where a later dimension is 0.
            return None
    return None if len(shape) > MAX_DIMENSIONS or count > _MAX_ELEMENTS else count


def _numpy_type(dtype: int) -> type:
    return object if dtype == types_pb2.DT_STRING else tf.as_dtype(dtype).as_numpy_dtype


def _from_content(dtype: int, content: bytes, count: int) -> np.ndarray | None:
    if dtype == types_pb2.DT_STRING:
        return _strings(content, count)
    if len(content) != count * np.dtype(_numpy_type(dtype)).itemsize:
        return None
    return np.frombuffer(content, _numpy_type(dtype))


def _strings(content: bytes, count: int) -> np.ndarray | None:
    """Lengths as varints, then the bytes of all strings."""
    at, lengths = 0, []
    for _ in range(min(count, len(content) + 1)):
        length = shift = 0
        while True:
            if at >= len(content) or shift > 28:
                return None
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if len(lengths) != count or at + sum(lengths) != len(content):
        return None
    values = np.empty(count, object)
    for index, length in enumerate(lengths):
        values[index] = content[at : at + length]
        at += length
    return values


def _from_field(dtype: int, field: Sequence, count: int) -> np.ndarray:
    """As many values as there are, filled up with the last one, or with zeros if there is none."""
    given = min(len(field), count)
    if dtype == types_pb2.DT_STRING:
        values = np.empty(count, object)
        values[:given] = field[:given]
        values[given:] = field[given - 1] if given else b""
        return values
    found: np.ndarray
    if dtype in _HALVES:
        found = np.array(field[:given], np.uint16).view(_numpy_type(dtype))
    else:
        wide = np.int64 if _FIELDS[dtype] == "int_val" else _numpy_type(dtype)
        found = np.fromiter(field, wide, len(field))[:given].astype(_numpy_type(dtype))
    if given == count:
        return found
    return np.pad(found, (0, count - given), "edge" if given else "constant")


def to_proto(tensor: Tensor) -> tensor_pb2.TensorProto:
    """Writes a tensor with its values in the field of their type, as a server answers."""
    proto = tensor_pb2.TensorProto(dtype=tensor.dtype)
    for size in tensor.shape:
        proto.tensor_shape.dim.add(size=size)
    if not tensor.shape:
        proto.tensor_shape.SetInParent()
    values = tensor.values
    if tensor.dtype in _HALVES:
        values = values.view(np.uint16)
    getattr(proto, _FIELDS[tensor.dtype]).extend(values.tolist())
    return proto


def builder(dtype: int) -> Callable[[list], np.ndarray]:
    """A function that makes the array of a type from a flat list of Python values."""
    if dtype == types_pb2.DT_STRING:

        def strings(values: list) -> np.ndarray:
            array = np.empty(len(values), object)
            array[:] = values
            return array

        return strings
    target = _numpy_type(dtype)

    def numbers(values: list) -> np.ndarray:
        # Through the widest type, so that values that do not fit wrap (integers) or become infinite (floats).
        wide = np.float64 if np.dtype(target).kind == "f" else None
        with np.errstate(over="ignore"):
            return np.array(values, wide if values else target).astype(target)

    return numbers
