"""One loaded version of a model, and what it answers."""

from collections.abc import Mapping, Sequence

import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from mlet_tf.serving.local import tensors
from mlet_tf.serving.local.examples import (
    CLASSIFY,
    REGRESS,
    check_classify,
    check_regress,
    classifications,
    regressions,
    run_examples,
)
from mlet_tf.serving.local.graph import Graph, SignatureDef
from mlet_tf.serving.local.status import Code, StatusError, invalid
from mlet_tf.serving.local.tensors import Tensor
from mlet_tf.serving.warmup import MAX_WARMUP_REQUESTS, WARMUP_FILE

DEFAULT_SIGNATURE = "serving_default"


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
        self.name = name
        self.version = version
        self._graph = Graph(path, timeout_seconds=timeout_seconds, max_batch_size=max_batch_size)
        self.signatures: Mapping[str, SignatureDef] = self._graph.signatures
        try:
            self._warm_up(f"{path}/{WARMUP_FILE}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees the model's memory. No request may be under way."""
        self._graph.close()

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
        fetched = self._graph.run(feeds, [signature.outputs[alias].name for alias in outputs])
        return dict(zip(outputs, fetched, strict=True))

    def predict_proto(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Answers a Predict request."""
        inputs = {alias: tensors.from_proto(proto) for alias, proto in request.inputs.items()}
        outputs = self.predict(request.model_spec.signature_name, inputs, request.output_filter)
        response = predict_pb2.PredictResponse(model_spec=self._spec(request.model_spec))
        response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        for alias, output in outputs.items():
            response.outputs[alias].CopyFrom(tensors.to_proto(output))
        return response

    def classify(
        self, request: classification_pb2.ClassificationRequest
    ) -> classification_pb2.ClassificationResponse:
        """Answers a Classify request."""
        signature = self._signature(request.model_spec, "No signature was found with the name: ")
        check_classify(signature)
        outputs, examples = run_examples(self._graph, [signature], request.input)
        return classification_pb2.ClassificationResponse(
            result=classifications(signature, outputs, examples), model_spec=self._spec(request.model_spec)
        )

    def regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        """Answers a Regress request."""
        signature = self._signature(request.model_spec, "No signature was found with the name: ")
        check_regress(signature)
        outputs, examples = run_examples(self._graph, [signature], request.input)
        return regression_pb2.RegressionResponse(
            result=regressions(signature, outputs, examples), model_spec=self._spec(request.model_spec)
        )

    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """Answers a MultiInference request: several signatures, one run."""
        signatures = self._task_signatures(request.tasks)
        outputs, examples = run_examples(self._graph, signatures, request.input)
        response = inference_pb2.MultiInferenceResponse()
        for task, signature in zip(request.tasks, signatures, strict=True):
            result = response.results.add(model_spec=self._spec(task.model_spec))
            if task.method_name == CLASSIFY:
                result.classification_result.CopyFrom(classifications(signature, outputs, examples))
            else:
                result.regression_result.CopyFrom(regressions(signature, outputs, examples))
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
            if task.method_name == CLASSIFY:
                check_classify(found[name])
            elif task.method_name == REGRESS:
                check_regress(found[name])
            else:
                raise StatusError(
                    Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
                )
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
