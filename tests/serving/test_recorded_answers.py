"""The stand-in answers as a real TF Serving did, request by request.

Some things cannot be the same, and are made equal before comparing:

- maps (outputs by name, signatures) have no order of their own: compared as maps;
- `__inference_predict_771`: the number is drawn when a model is traced: compared without it;
- the models are not those that were recorded, but ones that answer alike (`tests/serving/conftest.py`): the numbers
  of "ctr" are compared within a tolerance, and whether a placeholder is a vector or of any shape is left out;
- texts that were cut when they were recorded (metadata, the 52 MB answer): compared as far as they go.
"""

import base64
import http.client
import json
import re

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_support import predict_request

CAT = list(range(26))
# Of the rows that were recorded without theirs.
HEADERS = {
    "gzip body": {"Content-Encoding": "gzip"},
    "options origin": {"Origin": "http://a.example"},
}
TRACED = re.compile(r"(__inference_\w+?)_\d+")
# In one of the recordings the placeholder "tf_example" of hp2 is a vector, in another it has no shape.
SPACE = r"(?:\s|\\n)*"
VECTOR = re.compile(rf"tensor_shape {{{SPACE}(?:dim {{{SPACE}size: -1{SPACE}}}|unknown_rank: true){SPACE}}}")
FLOAT = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
TOLERANCE = 1e-6


def rest(address, method, path, body, headers=None):
    connection = http.client.HTTPConnection(address, timeout=300)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    answer = response.status, response.headers.get("Content-Type"), response.read().decode()
    connection.close()
    return answer


def listed(wrong):
    return "\n".join(" | ".join(str(part)[:600] for part in parts) for parts in wrong)


def comparable(text):
    """A text without what differs from export to export of the same model."""
    return VECTOR.sub("tensor_shape { unknown_rank: true }", TRACED.sub(r"\1", text))


def same(ours, theirs, path, status):
    """Whether two bodies are the same text, but for the order of a map's entries in an answer.

    The model "ctr" that was recorded is not at hand; numbers of the one in its place are only about the same.
    """
    ours, theirs = comparable(ours), comparable(theirs)
    if status != 200 or ours == theirs:
        return ours == theirs
    is_exact = "/ctr" not in path

    def lines(text):
        found = sorted(line.rstrip(",") for line in text.split("\n"))
        return found if is_exact else [FLOAT.sub("#", line) for line in found]

    numbers = 0 if is_exact else TOLERANCE
    return lines(ours) == lines(theirs) and close(json.loads(ours), json.loads(theirs), numbers)


