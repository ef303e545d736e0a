"""Runs the pipeline on this machine: one process, SQLite metadata, progress on the terminal."""

import hashlib
import json
import logging
import time
from pathlib import Path

import absl.logging
from mlet_tf.pipeline.checks import check_run, state_folder
from mlet_tf.pipeline.code_version import code_version
from mlet_tf.pipeline.pipeline import create_pipeline, last_blessed_model
from mlet_tf.pipeline.results import gather, last_run_artifacts, read_run, write_run
from tfx import v1 as tfx

from mlet_tf.child_processes import safe_path
from mlet_tf.config import PipelineConfig, dump_config
from mlet_tf.datasets.presets import PRESETS
from mlet_tf.progress import ProgressLine
from mlet_tf.run_file import Run
from mlet_tf.storage import absolute, exists, file_stamp, join, remove, writing, written_aside


class RunResult(Run):
    """The content of `run.json`, and whether the run was skipped because nothing had changed."""

    unchanged: bool


def run(config: PipelineConfig) -> RunResult:
    """Runs the pipeline, unless nothing has changed since the last run.

    Args:
        config: The resolved configuration; `data.train` must be set.

    Raises:
        InputError: If the data or the output folder cannot be used.
        GateError: If a check of data or collapse failed.
    """
    files = check_run(config)
    state, output = state_folder(config), absolute(config.output)
    store_config(state, config)
    fingerprint = fingerprint_of(config, files)
    last = read_run(state)
    if config.enable_cache and last and last.get("fingerprint") == fingerprint and _still_there(last):
        return {**last, "unchanged": True}
    connection = tfx.orchestration.metadata.sqlite_metadata_connection_config(str(state / "metadata.sqlite"))
    pipeline = create_pipeline(
        config,
        pipeline_root=join(output, "artifacts"),
        work=join(output, "work"),
        metadata_connection_config=connection,
        use_model_server=_use_model_server(config),
        last_blessed=last_blessed_model(),
    )
    progress = _Progress([component.id for component in pipeline.components], state / "run.log")
    with progress, safe_path():
        tfx.orchestration.LocalDagRunner().run(pipeline)
        results = gather(last_run_artifacts(connection), progress.seconds)
    result: Run = {**results, "name": config.name, "fingerprint": fingerprint, "output": str(state)}
    write_run(state, result)
    remove(join(output, "work"))  # Packed rows and checkpoints of work that is complete.
    return {**result, "unchanged": False}


def store_config(folder: Path, config: PipelineConfig) -> None:
    """Writes the resolved configuration; its paths are absolute, so that it means the same in any folder.

    Args:
        folder: Output folder of a run, made where it does not exist.
        config: The configuration.

    Raises:
        InputError: The file cannot be written.
    """
    data, push_to = config.data, config.serving.push_to
    data = data.replace(
        train=data.train and absolute(data.train),
        eval=data.eval and absolute(data.eval),
        schema=data.schema if data.schema in PRESETS else absolute(data.schema),
    )
    serving = config.serving.replace(push_to=push_to and absolute(push_to))
    stored = config.replace(output=absolute(config.output), data=data, serving=serving)
    path = folder / "config.yaml"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as file:
            file.write(dump_config(stored).encode())


def fingerprint_of(config: PipelineConfig, files: list[str]) -> str:
    """Hash of all that a run depends on: configuration, schema, data and code."""
    state = [(absolute(file), *file_stamp(file)) for file in files]
    text = (
        dump_config(config)
        + json.dumps(config.schema.to_dict())  # The configuration has only the path of its file.
        + json.dumps(state)
        + code_version("mlet_tf.pipeline", "mlet_tf.components", "mlet_tf")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _still_there(last: Run) -> bool:
    return last["pushed"] is None or exists(last["pushed"])


def _use_model_server(config: PipelineConfig) -> bool:
    """Whether TFX's InfraValidator can start a model server, that is whether there is docker."""
    if config.serving.infra_validation != "auto":
        return config.serving.infra_validation == "model_server"
    return Path("/var/run/docker.sock").exists()


# Libraries with their own log handlers.
_OWN_HANDLERS = [logging.getLogger(name) for name in ("absl", "tensorflow")]


class _Progress(logging.Handler):
    """Shows a line for each component and keeps TFX's own log in a file.

    It listens to the two lines that LocalDagRunner logs around each component.
    """

    def __init__(self, nodes: list[str], log_file: Path) -> None:
        super().__init__()
        self._nodes = nodes
        self._file = logging.FileHandler(log_file, mode="w")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._started = 0.0
        self._cached = False
        self._line = ProgressLine()
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> "_Progress":
        absl.logging.set_verbosity(absl.logging.INFO)
        root = logging.getLogger()
        self._before = [(logger, logger.handlers[:], logger.level) for logger in (root, *_OWN_HANDLERS)]
        for logger in _OWN_HANDLERS:
            logger.handlers, logger.propagate = [], True
        root.handlers = [self, self._file]
        root.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        for logger, handlers, level in self._before:
            logger.handlers = handlers
            logger.setLevel(level)
        self._file.close()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "Component %s is running.":
            self._started, self._cached = time.monotonic(), False
            number = len(self.seconds) + 1
            self._line.note(f"[{number:2}/{len(self._nodes)}] {record.args[0]} ...")
        elif record.msg == "A cached execution %d is used.":
            self._cached = True
        elif record.msg == "Component %s is finished.":
            node = record.args[0]
            self.seconds[node] = time.monotonic() - self._started
            state = "unchanged, taken from the cache" if self._cached else f"{self.seconds[node]:.1f} s"
            self._line.note(f"        {node}: {state}")
        elif record.name == "absl" and str(record.msg).startswith(
            ("Epoch ", "Resuming ", "Compression: ", "Baseline: ", "Gate: ", "Serving check")
        ):
            self._line.note(f"        {record.getMessage()}")
