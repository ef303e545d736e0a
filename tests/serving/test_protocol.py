"""What a caller of a model server relies on; runs against the stand-in and, where there is one, a real server."""

import http.client
import json
import socket

import grpc
import numpy as np
import pytest
from serving_support import predict_request

HP2, CTR = "/v1/models/hp2", "/v1/models/ctr"
ONES = {"cat": [0] * 26, "dense": [1.0] * 13}


def ask(served, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(served.rest, timeout=300)
    raw = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
    connection.request(method, path, raw, headers or {})
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (f"{HP2}:predict", {"instances": [4, 0.25]}, {"predictions": [4.0, 2.125]}),
        (f"{HP2}:predict", {"instances": [[[4]], [[6]]]}, {"predictions": [[[4.0]], [[5.0]]]}),
        (f"{HP2}:predict", {"inputs": 8}, {"outputs": 6.0}),
        # A key ends at a zero byte, but where `inputs` are looked up by name.
        (f"{HP2}:predict", {"instances": [{"x\0y": 8}]}, {"predictions": [6.0]}),
        (f"{HP2}:regress", {"signature_name": "regress_x_to_y", "examples": [{"x\0": 2.0}]}, {"results": [3.0]}),
        (f"{HP2}:predict", {"inputs": {"x": [[8], [10]]}}, {"outputs": [[6.0], [7.0]]}),
        (f"{HP2}/versions/123:predict", '{"inputs": [1e-3]}', {"outputs": [2.0005]}),
        (f"{HP2}:classify", {"signature_name": "classify_x_to_y", "examples": [{"x": 4.0}, {}]},
         {"results": [[["", 4.0]], [["", 2.0]]]}),
        (f"{HP2}:regress", {"signature_name": "regress_x_to_y2", "examples": [{"x": [1.0]}]}, {"results": [3.5]}),
        (f"{HP2}:regress", {"signature_name": "regress_x_to_y", "context": {"x": 1.0}, "examples": [{}, {"x": 2.0}]},
         {"results": [2.5, 3.0]}),
    ],
)  # fmt: skip
def test_rest_answers(served, path, body, answer):
    status, text = ask(served, "POST", path, body)
    assert (status, json.loads(text)) == (200, answer)


