"""Worker processes of a sweep, of one thread each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

TASKS_A_PROCESS = 50  # Graphs of earlier models stay in a process: one had come to 4.4 GB.


class Processes:
    """A process pool that restarts all processes after `TASKS_A_PROCESS` tasks per process.

    The context waits for all tasks on exit, or ends the processes if the sweep is interrupted.

    The pool's own `max_tasks_per_child` replaces them one by one, but with Python 3.11 it can wait for ever for a
    process that has gone (https://github.com/python/cpython/issues/115634).

    Args:
        count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool, self._left = self._start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Submits a task; if the processes are due for a restart, waits for earlier tasks first."""
        if not self._left:
            self._pool.shutdown()
            self._pool, self._left = self._start()
        self._left -= 1
        return self._pool.submit(function, *args)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        processes = list(self._pool._processes.values())
        self._pool.shutdown(wait=error is None, cancel_futures=error is not None)
        if error is not None:
            for process in processes:
                process.terminate()

    def _start(self) -> tuple[ProcessPoolExecutor, int]:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self._count, context, _start_process, (os.getpid(),))
        return pool, TASKS_A_PROCESS * self._count


def _start_process(parent: int) -> None:
    """One thread a process, and none that outlives the sweep."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    logging.disable(logging.WARNING)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
