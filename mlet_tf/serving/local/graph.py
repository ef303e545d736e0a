"""The graph of a SavedModel and the session that runs it.

A session on the graph, as TF Serving has, and not the restored Python functions: these check shapes that a server
leaves to the kernels, and cost more per call.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.local.tensors import Tensor

CODES = {code.value[0]: code for code in Code}
# More than these do not go through numpy, into a session and out of it.
_NUMPY_DIMENSIONS = 32

SignatureDef = meta_graph_pb2.SignatureDef
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
        dtypes = [self._tensor(name).dtype.as_datatype_enum for name in fetches]
        deep = tuple(name for name in names if len(feeds[name].shape) > _NUMPY_DIMENSIONS)
        call = self._call(tuple(names), tuple(fetches), deep)
        try:
            if not deep:
                found = call(*(feeds[name].array for name in names))
                return [
                    Tensor.of(dtype, _as_array(value)) for dtype, value in zip(dtypes, found, strict=True)
                ]
            found = call(*_deep_arguments(feeds, names, deep))
        except tf.errors.OpError as error:
            raise StatusError(CODES[error.error_code], error.message) from None
        pairs = zip(found[::2], found[1::2], strict=True)
        return [
            Tensor(dtype, values, tuple(shape.tolist()))
            for dtype, (values, shape) in zip(dtypes, pairs, strict=True)
        ]

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
        rows = tensor.shape[0] if tensor.shape else 1
        if self._max_batch_size is not None and rows > self._max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self._max_batch_size}")

    def _call(self, feeds: tuple[str, ...], fetches: tuple[str, ...], deep: tuple[str, ...]) -> Call:
        key = (feeds, fetches, deep)
        with self._lock:
            if key not in self._calls:
                options = config_pb2.CallableOptions()
                options.run_options.timeout_in_ms = self._timeout_ms
                if deep:
                    self._connect_deep(options, feeds, fetches, deep)
                else:
                    options.feed.extend(feeds)
                    options.fetch.extend(fetches)
                # The public `make_callable` converts and checks shapes; this one passes arrays as they are.
                try:
                    self._calls[key] = self._session._make_callable_from_options(options)
                except tf.errors.OpError as error:
                    raise StatusError(CODES[error.error_code], error.message) from None
            return self._calls[key]

    def _connect_deep(
        self,
        options: config_pb2.CallableOptions,
        feeds: Sequence[str],
        fetches: Sequence[str],
        deep: Sequence[str],
    ) -> None:
        """Makes tensors of too many dimensions for numpy in the graph, and takes their results apart there."""
        with self._session.graph.as_default():
            for name in feeds:
                if name not in deep:
                    options.feed.append(name)
                    continue
                values = tf.compat.v1.placeholder(self._tensor(name).dtype, [None])
                shape = tf.compat.v1.placeholder(tf.int64, [None])
                options.feed.extend([values.name, shape.name])
                connection = options.tensor_connection.add(to_tensor=name)
                connection.from_tensor = tf.reshape(values, shape).name
            for name in fetches:
                fetched = self._tensor(name)
                shape = tf.raw_ops.Shape(input=fetched, out_type=tf.int64)
                options.fetch.extend([tf.reshape(fetched, [-1]).name, shape.name])


def _deep_arguments(
    feeds: Mapping[str, Tensor], names: Sequence[str], deep: Sequence[str]
) -> list[np.ndarray]:
    arguments = []
    for name in names:
        if name in deep:
            arguments += [feeds[name].values, np.array(feeds[name].shape, np.int64)]
        else:
            arguments.append(feeds[name].array)
    return arguments


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