def close(ours, theirs, tolerance):
    """Whether two parsed answers are equal, floats within a relative tolerance."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[k], theirs[k], tolerance) for k in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs, [tolerance] * len(ours)))
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == theirs or abs(ours - theirs) <= tolerance * abs(theirs)
    return ours == theirs


def complete_signatures(text):
    """The signatures that lie whole in a metadata answer which may be cut."""
    begin = text.index('"signature_def": {\n "signature_def": {') + len(
        '"signature_def": {\n "signature_def": {'
    )
    found, decoder = {}, json.JSONDecoder()
    for match in re.finditer(r'\n  "(\w+)": (?=\{)', text[begin:]):
        try:
            value, end = decoder.raw_decode(text, begin + match.end())
        except ValueError:
            break
        found[match[1]] = (value, text[begin + match.end() : end])
    return found


def compare_metadata(ours, theirs):
    head = theirs.index('"signature_def"')
    assert ours[:head] == theirs[:head]
    mine, recorded = complete_signatures(ours), complete_signatures(theirs)
    assert recorded
    for name, (value, text) in recorded.items():
        assert mine[name] == (value, text)


def test_rest(served, recorded_answers):
    rows = [row for row in recorded_answers if "req" in row]
    assert len(rows) > 70
    wrong = []
    for row in rows:
        method, path = row["req"].split(" ", 1)
        body = row["body"].encode("latin-1") if row["body"] is not None else None
        status, content_type, text = rest(
            served.rest, method, path, body, row.get("headers", HEADERS.get(row["tag"]))
        )
        if (status, content_type) != (row["status"], row["ctype"]):
            wrong.append((row["tag"], status, content_type, text))
        elif "metadata" in row["tag"] and status == 200:
            compare_metadata(text, row["resp"])
        elif not same(text, row["resp"], path, status):
            wrong.append((row["tag"], text, row["resp"]))
    assert not wrong, listed(wrong)


@pytest.fixture(scope="module")
def stubs(served):
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    channel = grpc.insecure_channel(served.grpc, options=[("grpc.max_receive_message_length", -1)])
    yield {
        "predict": prediction_service_pb2_grpc.PredictionServiceStub(channel),
        "model": model_service_pb2_grpc.ModelServiceStub(channel),
        "health": health_pb2_grpc.HealthStub(channel),
        "channel": channel,
    }
    channel.close()


def ctr_inputs(rows=1, dtype=np.int64, dense_rows=None):
    return {
        "cat": np.tile(np.array(CAT, dtype), (rows, 1)),
        "dense": np.ones((rows if dense_rows is None else dense_rows, 13), np.float32),
    }


def ctr_example():
    import tensorflow as tf

    return tf.train.Example(
        features=tf.train.Features(
            feature={
                "cat": tf.train.Feature(int64_list=tf.train.Int64List(value=CAT)),
                "dense": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0] * 13)),
            }
        )
    )


def x_example(value=2.0):
    import tensorflow as tf

    return tf.train.Example(
        features=tf.train.Features(
            feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[value]))}
        )
    )


def on_examples(kind, name, signature, examples):
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    request = {
        "regress": regression_pb2.RegressionRequest,
        "classify": classification_pb2.ClassificationRequest,
    }[kind]()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    request.input.example_list.examples.extend(examples)
    return request


def status_request(name=None, version=None):
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    if name:
        request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return request


def metadata_request(name=None, fields=("signature_def",)):
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if name:
        request.model_spec.name = name
    return request


def calls(stubs):
    """The requests that the recorded tags stand for."""
    import tensorflow as tf
    from tensorflow_serving.apis import inference_pb2, predict_pb2

    x = {"x": np.array([1.0], np.float32)}
    corrupt = tf.make_tensor_proto(np.ones((1, 26), np.int64))
    corrupt.ClearField("int64_val")
    corrupt.tensor_content = b"123"
    multi = inference_pb2.MultiInferenceRequest()
    for kind, signature in (("regress", "regress_x_to_y"), ("classify", "classify_x_to_y")):
        task = multi.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "hp2", signature
    multi.input.example_list.examples.append(x_example())
    predict, model = stubs["predict"], stubs["model"]
    examples = np.array([ctr_example().SerializeToString()], object)
    check = stubs["health"].Check
    reflection = stubs["channel"].stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    return {
        "grpc predict filter": (predict.Predict, predict_request(inputs=x, output_filter=["y"])),
        "grpc bad filter": (predict.Predict, predict_request(inputs=x, output_filter=["zz"])),
        "grpc dup filter": (predict.Predict, predict_request(inputs=x, output_filter=["y", "y"])),
        "grpc no model_spec": (predict.Predict, predict_pb2.PredictRequest()),
        "grpc unknown version": (predict.Predict, predict_request(inputs=x, version=99)),
        "grpc no inputs": (predict.Predict, predict_request()),
        "grpc wrong input": (predict.Predict, predict_request(inputs={"zz": x["x"]})),
        "grpc extra input": (predict.Predict, predict_request(inputs={**x, "zz": x["x"]})),
        "grpc wrong dtype": (predict.Predict, predict_request(inputs={"x": np.array([1], np.int32)})),
        "grpc ctr": (predict.Predict, predict_request("ctr", inputs=ctr_inputs())),
        "grpc ctr wrong dtype int32": (
            predict.Predict,
            predict_request("ctr", inputs=ctr_inputs(dtype=np.int32)),
        ),
        "grpc ctr batch 0": (predict.Predict, predict_request("ctr", inputs=ctr_inputs(0))),
        "grpc ctr batch mismatch": (
            predict.Predict,
            predict_request("ctr", inputs=ctr_inputs(2, dense_rows=1)),
        ),
        "grpc ctr missing": (predict.Predict, predict_request("ctr", inputs={"cat": ctr_inputs()["cat"]})),
        "grpc ctr label": (predict.Predict, predict_request("ctr", inputs=ctr_inputs(), label="stable")),
        "grpc ctr examples": (
            predict.Predict,
            predict_request("ctr", inputs={"examples": tf.make_tensor_proto(examples)}, signature="examples"),
        ),
        "grpc ctr garbage example": (
            predict.Predict,
            predict_request("ctr", inputs={"examples": tf.make_tensor_proto([b""])}, signature="examples"),
        ),
        "grpc corrupt tensor_content": (
            predict.Predict,
            predict_request("ctr", inputs={"cat": corrupt, "dense": ctr_inputs()["dense"]}),
        ),
        "grpc status": (model.GetModelStatus, status_request("ctr")),
        "grpc status v": (model.GetModelStatus, status_request("ctr", 1)),
        "grpc status unknown v": (model.GetModelStatus, status_request("ctr", 77)),
        "grpc status unknown": (model.GetModelStatus, status_request("nope")),
        "grpc status no spec": (model.GetModelStatus, status_request()),
        "grpc metadata": (predict.GetModelMetadata, metadata_request("hp2")),
        "grpc metadata no field": (predict.GetModelMetadata, metadata_request("hp2", ())),
        "grpc metadata bad field": (predict.GetModelMetadata, metadata_request("hp2", ["zz"])),
        "grpc metadata unknown": (predict.GetModelMetadata, metadata_request("nope")),
        "grpc metadata no spec": (predict.GetModelMetadata, metadata_request()),
        "grpc classify": (predict.Classify, on_examples("classify", "hp2", "classify_x_to_y", [x_example()])),
        "grpc regress": (predict.Regress, on_examples("regress", "hp2", "regress_x_to_y", [x_example()])),
        "grpc regress empty": (predict.Regress, on_examples("regress", "hp2", "regress_x_to_y", [])),
        "grpc classify empty": (predict.Classify, on_examples("classify", "hp2", "classify_x_to_y", [])),
        "grpc ctr regress": (predict.Regress, on_examples("regress", "ctr", "regress", [ctr_example()])),
        "grpc regress unknown sig": (predict.Regress, on_examples("regress", "hp2", "nope", [x_example()])),
        "grpc regress default sig": (predict.Regress, on_examples("regress", "hp2", "", [x_example()])),
        "grpc multiinference": (predict.MultiInference, multi),
        "grpc big 52 MB request": (predict.Predict, predict_request("ctr", inputs=ctr_inputs(200_000))),
        "grpc health ": (check, health_pb2.HealthCheckRequest(service="")),
        "grpc health PredictionService": (check, health_pb2.HealthCheckRequest(service="PredictionService")),
        "grpc health ModelService": (check, health_pb2.HealthCheckRequest(service="ModelService")),
        "grpc grpc.reflection.v1alpha.ServerReflection": (
            lambda message, timeout: list(reflection(message, timeout=timeout)),
            iter([b""]),
        ),
    }


def answer_of(call, request):
    try:
        return "OK", call(request, timeout=300)
    except grpc.RpcError as error:
        return error.code().name, error.details()


def differs(tag, row, code, answer):
    if code != row["code"]:
        return True
    if code != "OK":
        return comparable(answer) != comparable(row["details"])
    if "health" in tag:
        return answer.SerializeToString().hex() != row["resp"]
    if tag == "grpc big 52 MB request":
        return not str(answer).startswith(row["resp"][:90])
    if tag == "grpc metadata":
        return not str(answer).startswith(row["resp"].split("    value:")[0])
    return text_format.Parse(row["resp"], type(answer)()) != answer


def test_grpc(stubs, recorded_answers):
    """Requests that a tag stands for."""
    rows = {row["tag"]: row for row in recorded_answers if "code" in row and "request" not in row}
    requests = calls(stubs)
    assert set(rows) in (set(), set(requests))
    wrong = []
    for tag, row in rows.items():
        code, answer = answer_of(*requests[tag])
        if differs(tag, row, code, answer):
            wrong.append((tag, code, str(answer)[:500], row.get("details", row.get("resp"))))
    assert not wrong, listed(wrong)


def responses():
    """The message that each method answers with."""
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        predict_pb2,
        regression_pb2,
    )

    return {
        "Predict": predict_pb2.PredictResponse,
        "Classify": classification_pb2.ClassificationResponse,
        "Regress": regression_pb2.RegressionResponse,
        "MultiInference": inference_pb2.MultiInferenceResponse,
        "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataResponse,
        "GetModelStatus": get_model_status_pb2.GetModelStatusResponse,
    }


def same_bytes_answer(method, ours, theirs):
    """Whether an answer of bytes is what was recorded as text (of a message) or base64 (of all else)."""
    kind = responses().get(method.rsplit("/", 1)[1])
    if kind is None:
        return base64.b64decode(theirs) == ours
    mine, recorded = kind.FromString(ours), text_format.Parse(theirs, kind())
    if method.endswith("/GetModelMetadata"):  # Maps inside of bytes, and names that are drawn.
        return mine.model_spec == recorded.model_spec and set(mine.metadata) == set(recorded.metadata)
    # Floats of "ctr" are only about the same, see `same`.
    return close(MessageToDict(mine), MessageToDict(recorded), TOLERANCE)


def test_grpc_bytes(stubs, recorded_answers):
    """Requests that were recorded as the bytes that were sent."""
    rows = [row for row in recorded_answers if "request" in row]
    wrong = []
    for row in rows:
        code, answer = answer_of(
            stubs["channel"].unary_unary(row["method"]), base64.b64decode(row["request"])
        )
        if code != row["code"]:
            wrong.append((row["tag"], code, str(answer)[:500], row["code"]))
        elif code != "OK":
            if comparable(answer) != comparable(row["details"]):
                wrong.append((row["tag"], answer, row["details"]))
        elif not same_bytes_answer(row["method"], answer, row["resp"]):
            wrong.append((row["tag"], answer, row["resp"]))
    assert not wrong, listed(wrong)
