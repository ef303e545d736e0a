import asyncio
import contextlib
import json
import math
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import grpc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.convert import arrow_schema, convert
from mlet_tf.errors import InputError
from mlet_tf.serving import (
    AsyncCTRClient,
    CTRClient,
    LocalServer,
    ServeOptions,
    ServingError,
    Tls,
    push,
)
from mlet_tf.serving.rows import Rows

SCHEMA = ClickLogSchema(
    name="little",
    label="label",
    integers=("I1",),
    categoricals=("C1",),
    time=None,
    drop=("id",),
    columns=("label", "I1", "id", "C1"),
    separator="\t",
    header=False,
    missing=("", "NA"),
)
ROWS = [{"I1": 7, "C1": "ab"}, {"C1": "x"}, {"I1": -3}, {"I1": None, "C1": None}, {}]
EXPECTED = 1 / (1 + np.exp(-np.array([0.7 + 2, 1.0, -0.3, 0.0, 0.0])))


TEXTS = (
    st.sampled_from(
        ["", "NA", " ", "x", "a\0", "\ud800", "\udcff", "7\n", "\u0667", "\u00a07", "1_0", "1e3", "7.0"]
    )
    | st.sampled_from(
        ["0x7", "0X1f", "-0x7", "0x", " 7\t", "+7", "-0", "007", "9" * 20, "0x" + "f" * 16, "0" * 101]
    )
    | st.integers(-(2**63), 2**63).map(str)
    | st.integers(0, 2**64).map(hex)
    | st.text(max_size=4)
)
BYTES = TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.just(b"\xff")
INTEGERS = st.integers(-(2**63), 2**63 - 1)
COLUMN = st.one_of(
    *(st.lists(st.none() | cells, max_size=4) for cells in (TEXTS, BYTES, INTEGERS, TEXTS | BYTES | INTEGERS))
)


def ingested(column, cell):
    """What the pipeline's reader makes of a cell, None for a missing value; raises ValueError if nothing."""
    if not isinstance(cell, str | bytes):
        return cell if column == "I1" or cell is None else str(cell).encode()
    text = cell if isinstance(cell, bytes) else cell.encode()
    text.decode()
    wanted = arrow_schema(SCHEMA, (column,))
    (values,), bad = convert(pa.table({column: pa.array([text], pa.binary())}), wanted, SCHEMA)
    if bad:
        raise ValueError
    return values[0].as_py()


@settings(max_examples=150)
@given(COLUMN, COLUMN)
def test_few_rows_and_many_are_read_as_the_pipeline_reads_its_logs(integers, categories):
    import tensorflow as tf

    columns = {"I1": integers, "C1": categories, "id": [b"\xff"]}
    count = max(map(len, columns.values()))
    rows = [{name: cells[n] for name, cells in columns.items() if n < len(cells)} for n in range(count)]
    expected = [{} for _ in rows]
    bad = []
    for name in ("I1", "C1"):
        for n, cell in enumerate(columns[name]):
            try:
                expected[n][name] = ingested(name, cell)
            except ValueError:
                bad.append(f"row {n}: column {name!r} should be ")
    for sent in (rows, rows + [{}] * 100):
        if bad:
            with pytest.raises(InputError) as caught:
                Rows(sent, SCHEMA)
            assert str(caught.value).startswith(bad[0])
            continue
        examples = Rows(sent, SCHEMA).examples
        assert len(examples) == len(sent)
        for example, row in zip(examples, expected + [{}] * 100, strict=False):
            features = tf.train.Example.FromString(example).features.feature
            found = {name: [*f.int64_list.value, *f.bytes_list.value] for name, f in features.items()}
            assert found == {name: [value] for name, value in row.items() if value is not None}


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_model):
    folder = tmp_path_factory.mktemp("client")
    write_model.raw(folder / "model")
    push(folder / "model", folder / "ctr")
    push(folder / "model", folder / "ctr")
    return folder / "ctr"


@pytest.fixture(scope="module")
def server(base, serving):
    with serving(model_base_path=str(base), max_batch_size=1500) as running:
        yield running


