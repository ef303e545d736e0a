"""Warm-up requests inside a SavedModel: a model server answers them before a version takes traffic."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from mlet_tf.errors import InputError

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
    """Writes warm-up requests for a SavedModel, into it if it is not yet pushed.

    A server refuses a version (and, if it is the only one, ends) over a broken file, so the file
    appears whole or not at all.

    Args:
        saved_model_dir: the SavedModel.
        examples: serialised tf.Examples of raw rows. A server takes 1000 requests; no more are read.
        signature_name: the signature to warm up; its one input must be a vector of strings.
        model_name: the name in the requests.
        batch_size: examples in one request.
        output: the file to write; left out, the one in the SavedModel where a server looks for it.

    Returns:
        How many requests were written.

    Raises:
        InputError: if the signature or the SavedModel is not there, or there are no examples.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    folder = os.fspath(saved_model_dir).rstrip("/")
    input_name = _string_input(folder, signature_name)
    rows = iter(examples)
    target = output or f"{folder}/{WARMUP_FILE}"
    tf.io.gfile.makedirs(target.rsplit("/", 1)[0])
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
    from tensorflow.core.framework import types_pb2
    from tensorflow.core.protobuf import saved_model_pb2

    model_file = f"{folder}/saved_model.pb"
    if not tf.io.gfile.exists(model_file):
        raise InputError(f"{folder}: expected a SavedModel, found no saved_model.pb in it")
    with tf.io.gfile.GFile(model_file, "rb") as file:
        model = saved_model_pb2.SavedModel.FromString(file.read())
    signatures = model.meta_graphs[0].signature_def
    if signature_name not in signatures:
        raise InputError(f"{folder}: no signature {signature_name!r}, only {', '.join(sorted(signatures))}")
    inputs = signatures[signature_name].inputs
    if len(inputs) != 1 or next(iter(inputs.values())).dtype != types_pb2.DT_STRING:
        received = ", ".join(sorted(inputs))
        raise InputError(
            f"{folder}: signature {signature_name!r} should take one vector of strings, it takes {received}"
        )
    return next(iter(inputs))
