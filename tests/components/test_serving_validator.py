"""The check before the push: signatures, and a model server where there is one."""

import sys
from pathlib import Path

import pytest
import tensorflow as tf

from mlet_tf.datasets import CRITEO
from mlet_tf.features.examples import example_files
from mlet_tf.serving.check import check, check_with_server
from mlet_tf.serving.server import ModelServer


@pytest.fixture(scope="module")
def arguments(finished_run):
    files = example_files([f"{finished_run.result['artifacts']['examples']}/Split-eval/*"])
    return finished_run.result["pushed"], files, CRITEO


def test_rows_are_answered(arguments):
    assert check(*arguments) == 67


def test_a_model_without_the_signatures_is_refused(arguments, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ValueError, match="has no signature classify"):
        check(str(tmp_path), *arguments[1:])


def test_a_model_server_gives_the_same_answers(arguments, tmp_path):
    """A program with that server's flags; here it starts the stand-in."""
    program = tmp_path / "tensorflow_model_server"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from mlet_tf.serving import ServeOptions, run_server\n"
        "flags = dict(flag.removeprefix('--').split('=', 1) for flag in sys.argv[1:])\n"
        "run_server(ServeOptions(model_name=flags['model_name'], model_base_path=flags['model_base_path'],\n"
        "                        port=int(flags['port']), rest_api_port=int(flags['rest_api_port'])))\n"
    )
    program.chmod(0o755)
    assert check_with_server(ModelServer("binary", str(program)), *arguments) == 64
    assert Path(arguments[0]).exists()