@pytest.mark.parametrize(
    ("version", "body", "rows"),
    [("/labels/stable", {"inputs": {k: [v] for k, v in ONES.items()}}, lambda answer: answer["outputs"]),
     ("/versions/1", {"instances": [ONES]}, lambda answer: answer["predictions"][0])],
    ids=["label", "version"],
)  # fmt: skip
def test_rest_answers_of_a_version(served, version, body, rows):
    found = rows(json.loads(ask(served, "POST", f"{CTR}{version}:predict", body)[1]))
    assert np.reshape(found["ctr"], []) == pytest.approx(0.364517, abs=1e-6)
    assert np.reshape(found["logit"], []) == pytest.approx(-0.55581212, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (f"{HP2}:predict", "", 400, "JSON Parse error: The document is empty"),
        (f"{HP2}:predict", '{"instances": [1.0', 400,
         "JSON Parse error: Missing a comma or ']' after an array element. at offset: 18"),
        (f"{HP2}:predict", '{"instances": [1.0]} x', 400,
         "JSON Parse error: The document root must not be followed by other values. at offset: 21"),
        (f"{HP2}:predict", '{"instances": ["\\x"]}', 400,
         "JSON Parse error: Invalid escape character in string. at offset: 16"),
        (f"{HP2}:predict", '{"instances": [1e999]}', 400,
         "JSON Parse error: Number too big to be stored in double. at offset: 15"),
        (f"{HP2}:predict", "7", 400, "JSON Value: 7 Is not object"),
        (f"{HP2}:predict", {"signature_name": 3, "inputs": 1}, 400,
         'JSON Value: {\n    "signature_name": 3,\n    "inputs": 1\n} not formatted correctly. '
         "'signature_name' key must be a string value."),
        (f"{HP2}:predict", {"instances": [[1], [2, 3]]}, 400,
         "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
         "Expecting tensor size: 1 but got: 2"),
        (f"{HP2}:predict", {"instances": [[1, [2]]]}, 400,
         "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
         "Encountered list at unexpected level: 1 expected < 1"),
        (f"{HP2}:predict", {"inputs": [[1, 2], [3]]}, 400,
         "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        (f"{HP2}:predict", {"inputs": [[1], 2]}, 400,
         "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        (f"{HP2}:predict", {"inputs": {"b64": "AA=="}}, 400,
         'JSON Value: {\n    "b64": "AA=="\n} Type: Object is not of expected type: float'),
        (f"{HP2}:predict", {"instances": [1, {"x": 1}]}, 400,
         "Expecting value/list but got object at item 1 of input list"),
        (f"{CTR}:predict", {"instances": [{**ONES, "cat": [0.5] * 26}]}, 400,
         "Failed to process element: 0 key: cat of 'instances' list. Error: INVALID_ARGUMENT: "
         "JSON Value: 0.5 Type: Number is not of expected type: int64"),
        (f"{CTR}:predict", '{"inputs": {"cat": [[9223372036854775808]], "dense": [[1]]}}', 400,
         "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
        (f"{CTR}/labels/beta:predict", {"instances": [ONES]}, 400, "Unrecognized servable version label: beta"),
        (f"{CTR}:regress", {"examples": [{"cat": 1}]}, 400, "Expected one input Tensor."),
        (f"{CTR}:regress", {"signature_name": "regress", "examples": [1]}, 400,
         "Example must be JSON object but got JSON Number"),
        (f"{CTR}:regress", {"signature_name": "regress", "examples": {"cat": 1}}, 400,
         'JSON Value: {\n    "signature_name": "regress",\n    "examples": {\n        "cat": 1\n    }\n} '
         "Expecting 'examples' value to be an list/array"),
        (f"{CTR}:regress", {"signature_name": "regress", "examples": [{"cat": [1, "a"]}]}, 400,
         "Unexpected element type in feature: cat expecting type: int64"),
        (f"{CTR}:classify", {"signature_name": "classify", "examples": [{"cat": None}]}, 400,
         "Feature: cat has element with unexpected JSON type: Null"),
        (f"{CTR}:classify", {"signature_name": "classify", "examples": [{"cat": 2**63}]}, 400,
         "Feature: cat has uint64_t element. Only int64_t is supported."),
        (f"{CTR}/versions/3:predict", {"instances": [ONES]}, 404,
         "Servable not found for request: Specific(ctr, 3)"),
        ("/v1/models/a%20b:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(a b)"),
        (f"{HP2}:predict?x=1", {"instances": [1]}, 400, "Malformed request: POST /v1/models/hp2:predict?x=1"),
    ],
)  # fmt: skip
def test_rest_refusals(served, path, body, status, words):
    answered, text = ask(served, "POST", path, body)
    assert (answered, json.loads(text)["error"]) == (status, words)


def test_rest_texts_to_the_letter(served):
    status, text = ask(served, "POST", f"{HP2}:predict", {"instances": [[1, 2], [3, 4]]})
    assert (status, text) == (200, '{\n    "predictions": [[2.5, 3.0], [3.5, 4.0]\n    ]\n}')
    status, text = ask(served, "POST", f"{HP2}:predict", {"inputs": [[1], [3]]})
    assert text == (
        '{\n    "outputs": [\n        [\n            2.5\n        ],\n        [\n            3.5\n'
        "        ]\n    ]\n}"
    )
    status, text = ask(served, "GET", f"{CTR}/versions/2")
    assert text == (
        '{\n "model_version_status": [\n  {\n   "version": "2",\n   "state": "AVAILABLE",\n   "status": {\n'
        '    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n'
    )
    assert ask(served, "PUT", f"{HP2}:predict", "{}") == (
        400,
        '{\n    "error": "Malformed request: PUT /v1/models/hp2:predict"\n}',
    )
    assert ask(served, "GET", "/elsewhere")[0] == 404


