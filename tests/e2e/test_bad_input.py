"""Each mistake ends with one line that says what is wrong and where; no traceback, nothing half-written."""

import gzip
import shutil
from pathlib import Path

import pytest

from mlet_tf.datasets import AVAZU, CRITEO
from mlet_tf.datasets.synthetic import write_log
from mlet_tf.errors import InputError


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("good") / "log.tsv"
    write_log(path, CRITEO, 300, seed=0)
    return path.read_text().splitlines(keepends=True)


@pytest.fixture
def run(tmp_path, command):
    """Runs the pipeline on a file; returns exit code and the error message."""

    def call(train: Path | str, *overrides: str, schema: str = "criteo") -> tuple[int, str]:
        config = tmp_path / "config.yaml"
        config.write_text(f"name: bad\noutput: {tmp_path / 'output'}\ndata: {{schema: {schema}}}\n")
        options = [text for item in (f"data.train={train}", *overrides) for text in ("--set", item)]
        code, _, err = command("run", "--config", config, *options)
        assert "Traceback" not in err
        assert not (tmp_path / "output" / "serving").exists()
        return code, err[err.find("Error: ") :]

    return call


def _spoil(tmp_path: Path, lines: list[str], column: int, value: str, count: int = 20) -> Path:
    """The log with a value replaced in its first `count` rows."""
    path = tmp_path / "spoilt.tsv"
    spoilt = []
    for number, line in enumerate(lines):
        cells = line.rstrip("\n").split("\t")
        if number < count:
            cells[column] = value
        spoilt.append("\t".join(cells) + "\n")
    path.write_text("".join(spoilt))
    return path


def test_missing_file(run, tmp_path):
    code, error = run(tmp_path / "absent.tsv")
    assert code == 2 and "absent.tsv" in error


def test_empty_file(run, tmp_path):
    (tmp_path / "empty.tsv").touch()
    code, error = run(tmp_path / "empty.tsv")
    assert code == 2 and "empty.tsv" in error and "empty" in error.replace("empty.tsv", "")


def test_wrong_separator(run, tmp_path, lines):
    (tmp_path / "comma.csv").write_text("".join(lines).replace("\t", ","))
    code, error = run(tmp_path / "comma.csv")
    assert code == 2 and "separator" in error and "','" in error


def test_missing_column(run, tmp_path):
    path = tmp_path / "log.csv"
    write_log(path, AVAZU, 50, seed=0)
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(header.replace("site_domain", "site_domian") + "".join(rows))
    code, error = run(path, schema="avazu")
    assert code == 2 and "'site_domain'" in error and "site_domian" in error


def test_text_for_an_integer(run, tmp_path, lines):
    code, error = run(_spoil(tmp_path, lines, 1, "many"))
    assert code == 2 and "I1" in error and "many" in error and "0.1" in error


def test_label_that_is_not_0_or_1(run, tmp_path, lines):
    code, error = run(_spoil(tmp_path, lines, 0, "2"))
    assert code == 2 and "label" in error and "'2'" in error


