import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from serving_support import server_kinds, start_server

from mlet_tf.errors import InputError
from mlet_tf.serving import (
    CTRClient,
    LocalServer,
    ServeOptions,
    ServingError,
    find_model_server,
    push,
    rollback,
    write_warmup,
)
from mlet_tf.serving.server import ModelServer

POLL = 0.1
PATIENCE = 300.0  # Of waits that only end a test that fails: the machine may be busy.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def models(tmp_path_factory, write_model):
    """SavedModels whose answer to I1=1 is sigmoid(0.1), sigmoid(0.2), sigmoid(0.3)."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for number in (1, 2, 3):
        paths.append(folder / str(number))
        write_model.raw(paths[-1], weight=number / 10)
    return paths


@pytest.fixture
def base(tmp_path, models):
    push(models[0], tmp_path / "ctr")
    return tmp_path / "ctr"


def serve(base, **options):
    options = {"port": 0, "rest_api_port": 0, "file_system_poll_wait_seconds": POLL, **options}
    return LocalServer(ServeOptions(model_base_path=str(base), **options))


def grpc_client(server, **options):
    return CTRClient(f"127.0.0.1:{server.port}", **{"timeout": PATIENCE, **options})


def rest_client(server, **options):
    return CTRClient(f"127.0.0.1:{server.rest_api_port}", protocol="rest", **{"timeout": PATIENCE, **options})


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Load:
    """Requests without a pause in threads, none of them retried."""

    def __init__(self, *clients):
        self.answers, self.errors = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]

    def _run(self, client):
        while not self._stop.is_set():
            try:
                self.answers.append(float(client.predict([{"I1": 1}])[0]))
            except ServingError as error:
                self.errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_no_request_fails_while_versions_come_and_go(base, models, serving):
    with (
        serving(model_base_path=str(base), file_system_poll_wait_seconds=POLL) as server,
        grpc_client(server, retries=0) as one,
        rest_client(server, retries=0) as two,
    ):
        with Load(one, one, two, two) as load:
            wait_for(lambda: len(load.answers) > 50)
            push(models[1], base, keep=2)
            wait_for(lambda: one.status() == {2: "AVAILABLE", 1: "END"})
            push(models[2], base, keep=2)
            wait_for(lambda: one.status() == {3: "AVAILABLE", 2: "END", 1: "END"})
            rollback(base)
            wait_for(lambda: one.status() == {3: "END", 2: "AVAILABLE", 1: "END"})
            seen = len(load.answers)
            wait_for(lambda: len(load.answers) > seen + 50)
        assert load.errors == []
        expected = sigmoid(np.array([0.1, 0.2, 0.3, 0.2]))
        assert {round(answer, 5) for answer in load.answers} == {round(float(e), 5) for e in expected}
        assert load.answers[0] == pytest.approx(expected[0], rel=1e-5)
        assert load.answers[-1] == pytest.approx(expected[3], rel=1e-5)


def test_a_corrupt_version_leaves_the_old_one_serving(base, models, tmp_path):
    shutil.copytree(models[1], tmp_path / "corrupt")
    (tmp_path / "corrupt" / "saved_model.pb").write_bytes(b"\x08\x01garbage")
    with serve(base) as server, rest_client(server, retries=0) as client:
        with Load(client, client) as load:
            push(tmp_path / "corrupt", base)
            wait_for(lambda: client.status().get(2) == "END")
            assert client.status()[1] == "AVAILABLE"
            assert client.predict([{"I1": 1}])[0] == pytest.approx(sigmoid(0.1), rel=1e-5)
            push(models[2], base)
            wait_for(lambda: client.status().get(3) == "AVAILABLE")
        assert load.errors == []
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/ctr/versions/2"
        state = json.loads(urllib.request.urlopen(url).read())["model_version_status"][0]
        assert state["state"] == "END"
        assert state["status"]["error_code"] != "OK"
        assert state["status"]["error_message"]


def test_the_newest_versions_that_load_serve_from_the_start(models, tmp_path):
    for name in ("a", "b"):
        push(models[0], tmp_path / name)
        shutil.copytree(models[1], tmp_path / name / "2")
    (tmp_path / "a" / "2" / "saved_model.pb").write_bytes(b"\x08\x01garbage")
    (tmp_path / "a" / "3").mkdir()
    (tmp_path / "a" / "3" / "saved_model.pb").symlink_to(tmp_path / "gone")
    (tmp_path / "models.config").write_text(
        "model_config_list {"
        + "".join(f' config {{ name: "{name}" base_path: "{tmp_path}/{name}" }}' for name in ("a", "b"))
        + " }"
    )
    options = ServeOptions(model_config_file=str(tmp_path / "models.config"), port=0, rest_api_port=0)
    with LocalServer(options) as server:
        for name, states, ctr in (
            ("a", {3: "END", 2: "END", 1: "AVAILABLE"}, sigmoid(0.1)),
            ("b", {2: "AVAILABLE"}, sigmoid(0.2)),
        ):
            with grpc_client(server, model_name=name) as client:
                assert client.status() == states
                assert client.predict([{"I1": 1}])[0] == pytest.approx(ctr, rel=1e-5)


def test_a_version_copied_slowly_is_served_once_it_is_whole(base, models):
    with serve(base) as server, grpc_client(server) as client:
        (base / "2").mkdir()
        shutil.copy(models[1] / "saved_model.pb", base / "2")
        wait_for(lambda: client.status().get(2) == "END")
        assert client.predict([{"I1": 1}])[0] == pytest.approx(sigmoid(0.1), rel=1e-5)
        with pytest.raises(ServingError, match="version 2 is not ready"):
            client.wait_until_ready(2, timeout=0.3)
        shutil.copytree(models[1] / "variables", base / "2" / "variables")
        client.wait_until_ready(2, timeout=PATIENCE)
        assert client.predict([{"I1": 1}])[0] == pytest.approx(sigmoid(0.2), rel=1e-5)


def test_broken_warm_up_requests_keep_a_version_away(base, models, tmp_path):
    for name, rows in (("good", [b""] * 3), ("refused", [b"no tf.Example"])):
        shutil.copytree(models[1], tmp_path / name)
        write_warmup(tmp_path / name, rows)
    shutil.copytree(tmp_path / "good", tmp_path / "torn")
    requests = tmp_path / "torn" / "assets.extra" / "tf_serving_warmup_requests"
    requests.write_bytes(requests.read_bytes()[:-5])
    with serve(base) as server, grpc_client(server) as client:
        for version, name in ((2, "refused"), (3, "torn")):
            push(tmp_path / name, base, keep=9)
            wait_for(lambda v=version: client.status().get(v) == "END")
        assert client.status()[1] == "AVAILABLE"
        push(tmp_path / "good", base, keep=9)
        client.wait_until_ready(4, timeout=PATIENCE)
    push(tmp_path / "refused", tmp_path / "only")
    words = r"no version could be loaded: ctr version 1: .*Could not parse example"
    with pytest.raises(InputError, match=words):
        serve(tmp_path / "only").start()


def test_limits(base):
    with serve(base, max_request_bytes=20_000, max_batch_size=8) as server:
        with grpc_client(server, retries=0) as client:
            assert client.predict([{}] * 8).shape == (8,)
            with pytest.raises(ServingError, match="INVALID_ARGUMENT: Task size 9 is larger"):
                client.predict([{}] * 9)
            with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"):
                client.predict([{"C1": "x" * 30_000}])
        with rest_client(server, retries=0) as client:
            for size in (30_000, 20_000_000):
                with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"):
                    client.predict([{"C1": "x" * size}])
            assert client.predict([{}]).shape == (1,)
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port)
        bomb = __import__("gzip").compress(b" " * 100_000)
        assert len(bomb) < 20_000
        connection.request("POST", "/v1/models/ctr:predict", bomb, {"Content-Encoding": "gzip"})
        assert connection.getresponse().status == 413
        chunked = b"POST /v1/models/ctr:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b'{"inputs": [{"b64": ""}]}'
        tail = b"\r\n%s\r\n0\r\n\r\n" % body
        good = b"%x" % len(body)
        for request, status in (
            (chunked + good + b";of=it" + tail, 200),
            (chunked + b"ffff" + tail, 413),
            *(
                (chunked + size + tail, 400)
                for size in (b"", b"-1", b"+" + good, b"0x" + good, b"1_9", b" 19")
            ),
            (chunked + b"3\r\nabcdef", 400),
            (b"POST /v1/models/ctr:predict HTTP/1.1\r\nContent-Length: 30000\r\n\r\n", 413),
            (b"no HTTP at all\r\n\r\n", 400),
            (b"TRACE / HTTP/1.1\r\n\r\n", 501),
        ):
            with socket.create_connection(("127.0.0.1", server.rest_api_port)) as plain:
                plain.settimeout(PATIENCE)
                plain.sendall(request)
                assert plain.recv(4096).startswith(b"HTTP/1.1 %d " % status), request


def test_a_request_that_computes_too_long_is_cut_off(tmp_path):
    import tensorflow as tf

    class Spin(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def spin(self, x):
            def body(i, y):
                return i + 1, tf.sin(y)

            return {
                "y": tf.while_loop(
                    lambda i, y: i < tf.cast(x[0], tf.int64), body, (tf.constant(0, tf.int64), x)
                )[1]
            }

    module = Spin()
    tf.saved_model.save(module, str(tmp_path / "spin" / "1"), {"serving_default": module.spin})
    with serve(tmp_path / "spin", timeout_seconds=2, model_name="spin") as server:
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/spin:predict"

        def ask(turns):
            body = json.dumps({"instances": [float(turns)]}).encode()
            try:
                return urllib.request.urlopen(urllib.request.Request(url, body)).status
            except urllib.error.HTTPError as error:
                return error.code

        assert ask(3) == 200
        begin = time.monotonic()
        assert ask(1e9) == 504
        assert time.monotonic() - begin < 60  # All turns would take much longer
        assert ask(3) == 200


def test_only_this_machine_is_served_unless_told_otherwise(base):
    with serve(base) as server:
        for port in (server.port, server.rest_api_port):
            with socket.socket() as other, pytest.raises(OSError):
                other.connect(("127.0.0.2", port))


def test_ports_that_cannot_be_had(base):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port: cannot listen on 127\.0\.0\.1:{port}"):
            serve(base, port=port).start()
        with pytest.raises(InputError, match=rf"rest_api_port: cannot listen on 127\.0\.0\.1:{port}"):
            serve(base, rest_api_port=port).start()


SERVE = """
import sys
sys.argv[0] = "mlet-tf"
from mlet_tf.serving import ServeOptions, run_server
run_server(ServeOptions(model_base_path=sys.argv[1], port=int(sys.argv[2]), rest_api_port=int(sys.argv[3])))
"""


@pytest.fixture
def start_process(tmp_path):
    """Starts a server process; always on the same ports."""
    running = []
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        port, rest_api_port = (probe.getsockname()[1] for probe in probes)

    def start(base):
        log = tmp_path / f"log{len(running)}"
        command = [sys.executable, "-c", SERVE, base, str(port), str(rest_api_port)]
        running.append(subprocess.Popen(command, stderr=log.open("w")))
        return SimpleNamespace(process=running[-1], port=port, rest_api_port=rest_api_port, log=log)

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_the_process_waits_for_a_version_is_killed_comes_back_and_ends_in_order(
    models, tmp_path, start_process
):
    base = tmp_path / "ctr"
    base.mkdir()
    first = start_process(base)
    wait_for(lambda: "waiting for a version" in first.log.read_text())
    with pytest.raises(ServingError, match="UNAVAILABLE"):
        grpc_client(first, retries=0).status()
    push(models[0], base)
    with grpc_client(first, retries=5000) as client, rest_client(first, retries=0) as other:
        client.wait_until_ready(timeout=PATIENCE)
        first.process.kill()
        first.process.wait()
        for down in (grpc_client(first, retries=1), other):
            with pytest.raises(ServingError, match="UNAVAILABLE"):
                down.predict([{}])
        second = start_process(base)
        assert client.predict([{"I1": 1}])[0] == pytest.approx(sigmoid(0.1), rel=1e-5)
        assert other.predict([{"I1": 1}])[0] == pytest.approx(sigmoid(0.1), rel=1e-5)

        slow = socket.create_connection(("127.0.0.1", second.rest_api_port))
        body = b'{"signature_name": "predict_raw", "inputs": {"I1": [1], "C1": [""]}}'
        head = b"POST /v1/models/ctr:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        slow.sendall(head)
        time.sleep(0.2)
        second.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        slow.sendall(body)
        answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in answer
        assert second.process.wait(PATIENCE) == 0
    log = second.log.read_text()
    assert "stand-in server of mlet-tf, for development" in log
    assert f"gRPC on 127.0.0.1:{second.port}, REST on 127.0.0.1:{second.rest_api_port}" in log
    assert "Traceback" not in log


def test_it_can_be_stopped_while_it_waits_for_a_version(tmp_path):
    server = serve(tmp_path)
    starting = threading.Thread(target=server.start)
    starting.start()
    time.sleep(0.2)
    server.request_stop()
    starting.join(PATIENCE)
    assert not starting.is_alive()
    server.stop()


def test_model_config_file(tmp_path, models):
    for number, model in enumerate(models, start=1):
        shutil.copytree(model, tmp_path / "ctr" / str(number))

    def config(text):
        (tmp_path / "models.config").write_text(text)
        return ServeOptions(model_config_file=str(tmp_path / "models.config"), port=0, rest_api_port=0)

    two_newest = config(
        f'model_config_list {{ config {{ name: "a" base_path: "{tmp_path}/ctr"'
        " model_version_policy { latest { num_versions: 2 } } }"
        f' config {{ name: "b" base_path: "{tmp_path}/ctr" model_version_policy {{ all {{}} }}'
        ' version_labels { key: "old" value: 1 } } }'
    )
    with LocalServer(two_newest) as server:
        with grpc_client(server, model_name="a") as client:
            assert client.status() == {3: "AVAILABLE", 2: "AVAILABLE"}
        with grpc_client(server, model_name="b", label="old") as client:
            assert client.status() == dict.fromkeys((3, 2, 1), "AVAILABLE")
            assert client.predict([{"I1": 1}])[0] == pytest.approx(sigmoid(0.1), rel=1e-5)
    labelled = config(
        f'model_config_list {{ config {{ name: "a" base_path: "{tmp_path}/ctr"'
        ' version_labels { key: "next" value: 9 } } }'
    )
    with pytest.raises(InputError, match="a: label 'next' is for version 9, which is not available"):
        LocalServer(labelled).start()
    for text, words in (
        ("model_config_list { config { nam: 1 } }", "not a ModelServerConfig"),
        ("", "expected models with names of their own"),
        (
            'model_config_list { config { name: "a" base_path: "here" } }',
            "absolute base_path, received 'here'",
        ),
    ):
        with pytest.raises(InputError, match=words):
            LocalServer(config(text))
    with pytest.raises(InputError, match="cannot be read: "):
        LocalServer(ServeOptions(model_config_file=str(tmp_path / "absent")))
    with pytest.raises(InputError, match="model_base_path: expected the folder"):
        LocalServer(ServeOptions())
    with pytest.raises(InputError, match="expected a folder named as an integer, found none"):
        serve(tmp_path / "nowhere").start(wait_seconds=0.2)
    with pytest.raises(InputError, match="expected a folder named as an integer, found none"):
        serve(tmp_path / ("x" * 300)).start(wait_seconds=0.2)  # No file system can be asked for such a name.


def test_finding_a_real_server(tmp_path, monkeypatch):
    def program(name, text="exit 0"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.delenv("TENSORFLOW_MODEL_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_model_server() is None
    docker = program("docker", "exit 1")
    assert find_model_server() is None
    program("docker")
    assert find_model_server() == ModelServer("docker", docker)
    on_path = program("tensorflow_model_server")
    assert find_model_server() == ModelServer("binary", on_path)
    other = program("other")
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", other)
    assert find_model_server() == ModelServer("binary", other)
    assert find_model_server(on_path) == ModelServer("binary", on_path)
    with pytest.raises(
        InputError, match="model server: expected a program that can be run, received '/absent'"
    ):
        find_model_server("/absent")
    options = ServeOptions(model_base_path=str(tmp_path), port=1, rest_api_port=2, model_name="m")
    command = ModelServer("binary", on_path).command(options)
    assert command[:5] == [
        on_path,
        "--port=1",
        "--rest_api_port=2",
        "--model_name=m",
        f"--model_base_path={tmp_path}",
    ]
    # `push` relies on the server's own retries where a version cannot appear at once.
    assert not any("retries" in flag for flag in command)
    command = ModelServer("docker", docker).command(options)
    assert f"--volume={tmp_path}:{tmp_path}:ro" in command
    assert "--publish=127.0.0.1:1:1" in command
    assert command.index("tensorflow/serving") < command.index("--port=1")


# Answers any GET, but exits at the start as the real one does where it may not assign labels yet.
FAKE_SERVER = """#!{python} -I
import http.server, sys
flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
labelled = "version_labels" in open(flags["model_config_file"]).read()
if labelled and flags.get("allow_version_labels_for_unavailable_models") != "true":
    sys.exit("Request to assign label to version 1, which is not currently available for inference")