def test_rest_status_and_metadata(served):
    _, text = ask(served, "GET", CTR)
    assert [v["version"] for v in json.loads(text)["model_version_status"]] == ["2", "1"]
    _, text = ask(served, "GET", f"{CTR}/labels/stable/metadata")
    metadata = json.loads(text)
    assert metadata["model_spec"] == {"name": "ctr", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["dense"]["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in signature["inputs"]["dense"]["tensor_shape"]["dim"]] == ["-1", "13"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert ask(served, "GET", "/v1/models/nope/metadata")[0] == 404


def test_rest_keeps_a_connection_through_errors(served):
    connection = http.client.HTTPConnection(served.rest, timeout=300)
    for body, status in (('{"instances": [1]}', 200), ("{", 400), ('{"instances": [1]}', 200)):
        connection.request("POST", f"{HP2}:predict", body)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.request("POST", f"{HP2}:predict", iter([b'{"instances"', b": [2]}"]), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert json.loads(connection.getresponse().read()) == {"predictions": [3.0]}
    connection.close()


@pytest.fixture(scope="module")
def stub(served):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(served.grpc) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict(stub, *args, **options):
    return stub.Predict(predict_request(*args, **options), timeout=300)


def test_grpc_answers(stub):
    import tensorflow as tf

    answer = predict(stub, inputs={"x": np.array([[2.0], [4.0]], np.float32)})
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), [[3.0], [4.0]])
    assert answer.model_spec.version.value == 123
    filled = tf.make_tensor_proto(np.float32(2.0), shape=[3])
    np.testing.assert_array_equal(
        tf.make_ndarray(predict(stub, inputs={"x": filled}).outputs["y"]), [3, 3, 3]
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ({"name": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        ({"signature": "nope"}, "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ({"name": "ctr", "label": "beta"}, "INVALID_ARGUMENT", "Unrecognized servable version label: beta"),
        ({"name": "ctr", "inputs": {"cat": [1], "zz": [1]}}, "INVALID_ARGUMENT",
         "Signature input alias: dense(feed name: serving_default_dense:0) not found in request and no default "
         "value provided. Inputs expected to be in the request {cat,zz}, or default input alias set: "),
        ({"inputs": {"x": [b"text"]}}, "INVALID_ARGUMENT", "Expects arg[0] to be float but string is provided"),
    ],
)  # fmt: skip
def test_grpc_refusals(stub, options, code, words):
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, **options)
    assert (caught.value.code().name, caught.value.details()) == (code, words)


def multi(*tasks):
    from tensorflow_serving.apis import inference_pb2

    request = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = name, signature
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(6.0)
    return request


def test_grpc_multi_inference(stub):
    answer = stub.MultiInference(
        multi(("hp2", "regress_x_to_y2", "regress"), ("hp2", "classify_x_to_y", "classify")), timeout=300
    )
    assert answer.results[0].regression_result.regressions[0].value == 6.0
    assert answer.results[1].classification_result.classifications[0].classes[0].score == 5.0
    task = ("hp2", "regress_x_to_y", "regress")
    other_input = ("hp2", "regress_x2_to_y3", "regress")
    for tasks, code, words in (
        ((), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ((task, task), "INVALID_ARGUMENT", "Duplicate evaluation of signature: regress_x_to_y"),
        ((task, ("ctr", "regress", "regress")), "INVALID_ARGUMENT",
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        # All inputs are fed with the examples; the signature with an input of numbers cannot take them.
        ((task, other_input), "INVALID_ARGUMENT", "Expects arg[1] to be float but string is provided"),
        ((("hp2", "nope", "regress"),), "INVALID_ARGUMENT", "Requested signature not found in model graph: nope"),
        ((("hp2", "regress_x_to_y", "predict"),), "UNIMPLEMENTED",
         "Unsupported signature method_name: tensorflow/serving/predict"),
    ):  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            stub.MultiInference(multi(*tasks), timeout=300)
        assert (caught.value.code().name, caught.value.details()) == (code, words)


def test_grpc_multi_inference_over_several_inputs(stub):
    """Signatures of one model, each with an input of its own, as TensorFlow 2 exports them."""
    request = multi(("ctr", "regress", "regress"), ("ctr", "classify", "classify"))
    feature = request.input.example_list.examples[0].features.feature
    feature["cat"].int64_list.value.extend([0] * 26)
    feature["dense"].float_list.value.extend([1.0] * 13)
    regressed, classified = stub.MultiInference(request, timeout=300).results
    value = regressed.regression_result.regressions[0].value
    assert value == pytest.approx(0.736138344, abs=1e-6)
    scores = [item.score for item in classified.classification_result.classifications[0].classes]
    assert scores == pytest.approx([1 - value, value], abs=1e-6)


def test_rest_names_that_are_no_utf8(served):
    """Bytes as they came, and a low surrogate alone: names of nothing, and no fault of the server."""
    for name, quoted in ((b"\xff", b"\xff"), (b"\\udc80", b"\xed\xb2\x80")):
        body = b'{"signature_name": "regress_x_to_y", "examples": [{"x": 2.0, "%s": 1}]}' % name
        assert json.loads(ask(served, "POST", f"{HP2}:regress", body)[1]) == {"results": [3.0]}
        for verb, rest, words in (
            ("regress", b'"examples": [{}]', b"No signature was found with the name: %s"),
            ("predict", b'"instances": [1]', b'Serving signature name: \\"%s\\" not found in signature def'),
        ):
            body = b'{"signature_name": "%s", %s}' % (name, rest)
            connection = http.client.HTTPConnection(served.rest, timeout=300)
            connection.request("POST", f"{HP2}:{verb}", body)
            response = connection.getresponse()
            assert (response.status, words % quoted in response.read()) == (400, True)
            connection.close()


def nested(value, depth):
    return "[" * depth + value + "]" * depth


@pytest.mark.parametrize(
    ("key", "depth", "status"),
    [("inputs", 33, 200), ("inputs", 100, 200), ("inputs", 254, 200), ("inputs", 255, 400), ("inputs", 3000, 400),
     ("instances", 100, 200), ("instances", 254, 200), ("instances", 255, 400)],
)  # fmt: skip
def test_rest_tensors_of_many_dimensions(served, key, depth, status):
    """As many as TensorFlow has, and numpy has not."""
    answered, text = ask(served, "POST", f"{HP2}:predict", f'{{"{key}": {nested("4", depth)}}}')
    assert answered == status
    if status == 200:
        answer = text.replace(" ", "").replace("\n", "")
        assert answer == f'{{"{"outputs" if key == "inputs" else "predictions"}":{nested("4.0", depth)}}}'
    else:
        assert json.loads(text)["error"] == "tensor parsing error: x"


def test_rest_refusals_and_answers_of_deep_bodies(served):
    # What is not asked for may be nested as deep as one likes.
    body = f'{{"a": {nested("", 3000)}, "instances": [1]}}'
    assert json.loads(ask(served, "POST", f"{HP2}:predict", body)[1]) == {"predictions": [2.5]}
    status, text = ask(served, "POST", f"{HP2}:predict", f'{{"inputs": {nested("true", 3000)}}}')
    assert (status, json.loads(text)["error"]) == (
        400,
        "JSON Value: true Type: True is not of expected type: float",
    )
    status, text = ask(served, "POST", f"{HP2}:predict", f'{{"inputs": [[1], {nested("1", 2000)}]}}')
    assert (status, json.loads(text)["error"]) == (
        400,
        "Encountered list at unexpected level: 2 expected < 2",
    )


@pytest.mark.parametrize(
    ("target", "status"),
    [("//v1/models/ctr", 404), ("///v1/models/ctr", 200), ("//host/v1/models/ctr", 200), ("//v1/v1/models/ctr", 200),
     ("http://host/v1/models/ctr", 200), ("http:/v1/models/ctr", 200), ("ftp://host:1/v1/models/ctr", 200),
     ("http://host", 404), ("v1/models/ctr", 404), ("a:b/v1/models/ctr", 404), ("/v1//models/ctr", 400),
     ("/v1/models//ctr", 400), ("//", 404), ("1a:b/v1", 400), ('/v1/models/c"tr', 400), ("/v1/models/c%tr", 400),
     ("/v1/models/%63tr", 200), ("/V1/MODELS/ctr", 200), ("/v2/models/ctr", 404), ("/v1", 404), ("/v1/", 400)],
)  # fmt: skip
def test_rest_targets(served, target, status):
    """A target is an address: what follows two slashes at its beginning is the host."""
    with socket.create_connection(("127.0.0.1", served.rest_api_port), timeout=300) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("AAAA", True), ("AAAA=", False), ("AAAA==", False), ("AAAA====", False), ("AAA", True), ("AAA=", True),
     ("AAA.", True), ("AAA==", False), ("AA", True), ("AA==", True), ("AA=.", True), ("AA = = ", True),
     ("AA=", False), ("AA===", False), ("A", False), ("A===", False), ("", True), ("=", False), ("A A\nA\tA", True),
     ("AA\u00a0AA", False), ("AA=A", False), ("AA-_", False), ("AA\u0000A", False), ("AB==", True),
     ("\u00e4AAA", False)],
)  # fmt: skip
def test_rest_base64(served, text, fits):
    """Padding may be left out, but not be half there; dots count as padding."""
    status, answer = ask(
        served, "POST", f"{CTR}:predict", {"signature_name": "examples", "inputs": [{"b64": text}]}
    )
    # What could be decoded is no tf.Example of this model.
    assert status == 400
    assert (json.loads(answer)["error"] == "Unable to base64 decode") is not fits


def shaped(sizes=(), *, unknown_rank=False, content=b"", dtype=1, values=(1.0,)):
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=dtype, tensor_content=content, float_val=[] if content else values)
    proto.tensor_shape.unknown_rank = unknown_rank
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [(shaped, ()), (lambda: shaped(unknown_rank=True), ()), (lambda: shaped([2], unknown_rank=True), (2,)),
     (lambda: shaped([1] * 33), (1,) * 33), (lambda: shaped([1] * 253 + [3]), (1,) * 253 + (3,)),
     (lambda: shaped([3, 0, 2]), (3, 0, 2)), (lambda: shaped([0], content=b"123"), (0,)),
     (lambda: shaped([2**62, 0, 2**40]), (2**62, 0, 2**40))],
    ids=["scalar", "unknown", "unknown with a dimension", "33", "254", "none", "none of odd bytes", "none of many"],
)  # fmt: skip
def test_grpc_shapes(stub, tensor, shape):
    answer = predict(stub, inputs={"x": tensor()}).outputs["y"]
    assert tuple(dim.size for dim in answer.tensor_shape.dim) == shape
    assert not answer.tensor_shape.unknown_rank
    assert list(answer.float_val) == [2.5] * int(np.prod([float(size) for size in shape]))