def address(server, protocol):
    return f"127.0.0.1:{server.port if protocol == 'grpc' else server.rest_api_port}"


@pytest.fixture(params=["grpc", "rest"])
def client(request, server):
    with CTRClient(address(server, request.param), protocol=request.param, schema=SCHEMA, timeout=30) as made:
        yield made


FORMS = {
    "dicts": ROWS,
    "texts": [
        {"I1": "0x7", "C1": b"ab"},
        {"C1": "x", "I1": "NA"},
        {"I1": -3.0, "C1": ""},
        {"I1": float("nan")},
        {},
    ],
    "frame": pd.DataFrame({"C1": ["ab", "x", None, None, None], "I1": [7, None, -3, None, None], "label": 0}),
    "mixed frame": pd.DataFrame(
        {"C1": ["ab", b"x", None, np.nan, None], "I1": ["7", "NA", -3, None, np.nan]}
    ),
    "extension types": pd.DataFrame(
        {
            "C1": pd.array(["ab", "x", pd.NA, pd.NA, pd.NA], "string"),
            "I1": pd.array([7, pd.NA, -3, pd.NA, pd.NA], "Int64"),
        }
    ),
    "numpy scalars": [
        {"I1": np.int32(7), "C1": np.str_("ab")},
        {"C1": "x", "I1": np.float32("nan")},
        {"I1": np.float64(-3)},
        {},
        {},
    ],
    "table": pa.table(
        {"I1": pa.array([7, None, -3, None, None], pa.int32()), "C1": ["ab", "x", "NA", None, ""]}
    ),
    "dictionary": pa.table(
        {"I1": ["7", None, "-3", "", "NA"], "C1": pa.array(["ab", "x", None, None, None]).dictionary_encode()}
    ),
    "lines": ["1\t7\tq\tab", "0\tNA\tq\tx\n", b"0\t-3\t\t", "\tq\t", "\t\t"],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_answers_for_rows_in_any_form(client, form):
    answer = client.predict(FORMS[form])
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, EXPECTED, rtol=1e-6)


def test_many_rows_are_split_and_stay_in_order(server):
    rows = [{"I1": i % 50} for i in range(2500)]
    expected = 1 / (1 + np.exp(-0.1 * (np.arange(2500) % 50)))
    for protocol in ("grpc", "rest"):
        with CTRClient(address(server, protocol), protocol=protocol, max_batch=600) as client:
            np.testing.assert_allclose(client.predict(rows), expected, rtol=1e-6)
            assert client.predict([]).shape == (0,)


def test_a_request_beyond_the_servers_limit_is_refused_as_a_whole(server):
    if server.real:
        pytest.skip("a real server has no such limit unless it batches")
    with CTRClient(address(server, "grpc"), max_batch=2000) as client:
        with pytest.raises(ServingError, match="Task size 1600 is larger than maximum") as caught:
            client.predict([{}] * 1600)
        assert caught.value.row is None
        assert client.predict([{}] * 1500).shape == (1500,)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize("at", [0, 1, 612, 699])