def test_corrupt_gzip(run, tmp_path, lines):
    packed = gzip.compress("".join(lines).encode())
    (tmp_path / "log.gz").write_bytes(packed[: len(packed) // 2])
    code, error = run(tmp_path / "log.gz")
    assert code == 2 and "log.gz" in error and "gzip" in error


def test_column_without_a_value_ends_the_run_before_training(run, tmp_path, lines):
    code, error = run(_spoil(tmp_path, lines, 14, "", count=len(lines)))
    assert code == 2 and "do not fit their schema" in error


def test_drift_between_the_splits(run, tmp_path, lines):
    train, evaluation = tmp_path / "train.tsv", tmp_path / "eval.tsv"
    train.write_text("".join(lines))
    evaluation.write_text(_spoil(tmp_path, lines, 14, "ffffffff", count=len(lines)).read_text())
    options = (f"data.eval={evaluation}", "data.split.method=files", "validation.max_drift={C1: 0.2}")
    code, error = run(train, *options)
    assert code == 2 and "do not fit their schema" in error


def test_data_that_is_not_given(command, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"output: {tmp_path / 'output'}\n")
    code, _, err = command("run", "--config", config)
    assert code == 2 and "--set data.train=PATH" in err


def test_output_that_cannot_be_written(run, tmp_path, lines):
    log, blocked = tmp_path / "log.tsv", tmp_path / "file"
    log.write_text("".join(lines))
    blocked.touch()
    code, error = run(log, f"output={blocked}/output")
    assert code == 2 and "output folder" in error and str(blocked) in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hiden_dim=4", "unknown key 'model.hiden_dim'. Did you mean 'hidden_dim'?"),
        ("model.hidden_dim=4", "'model.hidden_dim' (k=4) should be at least 'model.output_dim' (d=8)"),
        ("train.epochs=two", "'train.epochs' should be an integer. Received: 'two'"),
        ("gate.bounds={acu: {min: 1}}", "should be one of auc, logloss"),
        ("gate.slices=[C99]", "'gate.slices' names 'C99', which the schema does not have"),
        ("data.split.method=time", "schema 'criteo' has no time column"),
        ("train.epochs", "expected key=value"),
    ],
)
def test_configuration(run, tmp_path, override, message):
    code, error = run(tmp_path / "log.tsv", override)
    assert code == 2 and message in error


def test_configuration_that_is_no_yaml(command, tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    code, _, err = command("run", "--config", tmp_path / "bad.yaml")
    assert code == 2 and "is not YAML" in err
    code, _, err = command("run", "--config", tmp_path / "absent.yaml")
    assert code == 2 and "No such file" in err


def test_disk_full_while_rows_are_packed(tmp_path, monkeypatch):
    """Nothing that looks complete is left behind."""
    import tensorflow as tf

    from pipeline import examples

    record = tf.train.Example()
    with tf.io.TFRecordWriter(str(tmp_path / "data")) as writer:
        writer.write(record.SerializeToString())

    def full(self, file):
        raise OSError(28, "No space left on device")

    class Words:
        tofile = full

        def __len__(self):
            return 1

    class Batches:
        def map(self, *args, **kwargs):
            return self

        prefetch = map

        def as_numpy_iterator(self):
            return iter([(Words(), 1, 1)])

    monkeypatch.setattr(examples, "example_dataset", lambda *_: Batches())
    with pytest.raises(OSError, match="No space left"):
        examples.pack_examples([str(tmp_path / "data")], CRITEO, None, tmp_path / "packed" / "train")
    assert list((tmp_path / "packed").iterdir()) == []


def test_rows_that_got_lost_are_noticed_by_the_trainer(finished_run, tmp_path):
    import tensorflow_transform as tft

    from components.click_log_example_gen.report import read_ingest_report, write_ingest_report
    from components.common import TransformGraph
    from pipeline.examples import pack_examples

    artifacts = finished_run.result["artifacts"]
    shutil.copytree(artifacts["examples"], tmp_path / "examples")
    report = read_ingest_report(tmp_path / "examples")
    report["rows"]["eval"] += 1
    write_ingest_report(tmp_path / "examples", report)
    transform = TransformGraph(tft.TFTransformOutput(artifacts["transform_graph"]))
    with pytest.raises(InputError, match=rf"{report['rows']['eval']} rows were written, \d+ can be read"):
        pack_examples([f"{tmp_path}/examples/Split-eval/*"], CRITEO, transform, tmp_path / "packed" / "eval")
    assert list((tmp_path / "packed").iterdir()) == []


def test_report_of_no_run(command, tmp_path):
    code, _, err = command("report", tmp_path)
    assert code == 2 and "found no run.json" in err


def test_collapse_of_no_model(command, tmp_path):
    code, _, err = command("collapse", tmp_path / "absent.keras", tmp_path / "out.keras")
    assert code == 2 and "absent.keras" in err
    (tmp_path / "text.keras").write_text("no zip")
    code, _, err = command("collapse", tmp_path / "text.keras", tmp_path / "out.keras")
    assert code == 2 and "cannot be loaded" in err
    assert not (tmp_path / "out.keras").exists()