@pytest.mark.parametrize(
    "tensor",
    [lambda: shaped([1] * 255), lambda: shaped([1] * 300), lambda: shaped([-1]), lambda: shaped([0, -1]),
     lambda: shaped([2**62, 4]), lambda: shaped([2**62, 4, 0]), lambda: shaped([1], content=b"123")],
    ids=["255", "300", "negative", "negative after none", "too many", "too many before none", "odd bytes"],
)  # fmt: skip
def test_grpc_shapes_that_no_tensor_has(stub, tensor):
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, inputs={"x": tensor()})
    assert (caught.value.code().name, caught.value.details()) == (
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    )


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(2, "double"), (4, "uint8"), (8, "complex64"), (10, "bool"), (11, "qint8"), (14, "bfloat16"), (17, "uint16"),
     (18, "complex128"), (19, "half"), (20, "resource"), (21, "variant"), (23, "uint64"), (24, "float8_e5m2"),
     (29, "int4")],
)  # fmt: skip
def test_grpc_tensors_of_other_types(stub, dtype, name):
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, inputs={"x": shaped([1], dtype=dtype, values=())})
    assert caught.value.details() == f"Expects arg[0] to be float but {name} is provided"


@pytest.mark.parametrize("dtype", [0, 31, 99, 101, 108])
def test_grpc_types_that_no_tensor_has(stub, dtype):
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, inputs={"x": shaped([1], dtype=dtype, values=())})
    assert caught.value.details() == "tensor parsing error: x"


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [("tensorflow.serving.PredictionService/Predict", "INTERNAL", ""),
     ("tensorflow.serving.PredictionService/MultiInference", "INTERNAL", ""),
     ("tensorflow.serving.ModelService/GetModelStatus", "INTERNAL", ""),
     ("grpc.health.v1.Health/Check", "INVALID_ARGUMENT", "could not parse request")],
)  # fmt: skip
def test_grpc_bytes_that_are_no_message(served, method, code, words):
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{method}")(b"\xff\xff\xff", timeout=300)
    assert (caught.value.code().name, caught.value.details()) == (code, words)


def test_grpc_methods_that_the_stand_in_lacks(served):
    from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

    if served.real:
        pytest.skip("a real server has them")
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        service = model_service_pb2_grpc.ModelServiceStub(channel)
        service.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=300)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