def test_the_row_that_the_server_refuses_is_named(server, protocol, at):
    rows = [{"I1": 1, "C1": "a"} for _ in range(700)]
    rows[at] = {"I1": 1, "C1": "a", "zz": "fine"}
    with CTRClient(address(server, protocol), protocol=protocol, max_batch=512) as client:
        assert len(client.predict(rows)) == 700
        # Sent as text, since there is no schema; the model wants an integer.
        for other in rows:
            other["I1"] = "1" if other is rows[at] else None
        with pytest.raises(ServingError, match="Data types don't match") as caught:
            client.predict(rows)
    assert caught.value.row == at
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "'zz': 'fine'" in str(caught.value)
    assert str(caught.value).startswith(f"row {at}: INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"I1": 1}, {"I1": "x"}], "row 1: column 'I1' should be an integer or missing. Received: 'x'"),
        ([{"I1": 1.5}], "row 0: column 'I1' should be an integer or missing. Received: 1.5"),
        ([{"I1": 2**63}], "row 0: column 'I1' should be an integer"),
        ([{"I1": "9" * 20}], "row 0: column 'I1' should be an integer"),
        (
            [{"I1": 1}] * 150 + [{"I1": "1_0"}],
            "row 150: column 'I1' should be an integer or missing. Received: '1_0'",
        ),
        ([{"C1": ["a"]}], "row 0: column 'C1' should be UTF-8 text without a NUL byte or missing"),
        ([{"C2": "a"}], "columns: expected names of schema 'little' (I1, C1). Received: 'C2'"),
        (["1\t2\t3"], None),
        (["1\t2"], "row 0: expected 4 columns, or 3 without the label. Received: 2"),
        ({"I1": 1}, "rows: expected a list of dicts or of lines"),
        ("line", "rows: expected a list of dicts or of lines"),
        ([1], "row 0: expected a dict or a line. Received: int"),
        (
            ["\t\t", b"7\tq\t\xff"],
            "row 1: column 'C1' should be UTF-8 text without a NUL byte or missing. Received: b'\\xff'",
        ),
        (
            pd.DataFrame([[1, 2]], columns=["I1", "I1"]),
            "columns: expected each name once. Received: 'I1' 2 times",
        ),
        (
            pa.table([["a"], ["b"]], names=["C1", "C1"]),
            "columns: expected each name once. Received: 'C1' 2 times",
        ),
        (pd.DataFrame({"I1": [2**70]}), "row 0: column 'I1' should be an integer"),
        (pd.DataFrame({"C1": ["\ud800"]}), "row 0: column 'C1' should be UTF-8 text"),
        (pd.Series([1]), "rows: expected a list of dicts or of lines, a pandas frame or an Arrow table"),
    ],
)
def test_rows_that_do_not_fit_are_not_sent(server, rows, words):
    with CTRClient(address(server, "rest"), protocol="rest", schema=SCHEMA) as client:
        if words is None:
            client.predict(rows)
        else:
            with pytest.raises(InputError) as caught:
                client.predict(rows)
            assert words in str(caught.value)


def test_status_metadata_versions_and_readiness(client, server):
    assert client.status() == {2: "AVAILABLE"}
    metadata = client.metadata()
    assert metadata["serving_default"] == {
        "inputs": {"examples": ("string", [-1])},
        "outputs": {"ctr": ("float", [-1])},
    }
    client.wait_until_ready(timeout=5)
    client.wait_until_ready(2, timeout=5)
    with pytest.raises(ServingError, match=r"version 7 is not ready at .* after 0.2 s"):
        client.wait_until_ready(7, timeout=0.2)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_errors_carry_the_servers_words(server, protocol):
    target = address(server, protocol)
    cases = [
        ({"version": 9}, "NOT_FOUND", "Servable not found for request: Specific(ctr, 9)"),
        ({"label": "beta"}, "INVALID_ARGUMENT", "Unrecognized servable version label: beta"),
        ({"model_name": "a/b"}, "NOT_FOUND", "Servable not found for request: Latest(a/b)"),
    ]
    for options, code, words in cases:
        with CTRClient(target, protocol=protocol, **options) as client:
            for rows in ([{}], [{"I1": 1}, {}, {"C1": "a"}]):
                with pytest.raises(ServingError) as caught:
                    client.predict(rows)
                assert (caught.value.code, caught.value.details) == (code, words)
                assert caught.value.row is None  # It is no row's fault.


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("h:1", {"protocol": "soap"}, "expected 'grpc' or 'rest'"),
        ("h:1", {"version": 1, "label": "a"}, "expected one of both"),
        ("h:1", {"max_batch": 0}, "max_batch: expected an integer of at least 1. Received: 0"),
        ("h:1", {"timeout": 0}, "Received: 0, 5, 0.1"),
        ("http://h:1", {}, "target: expected host:port for grpc"),
        ("h:x", {"protocol": "rest"}, "target: expected host:port or http(s)://host:port for rest"),
        ("h:1", {"token": "t"}, "h:1 is another machine"),
        ("http://h:1", {"token": "t", "protocol": "rest"}, "token: expected tls"),
    ],
)
def test_options_that_do_not_fit(target, options, words):
    with pytest.raises(InputError) as caught:
        CTRClient(target, **options)
    assert words in str(caught.value)


