"""`mlet-tf shrink`: a finished run's model, and a Keras file of anyone's, within a budget."""

import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from mlet_tf.pipeline.cli._logging import quiet

from mlet_tf.compression.keras_file import read_rows
from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.reading import read_log
from mlet_tf.errors import InputError
from mlet_tf.metrics import auc

ROWS, IDS, COLUMNS = 6000, 400, 8


def test_a_runs_model_within_the_budget(finished_run, shrunk):
    """Written whole, judged on rows that did not choose, and it answers."""
    output, out = shrunk
    report = json.loads((output / "compression.json").read_text())
    before, after = (
        report[key]["rows"] + report[key]["addresses"] for key in ("bytes_before", "bytes_after")
    )
    assert before == finished_run.result["table_bytes"]["collapsed"] and 0 < after <= before / 4
    assert report["bytes_before"]["vocabulary"] == report["bytes_after"]["vocabulary"] > 0
    assert f"tables  {before:,} -> {after:,} bytes" in out
    rows = finished_run.result["rows"]["eval"]
    judged = report["judged"]
    assert abs(judged["rows"] - rows / 2) <= 5, (
        "the others choose: half of them sizes, half of them what counts"
    )
    assert report["choosing_rows"] == (rows - judged["rows"] + 1) // 2
    assert judged["auc_before"] - judged["auc_after"] == pytest.approx(judged["auc_drop"])
    assert judged["auc_before"] == pytest.approx(
        finished_run.result["metrics"]["uncollapsed"]["auc"], abs=0.1
    )
    assert abs(judged["auc_drop"]) < 0.05
    assert (output / "frontier.png").stat().st_size > 1000
    assert {path.name for path in output.iterdir()} == {
        *("Format-Keras", "Format-Serving", "compression.json", "frontier.png")
    }
    model = tf.saved_model.load(str(output / "Format-Serving"))
    lines = next(iter(read_log(str(finished_run.log), CRITEO, columns=CRITEO.raw_features)))[:7]
    examples = tf.constant(encode_examples(lines).to_pylist())
    ctr = model.signatures["serving_default"](examples=examples)["ctr"]
    assert ctr.shape == (7,) and np.isfinite(ctr).all() and 0 < float(ctr[0]) < 1


