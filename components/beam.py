"""Runs tasks on Beam's workers; results come back through files, so that none is lost unnoticed."""

import functools
import pickle
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import apache_beam as beam
import tensorflow as tf
from tfx.dsl.components.base import base_beam_executor

from mlet_tf.errors import InputError
from mlet_tf.network import bypass_proxy_for_loopback
from mlet_tf.storage import join, remove, writing

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class BeamExecutor(base_beam_executor.BaseBeamExecutor):
    """TFX's Beam executor, but it ignores the command line of the program that it runs in.

    TFX parses `sys.argv` as absl's flags along with Beam's options: a program that was started with a flag of the
    same name, such as `pytest -v FILE`, would end with an error about the flag.
    """

    def __init__(self, context: base_beam_executor.BaseBeamExecutor.Context | None = None) -> None:
        arguments = sys.argv
        sys.argv = arguments[:1]
        try:
            super().__init__(context)
        finally:
            sys.argv = arguments


def run_tasks(
    make_pipeline: Callable[[], beam.Pipeline],
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    folder: str,
) -> list[_Result]:
    """Calls a function on each task, on Beam's workers.

    Args:
        make_pipeline: Makes the pipeline, as TFX's Beam executors do.
        function: Called with a task, on any worker; its result is pickled.
        tasks: The tasks.
        folder: Temporary folder for results; created and removed here.

    Returns:
        The results, in the order of the tasks.

    Raises:
        InputError: The folder cannot be written.
        RuntimeError: The result of a task is missing.
    """
    return list(stream_tasks(make_pipeline, function, tasks, folder))


def stream_tasks(
    make_pipeline: Callable[[], beam.Pipeline],
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    folder: str,
) -> Iterator[_Result]:
    """`run_tasks` for results that do not fit into memory together: each is loaded when needed.

    Runners differ in how they return results, and some lose them; one file per result works on all of them.

    Yields:
        The results, in the order of the tasks; nothing runs before the first one is requested.

    Raises:
        InputError: The folder cannot be written.
        RuntimeError: The result of a task is missing.
    """
    with writing(folder):
        tf.io.gfile.makedirs(folder)
    bypass_proxy_for_loopback()  # Beam's workers may be processes on this machine.
    try:
        with make_pipeline() as pipeline:
            _ = (
                pipeline
                | "Tasks" >> beam.Create(list(enumerate(tasks)))
                | "Spread" >> beam.Reshuffle()
                | "Run" >> beam.Map(functools.partial(_run_task, function=function, folder=folder))
            )
    except Exception as error:
        # All runners keep only the text of a worker's error.
        found = re.search(rf"{re.escape(folder)} cannot be written: .*", str(error))
        if found is None:
            raise
        raise InputError(found[0]) from error
    for index, task in enumerate(tasks):
        yield _load(index, task, folder)
    remove(folder)


def _run_task(numbered: tuple[int, _Task], function: Callable[[_Task], _Result], folder: str) -> None:
    index, task = numbered
    result = pickle.dumps(function(task))
    unfinished = join(folder, uuid.uuid4().hex)
    with writing(folder):
        with tf.io.gfile.GFile(unfinished, "wb") as file:
            file.write(result)
        tf.io.gfile.rename(unfinished, join(folder, str(index)), overwrite=True)


def _load(index: int, task: object, folder: str) -> object:
    path = join(folder, str(index))
    if not tf.io.gfile.exists(path):
        raise RuntimeError(f"There is no result for {task}: Beam lost it")
    with tf.io.gfile.GFile(path, "rb") as file:
        return pickle.loads(file.read())
