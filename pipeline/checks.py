"""Mistakes in a configuration that show before anything runs, and before TFX is imported, which takes half a minute."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mlet_tf.config import PipelineConfig
from mlet_tf.datasets.files import list_files
from mlet_tf.errors import InputError
from mlet_tf.outputs import output_folder
from mlet_tf.storage import is_remote


def check_run(config: PipelineConfig) -> list[str]:
    """Checks that the data of a run can be found and its outputs written.

    Returns:
        The files of the log.

    Raises:
        InputError: `data.train` is not set, or a file or folder cannot be used.
    """
    if config.data.train is None:
        raise InputError("'data.train' is not set; give it with --set data.train=PATH")
    files = list_files(config.data.train)
    if config.data.eval is not None:
        files += list_files(config.data.eval)
    state = state_folder(config)
    try:
        output_folder(state)
    except InputError as error:
        raise InputError(f"output folder {error}; 'output' should be a writable folder") from None
    if not is_remote(config.push_to):
        output_folder(config.push_to)
    return files


def state_folder(config: PipelineConfig) -> Path:
    """Folder for the files of a run that must be local: SQLite metadata, log, `run.json`.

    It is the output folder or, if that is remote, a folder in `runs` with the pipeline's name.
    """
    return (Path("runs") / config.name if is_remote(config.output) else Path(config.output)).absolute()


def check_kubeflow(config: PipelineConfig) -> None:
    """Checks what Kubeflow needs in addition to a local run.

    Raises:
        InputError: With a line for each key that is missing, names something that containers cannot reach, or has no
            counterpart on Kubeflow.
    """
    if mistakes := list(_mistakes(config)):
        raise InputError("\n".join(mistakes))


def _mistakes(config: PipelineConfig) -> Iterator[str]:
    needed = {
        "kubeflow.image": config.kubeflow.image,
        "kubeflow.pipeline_root": config.kubeflow.pipeline_root,
        "serving.push_to": config.serving.push_to,
        "data.train": config.data.train,
    }
    for key, value in needed.items():
        if not value:
            yield f"{key!r} is not set; Kubeflow needs it"
    baseline = config.kubeflow.baseline_model
    places = {**needed, "data.eval": config.data.eval, "kubeflow.baseline_model": baseline}
    del places["kubeflow.image"]
    for key, value in places.items():
        if value and not is_remote(value) and not os.path.isabs(value):  # noqa: PTH117 (may be remote)
            yield f"{key!r} should be a URI or an absolute path, which all containers see alike. Received: {value!r}"
    root = config.kubeflow.pipeline_root
    if root and not root.startswith(("gs://", "s3://")):
        yield (
            "'kubeflow.pipeline_root' should be a gs:// or s3:// URI, which Kubeflow and TensorFlow both open. "
            f"Received: {root!r}"
        )
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,126}[a-z0-9])?", config.name):
        yield f"'name' should be lower-case letters, digits and hyphens on Kubeflow. Received: {config.name!r}"
    if config.serving.infra_validation == "model_server":
        yield (
            "'serving.infra_validation' should be 'auto' or 'saved_model' on Kubeflow, which has no InfraValidator. "
            "Received: 'model_server'"
        )
