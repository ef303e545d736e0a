"""One loaded version of a model, and what it answers.

It runs a session on the graph, as TF Serving does, and not the restored Python functions: these check shapes
that a server leaves to the kernels, and cost more per call.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.local.tensors import Tensor
from mlet_tf.serving.warmup import MAX_WARMUP_REQUESTS, WARMUP_FILE

DEFAULT_SIGNATURE = "serving_default"
CODES = {code.value[0]: code for code in Code}
_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"

SignatureDef = meta_graph_pb2.SignatureDef


class Servable:
    """A version of a model, ready to answer.

    Args:
        name: the model's name.
        version: its number.
        path: the SavedModel's folder.
        timeout_seconds: how long one run of the graph may take.
        max_batch_size: the largest first dimension of an input; None for no limit.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        *,
        timeout_seconds: float = 30.0,
        max_batch_size: int | None = None,
    ) -> None:
        """Loads the version and answers its warm-up requests."""
        self.name = name
        self.version = version
        self._timeout_ms = max(1, int(timeout_seconds * 1000))
        self._max_batch_size = max_batch_size
        self._calls: dict[tuple, object] = {}
        self._lock = threading.Lock()
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=_session_config())
        try:
            with self._session.graph.as_default(), _quiet():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], path)
            self.signatures: Mapping[str, SignatureDef] = dict(meta_graph.signature_def)
            self._warm_up(f"{path}/{WARMUP_FILE}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees the model's memory. No request may be under way."""
        self._calls.clear()
        self._session.close()

    # --- requests -----------------------------------------------------------------------------------------

    def input_types(self, signature_name: str) -> dict[str, int]:
        """Names and types of a signature's inputs, for a REST body to be read by."""
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        inputs = self.signatures[name].inputs
        return {key: inputs[key].dtype for key in sorted(inputs)}

    def predict(
        self, signature_name: str, inputs: Mapping[str, Tensor | None], output_filter: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Runs a signature on named inputs (None for one that could not be read)."""
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = self.signatures[name]
        feeds = _feeds(signature, inputs)
        outputs = _chosen_outputs(signature, output_filter)
        fetched = self._run(feeds, [signature.outputs[alias].name for alias in outputs])
        return {
            alias: Tensor(signature.outputs[alias].dtype, array)
            for alias, array in zip(outputs, fetched, strict=True)
        }

    def predict_proto(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Answers a Predict request."""
        inputs = {alias: tensors.from_proto(proto) for alias, proto in request.inputs.items()}
        outputs = self.predict(request.model_spec.signature_name, inputs, request.output_filter)
        response = predict_pb2.PredictResponse(model_spec=self._spec(request.model_spec))
        response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        for alias, output in outputs.items():
            response.outputs[alias].CopyFrom(tensors.to_proto(output.dtype, output.array))
        return response

    def classify(
        self, request: classification_pb2.ClassificationRequest
    ) -> classification_pb2.ClassificationResponse:
        """Answers a Classify request."""
        signature = self._signature(request.model_spec, "No signature was found with the name: ")
        _check_classify(signature)
        outputs, examples = self._run_examples([signature], request.input)
        return classification_pb2.ClassificationResponse(
            result=_classifications(signature, outputs, examples), model_spec=self._spec(request.model_spec)
        )

    def regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        """Answers a Regress request."""
        signature = self._signature(request.model_spec, "No signature was found with the name: ")
        _check_regress(signature)
        outputs, examples = self._run_examples([signature], request.input)
        return regression_pb2.RegressionResponse(
            result=_regressions(signature, outputs, examples), model_spec=self._spec(request.model_spec)
        )

    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """Answers a MultiInference request: several signatures, one run."""
        signatures = self._task_signatures(request.tasks)
        outputs, examples = self._run_examples(signatures, request.input)
        response = inference_pb2.MultiInferenceResponse()
        for task, signature in zip(request.tasks, signatures, strict=True):
            result = response.results.add(model_spec=self._spec(task.model_spec))
            if task.method_name == _CLASSIFY:
                result.classification_result.CopyFrom(_classifications(signature, outputs, examples))
            else:
                result.regression_result.CopyFrom(_regressions(signature, outputs, examples))
        return response

    def _task_signatures(self, tasks: Sequence[inference_pb2.InferenceTask]) -> list[SignatureDef]:
        found: dict[str, SignatureDef] = {}
        for task in tasks:
            if not task.model_spec.name:
                raise invalid("Found ModelSpec with an empty model name.")
            if task.model_spec.name != tasks[0].model_spec.name:
                raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
            name = task.model_spec.signature_name or DEFAULT_SIGNATURE
            if name in found:
                raise invalid(f"Duplicate evaluation of signature: {name}")
            found[name] = self._signature(task.model_spec, "Requested signature not found in model graph: ")
            if task.method_name == _CLASSIFY:
                _check_classify(found[name])
            elif task.method_name == _REGRESS:
                _check_regress(found[name])
            else:
                raise StatusError(
                    Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
                )
            if len({signature.inputs["inputs"].name for signature in found.values()}) > 1:
                raise invalid("Input tensor must be the same for all Signatures.")
        return list(found.values())

    def _signature(self, spec: model_pb2.ModelSpec, complaint: str) -> SignatureDef:
        name = spec.signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise invalid(complaint + name)
        return self.signatures[name]

    def _spec(self, asked: model_pb2.ModelSpec) -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=asked.name, signature_name=asked.signature_name or DEFAULT_SIGNATURE)
        spec.version.value = self.version
        return spec

    # --- running ------------------------------------------------------------------------------------------

    def _run_examples(
        self, signatures: Sequence[SignatureDef], examples: input_pb2.Input
    ) -> tuple[dict[str, np.ndarray], int]:
        """Feeds serialised examples to the signatures' one input; the outputs by tensor name."""
        rows = _serialized(examples)
        array = np.empty(len(rows), object)
        array[:] = rows
        tensor = Tensor(types_pb2.DT_STRING, array)
        feeds = {signature.inputs["inputs"].name: tensor for signature in signatures}
        names = sorted({info.name for signature in signatures for info in signature.outputs.values()})
        return dict(zip(names, self._run(feeds, names), strict=True)), len(rows)

    def _run(self, feeds: Mapping[str, Tensor], fetches: Sequence[str]) -> list[np.ndarray]:
        names = sorted(feeds)
        for position, name in enumerate(names):
            self._check_feed(position, name, feeds[name])
        call = self._call(tuple(names), tuple(fetches))
        try:
            return [_as_array(value) for value in call(*(feeds[name].array for name in names))]
        except tf.errors.OpError as error:
            raise StatusError(CODES[error.error_code], error.message) from None

    def _check_feed(self, position: int, name: str, tensor: Tensor) -> None:
        try:
            wanted = self._session.graph.get_tensor_by_name(name).dtype.as_datatype_enum
        except (KeyError, ValueError):
            raise invalid(
                f"Tensor {name}, specified in either feed_devices or fetch_devices was not found in the Graph"
            ) from None
        if wanted != tensor.dtype:
            raise invalid(
                f"Expects arg[{position}] to be {tensors.type_name(wanted)} "
                f"but {tensors.type_name(tensor.dtype)} is provided"
            )
        rows = len(tensor.array) if tensor.array.shape else 1
        if self._max_batch_size is not None and rows > self._max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self._max_batch_size}")

    def _call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> object:
        key = (feeds, fetches)
        with self._lock:
            if key not in self._calls:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                options.run_options.timeout_in_ms = self._timeout_ms
                # The public `make_callable` converts and checks shapes; this one passes arrays as they are.
                try:
                    self._calls[key] = self._session._make_callable_from_options(options)
                except tf.errors.OpError as error:
                    raise StatusError(CODES[error.error_code], error.message) from None
            return self._calls[key]

    def _warm_up(self, path: str) -> None:
        if not tf.io.gfile.exists(path):
            return
        answer = {
            "predict_log": self.predict_proto,
            "classify_log": self.classify,
            "regress_log": self.regress,
            "multi_inference_log": self.multi_inference,
        }
        for count, record in enumerate(tf.compat.v1.io.tf_record_iterator(path), start=1):
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind not in answer:
                raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
            answer[kind](getattr(log, kind).request)
            if count > MAX_WARMUP_REQUESTS:
                raise invalid(
                    f"Number of warmup records exceeds the maximum ({MAX_WARMUP_REQUESTS}) at {path}"
                )


