"""Every path that a command takes: absent, of the wrong kind, not to be written. One line, exit code 2."""

import contextlib
import errno
import json
import os
import sys

import fsspec
import pytest
import yaml
from mlet_tf.pipeline.cli.main import EXTRAS, cli

from mlet_tf.errors import InputError
from mlet_tf.outputs import output_file, output_folder
from mlet_tf.storage import writing

# What every run writes into `run.json`.
ARTIFACTS = ("evaluation", "collapse_report", "collapsed_model", "uncollapsed_model", "history", "examples")
RUN = {
    **{group: {} for group in ("rows", "seconds", "metrics", "table_bytes", "quantization")},
    "artifacts": dict.fromkeys((*ARTIFACTS, "transform_graph"), "/nowhere"),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with what the commands look for; FILE and FOLDER stand in the place of one another."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.keras").touch()
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"output": str(tmp_path / "output")}))
    settings = {
        "kubeflow": {"image": "i", "pipeline_root": "gs://b/root"},
        "serving": {"push_to": "gs://b/serving"},
        "data": {"train": "gs://b/train.tsv"},
    }
    (tmp_path / "kubeflow.yaml").write_text(yaml.safe_dump(settings))
    row = "\t".join(["1", *["1"] * 13, *["a"] * 26]) + "\n"
    (tmp_path / "log.tsv").write_text(row * 20)
    generated = {"rows": 1000, "categoricals": 2, "integers": 1, "vocabulary": 20}
    sweep = {"generated": generated, "grid": [{"embedding": ["direct"], "model.output_dim": [2]}]}
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "s", "output": str(tmp_path / "output"), "sweep": sweep})
    )
    (tmp_path / "trials.jsonl").write_text('{"key": "k"}\n')
    return tmp_path


@pytest.fixture
def refuse(command, folder, monkeypatch):
    """Calls a command, `{}` being the path and `@name` a file of `folder`; expects one line that names the path."""

    def call(arguments, path):
        named = (argument.replace("{}", str(path)) for argument in arguments.split())
        code, _, err = command(*(a.replace("@", f"{folder}/") for a in named))
        message = err.splitlines()[-1] if err else ""
        assert code == 2, err
        assert message.startswith("Error: ") and str(path) in message, err
        assert sum(line.startswith("Error: ") for line in err.splitlines()) == 1 and "Traceback" not in err
        assert "Errno" not in message

    cluster = {"cluster": {"worker": ["h:1", "h:2"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    return call


INPUT_FILES = [
    "synth @new.tsv --schema {}",
    "run --config {}",
    "run --config @config.yaml --set data.train=@log.tsv --set data.schema={}",
    "collapse {} @out.keras",
    "shrink {} --output @new --ratio 2 --data @file",
    "shrink @model.keras --output @new --ratio 2 --data {}",
    "shrink @model.keras --output @new --max_auc_drop 0 --data @file --validation_data {}",
    "serve --stand_in --model_config_file {}",
    "serve --model_base_path @folder --tensorflow_model_server {}",
    "predict @log.tsv --schema {}",
    "push @saved_model @base --schema {}",
    "compile --config {}",
    "submit --endpoint http://127.0.0.1:9 --package {}",
    "sweep --config {}",
    "frontier draw {}",
    "plan --config {}",
    "plan --config @config.yaml --data {}",
    "worker --config {}",
]
# Logs may be folders: an empty one has no rows.
LOGS = [
    "run --config @config.yaml --set data.train={}",
    "run --config @config.yaml --set data.train=@log.tsv --set data.split.method=files --set data.eval={}",
    "predict {}",
    "push @saved_model @base --warmup {}",
]
INPUT_FOLDERS = [
    "serve --stand_in --model_base_path {}",
    "push {} @base",
    "rollback {}",
    "report {}",
    "shrink {} --output @new --ratio 2",
]
OUTPUT_FILES = [
    ("synth {} --rows 10 --vocabulary 4", ".tsv"),
    ("collapse @model.keras {}", ".keras"),
    ("compile --config @kubeflow.yaml --output {}", ".yaml"),
    ("frontier draw @trials.jsonl --output {}", ".png"),
]
OUTPUT_FOLDERS = [
    "run --config @config.yaml --set data.train=@log.tsv --set output={}",
    "run --config @config.yaml --set data.train=@log.tsv --set serving.push_to={}",
    "push @saved_model {}",
    "report @run --output {}",
    "shrink @run --ratio 2 --output {}",
]


def test_every_command_is_looked_at():
    cases = [*INPUT_FILES, *LOGS, *INPUT_FOLDERS, *(case for case, _ in OUTPUT_FILES), *OUTPUT_FOLDERS]
    assert {case.split()[0] for case in cases} >= set(cli.commands) - {"config"}


@pytest.mark.parametrize("arguments", INPUT_FILES)
@pytest.mark.parametrize("path", ["absent.yaml", "folder", "file/below.yaml"])
def test_a_file_that_cannot_be_read(refuse, folder, arguments, path):
    refuse(arguments, folder / path)


@pytest.mark.parametrize("arguments", LOGS)
@pytest.mark.parametrize("path", ["absent.tsv", "folder", "file/below.tsv"])
def test_a_log_that_cannot_be_read(refuse, folder, arguments, path):
    refuse(arguments, folder / path)


@pytest.mark.parametrize("arguments", INPUT_FOLDERS)
@pytest.mark.parametrize("path", ["absent", "file", "file/below"])
def test_a_folder_that_cannot_be_read(refuse, folder, arguments, path):
    refuse(arguments, folder / path)


@pytest.mark.parametrize(("arguments", "ending"), OUTPUT_FILES)
@pytest.mark.parametrize("path", ["taken", "file/below", "/proc/new"])
def test_a_file_that_cannot_be_written(refuse, folder, arguments, ending, path):
    target = folder / f"{path}{ending}"
    if path == "taken":
        target.mkdir()
    before = sorted(folder.rglob("*"))
    refuse(arguments, target)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", OUTPUT_FOLDERS)
@pytest.mark.parametrize("path", ["file", "file/below", "/proc/new"])
def test_a_folder_that_cannot_be_written(refuse, folder, arguments, path):
    refuse(arguments, folder / path)


@pytest.mark.parametrize("path", ["file/below", "/proc/new"])
def test_output_of_a_sweep_that_cannot_be_written(refuse, folder, path):
    config = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**config, "output": str(folder / path)}))
    refuse("sweep --config @sweep.yaml", folder / path)