class Flaky:
    """A model service that fails as told before it answers, and keeps what it was sent."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.seen = []

    def predict(self, request, context):
        from tensorflow_serving.apis import predict_pb2

        self.seen.append((time.monotonic(), dict(context.invocation_metadata()), context.time_remaining()))
        if self.failures:
            context.abort(self.failures.pop(0), "not now")
        response = predict_pb2.PredictResponse()
        response.outputs["ctr"].dtype = 1
        response.outputs["ctr"].float_val.extend([0.5] * len(request.inputs["examples"].string_val))
        return response


@pytest.fixture
def flaky():
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    started = []

    def start(*failures, credentials=None):
        service = Flaky(*failures)
        made = grpc.server(futures.ThreadPoolExecutor(2))
        servicer = prediction_service_pb2_grpc.PredictionServiceServicer()
        servicer.Predict = service.predict
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, made)
        port = (
            made.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else made.add_insecure_port("127.0.0.1:0")
        )
        made.start()
        started.append(made)
        return service, f"127.0.0.1:{port}"

    yield start
    for made in started:
        made.stop(None)


def test_retries_when_unavailable_with_growing_pauses(flaky):
    service, target = flaky(*[grpc.StatusCode.UNAVAILABLE] * 3)
    with CTRClient(target, backoff=0.05) as client:
        assert client.predict([{}])[0] == 0.5
    times = [seen[0] for seen in service.seen]
    pauses = np.diff(times)
    assert len(pauses) == 3
    assert pauses[0] >= 0.04
    assert pauses[2] >= 0.16


@pytest.mark.parametrize(
    "code", ["INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN"]
)
def test_nothing_but_unavailable_is_retried(flaky, code):
    service, target = flaky(grpc.StatusCode[code])
    with CTRClient(target) as client, pytest.raises(ServingError, match=f"{code}: not now"):
        client.predict([{}])
    assert len(service.seen) == 1


def test_retries_end_with_their_number_and_with_the_deadline(flaky):
    service, target = flaky(*[grpc.StatusCode.UNAVAILABLE] * 50)
    with (
        CTRClient(target, retries=2, backoff=0.01) as client,
        pytest.raises(ServingError, match="UNAVAILABLE"),
    ):
        client.predict([{}])
    assert len(service.seen) == 3
    begin = time.monotonic()
    with CTRClient(target, retries=40, timeout=1.0, backoff=0.1) as client, pytest.raises(ServingError):
        client.predict([{}])
    assert time.monotonic() - begin < 3
    assert service.seen[3][2] <= 1.0


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


def test_token_and_tls(flaky, tmp_path, server, certificate):
    certificate, key = certificate
    pair = (key.read_bytes(), certificate.read_bytes())
    service, target = flaky(credentials=grpc.ssl_server_credentials([pair]))
    tokens = iter(["one", "two"])
    tls = Tls(ca=certificate, server_name="models.example")
    with CTRClient(target, tls=tls, token=lambda: next(tokens)) as client:
        client.predict([{}])
        client.predict([{}])
    assert [seen[1]["authorization"] for seen in service.seen] == ["Bearer one", "Bearer two"]
    with (
        CTRClient(target, tls=tls, token="secret\n") as client,
        pytest.raises(InputError, match="token: expected printable"),
    ):
        client.predict([{}])
    with CTRClient(target, tls=True, retries=0) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
        client.predict([{}])
    with pytest.raises(InputError, match="tls: cannot read"):
        CTRClient(target, tls=Tls(ca=tmp_path / "absent.pem"))

    options = ServeOptions(
        model_base_path=server.options.model_base_path,
        port=0,
        rest_api_port=None,
        tls_key=str(key),
        tls_certificate=str(certificate),
    )
    with LocalServer(options) as secure, CTRClient(address(secure, "grpc"), tls=tls, schema=SCHEMA) as client:
        np.testing.assert_allclose(client.predict(ROWS), EXPECTED, rtol=1e-6)

    class Handler(Answering):
        def reply(self, _):
            seen.append((self.path, self.headers["Authorization"]))
            self.close_connection = True
            return 200, '{"outputs": [0.25]}'

    seen = []
    https = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    https.socket = context.wrap_socket(https.socket, server_side=True)
    threading.Thread(target=https.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{https.server_address[1]}/gateway"
    with CTRClient(url, protocol="rest", tls=tls, token="t") as client:
        assert client.predict([{}]).tolist() == [0.25]
    assert seen == [("/gateway/v1/models/ctr:predict", "Bearer t")]
    https.shutdown()
    https.server_close()


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


def test_rest_keeps_its_connection_and_survives_its_loss(http_server):
    connections, requests = [], []

    class Handler(Answering):
        def setup(self):
            connections.append(1)
            super().setup()

        def reply(self, _):
            requests.append(1)
            # Closed without a word, as servers do with connections that were idle for long.
            self.close_connection = len(requests) == 3
            return (503, '{"error": "busy"}') if len(requests) in (4, 5) else (200, '{"outputs": [0.25]}')

    with CTRClient(http_server(Handler), protocol="rest", backoff=0.01) as client:
        for _ in range(4):
            assert client.predict([{}]).tolist() == [0.25]
    assert len(requests) == 6
    assert len(connections) == 2


def test_threads_share_a_bounded_number_of_connections(http_server):
    lock, connections = threading.Lock(), {"ever": 0, "open": 0, "most": 0}

    class Handler(Answering):
        def setup(self):
            with lock:
                connections["ever"] += 1
                connections["open"] += 1
                connections["most"] = max(connections["most"], connections["open"])
            super().setup()

        def finish(self):
            super().finish()
            with lock:
                connections["open"] -= 1

        def reply(self, body):
            time.sleep(0.05)
            return 200, json.dumps({"outputs": [len(json.loads(body)["inputs"]["examples"][0]["b64"])]})

    answers = {}

    def ask(number):
        answers[number] = client.predict([{"C1": "x" * 3 * number}])[0]

    with CTRClient(http_server(Handler), protocol="rest", timeout=30, retries=0) as client:
        for number in range(20):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            thread.join()
        assert connections["ever"] == 1
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 2 <= connections["most"] <= 64
    # The length of an example, as sent: nobody got another's answer.
    assert answers == {n: 4 * math.ceil(len(Rows([{"C1": "x" * 3 * n}]).examples[0]) / 3) for n in range(200)}
    end = time.monotonic() + 5
    while connections["open"] and time.monotonic() < end:
        time.sleep(0.01)
    assert connections["open"] == 0


def test_a_request_waits_for_a_connection_no_longer_than_its_deadline(http_server, monkeypatch):
    monkeypatch.setattr("mlet_tf.serving.transport._MAX_CONNECTIONS", 1)
    begun, go_on = threading.Event(), threading.Event()

    class Handler(Answering):
        def reply(self, _):
            begun.set()
            go_on.wait(10)
            return 200, '{"outputs": [0.25]}'

    def refused():
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
            client.predict([{}])

    with CTRClient(http_server(Handler), protocol="rest", timeout=0.3, retries=0) as client:
        first = threading.Thread(target=refused)
        first.start()
        assert begun.wait(5)
        refused()
        first.join()
        go_on.set()
        assert client.predict([{}]).tolist() == [0.25]


ANSWER = b'HTTP/1.1 200 OK\r\nServer: slow\r\nContent-Length: 18\r\n\r\n{"outputs":[0.25]}'


@pytest.mark.parametrize("quick", [None, 0, 17, 60], ids=["request", "status", "head", "body"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_rest_deadline_holds_however_slowly_a_server_goes_on(certificate, quick, encrypted):
    """`quick` bytes of the answer come at once, each further one after 0.1 s; or the request is read slowly."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.settimeout(2)
    stopped = threading.Event()

    def answer(connection):
        with connection:
            while quick is None and not stopped.wait(0.01):
                connection.recv(20_000)
            connection.recv(65536)
            connection.sendall(ANSWER[:quick])
            for byte in ANSWER[quick:]:
                if stopped.wait(0.1):
                    return
                connection.sendall(bytes([byte]))

    def serve():
        # A client on a busy machine may be over its time before it connects.
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            if encrypted:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*certificate)
                accepted = context.wrap_socket(accepted, server_side=True)
            answer(accepted)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    tls = Tls(ca=certificate[0], server_name="models.example") if encrypted else None
    row = {"C1": "x" * (4_000_000 if quick is None else 10)}
    begin = time.monotonic()
    with (
        CTRClient(f"127.0.0.1:{listener.getsockname()[1]}", protocol="rest", timeout=0.5, tls=tls) as client,
        pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
    ):
        client.predict([row])
    took = time.monotonic() - begin
    stopped.set()
    thread.join(20)
    listener.close()
    assert 0.4 < took < 1.5


