"""Servers that fail, refuse or dawdle as a test tells them, and the fixtures that start them."""

import base64
import json
import subprocess
import threading
import time
from collections import Counter
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

EXHAUSTED = "Server Threadpool Exhausted"


class Flaky:
    """A model service that fails as told before it answers, and keeps what it was sent.

    A failure is a code, or a code and its details.
    """

    def __init__(self, *failures):
        self.failures = list(failures)
        self.seen = []

    def predict(self, request, context):
        self.seen.append((time.monotonic(), dict(context.invocation_metadata()), context.time_remaining()))
        if self.failures:
            failure = self.failures.pop(0)
            context.abort(*(failure if isinstance(failure, list) else (failure, "not now")))
        return predict_response([0.5] * len(request.inputs["examples"].string_val))


class Busy:
    """Answers an example with its length, after `refusals` refusals of the same request.

    Attributes:
        asked: requests so far.
        most: requests that were under way at the same time.
    """

    def __init__(self, refusals=0):
        self.asked = self.most = self._now = 0
        self._refusals = refusals
        self._tries = Counter()
        self._lock = threading.Lock()

    def answer(self, examples):
        """Lengths; None for a refusal."""
        with self._lock:
            self.asked += 1
            self._tries[tuple(examples)] += 1
            refused = self._tries[tuple(examples)] <= self._refusals
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.005)
        with self._lock:
            self._now -= 1
        return None if refused else [float(len(example)) for example in examples]

    def predict(self, request, context):
        import grpc

        values = self.answer(request.inputs["examples"].string_val)
        if values is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, EXHAUSTED)
        return predict_response(values)

    def handler(self, status=429):
        class Handler(Answering):
            def reply(_, body):  # noqa: N805 (`self` is the model)
                examples = [base64.b64decode(e["b64"]) for e in json.loads(body)["inputs"]["examples"]]
                values = self.answer(examples)
                if values is None:
                    return status, json.dumps({"error": EXHAUSTED})
                return 200, json.dumps({"outputs": values})

        return Handler


def predict_response(values):
    from tensorflow_serving.apis import predict_pb2

    response = predict_pb2.PredictResponse()
    response.outputs["ctr"].dtype = 1
    response.outputs["ctr"].float_val.extend(values)
    return response


class Answering(BaseHTTPRequestHandler):
    """Answers requests with what `reply` gives: a status and a JSON text."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, text = self.reply(body)
        self.wfile.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    def do_GET(self):
        self.do_POST()

    def log_message(self, *_):
        pass


@pytest.fixture
def grpc_server():
    """Starts a gRPC server of a `predict` method; gives its address."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    started = []

    def start(predict, credentials=None):
        made = grpc.server(futures.ThreadPoolExecutor(32))
        servicer = prediction_service_pb2_grpc.PredictionServiceServicer()
        servicer.Predict = predict
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, made)
        port = (
            made.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else made.add_insecure_port("127.0.0.1:0")
        )
        made.start()
        started.append(made)
        return f"127.0.0.1:{port}"

    yield start
    for made in started:
        made.stop(None)


@pytest.fixture
def flaky(grpc_server):
    def start(*failures, credentials=None):
        service = Flaky(*failures)
        return service, grpc_server(service.predict, credentials)

    return start


@pytest.fixture
def busy(grpc_server, http_server):
    """Starts a `Busy` model behind a protocol; gives it and its address."""

    def start(protocol, refusals=0, status=429):
        model = Busy(refusals)
        if protocol == "grpc":
            return model, grpc_server(model.predict)
        return model, http_server(model.handler(status))

    return start


@pytest.fixture
def http_server():
    started = []

    def start(handler):
        made = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
        made.request_queue_size = 256
        made.server_bind()
        made.server_activate()
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        started.append(made)
        return f"127.0.0.1:{made.server_address[1]}"

    yield start
    for made in started:
        made.shutdown()
        made.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of models.example, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key),
         "-out", str(certificate), "-subj", "/CN=models.example", "-addext", "subjectAltName=DNS:models.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key
