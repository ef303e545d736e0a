"""From a raw log to a folder of examples: chunks are written separately, checked, and renamed into place."""

import collections
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from mlet_tf.datasets.parts import check_listed
from mlet_tf.datasets.reading import Reject, check_reject_share, lines_before, plan_chunks
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion.config import EVAL, TRAIN, IngestConfig
from mlet_tf.features.ingestion.report import COUNTS_FOLDER, write_ingest_report
from mlet_tf.features.ingestion.shards import Result, Task, write_chunk
from mlet_tf.features.ingestion.times import choose_cut, count_times
from mlet_tf.storage import remove, writing

# Calls a function on each task, perhaps on other machines, with results through a folder; returns them in order.
Run = Callable[[Callable[[Task], Any], Sequence[Task], str], list[Any]]


def ingest(
    inputs: Mapping[str, Sequence[str]], config: IngestConfig, run: Run, folder: str
) -> dict[str, int]:
    """Writes `Split-train`, `Split-eval`, `counts` (the values of `train`), `rejects` and `ingest_report.json`.

    Args:
        inputs: Files of the log; by split if the method is `"files"`.
        config: How the log is read and split.
        run: Calls a function on each chunk.
        folder: Folder to write.

    Returns:
        Rows: `read`, `train`, `eval` and `rejected`.

    Raises:
        InputError: The log is not as described, too many rows are malformed, a split is empty, or the output
            cannot be written.
        RuntimeError: Rows were lost.
    """
    started = time.monotonic()
    tasks = _plan(inputs, config)
    staging = f"{folder}/staging"
    _make_folder(staging)
    cut = _cut(tasks, config, run, f"{staging}/times")
    write = functools.partial(write_chunk, config=config, cut=cut, folder=staging)
    results = run(write, tasks, f"{staging}/results")
    rows = _check(tasks, results, config)
    with writing(folder):
        _move_into_place(folder, tasks, results, config)
        remove(staging)
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
    with writing(folder):
        write_ingest_report(folder, report)
    return rows


def _plan(inputs: Mapping[str, Sequence[str]], config: IngestConfig) -> list[Task]:
    tasks: list[Task] = []
    for split, files in inputs.items():
        for chunk in plan_chunks(files, config.schema_to_read, config.chunk_bytes):
            tasks.append(Task(len(tasks), chunk, split if config.method == "files" else None))
    return tasks


def _cut(tasks: list[Task], config: IngestConfig, run: Run, folder: str) -> int | None:
    schema = config.schema
    if config.method != "time" or config.cut is not None or schema.time is None:
        return config.cut
    count = functools.partial(count_times, schema=schema, column=schema.time.name)
    return choose_cut(run(count, tasks, folder), config.eval_share)


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
    if config.column is not None:
        unlisted: collections.Counter[str] = collections.Counter()
        for result in results:
            unlisted.update(result.unlisted)
        check_listed(unlisted, config.column, "data.split.parts")
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
        "column": f"column {config.column!r}",
    }
    return f"{rows['read']} rows read, {rows['rejected']} rejected, split by {config.method} ({how[config.method]})"


def _offsets(tasks: list[Task], results: list[Result], config: IngestConfig) -> list[int]:
    """How many lines of its file come before each chunk."""
    return lines_before([task.chunk for task in tasks], [result.lines for result in results], config.schema)


def _move_into_place(folder: str, tasks: list[Task], results: list[Result], config: IngestConfig) -> None:
    for split in (TRAIN, EVAL):
        _make_folder(f"{folder}/Split-{split}")
        paths = [path for result in results for name, path, _ in result.shards if name == split]
        for i, path in enumerate(paths):
            name = f"data_tfrecord-{i:05d}-of-{len(paths):05d}.gz"
            tf.io.gfile.rename(path, f"{folder}/Split-{split}/{name}")
    _make_folder(f"{folder}/{COUNTS_FOLDER}")
    for i, path in enumerate(path for result in results for path in result.counts):
        tf.io.gfile.rename(path, f"{folder}/{COUNTS_FOLDER}/counts-{i:05d}.arrow")
    offsets = _offsets(tasks, results, config)
    rejects = [(r.rejects_file, offset) for r, offset in zip(results, offsets, strict=True) if r.rejects_file]
    if rejects:
        _make_folder(f"{folder}/rejects")
    for i, (path, offset) in enumerate(rejects):
        _number_lines(path, offset, f"{folder}/rejects/rejects-{i:05d}.jsonl")


def _number_lines(path: str, offset: int, target: str) -> None:
    """Copies rejects, with lines counted from the start of the file."""
    with tf.io.gfile.GFile(path) as source, tf.io.gfile.GFile(target, "w") as out:
        for line in source:
            row = json.loads(line)
            out.write(json.dumps({**row, "line": row["line"] + offset}) + "\n")
