"""What importing brings, and what it does not."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

HEAVY = ("apache_beam", "tfx", "tensorflow_recommenders", "tensorflow_transform")


def _modules_after(*codes: str) -> list[set[str]]:
    """Runs pieces of code in one new process; the names of the modules that are imported after each."""
    script = "import sys\n" + "".join(f"{code}\nprint(*sys.modules)\n" for code in codes)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_what_an_import_of_the_library_brings():
    """Neither Beam nor TFX nor TFRS, nor the pipeline; but what Keras needs to load a model of ours.

    Looking for Keras without importing it, as matplotlib, TensorFlow and others do, once kept our optimizers from
    being registered.
    """
    layers, all_modules = _modules_after(
        "import importlib.util, mlet_tf; assert importlib.util.find_spec('keras'); import keras\n"
        "assert {'mlet_tf>SplitOptimizer', 'mlet_tf>MLETEmbedding'} <= set(keras.saving.get_custom_objects())\n"
        "mlet_tf.MLETEmbedding",
        "import mlet_tf.collapse, mlet_tf.models, mlet_tf.export, mlet_tf.serving",
    )
    assert {"mlet_tf.layers", "keras", "tensorflow"} <= layers
    assert not layers & set(HEAVY)
    assert not all_modules & {"mlet_tf.pipeline", "mlet_tf.components"}


def test_importing_the_library_is_enough_to_load_a_compiled_model(tmp_path):
    import keras

    from mlet_tf import MLETEmbedding
    from mlet_tf.optimizers import RowWiseAdagrad, split_optimizer

    ids = keras.Input((2,), dtype="int32")
    model = keras.Model(ids, MLETEmbedding(9, 2, 4)(ids))
    model.compile(split_optimizer(tables=RowWiseAdagrad(), dense="adam"), "mse")
    model.save(tmp_path / "model.keras")
    load = f"keras.models.load_model({str(tmp_path / 'model.keras')!r})"
    for first in ("mlet_tf", "keras", "mlet_tf.layers", "mlet_tf.optimizers", "mlet_tf.collapse"):
        _modules_after(f"import {first}; import mlet_tf, keras; {load}")


def test_the_command_answers_without_tensorflow():
    """The group, and the help of each command: nothing that takes long to import."""
    code = (
        "from mlet_tf.pipeline.cli.main import cli; from click.testing import CliRunner; "
        "results = [CliRunner().invoke(cli, [name, '--help']) for name in ('--help', *cli.commands)]; "
        "assert all(result.exit_code == 0 for result in results)"
    )
    (modules,) = _modules_after(code)
    slow = {
        "tensorflow",
        "pydantic",
        "keras",
        "numpy",
        "pyarrow",
        "matplotlib",
        "optuna",
        "rich",
        "kfp",
        "jinja2",
    }
    assert not modules & {*slow, *HEAVY}


@pytest.mark.parametrize(
    ("command", "settings", "line"),
    [
        ("run", ["data.train=absent.tsv"], "No file found at 'absent.tsv'"),
        ("run", ["data.train=log.tsv", "output=log.tsv"], "'output' should be a writable folder"),
        ("run", ["data.train=log.tsv", "serving.push_to=log.tsv/below"], "log.tsv is no folder"),
        ("compile", ["data.train=gs://bucket/log.tsv"], "'kubeflow.image' is not set"),
        (
            "sweep",
            ["sweep.grid=[{}]", "output=swept", "data.train=absent.tsv"],
            "No file found at 'absent.tsv'",
        ),
    ],
)
def test_mistakes_that_show_at_once_are_told_before_tensorflow_is_imported(tmp_path, command, settings, line):
    """It took 24 s, and the output folder was only looked at after that."""
    (tmp_path / "log.tsv").write_text("1\n")
    (tmp_path / "config.yaml").write_text("name: early\n")
    arguments = [command, "--config", "config.yaml", *(text for key in settings for text in ("--set", key))]
    code = (
        f"import os; os.chdir({str(tmp_path)!r}); from click.testing import CliRunner\n"
        "from mlet_tf.errors import InputError; from mlet_tf.pipeline.cli.main import cli\n"
        f"error = CliRunner().invoke(cli, {arguments!r}).exception\n"
        f"assert isinstance(error, InputError) and {line!r} in str(error), error"
    )
    (modules,) = _modules_after(code)
    assert not modules & {"tensorflow", "keras", *HEAVY}


def test_keras_2_is_refused():
    code = "import tensorflow as tf; tf.keras.layers; import mlet_tf"
    legacy = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=legacy, capture_output=True, text=True, check=False
    )
    assert "mlet_tf needs tf.keras to be Keras 3" in done.stderr


@pytest.mark.parametrize(
    "name", ["MLETEmbedding", "EmbeddingCollection", "collapse_model", "collapse_report"]
)
def test_names_at_the_top(name):
    import mlet_tf

    assert name in dir(mlet_tf)
    assert getattr(mlet_tf, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlet_tf.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["mlet_tf.components.common", "mlet_tf.pipeline.pipeline"])
def test_components_import_by_themselves(module):
    """As an orchestrator's container imports them: nothing before has settled which Keras it is."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(
    "first", ["import mlet_tf.embeddings.addresses", "from mlet_tf.embeddings import TrainedTable"]
)
def test_a_module_of_served_embeddings_may_be_the_first_to_import_keras(first):
    """Loading Keras registers layers that are made of the module that is half imported."""
    code = f"{first}; from mlet_tf.embeddings import ServedTable; import keras; "
    code += "assert keras.saving.get_registered_object('mlet_tf>ServedTable') is ServedTable"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory):
    """The folder of a fresh environment with the wheel of this source."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    subprocess.run([*pip, "wheel", *options, _sources(folder / "sources")], check=True)
    (wheel,) = folder.glob("mlet_tf-*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    # The other packages are those of this environment, whose own .pth files, an editable mlet_tf's too, do not count.
    (packages,) = environment.glob("lib/*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return environment


def test_the_wheel_holds_every_file(wheel_environment):
    (installed,) = wheel_environment.glob("lib/*/site-packages/mlet_tf")
    for folder, place in (("mlet_tf", "."), ("pipeline", "pipeline"), ("components", "components")):
        files = [path.relative_to(REPOSITORY / folder) for path in (REPOSITORY / folder).rglob("*.py")]
        assert [file for file in files if not (installed / place / file).is_file()] == []
    assert (installed / "py.typed").is_file()
    assert (installed / "templates" / "report.html").is_file()


def test_the_wheel_is_found_where_a_user_has_packages_of_our_names(wheel_environment, shadowing_folder):
    """As in the slow test below, but nothing is run, and so TensorFlow is not imported."""

    def output(*command: Path | str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=shadowing_folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = wheel_environment / "bin" / "python"
    (packages,) = wheel_environment.glob("lib/*/site-packages")
    code = "import mlet_tf.pipeline, importlib.util as u; print(u.find_spec('mlet_tf.components').origin)"
    assert Path(output(python, "-P", "-c", code).strip()).is_relative_to(packages)
    assert "Usage: mlet-tf" in output(python.with_name("mlet-tf"), "--help")
    assert "--config" in output(python, "-P", "-m", "mlet_tf.pipeline.cli.main", "run", "--help")


@pytest.mark.slow
def test_the_wheel_runs_where_a_user_has_packages_of_our_names(
    wheel_environment, tmp_path, shadowing_folder, little_log
):
    """From a wheel in a fresh environment, in a folder with packages `pipeline` and `components`, to a pushed model."""
    from conftest import CONFIG

    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(CONFIG) | {"output": str(tmp_path / "output")})
    )
    command = [wheel_environment / "bin" / "mlet-tf", "run", "--config", tmp_path / "config.yaml"]
    done = subprocess.run(
        [*command, "--set", f"data.train={little_log}"],
        cwd=shadowing_folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    pushed = json.loads((tmp_path / "output" / "run.json").read_text())["pushed"]
    assert Path(pushed, "saved_model.pb").exists()


def _sources(folder):
    """A copy of what a wheel is built of; the build would leave folders in the repository."""
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
            "mlet_tf",
            "pipeline",
            "components",
            "setup.py",
            "pyproject.toml",
            "README.md",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.rstrip("\0").split("\0"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / name).read_bytes())
    return folder
