"""What docs/security.md promises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import keras
from mlet_tf.pipeline.cli.main import cli

from mlet_tf.config import PipelineConfig
from mlet_tf.config.reference import keys
from mlet_tf.config.sweep import SweepConfig
from mlet_tf.serving import ServeOptions

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted(
    path for name in ("mlet_tf", "components", "pipeline") for path in (REPOSITORY / name).rglob("*.py")
)
# What `yaml.dump` writes it does not execute.
_SAFE_YAML = ("yaml.safe_load", "yaml.safe_dump", "yaml.dump", "yaml.constructor.ConstructorError")
_SECRET = re.compile(r"token|secret|password|passwd|credential|api_?key|access_?key|private", re.IGNORECASE)


def test_a_configuration_has_no_place_for_a_secret():
    paths = [key.path for model in (PipelineConfig, SweepConfig) for key in keys(model)]
    assert "kubeflow.nodes.<name>.cpu" in paths and "train.tables.learning_rate" in paths
    assert [path for path in paths if _SECRET.search(path)] == []


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def test_nothing_from_outside_is_executed():
    """YAML without Python's objects, Keras files in safe mode, no shell, no eval."""
    assert len(SOURCES) > 50
    for path in SOURCES:
        for call in _calls(path):
            name = ast.unparse(call.func)
            where = f"{path}:{call.lineno}: {ast.unparse(call)}"
            assert name not in ("eval", "exec", "os.system"), where
            assert not name.startswith("yaml.") or name in _SAFE_YAML, where
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("safe_mode") != "False" and given.get("shell") != "True", where


def test_code_in_a_keras_file_is_refused(command, tmp_path):
    inputs = keras.Input([2])
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "lambda.keras")
    code, _, err = command("collapse", tmp_path / "lambda.keras", tmp_path / "out.keras")
    assert code == 2 and "unsafe" in err and "Traceback" not in err
    assert not (tmp_path / "out.keras").exists()


def test_servers_are_bound_to_loopback_unless_told():
    assert ServeOptions(model_base_path="x").host == "127.0.0.1"
    (option,) = [parameter for parameter in cli.commands["serve"].params if parameter.name == "host"]
    assert option.default == "127.0.0.1"
