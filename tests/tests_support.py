"""What several test modules need and no fixture gives."""

ROWS = 3000
DENSE, VOCABULARY = 3, 50
TIMEOUT = 900  # Seconds for a process; the machine may be busy with other things.


def raw_columns(rows):
    """Rows of texts as the inputs of `predict_raw`."""
    import tensorflow as tf  # Not above: tests of the other Keras backends run where there is none.

    return {name: tf.constant([row[name] for row in rows]) for name in rows[0]}


def write_packed_rows(path, rows, seed, sparse=2):
    """Rows for the trainer with ids below `VOCABULARY`, below 7 from the third feature on."""
    import numpy as np

    from mlet_tf.features.packed_rows import PackedRows

    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, (rows, sparse)).astype(np.int32)
    ids[:, 2:] %= 7
    dense = rng.normal(size=(rows, DENSE)).astype(np.float32)
    label = (rng.random(rows) < 1 / (1 + np.exp(-dense[:, 0] - (ids[:, 0] % 5 - 2)))).astype(np.float32)
    np.concatenate([label[:, None].view(np.int32), dense.view(np.int32), ids], axis=1).tofile(path)
    return PackedRows(str(path), rows, DENSE, sparse)


def run_example_gen(uri, schema, train, *args, beam=None, **kwargs):
    """Runs ClickLogExampleGen's executor on what the component hands it; returns the Examples artifact."""
    from mlet_tf.components.click_log_example_gen import ClickLogExampleGen, executor
    from tfx.types import standard_artifacts

    node = ClickLogExampleGen(schema, str(train), *args, **kwargs)
    examples = standard_artifacts.Examples()
    examples.uri = str(uri)
    context = executor.Executor.Context(beam_pipeline_args=beam)
    executor.Executor(context).Do({}, {"examples": [examples]}, _properties(node))
    return examples


def run_transform(uri, schema, examples, beam=None, **config):
    """Runs Transform's executor on examples; returns the transform graph as tft reads it.

    `config` has keys of `VocabularyConfig`, and `frequency_slices`.
    """

    import tensorflow_transform as tft
    from mlet_tf.components.transform import Transform, executor
    from tfx import types
    from tfx.types import standard_artifacts

    from mlet_tf.config import VocabularyConfig

    slices = config.pop("frequency_slices", [])
    node = Transform(
        examples=types.Channel(type=standard_artifacts.Examples),
        schema=types.Channel(type=standard_artifacts.Schema),
        preprocessing_fn="mlet_tf.features.preprocessing.preprocessing_fn",
        custom_config={
            "schema": schema.to_dict(),
            **VocabularyConfig(**config).to_plain(),
            "frequency_slices": slices,
        },
    )
    graph = standard_artifacts.TransformGraph()
    graph.uri = f"{uri}/graph"
    context = executor.Executor.Context(beam_pipeline_args=beam)
    inputs = {"examples": [examples], "schema": [write_schema(uri, schema)]}
    executor.Executor(context).Do(inputs, {"transform_graph": [graph]}, _properties(node))
    return tft.TFTransformOutput(graph.uri)


def run_statistics_gen(uri, schema, examples, beam=None, **kwargs):
    """Runs StatisticsGen's executor on examples; returns the statistics by split."""
    from pathlib import Path

    from tensorflow_metadata.proto.v0 import statistics_pb2

    statistics = make_statistics(uri, schema, examples, beam, **kwargs)
    return {
        split: statistics_pb2.DatasetFeatureStatisticsList.FromString(
            Path(statistics.uri, f"Split-{split}", "FeatureStats.pb").read_bytes()
        )
        for split in ("train", "eval")
    }


def make_statistics(uri, schema, examples, beam=None, **kwargs):
    """Runs StatisticsGen's executor on examples; returns the artifact."""
    from mlet_tf.components.statistics_gen import StatisticsGen, executor
    from tfx import types
    from tfx.types import standard_artifacts

    node = StatisticsGen(
        examples=types.Channel(type=standard_artifacts.Examples),
        schema=types.Channel(type=standard_artifacts.Schema),
        **kwargs,
    )
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = f"{uri}/statistics"
    context = executor.Executor.Context(beam_pipeline_args=beam)
    inputs = {"examples": [examples], "schema": [write_schema(uri, schema)]}
    properties = {key: node.exec_properties[key] for key in ("sample_rate", "min_rows")}
    executor.Executor(context).Do(inputs, {"statistics": [statistics]}, properties)
    return statistics


def write_schema(uri, schema):
    """The artifact that ClickLogSchemaGen makes."""
    from pathlib import Path

    from tfx.types import standard_artifacts

    from mlet_tf.config import ValidationConfig
    from mlet_tf.features.validation import schema_text

    artifact = standard_artifacts.Schema()
    artifact.uri = f"{uri}/schema"
    Path(artifact.uri).mkdir(parents=True, exist_ok=True)
    Path(artifact.uri, "schema.pbtxt").write_text(schema_text(schema, ValidationConfig()))
    return artifact


def _properties(node):
    """What TFX makes of a component's arguments on their way to the executor."""
    from tfx.utils import proto_utils

    return {
        key: value if isinstance(value, str | int) or value is None else proto_utils.proto_to_json(value)
        for key, value in node.exec_properties.items()
    }