@pytest.mark.parametrize("arguments", ["collapse @model.keras {}", "frontier draw @trials.jsonl --output {}"])
def test_a_file_in_a_folder_that_does_not_exist(refuse, folder, arguments):
    refuse(arguments, folder / "nodir" / ("o.keras" if "keras" in arguments else "o.png"))
    assert not (folder / "nodir").exists()


def test_outputs_that_exist_are_not_written_over(refuse, folder):
    (folder / "out.keras").write_text("a model")
    refuse("collapse @model.keras {}", folder / "out.keras")
    refuse("shrink @run --ratio 2 --output {}", folder / "folder")
    assert (folder / "out.keras").read_text() == "a model"


def test_the_model_is_not_written_over_by_its_collapse(refuse, folder):
    refuse("collapse @model.keras {} --force", folder / "model.keras")


def test_devices_are_not_replaced_by_files(refuse):
    refuse("synth {} --force", "/dev/full")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"name": "x"}', "\x80", '{"artifacts": {}}'),
        json.dumps({**RUN, "artifacts": {}}),
        json.dumps({**RUN, "artifacts": {**RUN["artifacts"], "history": 5}}),
    ],
)
def test_a_run_file_that_is_none(refuse, folder, text):
    (folder / "run" / "run.json").write_text(text, encoding="latin-1")
    refuse("report {}", folder / "run")
    refuse("shrink {} --output @new --ratio 2", folder / "run")


@pytest.mark.parametrize("case", ["plan --config @config.yaml --data {}", "frontier draw {}"])
def test_binary_files(refuse, folder, case):
    (folder / "binary.yaml").write_bytes(b"\x80\x81\xff\x00")
    refuse(case, folder / "binary.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("shrink", "run", "--output", "new", "--max_auc_drop", "nan"),
        ("frontier", "draw", "trials.jsonl", "--best_auc", "nan"),
        ("serve", "--model_base_path", "x", "--timeout_seconds", "nan"),
        ("serve", "--model_base_path", "x", "--timeout_seconds", "inf"),
    ],
)
def test_an_option_that_is_not_a_number_is_refused(command, arguments):
    code, _, err = command(*arguments)
    assert code == 2 and "is not a finite number" in err


