"""Warm-up requests in a SavedModel: a model server answers them before a version takes traffic."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from mlet_tf.errors import InputError
from mlet_tf.serving import arguments

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARMUP_REQUESTS = 1000


def write_warmup(
    saved_model_dir: str | Path,
    examples: Iterable[bytes],
    *,
    signature_name: str = "serving_default",
    model_name: str = "ctr",
    batch_size: int = 1,
    output: str | None = None,
) -> int:
    """Writes warm-up requests for a SavedModel.

    The file appears whole or not at all. A server refuses a version with a broken file, and exits if that is the
    only version.

    Args:
        saved_model_dir: Folder of the SavedModel.
        examples: Serialised tf.Examples of raw rows. Reading stops after 1000 requests, the most a server takes.
        signature_name: Signature to warm up. Its one input must be a vector of strings.
        model_name: Name of the model in the requests.
        batch_size: Examples in one request.
        output: File to write; by default the one in the SavedModel where a server looks for it.

    Returns:
        The number of requests written.

    Raises:
        InputError: There is no SavedModel, no such signature or no example, or an argument is out of range.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    batch_size = arguments.whole("batch_size", batch_size, 1)
    model_name = arguments.text("model_name", model_name)
    folder = os.fspath(saved_model_dir).rstrip("/")
    input_name = _string_input(folder, signature_name)
    rows = iter(examples)
    target = output or f"{folder}/{WARMUP_FILE}"
    tf.io.gfile.makedirs(os.path.dirname(target) or ".")  # noqa: PTH120 (a path of an object store too)
    unfinished = f"{target}.unfinished"
    written = 0
    try:
        with tf.io.TFRecordWriter(unfinished) as writer:
            while written < MAX_WARMUP_REQUESTS and (batch := list(itertools.islice(rows, batch_size))):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature_name
                request.inputs[input_name].CopyFrom(tf.make_tensor_proto(batch, tf.string, [len(batch)]))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())
                written += 1
        if not written:
            raise InputError(f"{folder}: expected at least one example to warm up with, received none")
        tf.io.gfile.rename(unfinished, target, overwrite=True)
    finally:
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.remove(unfinished)
    return written


def _string_input(folder: str, signature_name: str) -> str:
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import types_pb2
    from tensorflow.core.protobuf import saved_model_pb2

    model_file = f"{folder}/saved_model.pb"
    if not tf.io.gfile.exists(model_file):
        raise InputError(f"{folder}: expected a SavedModel, found no saved_model.pb in it")
    with tf.io.gfile.GFile(model_file, "rb") as file:
        content = file.read()
    try:
        signatures = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].signature_def
    except (DecodeError, IndexError):
        raise InputError(f"{model_file}: expected a SavedModel's graph, it is damaged or empty") from None
    if signature_name not in signatures:
        raise InputError(f"{folder}: no signature {signature_name!r}, only {', '.join(sorted(signatures))}")
    inputs = signatures[signature_name].inputs
    if len(inputs) != 1 or next(iter(inputs.values())).dtype != types_pb2.DT_STRING:
        received = ", ".join(sorted(inputs))
        raise InputError(
            f"{folder}: signature {signature_name!r} should take one vector of strings, it takes {received}"
        )
    return next(iter(inputs))
