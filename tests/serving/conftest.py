"""Little models, and servers of them."""

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_servers import busy, certificate, flaky, grpc_server, http_server  # noqa: F401 (fixtures)
from serving_support import server_kinds, start_server

from mlet_tf.network import bypass_proxy_for_loopback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
bypass_proxy_for_loopback()

FEATURES, DENSE, WIDTH, ROWS, HIDDEN = 26, 13, 16, 40, 256
LOGIT_WITHOUT_NUMBERS = 1.0405811


def write_hp2(path):
    """y = 0.5 x + 2 and its relatives, as a graph of TensorFlow 1."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf1.Graph().as_default(), tf1.Session() as session:
        rows = tf1.placeholder(tf.string, name="tf_example")
        with tf1.name_scope("ParseExample"):
            parsed = tf.raw_ops.ParseExample(
                serialized=rows,
                names=[],
                sparse_keys=[],
                dense_keys=["x", "x2"],
                dense_defaults=[tf.constant([0.0]), tf.constant([0.0])],
                sparse_types=[],
                dense_shapes=[[1], [1]],
                name="ParseExample",
            )
        half, two, three = (
            tf1.get_variable(n, initializer=v) for n, v in (("a", 0.5), ("b", 2.0), ("c", 3.0))
        )
        x = tf.identity(parsed.dense_values[0], name="x")
        x2 = tf.identity(parsed.dense_values[1], name="x2")
        y = tf.identity(half * x + two, name="y")
        y2 = tf.identity(half * x + three, name="y2")
        y3 = tf.identity(half * x2 + three, name="y3")
        session.run(tf1.global_variables_initializer())

        def signature(inputs, outputs, method):
            info = tf1.saved_model.build_tensor_info
            return tf1.saved_model.build_signature_def(
                {k: info(v) for k, v in inputs.items()},
                {k: info(v) for k, v in outputs.items()},
                f"tensorflow/serving/{method}",
            )

        builder = tf1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature({"x": x}, {"y": y}, "predict"),
                "classify_x_to_y": signature({"inputs": rows}, {"scores": y}, "classify"),
                "regress_x_to_y": signature({"inputs": rows}, {"outputs": y}, "regress"),
                "regress_x_to_y2": signature({"inputs": rows}, {"outputs": y2}, "regress"),
                "regress_x2_to_y3": signature({"inputs": x2}, {"outputs": y3}, "regress"),
            },
        )
        builder.save()


def write_ctr(path, logits=(1.02599323, 1.46559727)):
    """A model whose logit is set by the first category alone, known for 0, 1 and 7, and by the first number.

    Args:
        path: folder to write.
        logits: of category 0 and 1 where all numbers are 1.
    """
    import tensorflow as tf

    of_one = 1.02599323 - LOGIT_WITHOUT_NUMBERS
    table = np.zeros([FEATURES * ROWS, WIDTH], np.float32)
    table[[0, 1, 7], 0] = np.array([*logits, 0.763231754]) - of_one

    class Model(tf.Module):
        def __init__(self):
            self.table = tf.Variable(table)
            hidden = np.zeros([FEATURES * WIDTH + DENSE, HIDDEN], np.float32)
            hidden[0, 0], hidden[FEATURES * WIDTH, 0] = 1.0, of_one
            self.hidden = tf.Variable(hidden)
            self.weights = tf.Variable(np.eye(HIDDEN, 1, dtype=np.float32))
            self.offsets = tf.constant(np.arange(FEATURES) * ROWS, tf.int64)

        def logits(self, cat, dense):
            ids = tf.math.floormod(cat, ROWS) + self.offsets
            embedded = tf.reshape(tf.gather(self.table, ids), [-1, FEATURES * WIDTH])
            hidden = tf.matmul(tf.concat([embedded, dense], 1), self.hidden, name="MatMul")
            return tf.squeeze(hidden @ self.weights, 1)

        def parsed(self, examples):
            features = tf.io.parse_example(
                examples,
                {
                    "cat": tf.io.FixedLenFeature([FEATURES], tf.int64),
                    "dense": tf.io.FixedLenFeature([DENSE], tf.float32),
                },
            )
            return self.logits(features["cat"], features["dense"])

        @tf.function
        def predict(self, cat, dense):
            logit = self.logits(cat, dense)
            return {"ctr": tf.sigmoid(logit), "logit": logit}

        @tf.function
        def examples(self, examples):
            return {"ctr": tf.sigmoid(self.parsed(examples))}

        @tf.function
        def classify(self, inputs):
            ctr = self.examples(inputs)["ctr"]
            classes = tf.tile(tf.constant([["0", "1"]]), [tf.shape(ctr)[0], 1])
            return {"classes": classes, "scores": tf.stack([1.0 - ctr, ctr], 1)}

        @tf.function
        def regress(self, inputs):
            return {"outputs": self.examples(inputs)["ctr"][:, tf.newaxis]}

    model = Model()
    strings = tf.TensorSpec([None], tf.string)
    signatures = {
        "serving_default": model.predict.get_concrete_function(
            cat=tf.TensorSpec([None, FEATURES], tf.int64), dense=tf.TensorSpec([None, DENSE], tf.float32)
        ),
        "examples": model.examples.get_concrete_function(examples=strings),
        "classify": model.classify.get_concrete_function(inputs=strings),
        "regress": model.regress.get_concrete_function(inputs=strings),
    }
    tf.saved_model.save(model, str(path), signatures)


def write_raw(path, weight=0.1):
    """A CTR model of raw log columns: `serving_default` of examples, `predict_raw` of columns.

    logit = weight * I1 (0 if missing) + the length of C1.
    """
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self):
            self.weight = tf.Variable(weight)

        def ctr(self, i1, c1):
            length = tf.cast(tf.strings.length(c1), tf.float32)
            return {"ctr": tf.sigmoid(self.weight * tf.cast(i1, tf.float32) + length)}

        @tf.function
        def serve(self, examples):
            features = tf.io.parse_example(
                examples,
                {
                    "I1": tf.io.FixedLenFeature([], tf.int64, 0),
                    "C1": tf.io.FixedLenFeature([], tf.string, ""),
                },
            )
            return self.ctr(features["I1"], features["C1"])

        @tf.function
        def raw(self, I1, C1):
            return self.ctr(I1, C1)

    model = Model()
    signatures = {
        "serving_default": model.serve.get_concrete_function(examples=tf.TensorSpec([None], tf.string)),
        "predict_raw": model.raw.get_concrete_function(
            I1=tf.TensorSpec([None], tf.int64), C1=tf.TensorSpec([None], tf.string)
        ),
    }
    tf.saved_model.save(model, str(path), signatures)


@pytest.fixture(scope="session")
def write_model():
    return SimpleNamespace(hp2=write_hp2, ctr=write_ctr, raw=write_raw)


@pytest.fixture(scope="session")
def two_models(tmp_path_factory):
    """The configuration file of hp2 (version 123) and ctr (1 stable, 2 canary)."""
    folder = tmp_path_factory.mktemp("two_models")
    write_hp2(folder / "hp2" / "00000123")
    write_ctr(folder / "ctr" / "1", logits=(-0.55581212, 1.46559727))
    write_ctr(folder / "ctr" / "2")
    (folder / "models.config").write_text(
        f"""model_config_list {{
          config {{ name: "hp2" base_path: "{folder}/hp2" model_platform: "tensorflow" }}
          config {{
            name: "ctr" base_path: "{folder}/ctr" model_platform: "tensorflow"
            model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
            version_labels {{ key: "stable" value: 1 }}
            version_labels {{ key: "canary" value: 2 }}
          }}
        }}"""
    )
    return folder / "models.config"


@pytest.fixture(scope="session", params=server_kinds())
def serving(request, tmp_path_factory):
    """Starts a server of some `ServeOptions`: the stand-in, or the real one that TENSORFLOW_MODEL_SERVER names.

    A context manager of an object with the addresses `grpc` and `rest`, their ports, the options and `real`.
    """
    return functools.partial(start_server, request.param, tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="session")
def served(two_models, serving):
    """A server of the two models."""
    with serving(model_config_file=str(two_models)) as server:
        yield server


@pytest.fixture(scope="session")
def recorded_answers():
    """What a real server answered, from the files that MLET_TF_RECORDED_ANSWERS names.

    One or more JSON files, separated as on PATH, or folders of them.
    """
    names = os.environ.get("MLET_TF_RECORDED_ANSWERS", "").split(os.pathsep)
    files = [file for name in names if name for file in recorded_files(Path(name))]
    if not files:
        pytest.skip("MLET_TF_RECORDED_ANSWERS names no file")
    return [row for file in files for row in json.loads(file.read_text())]


def recorded_files(path):
    if path.is_dir():
        return sorted(path.glob("*.json"))
    return [path] if path.is_file() else []
