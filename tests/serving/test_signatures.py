"""Every exported model answers the requests that docs/serving.md and docs/client.md show."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from mlet_tf.datasets import CRITEO
from mlet_tf.serving import CTRClient, push

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
INTEGERS, CATEGORICALS = CRITEO.integers, CRITEO.categoricals
COMMANDS = re.findall(r"```sh\n(curl .*?)```\n(?:\n```json\n(.*?)```)?", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory, serving):
    import keras
    import tensorflow as tf

    from mlet_tf.export import export_model

    def transform(columns):
        def filled(name, default):
            sparse = columns[name]
            dense = tf.sparse.to_dense(tf.sparse.reset_shape(sparse, [tf.shape(sparse)[0], 1]), default)
            return tf.reshape(dense, [-1])

        dense = tf.stack([tf.cast(filled(name, 0), tf.float32) for name in INTEGERS], 1)
        ids = [tf.strings.to_hash_bucket_fast(filled(name, ""), 10) for name in CATEGORICALS]
        return {"dense_features": dense, "sparse_features": tf.stack(ids, 1)}

    keras.utils.set_random_seed(1)
    dense = keras.Input([len(INTEGERS)], name="dense_features")
    sparse = keras.Input([len(CATEGORICALS)], dtype="int64", name="sparse_features")
    features = keras.layers.Concatenate()(
        [dense, keras.layers.Flatten()(keras.layers.Embedding(10, 2)(sparse))]
    )
    ctr = keras.layers.Dense(1, "sigmoid")(features)
    model = keras.Model({"dense_features": dense, "sparse_features": sparse}, ctr)
    folder = tmp_path_factory.mktemp("exported")
    export_model(model, CRITEO, transform, folder / "model")
    push(folder / "model", folder / "ctr")
    with serving(model_base_path=str(folder / "ctr")) as running:
        yield running


def shape_of(value):
    """The value with its numbers replaced, since those of the page are examples."""
    if isinstance(value, dict):
        return {key: shape_of(member) for key, member in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    return "number" if isinstance(value, float) else value


@pytest.mark.parametrize(("command", "answer"), COMMANDS)
def test_the_curl_lines_of_the_page(server, command, answer):
    command = command.replace("localhost:8501", f"127.0.0.1:{server.rest_api_port}")
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(run.stdout)
    if answer:
        assert shape_of(found) == shape_of(json.loads(answer))
    else:
        signatures = found["metadata"]["signature_def"]["signature_def"]
        assert {"serving_default", "predict_raw", "classify", "regress"} <= set(signatures)


def test_a_curl_line_that_is_refused_says_why(server):
    """The page's lines, if the model has other columns or the reader changes them."""
    (command,) = (command for command, _ in COMMANDS if "instances" in command and "I13" in command)
    command = command.replace('"I13"', '"I14"').replace("localhost:8501", f"127.0.0.1:{server.rest_api_port}")
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode != 0
    assert "does not have named input: I14" in json.loads(run.stdout)["error"]


def test_the_page_has_a_line_for_each_signature():
    text = " ".join(command for command, _ in COMMANDS)
    assert len(COMMANDS) == 8
    assert all(name in text for name in ("regress", "classify", "predict_raw", "b64", "/metadata"))


def test_all_signatures_agree(server):
    rows = [{"I1": 3, "C1": "a"}, {"I2": -1, "C2": "b"}, {}]
    texts = {name: [""] * 3 for name in CRITEO.raw_features}
    texts |= {"I1": ["3", "", ""], "I2": ["", "-1", ""], "C1": ["a", "", ""], "C2": ["", "b", ""]}

    def ask(verb, body):
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/ctr:{verb}"
        return json.loads(urllib.request.urlopen(url, json.dumps(body).encode(), timeout=300).read())

    raw = ask("predict", {"signature_name": "predict_raw", "inputs": texts})["outputs"]
    regressed = ask("regress", {"signature_name": "regress", "examples": rows})["results"]
    classified = ask("classify", {"signature_name": "classify", "examples": rows})["results"]
    assert [[label for label, _ in row] for row in classified] == [["0", "1"]] * 3
    lines = ["\t".join(column[row] for column in texts.values()) for row in range(3)]
    lines[1] = f"1\t{lines[1]}"  # With the label.
    with CTRClient(f"127.0.0.1:{server.port}", schema=CRITEO) as client:
        expected = client.predict(rows)
        np.testing.assert_array_equal(client.predict(lines), expected)
    for answer in (raw, regressed, [row[1][1] for row in classified]):
        np.testing.assert_allclose(answer, expected, rtol=1e-6)
    assert len(set(expected.tolist())) == 3


def test_the_examples_of_the_clients_page(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "ca.pem",
         "-subj", "/CN=models.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "day.tsv").write_text("\t".join(["3"] + [""] * 12 + ["68fd1e64"] + [""] * 25) + "\n")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.with_name("client.md").read_text(), re.DOTALL):
        code = block.replace("127.0.0.1:8500", f"127.0.0.1:{server.port}")
        exec(code.replace("127.0.0.1:8501", f"127.0.0.1:{server.rest_api_port}"), names)
    assert names["by_line"] == names["by_dict"][0]
    assert len(names["answers"]) == 20


ROW = dict.fromkeys(CRITEO.raw_features, "") | {"I1": "3", "C1": "a", "C2": "b"}
COLUMNS = {name: [text, text] for name, text in ROW.items()}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"instances": [ROW, {**ROW, "I1": "x"}]}, "could not correctly convert string: x"),
        ({"instances": [{**ROW, "I1": 3}]}, "not of expected type: string"),
        ({"instances": [{"I1": "3"}]}, "keys must be equal to: C1,C10,C11,"),
        ({"inputs": {**COLUMNS, "C1": ["a"]}}, "Shapes of all inputs must match"),
        (
            {"inputs": {**COLUMNS, **{name: ["3"] for name in INTEGERS}}},
            "Dimension 0 in both shapes must be equal",
        ),
    ],
    ids=["no integer", "no text", "a column missing", "one column short", "all integers short"],
)
def test_raw_columns_that_do_not_fit_are_refused(server, rows, words):
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/ctr:predict"
    body = json.dumps({"signature_name": "predict_raw", **rows}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, body, timeout=300)
    assert refused.value.code == 400
    assert words in json.loads(refused.value.read())["error"]