def test_a_file_of_a_run_that_is_gone(refuse, folder):
    artifacts = {**RUN["artifacts"], "collapse_report": str(folder / "gone.json")}
    (folder / "run" / "run.json").write_text(json.dumps({**RUN, "artifacts": artifacts}))
    refuse("report @run", folder / "gone.json")


def test_what_tensorflow_says_of_a_path_is_one_line(command, monkeypatch, tmp_path):
    import tensorflow as tf

    def read(*_):
        with tf.io.gfile.GFile(tmp_path / "gone" / "x") as file:
            return file.read()

    monkeypatch.setattr("mlet_tf.config.load_config", read)
    code, _, err = command("plan", "--config", "c.yaml")
    assert (code, err) == (2, f"Error: {tmp_path}/gone/x: No such file or directory\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied"),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"),
            "/b: Invalid cross-device link",
        ),
        (OSError("Unable to open\nthe file"), "Unable to open"),
    ],
)
def test_errors_of_the_operating_system_are_one_line(command, monkeypatch, error, line):
    def fail(*_):
        raise error

    monkeypatch.setattr("mlet_tf.config.load_config", fail)
    assert command("plan", "--config", "c.yaml")[::2] == (2, f"Error: {line}\n")


@contextlib.contextmanager
def forgotten_s3():
    """Keeps a client of fsspec, which has the credentials of its first use, from tests before and after."""
    client = fsspec.get_filesystem_class("s3")
    client.clear_instance_cache()
    yield
    client.clear_instance_cache()


def test_missing_credentials_of_an_object_store_are_one_line(command, monkeypatch, tmp_path):
    """As s3fs has it, where tensorflow-io is not installed: a traceback of botocore."""
    from mlet_tf import storage

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(storage, "tensorflow_opens", lambda path: False)
    with forgotten_s3():
        code, _, err = command("predict", "s3://bucket/log.tsv")
    assert (code, err) == (2, "Error: s3://: Unable to locate credentials\n")


def test_a_fault_of_the_program_keeps_its_traceback(command, monkeypatch):
    def fail(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("mlet_tf.config.load_config", fail)
    with pytest.raises(KeyError, match="a bug"):
        command("plan", "--config", "c.yaml")


@pytest.mark.parametrize(
    ("package", "used_by", "extra"),
    [
        ("optuna", "mlet_tf.experiments.sweep", "experiments"),
        ("matplotlib", "mlet_tf.experiments.frontier", "pipeline"),
    ],
)
def test_a_command_whose_extra_is_not_installed_names_it(
    command, monkeypatch, folder, package, used_by, extra
):
    monkeypatch.delitem(sys.modules, used_by, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # As if it were not installed.
    arguments = ("frontier", "draw", folder / "trials.jsonl", "--output", folder / "a.png")
    if package != "matplotlib":
        arguments = ("sweep", "--config", folder / "sweep.yaml")
    code, _, err = command(*arguments)
    assert (code, err) == (2, f"Error: {package} is not installed; this command needs mlet-tf[{extra}]\n")


def test_extras_are_those_of_the_package():
    from importlib.metadata import metadata

    assert set(EXTRAS.values()) <= set(metadata("mlet-tf").get_all("Provides-Extra"))


def test_outputs_that_can_be_written(tmp_path):
    assert output_file(str(tmp_path / "a.png"), ".png") == tmp_path / "a.png"
    assert output_file(str(tmp_path / "b" / "a.png"), ".png", make_folder=True) == tmp_path / "b" / "a.png"
    assert output_folder(tmp_path / "c" / "d") == tmp_path / "c" / "d"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"should end in \.yaml or \.yml"):
        output_file(str(tmp_path / "a.png"), ".yaml", ".yml")


def test_a_full_disk_names_the_path():
    with pytest.raises(InputError, match=r"^page cannot be written: No space left"), writing("page"):
        raise OSError(errno.ENOSPC, "No space left on device")