def test_a_rest_deadline_holds_however_many_addresses_do_not_answer(monkeypatch):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):  # Fills what the listener takes without accepting.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found] * 5)
        begin = time.monotonic()
        with (
            CTRClient("many.example:80", protocol="rest", timeout=0.5) as client,
            pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
        ):
            client.predict([{}])
        assert 0.4 < time.monotonic() - begin < 1.5


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[0.5]",
        "null",
        "no JSON",
        "[" * 100_000,
        '{"outputs": null}',
        '{"outputs": [null]}',
        '{"outputs": ["0.5"]}',
        '{"outputs": [[0.5], [0.5, 0.5]]}',
        '{"outputs": [0.5, 0.5]}',
        '{"outputs": {"a": [0.5], "b": [0.5]}}',
        '{"model_version_status": [{}]}',
        '{"model_version_status": [{"version": "one", "state": "AVAILABLE"}]}',
        '{"metadata": {"signature_def": []}}',
    ],
    ids=lambda text: text[:40],
)
def test_an_answer_that_no_model_server_gives_is_an_internal_error(http_server, text):
    class Handler(Answering):
        def reply(self, _):
            return 200, text

    with CTRClient(http_server(Handler), protocol="rest") as client:
        for ask in (client.status, client.metadata, lambda: client.predict([{}])):
            with pytest.raises(ServingError) as caught:
                ask()
            assert caught.value.code == "INTERNAL"


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_asyncio(server, protocol):
    async def main():
        target = address(server, protocol)
        async with AsyncCTRClient(target, protocol=protocol, schema=SCHEMA) as client:
            await client.wait_until_ready(timeout=10)
            assert await client.status() == {2: "AVAILABLE"}
            assert "serving_default" in await client.metadata()
            answers = await asyncio.gather(*(client.predict(ROWS[: n % 5 + 1]) for n in range(20)))
            for n, answer in enumerate(answers):
                np.testing.assert_allclose(answer, EXPECTED[: n % 5 + 1], rtol=1e-6)
        async with AsyncCTRClient(target, protocol=protocol) as client:
            with pytest.raises(ServingError) as caught:
                await client.predict([{"C1": "a"}, {"I1": "x"}])
            assert caught.value.row == 1

    asyncio.run(main())


def test_retries_in_asyncio(flaky):
    service, target = flaky(*[grpc.StatusCode.UNAVAILABLE] * 2)

    async def main():
        async with AsyncCTRClient(target, backoff=0.01) as client:
            assert (await client.predict([{}]))[0] == 0.5

    asyncio.run(main())
    assert len(service.seen) == 3


def test_rest_needs_no_tensorflow(server):
    script = f"""
import sys
sys.argv[0] = "mlet-tf"
from mlet_tf.serving import CTRClient
with CTRClient({address(server, "rest")!r}, protocol="rest") as client:
    client.wait_until_ready()
    print(float(client.predict([{{"I1": 7, "C1": "ab"}}])[0]))
print([name for name in ("tensorflow", "keras", "grpc") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    value, modules = run.stdout.splitlines()
    assert float(value) == pytest.approx(EXPECTED[0], rel=1e-6)
    assert modules == "[]"
