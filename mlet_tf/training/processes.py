"""The processes of a training over several: each runs `mlet_tf.training.trainer.fit_and_export` on the same arguments.

The chief's Trainer writes the arguments into the work folder, from where the workers take them:
`python -m mlet_tf.training.processes FILE`, or `mlet-tf worker --config ...`, in each, under its own `TF_CONFIG`.
"""

import hashlib
import json
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from mlet_tf.child_processes import module_command
from mlet_tf.components.common import join
from mlet_tf.distributed import Workers
from mlet_tf.errors import InputError, WorkerLostError

ARGUMENTS = "training.json"
_MODULE = "mlet_tf.training.processes"
_INPUTS = ("custom_config", "transform_output", "train_files", "eval_files")
_OUTPUTS = ("serving_model_dir", "model_run_dir")  # The chief's alone.
_POLL_SECONDS = 1.0
_REFUSED, _LOST = 2, 4
_LOSSES = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


def train_as_chief(fn_args: Any) -> None:
    """Trains in a fresh process, since collectives have to be set up before TensorFlow is used.

    Raises:
        WorkerLostError: Another process was lost; the same call goes on from the last checkpoint.
        InputError: The training refused what it was given.
        RuntimeError: Training failed.
    """
    path = join(fn_args.custom_config["work"], ARGUMENTS)
    _write(path, {field: getattr(fn_args, field) for field in (*_INPUTS, *_OUTPUTS)})
    code = subprocess.run(module_command(_MODULE, path), check=False).returncode
    tf.io.gfile.remove(path)
    if code == _LOST:
        raise WorkerLostError(
            "a process of the training was lost; start all of them again to go on from the last checkpoint"
        )
    if code == _REFUSED:
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
    return subprocess.run(module_command(_MODULE, path), check=False).returncode


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


def main() -> None:
    """Takes part in one training."""
    from mlet_tf.training.trainer import fit_and_export

    with tf.io.gfile.GFile(sys.argv[1]) as file:
        arguments = json.load(file)
    try:
        workers = Workers.join()
        inputs = json.dumps([arguments[field] for field in _INPUTS], sort_keys=True)
        digest = int.from_bytes(hashlib.sha256(inputs.encode()).digest()[:7], "big")
        if not workers.agree([digest]):
            raise InputError(
                f"{sys.argv[1]}: expected the arguments of the chief; a file of an earlier run may have been read"
            )
        fit_and_export(SimpleNamespace(**arguments), workers)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(_REFUSED)
    except _LOSSES as error:
        print(f"Another process was lost: {error.message.splitlines()[0]}", file=sys.stderr)
        sys.exit(_LOST)


def _write(path: str, arguments: dict[str, Any]) -> None:
    tf.io.gfile.makedirs(path.rsplit("/", 1)[0])
    aside = f"{path}.unfinished"
    with tf.io.gfile.GFile(aside, "w") as file:
        json.dump(arguments, file)
    tf.io.gfile.rename(aside, path, overwrite=True)


if __name__ == "__main__":
    main()
