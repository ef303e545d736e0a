"""Preprocesses one log, a stage at a time, on Beam's in-memory runner; each step of the harness is a stage."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from benchmarks import _harness
from mlet_tf.datasets import ClickLogSchema

MIN_COUNT = 2


def stock_preprocessing_fn(inputs: dict[str, Any], custom_config: dict[str, Any]) -> dict[str, Any]:
    """What a user of tensorflow-transform writes: an analyzer a category."""
    import tensorflow as tf
    import tensorflow_transform as tft

    schema = ClickLogSchema.from_dict(custom_config["schema"])
    outputs = {schema.label: inputs[schema.label]}
    for name in schema.integers:
        column = inputs[name]
        shape = tf.stack([column.dense_shape[0], 1])
        values = tf.sparse.to_dense(tf.SparseTensor(column.indices, column.values, shape))
        values = tf.ensure_shape(tf.cast(values, tf.float32), [None, 1])
        outputs[name] = tf.sign(values) * tf.math.log1p(tf.abs(values))
    for name in schema.categoricals:
        outputs[name] = tft.compute_and_apply_vocabulary(
            inputs[name], frequency_threshold=MIN_COUNT, num_oov_buckets=1, vocab_filename=name
        )
    return outputs


def stock(spec: dict[str, Any], schema: ClickLogSchema, folder: Path) -> Iterator[Callable[[], Any]]:
    """CsvExampleGen, then Transform with materialised ids; without its statistics, which ours has not either."""
    from tfx.components import CsvExampleGen, Transform
    from tfx.components.example_gen.csv_example_gen import executor as csv_executor
    from tfx.components.transform import executor as transform_executor
    from tfx.proto import example_gen_pb2

    path = Path(spec["path"])
    files = example_gen_pb2.Input(splits=[example_gen_pb2.Input.Split(name="all", pattern=path.name)])
    node = CsvExampleGen(input_base=str(path.parent), input_config=files)
    examples = _artifact(node, "examples", folder)
    yield lambda: csv_executor.Executor().Do({}, {"examples": [examples]}, _properties(node))
    node = Transform(
        examples=node.outputs["examples"],
        schema=_schema_channel(),
        preprocessing_fn="benchmarks._preprocessing_worker.stock_preprocessing_fn",
        custom_config={"schema": spec["schema"]},
        disable_statistics=True,
    )
    outputs = {name: [_artifact(node, name, folder)] for name in node.outputs}
    inputs = {"examples": [examples], "schema": [_write_schema(schema, folder)]}
    yield lambda: transform_executor.Executor().Do(inputs, outputs, _properties(node))


def ours(spec: dict[str, Any], schema: ClickLogSchema, folder: Path) -> Iterator[Callable[[], Any]]:
    """ClickLogExampleGen, Transform, then all rows packed for the trainer."""
    from mlet_tf.components.click_log_example_gen import ClickLogExampleGen
    from mlet_tf.components.click_log_example_gen import executor as example_executor
    from mlet_tf.components.transform import Transform
    from mlet_tf.components.transform import executor as transform_executor

    from mlet_tf.config import VocabularyConfig
    from mlet_tf.features.packing import pack_examples
    from mlet_tf.features.transform_graph import TransformGraph

    node = ClickLogExampleGen(schema, spec["path"])
    examples = _artifact(node, "examples", folder)
    yield lambda: example_executor.Executor().Do({}, {"examples": [examples]}, _properties(node))
    vocabulary = VocabularyConfig(min_count=MIN_COUNT).to_plain()
    node = Transform(
        examples=node.outputs["examples"],
        schema=_schema_channel(),
        preprocessing_fn="mlet_tf.features.preprocessing.preprocessing_fn",
        custom_config={"schema": spec["schema"], **vocabulary, "frequency_slices": []},
    )
    graph = _artifact(node, "transform_graph", folder)
    inputs = {"examples": [examples], "schema": [_write_schema(schema, folder)]}
    yield lambda: transform_executor.Executor().Do(inputs, {"transform_graph": [graph]}, _properties(node))

    def pack() -> None:
        transform = TransformGraph(graph.uri)
        for split in ("train", "eval"):
            pack_examples([f"{examples.uri}/Split-{split}/*"], schema, transform, folder / "packed" / split)

    yield pack


def statistics(spec: dict[str, Any], schema: ClickLogSchema, folder: Path) -> Iterator[Callable[[], Any]]:
    """StatisticsGen on the examples of `ours`: all rows, then the share that the large configurations ask for."""
    from mlet_tf.components.statistics_gen import StatisticsGen, executor

    inputs = {"examples": [_examples(spec)], "schema": [_write_schema(schema, folder)]}
    for share in (1.0, 0.02):
        node = StatisticsGen(_examples_channel(), _schema_channel(), sample_rate=share)
        output = _artifact(node, "statistics", folder / str(share))
        properties = node.exec_properties
        yield lambda: executor.Executor().Do(inputs, {"statistics": [output]}, properties)  # noqa: B023


def stock_statistics(
    spec: dict[str, Any], schema: ClickLogSchema, folder: Path
) -> Iterator[Callable[[], Any]]:
    """TFX's StatisticsGen on the same examples."""
    from tfx.components import StatisticsGen
    from tfx.components.statistics_gen import executor

    inputs = {"examples": [_examples(spec)], "schema": [_write_schema(schema, folder)]}
    node = StatisticsGen(_examples_channel(), _schema_channel())
    outputs = {"statistics": [_artifact(node, "statistics", folder)]}
    yield lambda: executor.Executor().Do(inputs, outputs, _properties(node))


