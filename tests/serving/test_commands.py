"""`mlet-tf push`, `rollback` and the limits of `serve`, as a user calls them."""

import json
import urllib.error
import urllib.request

import pytest

import mlet_tf.serving
from mlet_tf.errors import InputError
from mlet_tf.serving import CTRClient, LocalServer, ServeOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_model):
    folder = tmp_path_factory.mktemp("raw") / "model"
    write_model.raw(folder)
    return folder


@pytest.fixture
def log(tmp_path):
    """Lines of Criteo's format in which I1 counts up from 0."""
    path = tmp_path / "day.tsv"
    path.write_text("".join("\t".join(["0", str(n), *[""] * 12, "ab", *[""] * 25]) + "\n" for n in range(5)))
    return path


def warm_up_rows(version):
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    rows = []
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = PredictionLog.FromString(record).predict_log.request
        for text in request.inputs["examples"].string_val:
            found = tf.train.Example.FromString(text).features.feature
            rows.append((found["I1"].int64_list.value[0], found["C1"].bytes_list.value[0], len(found)))
    return rows


def test_push_warms_up_and_rollback_goes_back(command, model, log, tmp_path):
    base = tmp_path / "ctr"
    assert command("push", model, base) == (0, f"{base}/1\n", "")
    assert not (base / "1" / "assets.extra").exists()

    code, out, _ = command("push", model, base, "--version", 7, "--warmup", log, "--rows", 3)
    assert (code, out) == (0, f"{base}/7\n")
    assert warm_up_rows(base / "7") == [(0, b"ab", 2), (1, b"ab", 2), (2, b"ab", 2)]
    assert not (model / "assets.extra").exists()
    with LocalServer(ServeOptions(model_base_path=str(base), port=0, rest_api_port=None)) as server:
        assert CTRClient(f"127.0.0.1:{server.port}").predict([{"I1": 0, "C1": ""}]).tolist() == [0.5]

    code, _, err = command("push", model, base, "--version", 5)
    assert (code, err.count("\n")) == (2, 1) and "expected an integer above 7" in err and "received 5" in err
    code, _, err = command("push", model, base, "--warmup", tmp_path / "absent.tsv")
    assert (code, err.count("\n")) == (2, 1) and "absent.tsv" in err
    assert sorted(path.name for path in base.iterdir()) == ["1", "7"]

    assert command("rollback", base) == (0, f"{base}/1\n", "")
    code, out, err = command("rollback", base)
    assert (code, out, err.count("\n")) == (2, "", 1) and "at least two versions" in err
    assert command("push", model, base, "--keep", 1)[1] == f"{base}/8\n"
    assert [path.name for path in base.iterdir()] == ["8"]


def test_serve_hands_its_limits_to_the_stand_in(command, model, tmp_path, monkeypatch):
    base = tmp_path / "ctr"
    mlet_tf.serving.push(model, base)
    answers = []

    def run_server(options):
        with LocalServer(options) as server:
            url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/ctr:predict"
            for rows, length in ((2, 1), (3, 1), (1, 3000)):
                instances = [{"I1": 1, "C1": "a" * length}] * rows
                body = json.dumps({"signature_name": "predict_raw", "instances": instances}).encode()
                try:
                    answers.append(urllib.request.urlopen(url, body, timeout=300).status)
                except urllib.error.HTTPError as error:
                    answers.append(error.code)
        answers.append(options.timeout_seconds)

    monkeypatch.setattr(mlet_tf.serving, "run_server", run_server)
    limits = ["--max_batch_size", 2, "--max_request_bytes", 2000, "--timeout_seconds", 4.5]
    serve = ["serve", "--stand_in", "--model_base_path", base, "--port", 0, "--rest_api_port", 0]
    assert command(*serve, *limits)[0] == 0
    assert answers == [200, 400, 413, 4.5]
    assert command(*serve, "--max_batch_size", 0)[0] == 2


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
@pytest.mark.parametrize("name", ["port", "rest_api_port"])
def test_serve_refuses_ports_that_are_none(command, tmp_path, name, port):
    """gRPC listened on another port without a word."""
    code, _, err = command("serve", "--stand_in", "--model_base_path", tmp_path, f"--{name}", port)
    assert code == 2 and f"{port} is not in the range" in err
    with pytest.raises(InputError, match=f"{name}: expected a number from 0 to 65535. Received: {port}"):
        ServeOptions(model_base_path=str(tmp_path), **{name: port})


def test_a_row_that_names_a_column_twice_is_refused(command):
    code, out, err = command("predict", '{"I1": 1, "C1": "a", "I1": 2}')
    assert (code, out, err) == (2, "", "Error: the row should have each column once. Received: 'I1' twice\n")