def _session_config() -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto()
    config.gpu_options.allow_growth = True
    return config


def _as_array(value: Any) -> np.ndarray:
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


def _feeds(signature: SignatureDef, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    sent, wanted = sorted(inputs), sorted(signature.inputs)
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        extra = ",".join(key for key in sent if key not in wanted)
        missing = ",".join(key for key in wanted if key not in sent)
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{','.join(sent)}}}) "
            f"!= len({{{','.join(wanted)}}}). Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
        )
    feeds = {}
    for alias in wanted:
        name = signature.inputs[alias].name
        if alias in inputs:
            tensor = inputs[alias]
        elif alias in signature.defaults:
            tensor = tensors.from_proto(signature.defaults[alias])
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {{{','.join(sent)}}}, or default "
                f"input alias set: {','.join(sorted(signature.defaults))}"
            )
        if tensor is None:
            raise invalid(f"tensor parsing error: {alias}")
        feeds[name] = tensor
    unknown = [key for key in sent if key not in wanted]
    if unknown:
        used = ",".join(key for key in sent if key in wanted)
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {used}, request input: {','.join(sent)}"
        )
    return feeds


def _chosen_outputs(signature: SignatureDef, output_filter: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{known}}}."
            )
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen.append(alias)
    return chosen or sorted(signature.outputs)


