"""Distributed training: each process runs `mlet_tf.training.trainer.fit_and_export` on the same arguments.

The chief's Trainer writes the arguments into the work folder, where the workers read them. Each then trains in a new
process, `mlet_tf.training.worker`, under its own `TF_CONFIG`.
"""

import dataclasses
import json
import subprocess
import time
from typing import Any

import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.child_processes import module_command
from mlet_tf.errors import InputError, WorkerLostError
from mlet_tf.storage import join, make_folder

ARGUMENTS = "training.json"
_POLL_SECONDS = 1.0
REFUSED, LOST = 2, 4  # Exit codes of a worker.
_WORKER = "mlet_tf.training.worker"


@dataclasses.dataclass(frozen=True)
class TrainingArguments:
    """The parts of TFX's `FnArgs` that a training uses.

    Attributes:
        custom_config: `schema`, `model`, `train` and `vocabulary`, as in the configuration, and `work`: the folder in
            which an interrupted run finds its state.
        transform_output: Folder of the transform graph.
        train_files: Patterns of the `train` shards.
        eval_files: Patterns of the `eval` shards.
        serving_model_dir: Where the chief exports to.
        model_run_dir: Where the chief writes for TensorBoard.
    """

    custom_config: dict[str, Any]
    transform_output: str
    train_files: list[str]
    eval_files: list[str]
    serving_model_dir: str
    model_run_dir: str

    @classmethod
    def from_fn_args(cls, fn_args: Any) -> "TrainingArguments":
        """Reads them from TFX's `FnArgs`."""
        return cls(**{field.name: getattr(fn_args, field.name) for field in dataclasses.fields(cls)})

    def inputs(self) -> str:
        """JSON of what the trained weights depend on."""
        inputs = [self.custom_config, self.transform_output, self.train_files, self.eval_files]
        return json.dumps(inputs, sort_keys=True)


def train_as_chief(arguments: TrainingArguments) -> None:
    """Trains in a fresh process, because collectives must be set up before TensorFlow is used.

    Raises:
        WorkerLostError: Another process was lost; the same call resumes from the last checkpoint.
        InputError: The training refused its arguments.
        RuntimeError: Training failed.
    """
    path = join(arguments.custom_config["work"], ARGUMENTS)
    make_folder(arguments.custom_config["work"])
    strict_json.write(path, dataclasses.asdict(arguments))
    code = subprocess.run(module_command(_WORKER, path), check=False).returncode
    tf.io.gfile.remove(path)
    if code == LOST:
        raise WorkerLostError(
            "a process of the training was lost; start all of them again to resume from the last checkpoint"
        )
    if code == REFUSED:
        raise InputError("the training could not be done; the reason is above")
    if code:
        raise RuntimeError(f"training ended with exit code {code}; its error is above")


def join_training(work: str, timeout: float) -> int:
    """Waits for the chief's Trainer and takes part in its training; returns the exit code.

    Args:
        work: The work folder of the run.
        timeout: Seconds to wait.

    Raises:
        InputError: The chief did not come.
    """
    path = wait_for_arguments(work, timeout)
    return subprocess.run(module_command(_WORKER, path), check=False).returncode


def wait_for_arguments(work: str, timeout: float) -> str:
    """Waits for the chief's Trainer; returns the path of its arguments.

    Args:
        work: The work folder of the run.
        timeout: Seconds to wait.

    Raises:
        InputError: The chief did not come.
    """
    path = join(work, ARGUMENTS)
    deadline = time.monotonic() + timeout
    while not tf.io.gfile.exists(path):
        if time.monotonic() > deadline:
            raise InputError(
                f"{path}: expected the chief's Trainer to write it within {timeout:g} s, it did not"
            )
        time.sleep(_POLL_SECONDS)
    return path
