"""Each mistake ends with one line that says what is wrong and where; no traceback, nothing half-written."""

import errno
import gzip
import json
from pathlib import Path

import pytest

from mlet_tf.datasets import AVAZU, CRITEO
from mlet_tf.datasets.synthetic import write_log


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


def test_no_row_is_left_although_rejects_are_allowed(run, tmp_path, lines):
    log = _spoil(tmp_path, lines, 0, "2", count=len(lines))
    code, error = run(log, "data.max_reject_share=1")
    assert code == 2 and error.count("\n") == 1
    assert "Split 'train' should have at least one row" in error and f"{len(lines)} rejected" in error


@pytest.mark.slow
def test_crlf_and_columns_without_a_value_in_train(command, tmp_path, little_log):
    """A vocabulary of no row is trained, sliced by, blessed, pushed and answers."""
    import tensorflow as tf
    from conftest import CONFIG
    from tests_support import raw_columns

    rows = [line.split("\t") for line in little_log.read_text().splitlines()]
    train, evaluation = rows[:2400], rows[2400:]
    columns = [CRITEO.columns.index(name) for name in ("C1", "I1")]
    for row in train:
        for column in columns:
            row[column] = ""
    for name, part in (("train.tsv", train), ("eval.tsv", evaluation)):
        (tmp_path / name).write_bytes("".join("\t".join(row) + "\r\n" for row in part).encode())
    (tmp_path / "config.yaml").write_text(CONFIG)
    overrides = (
        f"data.train={tmp_path / 'train.tsv'}",
        f"data.eval={tmp_path / 'eval.tsv'}",
        "data.split.method=files",
        f"output={tmp_path / 'output'}",
        "validation.max_missing_share={C1: 1, I1: 1}",
        "gate.slices=[C1]",
        "gate.frequency_slices=[C1]",
        "train.epochs=1",
    )
    options = [text for item in overrides for text in ("--set", item)]
    code, _, err = command("run", "--config", tmp_path / "config.yaml", *options)
    assert code == 0, err
    result = json.loads((tmp_path / "output" / "run.json").read_text())
    assert result["blessed"] and result["rows"]["train"] == 2400 and result["rows"]["rejected"] == 0
    model = tf.saved_model.load(result["pushed"])
    asked = [dict(zip(CRITEO.columns, row, strict=True)) for row in evaluation[:20]]
    ctr = model.signatures["predict_raw"](
        **raw_columns([{name: row[name] for name in CRITEO.raw_features} for row in asked])
    )["ctr"].numpy()
    assert ctr.shape == (20,) and ((ctr > 0) & (ctr < 1)).all() and ctr.std() > 1e-4


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
        ("model.hidden_dim=4", "'model.hidden_dim' (k=4) should be at least `output_dim` (d=8)"),
        ("train.epochs=two", "'train.epochs' should be an integer from 1 to 100,000. Received: 'two'"),
        ("gate.bounds={acu: {min: 1}}", "Known keys: auc, logloss"),
        ("gate.slices=[C99]", "'gate.slices' names 'C99', which the schema does not have"),
        ("data.split.method=time", "schema 'criteo' has no time column"),
        ("train.epochs", "expected key=value"),
        ("model.initialization=fixed_varianc", "Did you mean 'fixed_variance'?"),
        ("output=runs/[a]", "'output' should be a folder without * ? [ ]"),
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


@pytest.mark.parametrize("where", ["/results/", "/Split-train/", "/counts/"])
def test_disk_full_while_the_log_is_read(run, tmp_path, lines, monkeypatch, where):
    import tensorflow as tf

    rename = tf.io.gfile.rename

    def full(source, target, overwrite=False):
        if where in target:
            raise tf.errors.ResourceExhaustedError(None, None, f"{target}; No space left on device")
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", full)
    (tmp_path / "log.tsv").write_text("".join(lines))
    code, error = run(tmp_path / "log.tsv")
    assert code == 2 and error.count("\n") == 1
    assert f"{tmp_path}/output/" in error and "cannot be written" in error and "No space left" in error


def test_disk_full_in_any_command(command, tmp_path, monkeypatch):
    from mlet_tf.datasets import synthetic

    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(synthetic, "write_log", full)
    code, _, err = command("synth", tmp_path / "log.tsv")
    assert code == 2 and err.endswith(f"Error: {tmp_path}/log.tsv: No space left on device\n")
    assert "Traceback" not in err


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
