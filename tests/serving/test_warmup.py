import pytest
import tensorflow as tf

from mlet_tf.errors import InputError
from mlet_tf.serving import write_warmup


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    class Echo(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def lengths(self, examples):
            return {"ctr": tf.strings.length(examples)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
        def ids(self, ids):
            return {"ctr": ids}

    folder = tmp_path_factory.mktemp("warm") / "model"
    module = Echo()
    tf.saved_model.save(module, str(folder), {"serving_default": module.lengths, "ids": module.ids})
    return folder


def logs(folder):
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    return [PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]


def test_the_file_holds_requests_of_the_rows(model):
    assert write_warmup(model, (b"row%d" % i for i in range(5)), batch_size=2) == 3
    found = [log.predict_log.request for log in logs(model)]
    assert [list(request.inputs["examples"].string_val) for request in found] == [
        [b"row0", b"row1"],
        [b"row2", b"row3"],
        [b"row4"],
    ]
    assert found[0].model_spec.name == "ctr"
    assert found[0].model_spec.signature_name == "serving_default"
    assert [d.size for d in found[2].inputs["examples"].tensor_shape.dim] == [1]


def test_no_more_than_a_server_takes(model):
    rows = iter([b"row"] * 1200)
    assert write_warmup(model, rows) == 1000
    assert len(logs(model)) == 1000
    assert len(list(rows)) == 200


def test_a_failure_leaves_the_old_file(model):
    write_warmup(model, [b"old"])

    def rows():
        yield b"new"
        raise RuntimeError("reader failed")

    with pytest.raises(RuntimeError, match="reader failed"):
        write_warmup(model, rows())
    with pytest.raises(InputError, match="at least one example"):
        write_warmup(model, [])
    assert logs(model)[0].predict_log.request.inputs["examples"].string_val == [b"old"]
    assert len(list((model / "assets.extra").iterdir())) == 1


def test_mistakes_are_named(model, tmp_path):
    with pytest.raises(InputError, match=r"no signature 'nope', only .*serving_default"):
        write_warmup(model, [b"row"], signature_name="nope")
    with pytest.raises(InputError, match="one vector of strings, it takes ids"):
        write_warmup(model, [b"row"], signature_name="ids")
    with pytest.raises(InputError, match=r"found no saved_model\.pb"):
        write_warmup(tmp_path, [b"row"])


@pytest.mark.parametrize("content", [b"", b"\xff\xff no graph"])
def test_a_damaged_saved_model_is_named(tmp_path, content):
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(InputError, match=r"saved_model.pb: expected a SavedModel's graph"):
        write_warmup(tmp_path, [b"row"])
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model.pb"]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": "2"}, {"model_name": ""}])
def test_arguments_that_do_not_fit(model, options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}: expected"):
        write_warmup(model, [b"row"], **options)


def test_an_output_in_the_working_directory(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_warmup(model, [b"row"], output="requests") == 1
    assert (tmp_path / "requests").is_file()