def _serialized(examples: input_pb2.Input) -> list[bytes]:
    kind = examples.WhichOneof("kind")
    if kind == "example_list":
        rows = [example.SerializeToString() for example in examples.example_list.examples]
    elif kind == "example_list_with_context":
        # Two serialised messages in a row are read as one that merges them.
        context = examples.example_list_with_context.context.SerializeToString()
        rows = [
            context + example.SerializeToString() for example in examples.example_list_with_context.examples
        ]
    else:
        rows = []
    if not rows:
        raise invalid("Input is empty.")
    return rows


def _check_classify(signature: SignatureDef) -> None:
    _check_sizes(signature, most_outputs=2)
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    if not {"classes", "scores"} & set(signature.outputs):
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature}'
        )


def _check_regress(signature: SignatureDef) -> None:
    _check_sizes(signature, most_outputs=1)
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")


def _check_sizes(signature: SignatureDef, most_outputs: int) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if not 1 <= len(signature.outputs) <= most_outputs:
        if most_outputs == 1:
            raise invalid("Expected one output Tensor.")
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")


def _classifications(
    signature: SignatureDef, outputs: Mapping[str, np.ndarray], examples: int
) -> classification_pb2.ClassificationResult:
    found = {}
    for alias, dtype in (("classes", types_pb2.DT_STRING), ("scores", types_pb2.DT_FLOAT)):
        if alias in signature.outputs:
            info = signature.outputs[alias]
            found[alias] = outputs[info.name]
            _check_classify_output(alias, dtype, info.dtype, found[alias], examples)
    classes, scores = found.get("classes"), found.get("scores")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    width = next(iter(found.values())).shape[1]
    for row in range(examples):
        target = result.classifications.add()
        for column in range(width):
            item = target.classes.add()
            if classes is not None:
                item.label = classes[row, column].decode("utf-8", "replace")
            if scores is not None:
                item.score = scores[row, column]
    return result


def _check_classify_output(alias: str, expected: int, dtype: int, array: np.ndarray, examples: int) -> None:
    if array.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape_text(array)}")
    if dtype != expected:
        raise invalid(
            f"Expected {alias} Tensor of {types_pb2.DataType.Name(expected)}. "
            f"Got: {types_pb2.DataType.Name(dtype)}"
        )
    if len(array) != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")


def _regressions(
    signature: SignatureDef, outputs: Mapping[str, np.ndarray], examples: int
) -> regression_pb2.RegressionResult:
    info = signature.outputs["outputs"]
    array = outputs[info.name]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape_text(array)}"
        )
    if len(array) != examples:
        raise invalid(f"Input batch size did not match output batch size: {examples} vs. {len(array)}")
    if info.dtype != types_pb2.DT_FLOAT:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {types_pb2.DataType.Name(info.dtype)}")
    result = regression_pb2.RegressionResult()
    for value in array.reshape(-1).tolist():
        result.regressions.add(value=value)
    return result


def _shape_text(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"
