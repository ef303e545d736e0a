"""The graph of a SavedModel and the session that runs it.

It uses a session on the graph, as TF Serving does, and not the restored Python functions, which check shapes that a
server leaves to the kernels, and cost more per call.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.local.tensors import Tensor

CODES = {code.value[0]: code for code in Code}
# Numpy's limits, which are below TensorFlow's, for what goes into a session and comes out of it.
_NUMPY_DIMENSIONS = 32
_NUMPY_BYTES = 2**63
_MAX_ITEM_BYTES = 16

SignatureDef: TypeAlias = meta_graph_pb2.SignatureDef
Call = Callable[..., Sequence]


class Graph:
    """A loaded SavedModel.

    Args:
        path: the SavedModel's folder.
        timeout_seconds: how long one run may take.
        max_batch_size: the largest first dimension of an input; None for no limit.
    """

    def __init__(self, path: str, *, timeout_seconds: float, max_batch_size: int | None) -> None:
        self._timeout_ms = max(1, int(timeout_seconds * 1000))
        self._max_batch_size = max_batch_size
        self._calls: dict[tuple, Call] = {}
        self._lock = threading.Lock()
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=_session_config())
        try:
            with self._session.graph.as_default(), _quiet():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], path)
        except BaseException:
            self.close()
            raise
        self.signatures: Mapping[str, SignatureDef] = dict(meta_graph.signature_def)

    def close(self) -> None:
        """Frees the memory. No run may be under way."""
        self._calls.clear()
        self._session.close()

    def run(self, feeds: Mapping[str, Tensor], fetches: Sequence[str]) -> list[Tensor]:
        """Runs the graph.

        Args:
            feeds: by the name of the graph's tensor.
            fetches: the names of the graph's tensors to compute.

        Raises:
            StatusError: as TensorFlow or the limits have it.
        """
        names = sorted(feeds)
        for position, name in enumerate(names):
            self._check_feed(position, name, feeds[name])
        packed = not all(_fits_numpy(feeds[name].shape) for name in names)
        call = self._call(tuple(names), tuple(fetches), packed)
        arguments = [_packed(feeds[name]) if packed else feeds[name].array for name in names]
        try:
            found = call(*arguments)
        except tf.errors.OpError as error:
            raise StatusError(CODES[error.error_code], error.message) from None
        if packed:
            return [_unpacked(value) for value in found]
        dtypes = [self._tensor(name).dtype.as_datatype_enum for name in fetches]
        return [Tensor.of(dtype, _as_array(value)) for dtype, value in zip(dtypes, found, strict=True)]

    def _tensor(self, name: str) -> tf.Tensor:
        try:
            return self._session.graph.get_tensor_by_name(name)
        except (KeyError, ValueError):
            raise invalid(
                f"Tensor {name}, specified in either feed_devices or fetch_devices was not found in the Graph"
            ) from None

    def _check_feed(self, position: int, name: str, tensor: Tensor) -> None:
        wanted = self._tensor(name).dtype.as_datatype_enum
        if wanted != tensor.dtype:
            raise invalid(
                f"Expects arg[{position}] to be {tensors.type_name(wanted)} "
                f"but {tensors.type_name(tensor.dtype)} is provided"
            )
        if tensor.dtype in tensors.OPAQUE:
            raise StatusError(
                Code.UNIMPLEMENTED, f"This stand-in takes no {tensors.type_name(tensor.dtype)} inputs."
            )
        rows = tensor.shape[0] if tensor.shape else 1
        if self._max_batch_size is not None and rows > self._max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self._max_batch_size}")

    def _call(self, feeds: tuple[str, ...], fetches: tuple[str, ...], packed: bool) -> Call:
        key = (feeds, fetches, packed)
        with self._lock:
            if key not in self._calls:
                if packed:
                    options = self._packed_options(feeds, fetches)
                else:
                    options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                options.run_options.timeout_in_ms = self._timeout_ms
                # The public `make_callable` converts and checks shapes; this one passes arrays as they are.
                try:
                    self._calls[key] = self._session._make_callable_from_options(options)
                except tf.errors.OpError as error:
                    raise StatusError(CODES[error.error_code], error.message) from None
            return self._calls[key]

    def _packed_options(self, feeds: Sequence[str], fetches: Sequence[str]) -> config_pb2.CallableOptions:
        """Inputs that are parsed in the graph, and outputs that are serialised there."""
        options = config_pb2.CallableOptions()
        with self._session.graph.as_default():
            for name in feeds:
                proto = tf.compat.v1.placeholder(tf.string, [])
                parsed = tf.io.parse_tensor(proto, self._tensor(name).dtype)
                options.feed.append(proto.name)
                options.tensor_connection.add(from_tensor=parsed.name, to_tensor=name)
            for name in fetches:
                options.fetch.append(tf.io.serialize_tensor(self._tensor(name)).name)
        return options


def _fits_numpy(shape: tuple[int, ...]) -> bool:
    values = math.prod(max(size, 1) for size in shape)
    return len(shape) <= _NUMPY_DIMENSIONS and values * _MAX_ITEM_BYTES < _NUMPY_BYTES


def _packed(tensor: Tensor) -> np.ndarray:
    return np.array(tensors.to_proto(tensor).SerializeToString(), object)


def _unpacked(value: bytes | np.ndarray) -> Tensor:
    content = value if isinstance(value, bytes) else value.item()
    tensor = tensors.from_proto(tensor_pb2.TensorProto.FromString(content))
    if tensor is None:
        raise StatusError(Code.INTERNAL, "the graph gave a tensor that cannot be sent")
    return tensor


def _session_config() -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto()
    config.gpu_options.allow_growth = True
    return config


def _as_array(value: np.ndarray | np.generic | bytes) -> np.ndarray:
    """What a session returns; a single value comes as a number or bytes."""
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, object if isinstance(value, bytes) else None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorFlow's advice to use a loader that does not give the graph."""
    logger = tf.compat.v1.logging
    before = logger.get_verbosity()
    logger.set_verbosity(logger.ERROR)
    try:
        yield
    finally:
        logger.set_verbosity(before)