if "stop" in flags:
    sys.exit(int(flags["stop"]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the fake")
http.server.HTTPServer(("127.0.0.1", int(flags["rest_api_port"])), Handler).serve_forever()
"""


@pytest.fixture
def fake_server(tmp_path, monkeypatch):
    program = tmp_path / "fake_model_server"
    program.write_text(FAKE_SERVER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", str(program))
    return program


def model_config(folder, labels=""):
    path = folder / "models.config"
    path.write_text(
        f'model_config_list {{ config {{ name: "a" base_path: "{folder}" model_platform: "tensorflow" {labels} }} }}'
    )
    return str(path)


LABELS = 'version_labels { key: "stable" value: 1 }'
LABEL_FLAG = "--allow_version_labels_for_unavailable_models=true"


@pytest.mark.parametrize("kind", ["binary", "docker"])
def test_a_real_server_is_told_to_take_version_labels(tmp_path, kind):
    """It assigns them before it loads the versions, and exits unless that is allowed."""
    server = ModelServer(kind, "/program")
    for labels in ("", LABELS):
        command = server.command(ServeOptions(model_config_file=model_config(tmp_path, labels)))
        assert (LABEL_FLAG in command) is bool(labels)
        if kind == "docker" and labels:
            assert command.index("tensorflow/serving") < command.index(LABEL_FLAG)
    assert LABEL_FLAG not in server.command(ServeOptions(model_base_path=str(tmp_path)))


def test_serve_starts_a_real_server_of_a_configuration_with_labels(
    command, tmp_path, fake_server, monkeypatch
):
    def run(program, arguments):
        sys.exit(subprocess.run([program, *arguments[1:], "--stop=7"], check=False).returncode)

    monkeypatch.setattr("os.execvp", run)
    code, _, err = command("serve", "--model_config_file", model_config(tmp_path, LABELS))
    assert code == 7, err
    assert LABEL_FLAG in err


def test_these_tests_run_against_a_real_server_where_one_is_named(tmp_path, fake_server, monkeypatch):
    """What `serving` gives where TENSORFLOW_MODEL_SERVER is set; here it names a fake."""
    assert server_kinds() == ["stand-in", "real"]
    with start_server("real", tmp_path, model_config_file=model_config(tmp_path, LABELS)) as server:
        assert server.real
        with urllib.request.urlopen(f"http://{server.rest}/v1/models/a", timeout=PATIENCE) as answer:
            assert answer.read() == b"the fake"
    monkeypatch.delenv("TENSORFLOW_MODEL_SERVER")
    assert server_kinds() == ["stand-in"]


def test_a_fault_of_the_server_is_an_answer_too(base, monkeypatch):
    from mlet_tf.serving.local.servable import Servable

    def fail(*_, **__):
        raise KeyError("no such thing")

    with serve(base) as server:
        monkeypatch.setattr(Servable, "predict", fail)
        with rest_client(server) as client, pytest.raises(ServingError, match="INTERNAL: KeyError: 'no such"):
            client.predict([{}])
        with grpc_client(server) as client, pytest.raises(ServingError, match="INTERNAL: KeyError: 'no such"):
            client.predict([{}])