def test_quiet_imports_leave_logs_as_they_were():
    """A pipeline that ran after such a command in the same process did not show its progress."""
    with quiet():
        assert not logging.getLogger().isEnabledFor(logging.WARNING)
    assert logging.getLogger().isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --max_auc_drop, --bytes and --ratio. Received: none"),
        (("--ratio", 2, "--bytes", 100), "Received: --bytes and --ratio"),
        (("--ratio", 2, "--methods", "columns,bit"), "--methods: expected some of columns,bits,rows. Rec"),
        (("--ratio", 2, "--methods", "bits,bits"), "Received: 'bits,bits'"),
        (("--ratio", 2, "--data", "rows.npz"), "--data and --validation_data are for a .keras file"),
    ],
)
def test_mistakes_with_a_run(finished_run, command, tmp_path, arguments, message):
    code, _, err = command("shrink", finished_run.output, "--output", tmp_path / "out", *arguments)
    assert code == 2 and err.startswith("Error: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_budget_below_the_smallest_names_it(finished_run, command, tmp_path):
    code, _, err = command("shrink", finished_run.output, "--output", tmp_path / "out", "--bytes", 1)
    assert code == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: Budget: expected at least ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_named(command, tmp_path):
    code, _, err = command("shrink", tmp_path, "--output", tmp_path / "out", "--ratio", 2)
    assert code == 2 and "found no run.json" in err and str(tmp_path) in err


def click_model() -> keras.Model:
    """Two tables and a dense input, functional."""
    first, second = (keras.Input([], dtype="int32", name=name) for name in ("user", "item"))
    price = keras.Input([1], name="price")
    vectors = [
        keras.layers.Embedding(IDS, COLUMNS, name=f"{tensor.name}_table")(tensor)
        for tensor in (first, second)
    ]
    joined = keras.layers.Concatenate()([*vectors, keras.layers.Multiply()(vectors), price])
    ctr = keras.layers.Dense(1, "sigmoid")(keras.layers.Dense(16, "relu")(joined))
    return keras.Model({"user": first, "item": second, "price": price}, ctr)


def click_rows(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = (IDS * rng.random((2, ROWS)) ** 3).astype("int32")
    effects = np.random.default_rng(0).normal(size=(2, IDS))
    logit = effects[0, ids[0]] + effects[1, ids[1]]
    label = (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype("float32")
    price = rng.normal(size=(ROWS, 1)).astype("float32")
    return {"user": ids[0], "item": ids[1], "price": price, "label": label}


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    """A folder with a trained `model.keras`, `train.npz` and `test.npz`, and a `text.npz`."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("keras")
    for number, name in enumerate(("train", "test")):
        np.savez(folder / f"{name}.npz", **click_rows(number + 1))
    (folder / "text.npz").write_text("user,item")
    rows = click_rows(1)
    label = rows.pop("label")
    model = click_model()
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    model.fit(rows, label, batch_size=256, epochs=5, verbose=0)
    model.save(folder / "model.keras")
    return folder


def test_a_keras_file_within_a_budget_of_auc(keras_file, command, tmp_path):
    output = tmp_path / "out"
    code, out, err = command(
        *("shrink", keras_file / "model.keras", "--output", output, "--max_auc_drop", 0.002),
        *("--data", keras_file / "train.npz", "--validation_data", keras_file / "test.npz"),
    )
    assert code == 0, err
    report = json.loads((output / "compression.json").read_text())
    assert report["budget"] == {"max_auc_drop": 0.002}
    assert report["bytes_before"] == {"rows": 2 * 4 * IDS * COLUMNS, "addresses": 0, "vocabulary": 0}
    assert report["bytes_after"]["rows"] < report["bytes_before"]["rows"] / 2
    assert report["auc_before"] - report["auc_after"] <= 0.002
    assert 2 * report["choosing_rows"] == report["judged"]["rows"] == ROWS / 2
    assert f"model   {output}/Format-Keras/model.keras" in out
    served = keras.models.load_model(output / "Format-Keras" / "model.keras")
    rows = click_rows(2)
    label = rows.pop("label")
    ctr = np.asarray(served(rows)).ravel()
    assert auc(label[1::2], ctr[1::2]) == pytest.approx(report["judged"]["auc_after"], abs=1e-6)
    assert report["judged"]["auc_after"] > 0.7
    assert (output / "frontier.png").stat().st_size > 1000


def test_a_keras_file_within_bytes_without_validation_rows(keras_file, command, tmp_path):
    output = tmp_path / "out"
    code, out, err = command(
        *(
            "shrink",
            keras_file / "model.keras",
            "--output",
            output,
            "--ratio",
            8,
            "--methods",
            "columns,bits",
        ),
        *("--data", keras_file / "train.npz"),
    )
    assert code == 0, err
    report = json.loads((output / "compression.json").read_text())
    assert report["bytes_after"]["rows"] <= report["bytes_before"]["rows"] / 8
    assert report["judged"] is None and report["methods"] == ["columns", "bits"] and "AUC" not in out


def test_a_sequential_model_in_a_keras_file(command, tmp_path):
    """Keras gives it no input to name arrays by."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(IDS, COLUMNS), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input([1], dtype="int32"), *layers])
    model.save(tmp_path / "model.keras")
    rows = click_rows(1)
    np.savez(tmp_path / "rows.npz", anything=rows["user"][:, None], label=rows["label"])
    arguments = ("--data", tmp_path / "rows.npz", "--output", tmp_path / "out", "--ratio", 4)
    code, _, err = command("shrink", tmp_path / "model.keras", *arguments)
    assert code == 0, err
    served = keras.models.load_model(tmp_path / "out" / "Format-Keras" / "model.keras")
    ids = np.arange(IDS)[:, None]
    np.testing.assert_allclose(served(ids), model(ids), atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", 2), "--data: expected rows that "),
        (("--ratio", 1e7), "is not in the range 1<=x<=1000000"),
        (("--bytes", 10**16), "is not in the range 1<=x<=1000000000000000"),
        (("--max_auc_drop", 0, "--data", "{}/train.npz"), "--validation_data: expected rows that "),
        (("--ratio", 2, "--data", "{}/text.npz"), "text.npz: expected arrays of numbers in an .npz file"),
        (("--bytes", 1, "--data", "{}/train.npz"), "Budget: expected at least "),
    ],
)
def test_mistakes_with_a_keras_file(keras_file, command, tmp_path, arguments, message):
    arguments = [str(argument).format(keras_file) for argument in arguments]
    code, _, err = command("shrink", keras_file / "model.keras", "--output", tmp_path / "out", *arguments)
    assert code == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ") and message in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label": None},
            "expected an array 'label' and the inputs of the model. Received: user, item, price",
        ),
        ({"price": None}, "expected the inputs item, price, user of model '.*'. Received: user, item"),
        ({"label": np.full(ROWS, 2)}, "expected labels of 0 and 1"),
        ({"price": np.zeros((5, 1))}, "expected rows, one label for each"),
        ({"price": np.zeros((ROWS, 3))}, "expected rows that the model can be called with"),
        ({"label": np.full(ROWS, None)}, "expected arrays of numbers in an .npz file"),
        ({"label": np.full(ROWS, "yes")}, "expected labels of 0 and 1"),
        ({"price": np.float32(3)}, "expected rows, one label for each. Received: inputs of 6000, no rows"),
        (
            {"item": np.r_[[0] * (ROWS - 1), IDS]},
            r"expected rows that .* Received: indices\[5999\] = 400 is not",
        ),
    ],
)
def test_rows_that_are_not_of_the_model(tmp_path, change, message):
    arrays = {name: values for name, values in (click_rows(1) | change).items() if values is not None}
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(InputError, match=f"{tmp_path}/rows.npz`?: {message}") as error:
        read_rows(str(tmp_path / "rows.npz"), click_model())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [("user", "item"), ("x",)])
def test_rows_in_the_structure_of_the_model(tmp_path, names):
    """Inputs in a list are found by name; the name of a single one does not matter."""
    inputs = [keras.Input([2], name=f"{name}") for name in ("item", "user")[: len(names)]]
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(sum(inputs[1:], start=inputs[0])))
    arrays = {name: np.full((3, 2), float(number)) for number, name in enumerate(names)}
    np.savez(tmp_path / "rows.npz", label=np.array([0, 1, 1]), **arrays)
    rows = read_rows(str(tmp_path / "rows.npz"), model)
    assert [float(array[0, 0]) for array in rows.inputs] == ([1.0, 0.0] if len(names) == 2 else [0.0])
    assert rows.label.tolist() == [0, 1, 1]