def arrow(spec: dict[str, Any], schema: ClickLogSchema, folder: Path) -> Iterator[Callable[[], Any]]:
    """The practical limit: the log as one table in memory, counted and numbered by Arrow's kernels."""

    def run() -> None:
        types = {name: pa.binary() for name in schema.categoricals} | dict.fromkeys(
            schema.integers, pa.int64()
        )
        table = pacsv.read_csv(
            spec["path"],
            parse_options=pacsv.ParseOptions(delimiter=schema.separator, quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=True),
        )
        packed = np.empty((table.num_rows, 1 + 2 * len(schema.integers) + len(schema.categoricals)), np.int32)
        packed[:, 0] = table[schema.label].to_numpy()
        for i, name in enumerate(schema.integers):
            values = table[name].fill_null(0).to_numpy()
            packed[:, 1 + 2 * i] = (
                (np.sign(values) * np.log1p(np.abs(values))).astype(np.float32).view(np.int32)
            )
            packed[:, 2 + 2 * i] = table[name].is_null().to_numpy()
        for i, name in enumerate(schema.categoricals, 1 + 2 * len(schema.integers)):
            counts = table[name].value_counts()
            ranked = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
            ranked = ranked.filter(pc.greater_equal(ranked["count"], MIN_COUNT)).sort_by(
                [("count", "descending"), ("value", "descending")]
            )
            ids = pc.index_in(table[name], value_set=ranked["value"].combine_chunks())
            packed[:, i] = ids.fill_null(ranked.num_rows).to_numpy()
        packed.tofile(folder / "packed")

    yield run


def polars(spec: dict[str, Any], schema: ClickLogSchema, folder: Path) -> Iterator[Callable[[], Any]]:
    """The same with polars."""
    import polars as pl

    def run() -> None:
        types = dict.fromkeys(schema.categoricals, pl.String) | dict.fromkeys(schema.integers, pl.Int64)
        table = pl.read_csv(spec["path"], separator=schema.separator, quote_char=None, schema_overrides=types)
        columns = [table[schema.label].cast(pl.Float32)]
        for name in schema.integers:
            values = table[name].fill_null(0)
            columns.append((values.sign() * values.abs().log1p()).cast(pl.Float32).alias(name))
            columns.append(table[name].is_null().cast(pl.Float32).alias(f"{name} missing"))
        for name in schema.categoricals:
            counts = table[name].drop_nulls().value_counts().filter(pl.col("count") >= MIN_COUNT)
            ranked = counts.sort(["count", name], descending=True)[name].to_frame()
            ranked = ranked.with_row_index("id")
            ids = table[[name]].join(ranked, on=name, how="left", maintain_order="left")["id"]
            columns.append(ids.fill_null(len(ranked)).cast(pl.Int32).alias(name))
        pl.DataFrame(columns).write_ipc(folder / "packed")

    yield run


def _artifact(node: Any, name: str, folder: Path) -> Any:
    artifact = node.outputs[name].type()
    artifact.uri = str(folder / name)
    return artifact


def _examples(spec: dict[str, Any]) -> Any:
    from tfx.types import standard_artifacts

    artifact = standard_artifacts.Examples()
    artifact.uri, artifact.split_names = spec["examples"], json.dumps(["train", "eval"])
    return artifact


def _examples_channel() -> Any:
    from tfx import types
    from tfx.types import standard_artifacts

    return types.Channel(type=standard_artifacts.Examples)


def _schema_channel() -> Any:
    from tfx import types
    from tfx.types import standard_artifacts

    return types.Channel(type=standard_artifacts.Schema)


def _write_schema(schema: ClickLogSchema, folder: Path) -> Any:
    from tfx.types import standard_artifacts

    from mlet_tf.config import ValidationConfig
    from mlet_tf.features.validation import schema_text

    artifact = standard_artifacts.Schema()
    artifact.uri = str(folder / "schema")
    Path(artifact.uri).mkdir()
    Path(artifact.uri, "schema.pbtxt").write_text(schema_text(schema, ValidationConfig()))
    return artifact


def _properties(node: Any) -> dict[str, Any]:
    """What TFX makes of a component's arguments on their way to the executor."""
    from tfx.utils import proto_utils

    return {
        key: value if isinstance(value, str | int) or value is None else proto_utils.proto_to_json(value)
        for key, value in node.exec_properties.items()
    }


def main() -> None:
    """Serves the stages of the variant named on the command line."""
    spec = json.loads(sys.argv[1])
    schema = ClickLogSchema.from_dict(spec["schema"])
    variants = {
        function.__name__: function for function in (stock, ours, statistics, stock_statistics, arrow, polars)
    }
    stages = variants[spec["variant"]](spec, schema, Path(spec["folder"]))
    stage = next(stages)  # Imports come before the clock starts.

    def step(runs: int) -> float:
        """Gives the wall time in place of a loss."""
        nonlocal stage
        started = time.monotonic()
        for _ in range(runs):
            stage()
            stage = next(stages, None)
        return time.monotonic() - started

    _harness.serve(step)


if __name__ == "__main__":
    main()
