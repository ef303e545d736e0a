"""The executor: chunks through Beam, counts checked, files renamed into place."""

import functools
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from mlet_tf.components.beam import BeamExecutor, run_tasks
from mlet_tf.components.click_log_example_gen.config import EVAL, TRAIN, IngestConfig, input_files
from mlet_tf.components.click_log_example_gen.report import COUNTS_FOLDER, write_ingest_report
from mlet_tf.components.click_log_example_gen.shards import Result, Task, write_chunk
from mlet_tf.components.click_log_example_gen.times import choose_cut, count_times
from mlet_tf.components.common import remove_folder, writing
from tfx import types
from tfx.components.example_gen import utils, write_split
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from mlet_tf.datasets.reading import Reject, check_reject_share, lines_before, plan_chunks
from mlet_tf.errors import InputError


class Executor(BeamExecutor):
    """Reads raw logs into examples; see `Do`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the splits of one Examples artifact.

        Args:
            input_dict: Nothing.
            output_dict: `examples`: one Examples artifact. In its folder are written `Split-train`, `Split-eval`,
                `counts` (the values of `train`), `rejects` (where rows were rejected) and `ingest_report.json`.
            exec_properties: `input_base` and `input_config`: the files; `output_config`: the names of the splits;
                `custom_config`: an `IngestConfig`.

        Raises:
            InputError: The log is not as described, too many rows are malformed, a split is empty, or the output
                cannot be written.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        started = time.monotonic()
        inputs, outputs, custom = (
            example_gen_pb2.Input(),
            example_gen_pb2.Output(),
            example_gen_pb2.CustomConfig(),
        )
        proto_utils.json_to_proto(exec_properties[standard_component_specs.INPUT_CONFIG_KEY], inputs)
        proto_utils.json_to_proto(exec_properties[standard_component_specs.OUTPUT_CONFIG_KEY], outputs)
        proto_utils.json_to_proto(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY], custom)
        config = IngestConfig.from_proto(custom)
        examples = artifact_utils.get_single_instance(output_dict[standard_component_specs.EXAMPLES_KEY])

        examples.split_names = artifact_utils.encode_split_names(
            utils.generate_output_split_names(inputs, outputs)
        )
        tasks = _plan(exec_properties[standard_component_specs.INPUT_BASE_KEY], inputs, config)
        staging = f"{examples.uri}/staging"
        _make_folder(staging)
        cut = self._cut(tasks, config, staging)
        write = functools.partial(write_chunk, config=config, cut=cut, folder=staging)
        results = self._run(tasks, write, f"{staging}/results")
        rows = _check(tasks, results, config)
        with writing(examples.uri):
            _move_into_place(examples, tasks, results, config)
            remove_folder(staging)

        shards = [split for result in results for split, _, _ in result.shards]
        report = {
            "schema": config.schema.name,
            "method": config.method,
            "cut": cut,
            "rows": rows,
            "files": sorted({task.chunk.path for task in tasks}),
            "chunks": len(tasks),
            "shards": {split: shards.count(split) for split in (TRAIN, EVAL)},
            "seconds": round(time.monotonic() - started, 3),
        }
        with writing(examples.uri):
            write_ingest_report(examples.uri, report)
        _describe(examples, exec_properties, rows)
        logging.info("Rows: %s", ", ".join(f"{count} {name}" for name, count in rows.items()))

    def _cut(self, tasks: list[Task], config: IngestConfig, staging: str) -> int | None:
        if config.method != "time" or config.cut is not None:
            return config.cut
        found = self._run(tasks, functools.partial(count_times, config=config), f"{staging}/times")
        return choose_cut(found, config.eval_share)

    def _run(self, tasks: list[Task], function: Callable[[Task], Any], folder: str) -> list[Any]:
        _make_folder(folder)
        return run_tasks(self._make_beam_pipeline, function, tasks, folder)


def _plan(base: str, inputs: example_gen_pb2.Input, config: IngestConfig) -> list[Task]:
    tasks: list[Task] = []
    for split in inputs.splits:
        files = input_files(base, split.pattern)
        for chunk in plan_chunks(files, config.schema, config.chunk_bytes):
            tasks.append(Task(len(tasks), chunk, split.name if config.method == "files" else None))
    return tasks


def _make_folder(path: str) -> None:
    try:
        tf.io.gfile.makedirs(path)
    except tf.errors.OpError as error:
        raise InputError(f"The folder {path} cannot be made: {error.message}") from error


def _check(tasks: list[Task], results: list[Result], config: IngestConfig) -> dict[str, int]:
    """Checks that nothing was lost and that the rows are good enough; returns the counts."""
    for result in results:
        if result.error:
            raise InputError(result.error)
    rows = {"read": sum(result.rows for result in results)}
    for split in (TRAIN, EVAL):
        rows[split] = sum(count for result in results for name, _, count in result.shards if name == split)
        encoded = sum(result.encoded[split] for result in results)
        if rows[split] != encoded:
            raise RuntimeError(
                f"{encoded} rows were written to split {split!r}, {rows[split]} can be read again"
            )
    rows["rejected"] = sum(result.rejected for result in results)
    if rows["read"] != rows[TRAIN] + rows[EVAL] + rows["rejected"]:
        raise RuntimeError(f"Rows in should be rows out and rejected. Received: {rows}")
    shown = [
        Reject(**{**row, "line": row["line"] + offset})
        for result, offset in zip(results, _offsets(tasks, results, config), strict=True)
        for row in result.first_rejects
    ]
    check_reject_share(rows["read"], rows["rejected"], shown, config.max_reject_share)
    for split in (TRAIN, EVAL):
        if rows[split] == 0:
            raise InputError(
                f"Split {split!r} should have at least one row. Received: {_how_split(rows, config)}"
            )
    return rows


def _how_split(rows: dict[str, int], config: IngestConfig) -> str:
    how = {
        "hash": f"eval_share {config.eval_share}",
        "time": f"cut {config.cut}",
        "files": "files of its own",
    }
    return f"{rows['read']} rows read, {rows['rejected']} rejected, split by {config.method} ({how[config.method]})"


def _offsets(tasks: list[Task], results: list[Result], config: IngestConfig) -> list[int]:
    """How many lines of its file come before each chunk."""
    return lines_before([task.chunk for task in tasks], [result.lines for result in results], config.schema)


def _move_into_place(
    examples: types.Artifact, tasks: list[Task], results: list[Result], config: IngestConfig
) -> None:
    for split in (TRAIN, EVAL):
        folder = artifact_utils.get_split_uri([examples], split)
        _make_folder(folder)
        paths = [path for result in results for name, path, _ in result.shards if name == split]
        for i, path in enumerate(paths):
            tf.io.gfile.rename(path, f"{folder}/data_tfrecord-{i:05d}-of-{len(paths):05d}.gz")
    _make_folder(f"{examples.uri}/{COUNTS_FOLDER}")
    for i, path in enumerate(path for result in results for path in result.counts):
        tf.io.gfile.rename(path, f"{examples.uri}/{COUNTS_FOLDER}/counts-{i:05d}.arrow")
    offsets = _offsets(tasks, results, config)
    rejects = [(r.rejects_file, offset) for r, offset in zip(results, offsets, strict=True) if r.rejects_file]
    if rejects:
        _make_folder(f"{examples.uri}/rejects")
    for i, (path, offset) in enumerate(rejects):
        _number_lines(path, offset, f"{examples.uri}/rejects/rejects-{i:05d}.jsonl")


def _number_lines(path: str, offset: int, target: str) -> None:
    """Copies rejects, with lines counted from the start of the file."""
    with tf.io.gfile.GFile(path) as source, tf.io.gfile.GFile(target, "w") as out:
        for line in source:
            row = json.loads(line)
            out.write(json.dumps({**row, "line": row["line"] + offset}) + "\n")


def _describe(examples: types.Artifact, exec_properties: dict[str, Any], rows: dict[str, int]) -> None:
    for name, count in rows.items():
        examples.set_int_custom_property(f"rows_{name}", count)
    payload = exec_properties.get(standard_component_specs.OUTPUT_DATA_FORMAT_KEY)
    examples_utils.set_payload_format(examples, payload or example_gen_pb2.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(
        examples, write_split.to_file_format_str(example_gen_pb2.FORMAT_TFRECORDS_GZIP)
    )
