"""What importing brings, and what it does not."""

import os
import subprocess
import sys

import pytest

HEAVY = ("apache_beam", "tfx", "tensorflow_recommenders", "tensorflow_transform")


def _modules_after(code: str) -> set[str]:
    script = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_library_needs_neither_beam_nor_tfx_nor_tfrs():
    modules = _modules_after("import mlet_tf; mlet_tf.MLETEmbedding")
    assert {"mlet_tf.layers", "keras", "tensorflow"} <= modules
    assert not modules & set(HEAVY)


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
    modules = _modules_after("import mlet_tf.pipeline.cli.main")
    assert not modules & {"tensorflow", "keras", *HEAVY}


def test_the_library_does_not_know_the_pipeline():
    modules = _modules_after(
        "import mlet_tf, mlet_tf.collapse, mlet_tf.models, mlet_tf.export, mlet_tf.serving"
    )
    assert not modules & {"mlet_tf.pipeline", "mlet_tf.components"}


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
